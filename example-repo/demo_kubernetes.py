"""The product's story on a Kubernetes cluster: `make demo PLATFORM=kubernetes`.

Installs Backstay from bootstrap/, injects the Sentiment Analysis application, makes a git server inside the cluster, and
pushes: a good commit, a bad one that comes back by itself, an unrelated one that flows past it, an invalid one, a policy
that denies everybody. Every command is shown as it is typed, with kubectl's own answer; what is believed is what the
objects' conditions and the visitors' own counts say. Exit 0 only if each of these happened.

The cluster is the one that KUBECONFIG names, with the images in its registry, or else the test cluster of this checkout
(`make cluster`). KEEP=1 leaves everything running at the end.
"""

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from backstay.cli.picture import failures

HERE: Final = Path(__file__).resolve().parent
ROOT: Final = HERE.parent
sys.path.insert(0, str(ROOT / "tests"))  # the test cluster and its git server are a package of the tests

from cluster import builds, gitserver  # noqa: E402 - found by the line above
from cluster.lifecycle import Level  # noqa: E402 - likewise
from cluster.reach import NoCluster, Reach, at_least  # noqa: E402 - likewise

SYSTEM: Final = "backstay-system"
SHOP: Final = "shop"
GIT: Final = "git"
RATE: Final = 60
"""Requests per second of the visitors: what a one-node cluster on two busy cores carries, and evidence within a minute."""
TIMES: Final = """
  # Demo times: nobody wants to watch for ten minutes. The statistics are the same as ever.
  rollout:
    shares: [5, 25, 60, 100]
    soak: 2s
    deadline: 45s
    warmUp: 5s
    confirmWithin: 60s
    bakeTime: 5s
"""
LOCKDOWN: Final = """\
apiVersion: backstay.dev/v1alpha1
kind: Authorization
metadata:
  name: lockdown
  namespace: shop
spec:
  selector:
    workloads: [sa-webapp]
  action: Allow
  rules: []
"""
REPOSITORY: Final = """\
apiVersion: backstay.dev/v1alpha1
kind: MeshRepository
metadata:
  name: shop
  namespace: shop
spec:
  url: {url}
  ref: {{branch: main}}
  interval: 1s
  secretRef: {{name: mesh-git}}
"""
MOVING: Final = frozenset({"preparing", "shifting", "holding", "suspecting", "rolling-back"})
LONG_MS: Final = 5000
"""Age of a request that only v3 can have kept: the others answer in milliseconds, on a busy machine in a second or two."""
PATIENCE: Final = 300.0
"""Seconds for anything to happen: a CI machine starts thirty containers on two cores that others use as well."""


class StoryBroken(Exception):
    """Something that had to happen did not."""


# --- kubectl ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Kubectl:
    """kubectl as the reader of the story sees it."""

    reach: Reach

    def show(self, command: str, *, stdin: str | None = None, timeout: float = PATIENCE) -> str:
        """Run it, with what was typed and what it answered. Raises StoryBroken."""
        print(f"  $ kubectl {command}", flush=True)
        said = self.ask(command, stdin=stdin, timeout=timeout)
        for line in said.splitlines():
            print(f"    {line}".rstrip(), flush=True)
        return said

    def ask(self, command: str, *, stdin: str | None = None, timeout: float = PATIENCE) -> str:
        """Run it silently."""
        try:
            return self.reach.kubectl(*shlex.split(command), stdin=stdin, timeout=timeout)
        except (AssertionError, subprocess.TimeoutExpired) as error:
            raise StoryBroken(str(error)) from error

    def object(self, command: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.ask(f"{command} -o json"))
        return found


