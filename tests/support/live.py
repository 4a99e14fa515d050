"""A whole mesh for tests and benches: `backstay up` as a process of its own, real git, real sidecars, steady traffic.

`LiveMesh` is used as a context manager and driven as a person would: by pushing, by the operator's API, by signals. It
believes only what the API and the clients' own counts say. Every wait is bounded; leaving it ends every process it led to,
also after the operator was killed. One of these takes about 60 MB and 4 s to start; at most two at a time per machine,
so tests that use one carry `pytest.mark.xdist_group`.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, TypeAlias

import psutil
import yaml

from backstay.cli.client import Client
from backstay.cli.exits import Failed, OperatorAway
from backstay.core.problems import Problem

Json: TypeAlias = dict[str, Any]
Files: TypeAlias = Mapping[str, str | bytes | None]
"""Path in the repository -> content, None to delete."""

APP: Final = Path(__file__).with_name("app.py")
APP_COMMAND: Final = ["{python}", "-E", "-S", str(APP)]
UNDERWAY: Final = frozenset({"", "seen", "pending", "queued", "rolling-out"})
"""States of a revision that will change by themselves."""
ENDED: Final = frozenset({"succeeded", "failed", "aborted", "superseded"})
ROLLOUT: Final = {
    "shares": [50, 100],
    "soak": "1s",
    "deadline": "10s",
    "confirmWithin": "6s",
    "bakeTime": "2s",
}
"""Times for tests, and as few waves as a canary needs. The statistics stay what they are."""
MOST_OPEN: Final = 200
"""Two seconds of a shop's traffic: on a machine that stands still for a moment more would only keep it from recovering."""
_IDENTITY: Final = {
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_AUTHOR_NAME": "Live",
    "GIT_AUTHOR_EMAIL": "live@example.com",
    "GIT_COMMITTER_NAME": "Live",
    "GIT_COMMITTER_EMAIL": "live@example.com",
    "GIT_TERMINAL_PROMPT": "0",
}


class NotSo(AssertionError):
    """Something that had to become true did not; the message ends with the operator's log."""


# --- documents and workloads, in one line each ------------------------------------------------------------------------


def mesh_document(rollout: Mapping[str, Any] | None = None, **spec: Any) -> str:
    """mesh.yaml with the times of tests."""
    return document("Mesh", "test", {"rollout": {**ROLLOUT, **(rollout or {})}, **spec}, namespace="")


def document(kind: str, name: str, spec: Mapping[str, Any], *, namespace: str = "shop") -> str:
    """One intent as YAML."""
    metadata = {"name": name, **({"namespace": namespace} if namespace else {})}
    whole = {"apiVersion": "backstay.dev/v1alpha1", "kind": kind, "metadata": metadata, "spec": spec}
    return "---\n" + yaml.safe_dump(whole, sort_keys=False, width=1000)


def subsets(service: str, *versions: str) -> str:
    """A Backend with one subset per version label."""
    found = [{"name": version, "labels": {"version": version}} for version in versions]
    return document("Backend", service, {"service": service, "subsets": found})


def route(
    host: str,
    weights: Mapping[str, int] | None = None,
    *,
    rollout: Mapping[str, Any] | None = None,
    rule: Mapping[str, Any] | None = None,
) -> str:
    """A Route that sends everything of `host` to its subsets by weight, or to the service itself."""
    refs: list[Json] = [{"name": host, "port": 80}]
    if weights:
        refs = [{"name": host, "port": 80, "subset": name, "weight": weight} for name, weight in weights.items()]
    spec: Json = {"hosts": [host], "rules": [{"name": "main", "backendRefs": refs, **(rule or {})}]}
    return document("Route", host, {**spec, **({"rollout": dict(rollout)} if rollout else {})})


def service(name: str) -> Json:
    return {"name": name, "ports": [{"name": "http", "port": 80, "targetPort": 8080}]}


