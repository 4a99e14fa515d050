"""Which cluster the tests get: the one that KUBECONFIG names, the one that runs here, one started for them, or none.

Rule: nothing is built here, and nothing is pretended. Where there is no cluster the answer is one sentence for `skip`.
"""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
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


@contextmanager
def at_least(level: Level) -> Iterator[Reach]:
    """That much of a cluster, as long as the block lasts; raises NoCluster if there is none."""
    given, here = os.environ.get("KUBECONFIG"), Cluster()
    if given:
        ours = here if Path(given).resolve() == here.kubeconfig.resolve() else None
        yield Reach(kubeconfig=Path(given), ours=ours)
    elif _suffices(here.level(), level):
        yield Reach(kubeconfig=here.kubeconfig, ours=here)
    else:
        with _started(here, level) as reach:
            yield reach


def _suffices(have: Level | None, wanted: Level) -> bool:
    return have is wanted or have is Level.WHOLE


@contextmanager
def _started(here: Cluster, wanted: Level) -> Iterator[Reach]:
    # A whole one where possible, whoever asks first: the next test would want it larger and everything twice.
    level = Level.WHOLE if lifecycle.lacking(Level.WHOLE) is None else wanted
    lacks = lifecycle.lacking(level)
    if lacks is not None:
        raise NoCluster(f"no KUBECONFIG, and a test cluster of our own needs {lacks}")
    try:
        here.up(level, print)
        yield Reach(kubeconfig=here.kubeconfig, ours=here)
    finally:
        here.down()