# --- the visitors -----------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Visitors:
    """What the traffic generator says, one line of JSON a second, as `kubectl logs` has it."""

    kubectl: Kubectl
    pod: str = ""
    lines: list[dict[str, Any]] = field(default_factory=list)

    def follow(self) -> None:
        """The one pod that stays. `kubectl logs deployment/visitors` may choose one that is being replaced, whose last line
        counts what it left unfinished."""
        pods = self.kubectl.object(f"get pods -n {SHOP} -l app=visitors")["items"]
        [self.pod] = [each["metadata"]["name"] for each in pods if "deletionTimestamp" not in each["metadata"]]

    def look(self) -> None:
        """The whole log: seconds are numbered, a restart would begin at 0 again and be seen as too few lines."""
        told = self.kubectl.ask(f"logs -n {SHOP} {self.pod} -c app --tail=-1")
        self.lines = [json.loads(line) for line in told.splitlines() if line.startswith("{")]

    def mark(self) -> int:
        self.look()
        return len(self.lines)

    def failed_since(self, mark: int) -> int:
        self.look()
        if len(self.lines) < mark:
            raise StoryBroken("the visitors' pod was restarted: their count is lost")
        return sum(failures(line) for line in self.lines[mark:])

    def outcomes_since(self, mark: int) -> str:
        """Second by second, where not all was well: when, and what they got."""
        bad = [line for line in self.lines[mark:] if failures(line)]
        return "; ".join(f"second {line['second']}: {line['outcomes']}, p99 {line['p99_ms']} ms" for line in bad)

    @property
    def steady(self) -> bool:
        self.look()
        return len(self.lines) > 3 and all(
            failures(line) == 0 and sum(line["outcomes"].values()) > RATE * 0.5 for line in self.lines[-3:]
        )

    @property
    def settled(self) -> bool:
        """Well, and nothing is open from the time before: without a route v3 is asked as well, and hangs."""
        return self.steady and self.lines[-1]["oldest_ms"] < LONG_MS


# --- the story --------------------------------------------------------------------------------------------------------


