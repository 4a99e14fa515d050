"""The product's story in about two minutes: `make demo`.

The Sentiment Analysis application starts under the mesh with steady traffic. A good commit goes out in waves; a bad one is
caught in its first wave and comes back; an unrelated one flows past it; an invalid one is refused with its line; a
policy that denies everybody is rolled back too. Everything is done as a person would: with git, with `backstay up`, and
by believing only what the operator's API and the visitors' own counts say. Exit 0 only if each of these happened.

KEEP=1 leaves the mesh running at the end and says how to look around. ENGINE=envoy plays it with Envoy doing the traffic.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from backstay.cli.client import Client
from backstay.cli.exits import Failed, OperatorAway
from backstay.cli.picture import failures
from backstay.cli.screen import Screen

HERE: Final = Path(__file__).resolve().parent
TIMES: Final = """
  # Demo times: the story has to fit two minutes. The statistics are the same as ever.
  rollout:
    shares: [5, 25, 60, 100]
    soak: 2s
    deadline: 20s
    confirmWithin: 20s
    bakeTime: 5s
"""
RATE: Final = 100
"""Requests per second of the visitors: what two busy cores carry through eight proxies and applications."""
HANGS_MS: Final = 1000.0
"""A request open for longer is one that the buggy version keeps hanging: others need 20 ms, on a busy machine 300."""
EVERYWHERE_S: Final = 60.0
"""How long a bad change stays when people have to notice and revert it; a quick team's minute."""


class StoryBroken(Exception):
    """Something that had to happen did not."""


# --- git ------------------------------------------------------------------------------------------------------------


class Repository:
    """The mesh repository of the story: a bare remote and a clone that is pushed from."""

    def __init__(self, folder: Path, engine: str) -> None:
        self._engine = engine
        self.remote = folder / "mesh.git"
        self._clone = folder / "mesh"
        self._git("init", "--quiet", "--bare", "--initial-branch=main", str(self.remote), cwd=folder)
        self._git("clone", "--quiet", str(self.remote), str(self._clone), cwd=folder)
        shutil.copytree(HERE / "mesh", self._clone, dirs_exist_ok=True)
        self._quicken()

    def push(self, message: str) -> str:
        """Commit everything and push; returns the commit."""
        self._git("add", "--all")
        self._git("commit", "--quiet", "--no-gpg-sign", "-m", message)
        self._git("push", "--quiet", "origin", "HEAD:main")
        return self._git("rev-parse", "HEAD")

    def edit(self, file: str, old: str, new: str) -> None:
        path = self._clone / file
        text = path.read_text(encoding="utf-8")
        if old not in text:
            raise StoryBroken(f"{file} does not contain {old!r} any more")
        path.write_text(text.replace(old, new, 1), encoding="utf-8")

    def write(self, file: str, text: str) -> None:
        (self._clone / file).write_text(text, encoding="utf-8")

    def remove(self, file: str) -> None:
        (self._clone / file).unlink()

    def _quicken(self) -> None:
        path = self._clone / "mesh.yaml"
        head, _, _ = path.read_text(encoding="utf-8").partition("  # How a change goes out")
        path.write_text(f"{head}  engine: {self._engine}\n{TIMES.lstrip(chr(10))}", encoding="utf-8")

    def _git(self, *arguments: str, cwd: Path | None = None) -> str:
        done = subprocess.run(
            ["git", *arguments],
            cwd=cwd or self._clone,
            env=clean_environment() | GIT_IDENTITY,
            check=False,
            capture_output=True,
            text=True,
        )
        if done.returncode != 0:
            raise StoryBroken(f"git {arguments[0]}: {done.stderr.strip()}")
        return done.stdout.strip()


GIT_IDENTITY: Final = {
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_AUTHOR_NAME": "Demo",
    "GIT_AUTHOR_EMAIL": "demo@example.com",
    "GIT_COMMITTER_NAME": "Demo",
    "GIT_COMMITTER_EMAIL": "demo@example.com",
    "GIT_TERMINAL_PROMPT": "0",
}


def clean_environment() -> dict[str, str]:
    """Ours without proxies and without any outer git: neither belongs to the story."""
    return {
        key: value
        for key, value in os.environ.items()
        if not key.lower().endswith("_proxy") and not key.startswith(("GIT_", "BACKSTAY_"))
    }