def backend(
    name: str,
    service: str,
    *,
    version: str = "v1",
    replicas: int = 1,
    behaviour: Mapping[str, float] | None = None,
    account: str = "",
    **more: Any,
) -> Json:
    """A workload that answers; `behaviour` as in support/app.py."""
    return {
        "name": name,
        "serviceAccount": account or service,
        "services": [service],
        "labels": {"app": service, "version": version},
        "replicas": replicas,
        "command": APP_COMMAND,
        "env": {"VERSION": version, "DATA": "{data}", "BEHAVIOUR": json.dumps(behaviour or {})},
        "reaches": [],
        **more,
    }


def caller(name: str, host: str, *, replicas: int = 4, **more: Any) -> Json:
    """A workload behind the service of its own name that asks `host` for every request it gets."""
    return {
        "name": name,
        "services": [name],
        "labels": {"app": name},
        "replicas": replicas,
        "command": APP_COMMAND,
        "env": {"APP_ROLE": "caller", "CALL": f"http://{host}"},
        "reaches": [host],
        **more,
    }


def client(
    name: str,
    *hosts: str,
    rate: float = 100,
    path: str = "/",
    headers: Mapping[str, str] | None = None,
    method: str = "GET",
    most_open: int = 2000,
    **more: Any,
) -> Json:
    """A workload that asks `hosts` in turn, `rate` times a second altogether; at most `most_open` hang at once."""
    given = ",".join(f"{key}={value}" for key, value in (headers or {}).items())
    urls = ",".join(f"http://{host}{path}" for host in hosts)
    return {
        "name": name,
        "labels": {"app": name},
        "command": APP_COMMAND,
        "env": {
            "APP_ROLE": "client",
            "URLS": urls,
            "RATE": rate,
            "HEADERS": given,
            "METHOD": method,
            "MOST_OPEN": most_open,
        },
        "reaches": list(hosts),
        **more,
    }


def workloads_file(services: Iterable[str], workloads: Sequence[Json]) -> str:
    """workloads.yaml in namespace shop."""
    whole = {"namespace": "shop", "services": [service(name) for name in services], "workloads": list(workloads)}
    return json.dumps(whole, indent=1)


def shop(*, rate: float = 100, callers: int = 3, versions: Mapping[str, Mapping[str, float]] | None = None) -> str:
    """client -> web (callers) -> api (one instance per version); by default v1 and v2 are well, v3 is the buggy one."""
    found = versions if versions is not None else {"v1": {}, "v2": {}, "v3": {"fail": 50}}
    apis = [backend(f"api-{name}", "api", version=name, behaviour=how) for name, how in found.items()]
    made = [*apis, caller("web", "api", replicas=callers), client("client", "web", rate=rate, most_open=MOST_OPEN)]
    return workloads_file(["web", "api"], made)


def shop_documents(*versions: str, rollout: Mapping[str, Any] | None = None) -> dict[str, str]:
    """What `shop` starts with: everything to v1."""
    named = versions or ("v1", "v2", "v3")
    return {
        "mesh.yaml": mesh_document(rollout),
        "shop/api-backend.yaml": subsets("api", *named),
        "shop/api.yaml": route("api", {named[0]: 100}),
        "shop/web.yaml": route("web"),
    }


# --- git --------------------------------------------------------------------------------------------------------------


def clean_environment() -> dict[str, str]:
    """Ours without proxies, without any outer git, without settings of another operator."""
    return {
        key: value
        for key, value in os.environ.items()
        if not key.lower().endswith("_proxy") and not key.startswith(("GIT_", "BACKSTAY_"))
    }