class Story:
    """Plays the chapters in order; each raises StoryBroken unless it really happened."""

    def __init__(self, reach: Reach, folder: Path) -> None:
        self.reach = reach
        self.kubectl = Kubectl(reach)
        self.visitors = Visitors(self.kubectl)
        self._folder = folder
        self._clone: gitserver.Clone | None = None
        self.chapters = 0

    def play(self) -> None:
        self._install()
        self._inject()
        self._connect()
        self._good()
        self._bad()
        self._unrelated()
        self._invalid()
        self._deny_everybody()

    @property
    def clone(self) -> gitserver.Clone:
        if self._clone is None:
            raise StoryBroken("there is no repository yet")
        return self._clone

    def _install(self) -> None:
        self._chapter("Backstay is installed")
        if self.reach.ours is not None:
            for name in builds.IMAGES:
                self.reach.ours.load(builds.archive(name, lambda text: print(f"  {text}", flush=True)))
        self.kubectl.show(f"apply -k {relative(ROOT / 'bootstrap')}")
        self.kubectl.show(f"-n {SYSTEM} rollout status deployment/backstay-operator --timeout={PATIENCE:.0f}s")
        self.kubectl.show(f"-n {SYSTEM} get pods")

    def _inject(self) -> None:
        self._chapter("A namespace gets sidecars")
        self.kubectl.show(f"create namespace {SHOP}")
        self.kubectl.show(f"label namespace {SHOP} backstay.dev/inject=enabled")
        self.kubectl.show(f"apply -n {SHOP} -k {relative(HERE / 'kubernetes')}")
        faster = [{"op": "replace", "path": "/spec/template/spec/containers/0/args/4", "value": str(RATE)}]
        self.kubectl.ask(f"-n {SHOP} patch deployment visitors --type=json -p {shlex.quote(json.dumps(faster))}")
        self.kubectl.show(f"-n {SHOP} wait --for=condition=Available deployment --all --timeout={PATIENCE:.0f}s")
        self.kubectl.ask(f"-n {SHOP} rollout status deployment/visitors --timeout={PATIENCE:.0f}s")
        self.kubectl.show(f"-n {SHOP} get pods")
        self.visitors.follow()
        self._until(lambda: self.visitors.steady, "steady traffic")
        self._done(f"{RATE} requests a second, all answered, mTLS between all pods")

    def _connect(self) -> None:
        self._chapter("A repository takes charge of it")
        server = self._serve_git()
        self._clone = gitserver.clone(server, "shop", self._folder / "mesh", HERE / "mesh")
        self._quicken()
        sha = self._push("The mesh as it is")
        self.kubectl.show(f"apply -f {self._manifest(server)}")
        self._until(lambda: self._desired(sha), "the operator to see the first commit")
        self._wait("Ready")
        self.kubectl.show(f"-n {SHOP} get meshrepositories")
        self._until(self._programmed, "every proxy to have every document")
        self.kubectl.show(f"-n {SHOP} get meshintents")
        self._until(lambda: self.visitors.settled, "the last requests of before to end")
        self._done("every document is live, and says where in git it stands")

    def _serve_git(self) -> gitserver.GitServer:
        self.kubectl.ask(f"create namespace {GIT}")
        server = gitserver.deploy(self.reach, GIT)
        secret = ["-n", SHOP, "create", "secret", "generic", "mesh-git", f"--from-literal=ca.crt={server.ca}"]
        self.reach.kubectl(*secret)
        grant = (ROOT / "bootstrap" / "examples" / "repository-secret.yaml").read_text(encoding="utf-8")
        self.kubectl.ask("apply -f -", stdin=grant.partition("---\n")[2])
        self._say(f"git is served inside the cluster: {server.url('shop')}")
        return server

    def _manifest(self, server: gitserver.GitServer) -> Path:
        file = self._folder / "mesh-repository.yaml"
        file.write_text(REPOSITORY.format(url=server.url("shop")), encoding="utf-8")
        return file

    def _quicken(self) -> None:
        path = self.clone.folder / "mesh.yaml"
        head, _, _ = path.read_text(encoding="utf-8").partition("  # How a change goes out")
        path.write_text(head + TIMES.lstrip("\n"), encoding="utf-8")

    def _good(self) -> None:
        self._chapter("A good commit: a tenth of sa-logic to v2")
        self.clone.edit("shop/sa-logic.yaml", "subset: v1, weight: 100", "subset: v1, weight: 90")
        self.clone.edit("shop/sa-logic.yaml", "subset: v2, weight: 0", "subset: v2, weight: 10")
        mark = self.visitors.mark()
        sha = self._push("sa-logic: a tenth to v2")
        self._until(lambda: self._rollout_of(sha), "its rollout to begin")
        self._wait("Ready")
        self.kubectl.show(f"-n {SHOP} get meshrollouts")
        self._must_be(sha, phase=("succeeded", "baking"))
        self._no_harm(mark, "the good commit")
        self._done("live, wave by wave; no request failed")

    def _bad(self) -> None:
        self._chapter("A bad commit: everything to v3, the buggy one")
        self.clone.edit("shop/sa-logic.yaml", "subset: v1, weight: 90", "subset: v3, weight: 100")
        self.clone.edit("shop/sa-logic.yaml", "subset: v2, weight: 10", "subset: v2, weight: 0")
        self._comes_back("sa-logic: v3 for everybody")

    def _unrelated(self) -> None:
        self._chapter("An unrelated commit flows while the bad document stays held")
        self.clone.edit("shop/sa-webapp.yaml", "request: 10s", "request: 12s")
        mark = self.visitors.mark()
        sha = self._push("sa-webapp: a little more time")
        self._until(lambda: self._rollout_of(sha), "its rollout to begin")
        self._until(lambda: self._phase(sha) not in MOVING, "it to be live")
        self._must_be(sha, phase=("succeeded", "baking"))
        held = [key for item in self._status()["held"] for key in item["documents"]]
        if "Route/shop/sa-logic" not in held:
            raise StoryBroken(f"the bad document is not held any more: {held}")
        self._no_harm(mark, "the unrelated commit")
        self.kubectl.show(f"-n {SHOP} get meshintents")
        self._done("live; Route/shop/sa-logic stays held at its old content")

    def _invalid(self) -> None:
        self._chapter("An invalid commit: a weight in words")
        self.clone.edit("shop/sa-webapp.yaml", "request: 2s", "request: two seconds")
        sha = self._push("sa-webapp: two seconds")
        self._until(lambda: self._status()["problems"], f"commit {sha[:12]} to be refused")
        self.kubectl.show(
            f"-n {SHOP} get meshrepository shop -o jsonpath='{{.status.conditions[?(@.type==\"Ready\")].message}}'"
        )
        first = "{file}:{line}:{column}: {path}: {message} [{reason}]".format(**self._status()["problems"][0])
        if not first.startswith("shop/sa-webapp.yaml:21:16: "):
            raise StoryBroken(f"the refusal does not name file and line: {first}")
        self.clone.edit("shop/sa-webapp.yaml", "request: two seconds", "request: 2s")
        self._done(f"refused, nothing changed: {first}")

    def _deny_everybody(self) -> None:
        self._chapter("A policy commit that denies everybody: 403, not 5xx")
        self.clone.write("shop/lockdown.yaml", LOCKDOWN)
        self._comes_back("sa-webapp: lock it down")

    # --- what chapters share ------------------------------------------------------------------------------------------

    def _comes_back(self, message: str) -> None:
        mark = self.visitors.mark()
        sha = self._push(message)
        self._until(lambda: self._rollout_of(sha), "its rollout to begin")
        self._wait("Stalled")
        self._until(lambda: self._phase(sha) not in MOVING, "the rollback to be complete")
        self._until(lambda: self.visitors.steady, "traffic to be well again")
        self.kubectl.show(f"-n {SHOP} get meshrepository shop")
        self.kubectl.show(f"-n {SHOP} get meshrollouts --sort-by=.metadata.creationTimestamp")
        self.kubectl.show(f"-n {SHOP} get events --field-selector type=Warning,involvedObject.name=shop")
        status = self._must_be(sha, phase=("failed",))
        if status["wave"] != 1:
            raise StoryBroken(f"it was caught in wave {status['wave']}, not in the first")
        harmed = self.visitors.failed_since(mark)
        self._done(f"{status['sentence']} {harmed} requests were harmed.")

    def _push(self, message: str) -> str:
        self._say(f"$ git commit -am {message!r} && git push")
        return self.clone.commit(message)

    def _wait(self, condition: str) -> None:
        command = f"-n {SHOP} wait --for=condition={condition} meshrepository/shop --timeout={PATIENCE:.0f}s"
        self.kubectl.show(command, timeout=PATIENCE + 10)

    def _status(self) -> dict[str, Any]:
        found: dict[str, Any] = self.kubectl.object(f"-n {SHOP} get meshrepository shop").get("status", {})
        return {"held": [], "problems": [], **found}

    def _programmed(self) -> bool:
        items = self.kubectl.object(f"-n {SHOP} get meshintents")["items"]
        told = [each for item in items for each in item.get("status", {}).get("conditions", ())]
        standing = [each for each in told if each["type"] == "Programmed"]
        return len(standing) == len(items) > 0 and all(each["status"] == "True" for each in standing)

    def _desired(self, sha: str) -> bool:
        return sha in str(self._status().get("desiredRevision", ""))

    def _rollout_of(self, sha: str) -> Mapping[str, Any] | None:
        """The last one begun, if it is this commit's."""
        items = self.kubectl.object(f"-n {SHOP} get meshrollouts")["items"]
        own = [item for item in items if sha in json.dumps(item["spec"].get("cause", {}))]
        return own[-1] if own else None

    def _phase(self, sha: str) -> str:
        found = self._rollout_of(sha) or {}
        return str(found.get("status", {}).get("phase", "preparing"))

    def _must_be(self, sha: str, *, phase: Sequence[str]) -> Mapping[str, Any]:
        found = self._rollout_of(sha)
        status: Mapping[str, Any] = found["status"] if found else {}
        if status.get("phase") not in phase:
            raise StoryBroken(f"the rollout of {sha[:12]} is {status.get('phase')!r}: {status.get('sentence', '')}")
        return status

    def _no_harm(self, mark: int, what: str) -> None:
        harmed = self.visitors.failed_since(mark)
        if harmed:
            raise StoryBroken(f"{what} harmed {harmed} requests: {self.visitors.outcomes_since(mark)}")

    def _until(self, true: Callable[[], object], what: str) -> None:
        end = time.monotonic() + PATIENCE
        while not true():
            if time.monotonic() > end:
                raise StoryBroken(f"waited {PATIENCE:.0f} s for {what}")
            time.sleep(0.5)

    def _chapter(self, text: str) -> None:
        self.chapters += 1
        print(f"\n► {text}", flush=True)

    def _say(self, text: str) -> None:
        print(f"  {text}", flush=True)

    def _done(self, text: str) -> None:
        print(f"  ✔ {text}", flush=True)