# --- the visitors ---------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Visitors:
    """What the traffic generator says: one line of JSON a second, read as it grows."""

    log: Path
    lines: list[dict[str, Any]] = field(default_factory=list)
    _read: int = 0
    _rest: str = ""

    def look(self) -> None:
        if not self.log.exists():
            return
        with self.log.open("rb") as file:
            file.seek(self._read)
            data = file.read()
        self._read += len(data)
        whole, _, self._rest = (self._rest + data.decode()).rpartition("\n")
        for line in whole.splitlines():
            if line.startswith("{"):
                self.lines.append(json.loads(line))

    def mark(self) -> int:
        self.look()
        return len(self.lines)

    def failed_since(self, mark: int) -> int:
        """Requests that did not end in 2xx. Whole counts of whole seconds: nothing is estimated."""
        self.look()
        return sum(failures(line) for line in self.lines[mark:])

    @property
    def steady(self) -> bool:
        """The last three seconds went well, and most of what was wanted came through (a busy machine delays the rest)."""
        self.look()
        return len(self.lines) > 3 and all(
            failures(line) == 0 and sum(line["outcomes"].values()) > RATE * 0.6 for line in self.lines[-3:]
        )

    @property
    def calm(self) -> bool:
        """Steady, and nothing is left of requests that hang: those fail late, and must be counted."""
        return self.steady and all(line["oldest_ms"] < HANGS_MS for line in self.lines[-2:])


# --- the mesh -------------------------------------------------------------------------------------------------------


class Mesh:
    """`backstay up` as a process of its own, looked at through its API."""

    def __init__(self, folder: Path, repository: Repository, engine: str) -> None:
        self.state = folder / "state"
        self.log = folder / "operator.log"
        self.client = Client(self.state)
        workloads = folder / "workloads.yaml"
        text = (HERE / "workloads.yaml").read_text(encoding="utf-8").replace("{dir}", str(HERE))
        text = text.replace("namespace: shop\n", f"namespace: shop\nengine: {engine}\n", 1)  # what proxies start with
        workloads.write_text(text.replace('"--rate", "50"', f'"--rate", "{RATE}"'), encoding="utf-8")
        self._up = [sys.executable, "-m", "backstay.cli.main", "--state-dir", str(self.state), "up"]
        self._up += [str(repository.remote), "--workloads", str(workloads), "--mesh", "demo"]
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                self._up, stdout=log, stderr=log, env=clean_environment(), start_new_session=True
            )

    def stop(self) -> None:
        """Ctrl-C, as a person would; the operator takes everything down with it."""
        if self.process is None or self.process.poll() is not None:
            return
        self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)

    def must_live(self) -> None:
        if self.process is not None and self.process.poll() is not None:
            tail = self.log.read_text(encoding="utf-8", errors="replace")[-2000:]
            raise StoryBroken(f"the operator ended by itself ({self.process.returncode}):\n{tail}")

    def repository(self) -> dict[str, Any]:
        try:
            found: dict[str, Any] = self.client.get("/v1/meshrepository")
        except OperatorAway:
            return {}
        return found

    def rollouts(self) -> list[dict[str, Any]]:
        try:
            return list(self.client.items("/v1/meshrollouts"))
        except OperatorAway:
            return []

    def revision(self, sha: str) -> dict[str, Any]:
        """What became of a commit."""
        try:
            found = self.client.items("/v1/revisions")
        except (OperatorAway, Failed):
            return {}
        return next((item for item in found if sha in json.dumps(item)), {})


def outcome(revision: Mapping[str, Any]) -> str:
    return str(revision.get("status", {}).get("state", ""))


# --- the story ------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Told:
    """One chapter that came true."""

    title: str
    says: str


