"""A mesh as a user runs it, for benchmarks: a bare repository that is pushed to, `backstay up`, and its API."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from backstay.cli.client import Client
from backstay.cli.exits import Failed, OperatorAway

GIT: Final = {
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_AUTHOR_NAME": "Bench",
    "GIT_AUTHOR_EMAIL": "bench@example.com",
    "GIT_COMMITTER_NAME": "Bench",
    "GIT_COMMITTER_EMAIL": "bench@example.com",
    "GIT_TERMINAL_PROMPT": "0",
}
ON_ITS_WAY: Final = ("", "seen", "pending", "queued", "rolling-out")
ENDED: Final = ("succeeded", "failed", "aborted", "superseded")


class BenchFailed(Exception):
    """Something that has to happen before a number means anything did not."""


def clean_environment() -> dict[str, str]:
    """Ours without proxies, any outer git, and settings of Backstay: none of them belongs to a measurement."""
    return {
        key: value
        for key, value in os.environ.items()
        if not key.lower().endswith("_proxy") and not key.startswith(("GIT_", "BACKSTAY_"))
    }


class Repository:
    """A bare remote and a clone. Its post-receive hook writes down when a push has arrived."""

    def __init__(self, folder: Path) -> None:
        self.remote = folder / "mesh.git"
        self.clone = folder / "mesh"
        self._stamp = folder / "received"
        self._git("init", "--quiet", "--bare", "--initial-branch=main", str(self.remote), cwd=folder)
        self._git("clone", "--quiet", str(self.remote), str(self.clone), cwd=folder)
        hook = self.remote / "hooks" / "post-receive"
        hook.write_text(f"#!/bin/sh\ndate +%s.%N > '{self._stamp}'\n", encoding="utf-8")
        hook.chmod(0o755)

    def write(self, files: Mapping[str, str | None]) -> None:
        """Put these files into the work tree; None takes one away."""
        for name, text in files.items():
            path = self.clone / name
            if text is None:
                path.unlink(missing_ok=True)
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")

    def replace(self, files: Mapping[str, str]) -> None:
        """Make the work tree exactly these files."""
        for path in self.clone.iterdir():
            if path.name != ".git":
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        self.write(files)

    def push(self, message: str) -> str:
        """Commit what is in the work tree (nothing changed: an empty commit) and push; returns the commit."""
        self._git("add", "--all")
        self._git("commit", "--quiet", "--no-gpg-sign", "--allow-empty", "-m", message)
        self._git("push", "--quiet", "origin", "HEAD:main")
        return self._git("rev-parse", "HEAD")

    @property
    def received_at(self) -> float:
        """Unix time at which the last push's post-receive hook ran."""
        return float(self._stamp.read_text(encoding="ascii"))

    def _git(self, *arguments: str, cwd: Path | None = None) -> str:
        done = subprocess.run(
            ["git", *arguments],
            cwd=cwd or self.clone,
            env=clean_environment() | GIT,
            check=False,
            capture_output=True,
            text=True,
        )
        if done.returncode != 0:
            raise BenchFailed(f"git {arguments[0]}: {done.stderr.strip()}")
        return done.stdout.strip()


class BenchMesh:
    """`backstay up` as a process of its own, looked at through its API."""

    def __init__(self, folder: Path, repository: Repository, workloads: str) -> None:
        self.state = folder / "state"
        self.log = folder / "operator.log"
        self.client = Client(self.state, timeout=30.0)
        file = folder / "workloads.yaml"
        file.write_text(workloads, encoding="utf-8")
        self._up = [sys.executable, "-m", "backstay.cli.main", "--state-dir", str(self.state), "up"]
        self._up += [str(repository.remote), "--workloads", str(file), "--mesh", "bench"]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        if self._process is None:
            raise BenchFailed("the operator was not started")
        return self._process.pid

    def start(self) -> None:
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                self._up, stdout=log, stderr=log, env=clean_environment(), start_new_session=True
            )

    def stop(self) -> None:
        """Ctrl-C, as a person would; the operator takes everything down with it."""
        if self._process is None or self._process.poll() is not None:
            return
        self._process.send_signal(signal.SIGINT)
        try:
            self._process.wait(90)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)

    def get(self, path: str) -> dict[str, Any]:
        """{} while the operator is not there yet."""
        try:
            return self.client.get(path)
        except (OperatorAway, Failed):
            return {}

    def items(self, path: str) -> list[dict[str, Any]]:
        return list(self.get(path).get("items", ()))

    def revision(self, sha: str) -> dict[str, Any]:
        """What became of a commit: its status, {} while nothing is known."""
        found = (item for item in self.items("/v1/revisions") if sha in str(item))
        return dict(next(found, {}).get("status", {}))

    def rollout(self, sha: str) -> dict[str, Any]:
        """The newest rollout that a commit caused, {} for none."""
        return next((item for item in self.items("/v1/meshrollouts") if sha in str(item.get("spec"))), {})

    def outcome(self, sha: str, within: float) -> str:
        """What a commit has become, once it is not on its way any more."""
        self.until(lambda: self.revision(sha).get("state", "") not in ON_ITS_WAY, f"the end of {sha[:12]}", within)
        return str(self.revision(sha)["state"])

    def until(self, true: Callable[[], bool], what: str, within: float, pause: float = 0.2) -> None:
        """Raises BenchFailed after `within` seconds, or when the operator has ended."""
        end = time.monotonic() + within
        while not true():
            if self._process is not None and self._process.poll() is not None:
                raise BenchFailed(f"the operator ended by itself:\n{tail(self.log)}")
            if time.monotonic() > end:
                raise BenchFailed(f"waited {within:.0f} s for {what}; the operator's log ends:\n{tail(self.log)}")
            time.sleep(pause)

    def metric(self, name: str) -> dict[str, float]:
        """Values of one family of the operator's metrics by the value of its first label ("" for none)."""
        found: dict[str, float] = {}
        for line in self.client.text("/metrics").decode().splitlines():
            head, _, value = line.rpartition(" ")
            family, _, labels = head.partition("{")
            if family == name:
                found[labels.partition('"')[2].partition('"')[0]] = float(value)
        return found


@contextmanager
def running(workloads: str, files: Mapping[str, str], *, within: float) -> Iterator[tuple[Repository, BenchMesh]]:
    """A mesh whose first commit is live everywhere; ended and removed afterwards. KEEP=1 keeps the folder."""
    folder = Path(tempfile.mkdtemp(prefix="backstay-bench-"))
    repository = Repository(folder)
    repository.replace(files)
    mesh = BenchMesh(folder, repository, workloads)
    try:
        sha = repository.push("the mesh as it is")
        mesh.start()
        if mesh.outcome(sha, within) != "live":
            raise BenchFailed(f"the first commit is not live: {mesh.revision(sha)}")
        yield repository, mesh
    finally:
        mesh.stop()
        if not os.environ.get("KEEP"):
            shutil.rmtree(folder, ignore_errors=True)


def tail(file: Path, lines: int = 25) -> str:
    return "\n".join(file.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:]) if file.exists() else ""
