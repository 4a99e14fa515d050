"""Which cluster the tests get: the one that KUBECONFIG names, the one that runs here, one started for them, or none.

Rule: nothing is built here, and nothing is pretended. Where there is no cluster the answer is one sentence for `skip`.
"""

import contextlib
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fcntl import LOCK_EX, LOCK_NB, LOCK_SH, flock
from pathlib import Path

from cluster import build, lifecycle
from cluster.lifecycle import Cluster, Level


class NoCluster(Exception):
    """There is none for the tests; the message is a sentence that says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reach:
    """A cluster as tests see it: with the rights of its administrator."""

    kubeconfig: Path
    ours: Cluster | None
    """The cluster whose parts can be stopped and whose node takes images; None if it is somebody else's."""

    def kubectl(self, *arguments: str, stdin: str | None = None, timeout: float = 120) -> str:
        """What kubectl prints; a failure raises with everything that it said."""
        command = (*kubectl_program(), "--kubeconfig", str(self.kubeconfig), *arguments)
        done = subprocess.run(command, input=stdin, check=False, capture_output=True, text=True, timeout=timeout)
        if done.returncode != 0:
            said = (done.stderr + done.stdout).strip()
            raise AssertionError(f"kubectl {' '.join(arguments)} ended with {done.returncode}: {said}")
        return done.stdout


def kubectl_program() -> tuple[str, ...]:
    """The one built with the cluster, so that both have one version; else the machine's."""
    ours = build.binary("kubernetes")
    if ours.exists():
        return (str(ours), "kubectl")
    found = shutil.which("kubectl")
    if found is None:
        raise NoCluster("kubectl is neither built nor installed")
    return (found,)


@contextlib.contextmanager
def at_least(level: Level) -> Iterator[Reach]:
    """That much of a cluster, as long as the block lasts; raises NoCluster if there is none."""
    given, here = os.environ.get("KUBECONFIG"), Cluster()
    if given:
        ours = here if Path(given).resolve() == here.kubeconfig.resolve() else None
        yield Reach(kubeconfig=Path(given), ours=ours)
    else:
        with last_out(build.cache() / "users.lock", here.down_unless_kept):
            _start(here, level)
            yield Reach(kubeconfig=here.kubeconfig, ours=here)


@contextlib.contextmanager
def last_out(users: Path, leave: Callable[[], None]) -> Iterator[None]:
    """Call this at the end, unless another process is in such a block of the same file: the last one does it for all.

    The kernel counts: a process that dies is one fewer.
    """
    users.parent.mkdir(parents=True, exist_ok=True)
    try:
        with users.open("w", encoding="utf-8") as file:
            flock(file, LOCK_SH)
            yield
    finally:
        with users.open("w", encoding="utf-8") as file, contextlib.suppress(BlockingIOError):
            flock(file, LOCK_EX | LOCK_NB)
            leave()


def _start(here: Cluster, wanted: Level) -> None:
    """Unless it runs. A whole one where possible, whoever asks first: the next test would want it larger."""
    if here.level() in (wanted, Level.WHOLE):
        return
    level = Level.WHOLE if lifecycle.lacking(Level.WHOLE) is None else wanted
    lacks = lifecycle.lacking(level)
    if lacks is not None:
        raise NoCluster(f"no KUBECONFIG, and a test cluster of our own needs {lacks}")
    here.up(level, print, keep=False)