class Story:
    """Plays the chapters in order; each raises StoryBroken unless it really happened."""

    def __init__(self, folder: Path, screen: Screen, engine: str) -> None:
        self.engine = engine
        self.repository = Repository(folder, engine)
        self.mesh = Mesh(folder, self.repository, engine)
        self.visitors = Visitors(self.mesh.state / "instances" / "visitors-0" / "app.log")
        self.screen = screen
        self.told: list[Told] = []

    def play(self) -> None:
        self._begin()
        self._good()
        self._bad()
        self._unrelated()
        self._invalid()
        self._deny_everybody()

    def _begin(self) -> None:
        self.screen.chapter("The Sentiment Analysis application starts under the mesh")
        sha = self.repository.push("The mesh as it is")
        self.mesh.start()
        self._until(lambda: outcome(self.mesh.revision(sha)) == "live", "the first commit to be live", 60)
        self._until(lambda: self.visitors.steady, f"steady traffic of {RATE} requests a second", 120)
        self._tell("started", f"every request is answered: {RATE}/s through {self._proxies()}, mTLS between them")

    def _proxies(self) -> str:
        engines = [item["spec"]["engine"] for item in self.mesh.client.items("/v1/proxies")]
        if {*engines} != {self.engine}:
            raise StoryBroken(f"proxies run {', '.join(sorted({*engines}))}, expected {self.engine}")
        return f"{len(engines)} proxies" + (f" ({self.engine})" if self.engine != ENGINES[0] else "")

    def _good(self) -> None:
        self.screen.chapter("A good commit: a tenth of sa-logic to v2")
        self.repository.edit("shop/sa-logic.yaml", "subset: v1, weight: 100", "subset: v1, weight: 90")
        self.repository.edit("shop/sa-logic.yaml", "subset: v2, weight: 0", "subset: v2, weight: 10")
        mark = self.visitors.mark()
        sha = self.repository.push("sa-logic: a tenth to v2")
        self._becomes(sha, "live", 90)
        harmed = self.visitors.failed_since(mark)
        if harmed:
            raise StoryBroken(f"the good commit harmed {harmed} requests")
        self._tell("good commit", f"live in {self._elapsed(sha)}, in waves; no request failed")

    def _bad(self) -> None:
        self.screen.chapter("A bad commit: everything to v3, the buggy one")
        self.repository.edit("shop/sa-logic.yaml", "subset: v1, weight: 90", "subset: v3, weight: 100")
        self.repository.edit("shop/sa-logic.yaml", "subset: v2, weight: 10", "subset: v2, weight: 0")
        self._comes_back("sa-logic: v3 for everybody", "bad commit")

    def _unrelated(self) -> None:
        self.screen.chapter("An unrelated commit flows while the bad document stays held")
        self.repository.edit("shop/sa-webapp.yaml", "request: 10s", "request: 12s")
        mark = self.visitors.mark()
        sha = self.repository.push("sa-webapp: a little more time")
        self._becomes(sha, "partly-live", 90)
        held = [key for item in self.mesh.repository()["status"]["held"] for key in item["documents"]]
        if "Route/shop/sa-logic" not in str(held):
            raise StoryBroken(f"the bad document is not held any more: {held}")
        harmed = self.visitors.failed_since(mark)
        if harmed:
            raise StoryBroken(f"the unrelated commit harmed {harmed} requests")
        self._tell(
            "unrelated commit", f"live in {self._elapsed(sha)}; Route/shop/sa-logic stays held at its old content"
        )

    def _invalid(self) -> None:
        self.screen.chapter("An invalid commit: a weight in words")
        self.repository.edit("shop/sa-webapp.yaml", "request: 2s", "request: two seconds")
        sha = self.repository.push("sa-webapp: two seconds")
        self._becomes(sha, "invalid", 15)
        problems = self.mesh.repository()["status"]["problems"]
        first = "{file}:{line}:{column}: {path}: {message} [{reason}]".format(**problems[0])
        if not first.startswith("shop/sa-webapp.yaml:21:16: "):
            raise StoryBroken(f"the refusal does not name file and line: {first}")
        self._tell("invalid commit", f"refused, nothing changed: {first}")
        self.repository.edit("shop/sa-webapp.yaml", "request: two seconds", "request: 2s")

    def _deny_everybody(self) -> None:
        self.screen.chapter("A policy commit that denies everybody: 403, not 5xx")
        self.repository.write("shop/lockdown.yaml", LOCKDOWN)
        self._comes_back("sa-webapp: lock it down", "deny-all policy")

    def _comes_back(self, message: str, title: str) -> None:
        mark = self.visitors.mark()
        sha = self.repository.push(message)
        self._becomes(sha, "rolled-back", 90)
        self._until(lambda: self.visitors.calm, "traffic to be well again", 60)
        self._until(lambda: self._rollout_of(sha)["status"]["phase"] in ENDED, "the rollback to be complete", 30)
        harmed = self.visitors.failed_since(mark)
        status = self._rollout_of(sha)["status"]
        if status["wave"] != 1:
            raise StoryBroken(f"it was caught in wave {status['wave']}, not in the first")
        rate = self._bad_rate(status)
        everywhere = round(rate * RATE * EVERYWHERE_S)
        self._tell(title, status["sentence"])
        numbers = f"harmed {harmed} requests; detected after {status.get('detectedAfter', '0s')}, "
        numbers += f"restored {status.get('restoredAfter', '0s')} later; "
        numbers += f"everywhere for a minute it would have harmed about {everywhere:,}"
        self.screen.say(f"    {numbers}")
        if harmed > everywhere / 4:
            raise StoryBroken(f"{harmed} requests were harmed, not much less than {everywhere}")

    def _bad_rate(self, status: Mapping[str, Any]) -> float:
        """Share of the candidate's requests that failed, by the cohort the verdict was about."""
        cohorts = [item["cohorts"]["candidate"] for item in status["workloads"] if item.get("cohorts")]
        total = sum(item["requests"] for item in cohorts)
        return sum(item["bad"] for item in cohorts) / total if total else 1.0

    def _rollout_of(self, sha: str) -> dict[str, Any]:
        for item in self.mesh.rollouts():
            if sha in json.dumps(item["spec"]):
                return item
        raise StoryBroken(f"there was no rollout of {sha[:12]}")

    def _elapsed(self, sha: str) -> str:
        return str(self._rollout_of(sha)["status"]["elapsed"])

    def _becomes(self, sha: str, wanted: str, within: float) -> None:
        on_its_way = {"", "seen", "pending", "queued", "rolling-out"}
        self._until(lambda: outcome(self.mesh.revision(sha)) not in on_its_way, f"{sha[:12]} to be {wanted}", within)
        found = outcome(self.mesh.revision(sha))
        if found != wanted:
            sentence = self.mesh.revision(sha).get("status", {}).get("sentence", "")
            raise StoryBroken(f"commit {sha[:12]} is {found}, expected {wanted}. {sentence}")

    def _until(self, true: Callable[[], bool], what: str, within: float) -> None:
        end = time.monotonic() + within
        while not true():
            self.mesh.must_live()
            if time.monotonic() > end:
                raise StoryBroken(f"waited {within:.0f} s for {what}")
            self._show()
            time.sleep(0.2)

    def _show(self) -> None:
        self.visitors.look()
        running = [item for item in self.mesh.rollouts()[:1] if item["status"]["phase"] not in ENDED]
        self.screen.show(running[0] if running else None, self.visitors.lines[-90:])

    def _tell(self, title: str, says: str) -> None:
        self.told.append(Told(title, says))
        self.screen.done(says)