def relative(folder: Path) -> str:
    """As one would type it, where that is shorter."""
    return shlex.quote(min(os.path.relpath(folder), str(folder), key=len))


# --- playing it -------------------------------------------------------------------------------------------------------


@contextmanager
def stage(reach: Reach, *, keep: bool) -> Iterator[Path]:
    """A folder, and namespaces of the story's own that go afterwards. What is there already belongs to somebody."""
    there = set(reach.kubectl("get", "namespaces", "-o", "jsonpath={.items[*].metadata.name}").split())
    taken = sorted({SHOP, GIT} & there)
    if taken:
        raise StoryBroken(f"namespace {taken[0]!r} exists; the story needs one of its own")
    with tempfile.TemporaryDirectory(prefix="backstay-demo-") as folder:
        try:
            yield Path(folder)
        finally:
            if not keep:
                print("\ntaking everything down", flush=True)
                clean_up(reach, is_installed_by_us=SYSTEM not in there)


def clean_up(reach: Reach, *, is_installed_by_us: bool) -> None:
    """In the order that needs no operator for the rest: repositories, pods, then Backstay."""
    for namespace in (SHOP, GIT):
        reach.kubectl("delete", "namespace", namespace, "--ignore-not-found", timeout=PATIENCE)
    if is_installed_by_us:
        reach.kubectl("delete", "-k", str(ROOT / "bootstrap"), "--ignore-not-found", timeout=PATIENCE)