class GitRepository:
    """A bare remote and a clone that is pushed from."""

    def __init__(self, folder: Path) -> None:
        self.remote = folder / "mesh.git"
        self.clone = folder / "mesh"
        self.git("init", "--quiet", "--bare", "--initial-branch=main", str(self.remote), cwd=folder)
        self.git("clone", "--quiet", str(self.remote), str(self.clone), cwd=folder)

    def git(self, *arguments: str, cwd: Path | None = None, data: bytes | None = None) -> str:
        """One git command in the clone; its output. Raises NotSo with what git said."""
        done = subprocess.run(
            ["git", "-c", "protocol.file.allow=always", *arguments],
            cwd=cwd or self.clone,
            env=clean_environment() | _IDENTITY,
            input=data,
            check=False,
            capture_output=True,
            timeout=60,
        )
        if done.returncode != 0:
            raise NotSo(f"git {' '.join(arguments)}: {done.stderr.decode(errors='replace').strip()}")
        return done.stdout.decode(errors="replace").strip()

    def write(self, files: Files) -> None:
        for name, content in files.items():
            path = self.clone / name
            if content is None:
                path.unlink()
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content if isinstance(content, bytes) else content.encode())

    def commit(self, message: str) -> str:
        """Commit everything that is in the clone, changed or not; returns the commit."""
        self.git("add", "--all")
        self.git("commit", "--quiet", "--no-gpg-sign", "--allow-empty", "-m", message)
        return self.git("rev-parse", "HEAD")

    def send(self) -> None:
        self.git("push", "--quiet", "--force", "origin", "HEAD:main")

    def push(self, files: Files, message: str = "a change") -> str:
        self.write(files)
        sha = self.commit(message)
        self.send()
        return sha

    def revert(self, sha: str) -> str:
        self.git("revert", "--no-edit", "--no-gpg-sign", sha)
        self.send()
        return self.git("rev-parse", "HEAD")


# --- clients ----------------------------------------------------------------------------------------------------------


class Lines:
    """What one client workload says: one object a second, read as its log grows."""

    def __init__(self, log: Path) -> None:
        self._log = log
        self._read = 0
        self._rest = b""
        self._found: list[Json] = []

    def all(self) -> list[Json]:
        with suppress(FileNotFoundError), self._log.open("rb") as file:
            file.seek(self._read)
            data = file.read()
            self._read += len(data)
            *whole, self._rest = (self._rest + data).split(b"\n")
            self._found += [json.loads(line) for line in whole if line.startswith(b"{")]
        return self._found


def failures(line: Mapping[str, Any]) -> int:
    """Requests of one second that did not end in 2xx."""
    return sum(count for outcome, count in line["outcomes"].items() if not outcome.startswith("2"))


# --- the mesh ---------------------------------------------------------------------------------------------------------