ENGINES: Final = ("python", "envoy")
ENDED: Final = {"succeeded", "failed", "aborted", "superseded"}
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


# --- playing it -----------------------------------------------------------------------------------------------------


@contextmanager
def stage(keep: bool) -> Iterator[Path]:
    """A folder of the story's own, short enough for a unix socket; removed at the end unless it is kept."""
    folder = Path(tempfile.mkdtemp(prefix="backstay-demo-"))
    try:
        yield folder
    finally:
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)


def goodbye(story: Story, screen: Screen) -> None:
    """How to look around in a mesh that was left running."""
    me = f"{Path(sys.executable).parent / 'backstay'} --state-dir {story.mesh.state}"
    pid = story.mesh.process.pid if story.mesh.process else 0
    for line in (
        "The mesh is still running. Look around:",
        f"  {me} status",
        f"  {me} get proxies",
        f"  {me} history",
        f"  {me} timeline --since 10m",
        f"push your own changes from  {story.repository.remote.parent / 'mesh'}",
        f"end it with  kill -INT {pid}  and, when you have seen enough,  rm -r {story.repository.remote.parent}",
    ):
        screen.say(line)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Play the product's story.")
    parser.add_argument("--keep", action="store_true", default=bool(os.environ.get("KEEP")))
    parser.add_argument("--engine", default=os.environ.get("ENGINE") or ENGINES[0], choices=ENGINES)
    chosen = parser.parse_args(arguments)
    keep = bool(chosen.keep)
    for number in (signal.SIGTERM, signal.SIGHUP):  # a closed terminal must not leave eleven services behind
        signal.signal(number, signal.default_int_handler)
    began = time.monotonic()
    with Screen() as screen, stage(keep) as folder:
        story = Story(folder, screen, chosen.engine)
        try:
            story.play()
        except StoryBroken as broken:
            screen.failed(str(broken))
            screen.say(f"the operator's log ends:\n{tail(story.mesh.log)}")
            story.mesh.stop()
            return 1
        except KeyboardInterrupt:
            story.mesh.stop()
            return 130
        screen.clear()
        screen.say(f"\nall {len(story.told)} chapters came true in {time.monotonic() - began:.0f} s")
        if keep:
            goodbye(story, screen)
        else:
            story.mesh.stop()
    return 0


def tail(file: Path, lines: int = 25) -> str:
    return "\n".join(file.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:]) if file.exists() else ""


if __name__ == "__main__":
    sys.exit(main())