def troubles(reach: Reach) -> str:
    """What the operator and the pods say when the story broke."""
    told = []
    for command in (
        f"-n {SYSTEM} logs -l app.kubernetes.io/name=backstay-operator --tail=40 --prefix",
        f"-n {SHOP} get pods,meshrepositories,meshrollouts",
        f"-n {SHOP} get events --field-selector type=Warning",
    ):
        try:
            told.append(reach.kubectl(*shlex.split(command)))
        except AssertionError as error:
            told.append(str(error))
    return "\n".join(told)


def goodbye(reach: Reach) -> None:
    print("\nEverything is still running. Look around:")
    print(f"  export KUBECONFIG={reach.kubeconfig}")
    for line in (f"kubectl -n {SHOP} get backstay", f"kubectl backstay -n {SHOP} status", "kubectl backstay check"):
        print(f"  {line}")
    print(f"end it with  kubectl delete namespace {SHOP} {GIT} && kubectl delete -k bootstrap/")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Play the product's story on a cluster.")
    parser.add_argument("--keep", action="store_true", default=bool(os.environ.get("KEEP")))
    keep = bool(parser.parse_args(arguments).keep)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    began = time.monotonic()
    try:
        with ExitStack() as stack:
            reach = stack.enter_context(at_least(Level.WHOLE))
            folder = stack.enter_context(stage(reach, keep=keep))
            story = Story(reach, folder)
            try:
                story.play()
            except StoryBroken:
                print(troubles(reach), file=sys.stderr)
                raise
            print(f"\nall {story.chapters} chapters came true in {time.monotonic() - began:.0f} s")
            if keep:
                goodbye(reach)
    except NoCluster as reason:
        print(f"no cluster: {reason}. `make cluster` starts one.", file=sys.stderr)
        return 2
    except StoryBroken as broken:
        print(f"  ✗ {broken}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