class LiveMesh:
    """One mesh; `with LiveMesh(...) as mesh` has it up, its first commit live and its clients served.

    `documents` are the files of the first commit, `workloads` the text of the workloads file (or a list for
    `workloads_file`). `options` go to `backstay up`, `environment` to the operator's process.
    """

    def __init__(
        self,
        workloads: str | None = None,
        documents: Files | None = None,
        *,
        options: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        url: str = "",
        steady_for: int = 2,
        start_within: float = 60,
    ) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="bs-"))  # short: a unix socket's path has 107 bytes
        self.folder_state = self.folder / "state"
        self.log = self.folder / "operator.log"
        self.workloads = self.folder / "workloads.yaml"
        self.workloads.write_text(shop() if workloads is None else workloads, encoding="utf-8")
        self.repo = GitRepository(self.folder)
        self.api = Client(self.folder_state)
        self.first = ""
        """The first commit."""
        self.process: subprocess.Popen[bytes] | None = None
        self._documents = shop_documents() if documents is None else documents
        self._options = tuple(options)
        self._environment = dict(environment or {})
        self._url = url or str(self.repo.remote)
        self._steady_for = steady_for
        self._start_within = start_within
        self._lines: dict[str, Lines] = {}

    def __enter__(self) -> Self:
        try:
            self.first = self.push(self._documents, "the mesh as it is")
            self.start()
            self.wait(self.first, "live", timeout=self._start_within)
            self.wait_steady(seconds=self._steady_for, timeout=self._start_within)
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None and not isinstance(error, NotSo):
            error.add_note(self.tail())
        self.stop()

    # --- processes ----------------------------------------------------------------------------------------------------

    def start(self, *options: str, environment: Mapping[str, str] | None = None) -> None:
        """Start the operator; does not wait for anything."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [
                    *self.command("--verbose", "up"),
                    self._url,
                    "--workloads",
                    str(self.workloads),
                    *self._options,
                    *options,
                ],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                env=clean_environment() | self._environment | dict(environment or {}),
                cwd=self.folder,
                start_new_session=True,
            )

    def command(self, *arguments: str) -> list[str]:
        """`backstay` on this mesh."""
        return [sys.executable, "-m", "backstay.cli.main", "--state-dir", str(self.folder_state), *arguments]

    def run(self, *arguments: str, timeout: float = 30) -> subprocess.CompletedProcess[str]:
        """One `backstay` command of a person."""
        return subprocess.run(
            self.command(*arguments),
            env=clean_environment(),
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout,
        )

    def kill_operator(self) -> None:
        """kill -9; proxies and applications go on."""
        if self.process is not None:
            self.process.kill()
            self.process.wait(10)

    def restart_operator(self, **environment: str) -> None:
        """Start it again after a kill and wait until it answers and every proxy has found it."""
        self.start(environment=environment)
        wanted = sum(item.get("replicas", 1) for item in self._entries() if item.get("sidecar", True))
        self.until(lambda: self.connected() >= wanted, "the proxies to find the operator again", 30)

    def connected(self) -> int:
        """How many proxies are connected."""
        return sum(bool(item["status"].get("connected")) for item in self.proxies())

    def stop_operator(self) -> int:
        """Ctrl-C; the operator takes everything down with it. Returns its exit code."""
        if self.process is None:
            return 0
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.send_signal(signal.SIGINT)
        try:
            return self.process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            return self.process.wait(10)

    def stop(self) -> None:
        """End everything that runs in this folder and remove it."""
        self.stop_operator()
        for pid in self._left():
            with suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _left(self) -> set[int]:
        """Sessions of ours that still run: those a killed operator has left."""
        return {group for process in psutil.process_iter() if (group := self._group(process)) is not None}

    def _group(self, process: psutil.Process) -> int | None:
        try:
            mine = process.environ().get("BACKSTAY_PID_FILE", "").startswith(f"{self.folder}{os.sep}")
            return os.getpgid(process.pid) if mine else None
        except (psutil.Error, ProcessLookupError):
            return None

    def pid(self, instance: str, what: str = "sidecar") -> int:
        """Process of an instance: `sidecar` or `app`."""
        return int(json.loads((self.folder_state / "instances" / instance / f"{what}.pid").read_bytes())["pid"])

    def kill(self, instance: str, what: str = "sidecar", number: signal.Signals = signal.SIGKILL) -> int:
        """Signal an instance's `sidecar` or `app` with its group; returns which process it was."""
        pid = self.pid(instance, what)
        os.killpg(pid, number)
        return pid

    def behave(self, instance: str, **behaviour: float) -> None:
        """Make a running backend worse (`fail=50`), or well again (nothing)."""
        file = self.folder_state / "instances" / instance / "data" / "behaviour.json"
        if not behaviour:
            file.unlink(missing_ok=True)
            return
        fresh = file.with_suffix(".new")
        fresh.write_text(json.dumps(behaviour), encoding="utf-8")
        fresh.replace(file)

    # --- git ----------------------------------------------------------------------------------------------------------

    def push(self, files: Files, message: str = "a change") -> str:
        """Commit and push; returns the commit."""
        return self.repo.push(files, message)

    # --- what the operator says ---------------------------------------------------------------------------------------

    def repository(self) -> Json:
        """The MeshRepository, {} while nobody answers."""
        try:
            return self.api.get("/v1/meshrepository")
        except OperatorAway:
            return {}

    def items(self, path: str) -> list[Json]:
        """Items of a listing, none while nobody answers."""
        try:
            return self.api.items(path)
        except (OperatorAway, Failed):
            return []

    def rollouts(self) -> list[Json]:
        """Newest first."""
        return self.items("/v1/meshrollouts")

    def rollout(self, sha: str = "") -> Json:
        """The newest rollout, or the newest that `sha` caused; {} for none."""
        return next((item for item in self.rollouts() if sha in json.dumps(item["spec"])), {})

    def rollout_named(self, name: str) -> Json:
        """A rollout by its id, `r7`; {} for none."""
        return next((item for item in self.rollouts() if item["status"]["id"] == name), {})

    def phase(self, sha: str = "") -> str:
        return str(self.rollout(sha).get("status", {}).get("phase", ""))

    def wave(self, sha: str = "") -> int:
        return int(self.rollout(sha).get("status", {}).get("wave", 0))

    def proxies(self) -> list[Json]:
        return self.items("/v1/proxies")

    def workload(self, name: str) -> Json:
        return next((item for item in self.items("/v1/workloads") if item["metadata"]["name"] == name), {})

    def revision(self, sha: str) -> Json:
        return next((item for item in self.items("/v1/revisions") if item["metadata"]["name"] == sha), {})

    def state(self, sha: str) -> str:
        """What became of a commit: `live`, `rolled-back`, ..., "" while it was not seen."""
        return str(self.revision(sha).get("status", {}).get("state", ""))

    def held(self) -> list[str]:
        """Every held document."""
        status = self.repository().get("status", {})
        return sorted(key for item in status.get("held", ()) for key in item["documents"])

    def problems(self) -> list[str]:
        """As a person reads them."""
        found = self.repository().get("status", {}).get("problems", ())
        fields = ("file", "line", "column", "path", "message", "reason")
        return [str(Problem(**{key: item[key] for key in fields if key in item})) for item in found]

    def events(self, since: float = 0.0) -> list[Json]:
        try:
            return list(self.api.events(since=since))
        except OperatorAway:
            return []

    def reasons(self, since: float = 0.0) -> list[str]:
        return [item["reason"] for item in self.events(since)]

    def act(self, verb: str, *, why: str = "", **args: str) -> Json:
        """An order of a person. Raises backstay.cli.exits.Failed when it is refused."""
        return self.api.act(verb, reason=why, args=args)

    # --- waiting ------------------------------------------------------------------------------------------------------

    def until(self, true: Callable[[], bool], what: str, timeout: float) -> None:
        """Wait for something, looking ten times a second. Raises NotSo."""
        end = time.monotonic() + timeout
        while not true():
            if time.monotonic() > end:
                raise NotSo(f"waited {timeout:g} s for {what}\n{self.tail()}")
            time.sleep(0.1)

    def wait(self, sha: str, *states: str, timeout: float = 40) -> str:
        """Wait until a commit has come to rest and is in one of `states`; returns which."""
        found = [""]

        def rests() -> bool:
            self._must_run()
            found[0] = self.state(sha)
            return found[0] in states or found[0] not in UNDERWAY

        self.until(rests, f"{sha[:12]} to be {' or '.join(states)}", timeout)
        if found[0] not in states:
            sentence = self.revision(sha).get("status", {}).get("sentence", "")
            raise NotSo(f"{sha[:12]} is {found[0]}, expected {' or '.join(states)}. {sentence}\n{self.tail()}")
        return found[0]

    def wait_phase(self, sha: str, *phases: str, wave: int = 0, timeout: float = 30) -> Json:
        """Wait until the rollout of `sha` is in one of `phases`, and at least in `wave`; returns the rollout."""
        found: list[Json] = [{}]

        def reached() -> bool:
            found[0] = self.rollout(sha)
            status = found[0].get("status", {})
            return status.get("phase") in phases and status.get("wave", 0) >= wave

        self.until(reached, f"the rollout of {sha[:12]} to be {' or '.join(phases)} (wave {wave})", timeout)
        return found[0]

    def wait_ended(self, sha: str, timeout: float = 30) -> Json:
        """Wait until the rollout of `sha` is over, baking included."""
        return self.wait_phase(sha, *ENDED, timeout=timeout)

    def wait_steady(self, *, seconds: int = 2, timeout: float = 30) -> None:
        """Wait until every client's last seconds went well and none of its requests hang."""
        names = self._clients()
        self.until(lambda: all(self._is_steady(name, seconds) for name in names), "steady traffic", timeout)

    def _is_steady(self, name: str, seconds: int) -> bool:
        lines = self.client_lines(name)[-seconds:]
        return len(lines) == seconds and all(
            failures(line) == 0 and sum(line["outcomes"].values()) >= 0.7 * line["sent"] for line in lines
        )

    def _clients(self) -> list[str]:
        return [item["name"] for item in self._entries() if item.get("env", {}).get("APP_ROLE") == "client"]

    def _entries(self) -> list[Json]:
        found: list[Json] = yaml.safe_load(self.workloads.read_text(encoding="utf-8"))["workloads"]
        return found

    def _must_run(self) -> None:
        if self.process is not None and self.process.poll() is not None:
            raise NotSo(f"the operator has ended ({self.process.returncode})\n{self.tail()}")

    def tail(self, lines: int = 40) -> str:
        """The end of the operator's log, and what the clients said last."""
        said = [f"{name}: {line}" for name in self._clients() for line in self.client_lines(name)[-4:]]
        log = self.log.read_text(encoding="utf-8", errors="replace").splitlines() if self.log.exists() else ["(no log)"]
        return "\n".join([*log[-lines:], *said])

    def settle(self, timeout: float = 60) -> None:
        """Wait until nothing is under way and every client is served."""
        over = lambda: all(item["status"]["phase"] in ENDED for item in self.rollouts())  # noqa: E731
        self.until(over, "the rollout to be over", timeout)
        self.wait_steady(timeout=timeout)

    def begin_again(self) -> None:
        """The first commit's content, live; nothing held, nothing under way: where each test of a shared mesh starts."""
        self.repo.git("read-tree", "-u", "--reset", self.first)
        sha = self.push({}, "as it was")
        if self.wait(sha, "live", "partly-live", "rolled-back") != "live":
            # What the test before left held, or a machine that stood still for a second while this went out.
            self.act("retry")
            self.until(lambda: self.state(sha) == "live", "the first content to be live again", 40)
        self.settle()

    # --- what the clients say -----------------------------------------------------------------------------------------

    def client_lines(self, workload: str = "client") -> list[Json]:
        """All lines of a client so far, one a second."""
        log = self.folder_state / "instances" / f"{workload}-0" / "app.log"
        return self._lines.setdefault(workload, Lines(log)).all()

    def mark(self, workload: str = "client") -> int:
        """A moment to count from."""
        return len(self.client_lines(workload))

    def failures_since(self, mark: int, workload: str = "client") -> int:
        """Requests that did not end in 2xx."""
        return sum(failures(line) for line in self.client_lines(workload)[mark:])

    def harm_since(self, mark: int, workload: str = "client") -> dict[str, int]:
        """What ended in anything but 2xx, by outcome. `overflow` was never sent: requests that hang for the mesh's sake are
        counted when they end, those of a machine that stood still end well."""
        found = self.outcomes_since(mark, workload)
        return {name: count for name, count in found.items() if not name.startswith("2") and name != "overflow"}

    def outcomes_since(self, mark: int, workload: str = "client") -> dict[str, int]:
        return _sum(line["outcomes"] for line in self.client_lines(workload)[mark:])

    def versions_since(self, mark: int, workload: str = "client") -> dict[str, int]:
        """Which version answered how often."""
        return _sum(line["versions"] for line in self.client_lines(workload)[mark:])

    def wait_seconds(self, seconds: int, workload: str = "client") -> int:
        """Let the client live through this many whole seconds; returns the mark before them."""
        mark = self.mark(workload)
        wanted = mark + seconds + 1  # the second under way has begun before
        self.until(lambda: self.mark(workload) >= wanted, f"{seconds} seconds of traffic", seconds + 10)
        return mark + 1


def _sum(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    total: dict[str, int] = {}
    for item in counts:
        for key, count in item.items():
            total[key] = total.get(key, 0) + count
    return total
