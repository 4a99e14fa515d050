"""The cluster's own namespaces: network, processes, mounts.

One process holds them. When it dies the kernel ends every process in there, takes every mount back and removes every
network device: that is why stopping the cluster leaves nothing behind, whatever state it was in. A pair of devices joins
the machine to the node, so that tests reach the API server, pods and Services from outside; the node has no other way
out, and nothing forwards.
"""

import contextlib
import os
import shlex
import signal
import subprocess
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from cluster import processes
from cluster.layout import (
    CGROUP,
    HOST_ADDRESS,
    HOST_DEVICE,
    LINK_PREFIX,
    NODE_ADDRESS,
    NODE_DEVICE,
    POD_RANGE,
    SERVICE_RANGE,
)
from cluster.processes import Process

PRIVATE: Final = ("/run/containerd", "/run/netns", "/var/lib/cni", "/var/lib/kubelet")
"""Folders whose names containerd, CNI and the kubelet have built in: the cluster gets its own on top."""
CGROUPS: Final = Path("/sys/fs/cgroup")
START_S: Final = 10.0


class CannotStart(Exception):
    """The cluster did not come up; the message says which part and where its log is."""


def create(holder: Path, log: Path) -> tuple[Process, Process]:
    """Make the namespaces; returns the process that is their first one, and its parent outside."""
    for folder in PRIVATE:
        Path(folder).mkdir(parents=True, exist_ok=True)
    flags = ("--net", "--mount", "--pid", "--fork", "--kill-child", "--propagation", "private", "--mount-proc")
    outer = processes.spawn(("unshare", *flags, "sh", "-ec", _inside(holder)), log, Path("/"))
    first = processes.of(_first(outer, holder, log))
    _join(first.pid, log)
    _make_cgroups()
    return first, outer


def enter(first: Process, command: Sequence[str]) -> tuple[str, ...]:
    """The command line that runs this command inside."""
    return ("nsenter", "-t", str(first.pid), "--net", "--mount", "--pid", "--", *command)


def remove(first: Process | None, outer: Process | None) -> None:
    """End everything in the namespaces and take away what they left on the machine."""
    if first is not None and processes.is_alive(first):
        os.kill(first.pid, signal.SIGKILL)
    if outer is not None:
        processes.stop(outer, 5.0)
    _run(("ip", "link", "delete", HOST_DEVICE), may_fail=True)
    _remove_cgroups()
    for folder in PRIVATE:
        with contextlib.suppress(OSError):  # not empty: it belongs to somebody else
            Path(folder).rmdir()


def _inside(holder: Path) -> str:
    mounts = [f"mount -t tmpfs tmpfs {folder}" for folder in PRIVATE]
    # The kubelet hands volumes' mounts on to containers, which wants a shared tree; it is shared in here only.
    return "\n".join(["mount --make-rshared /", *mounts, f"exec {shlex.quote(str(holder))}"])


def _first(outer: Process, holder: Path, log: Path) -> int:
    """The first process inside, once it has become the program that holds everything open."""
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and processes.is_alive(outer):
        for pid in processes.children(outer.pid):
            with contextlib.suppress(OSError):
                if os.readlink(f"/proc/{pid}/exe") == str(holder.resolve()):
                    return pid
        time.sleep(processes.POLL_S)
    raise CannotStart(f"no namespaces of our own can be made here; see {log}")


def _join(pid: int, log: Path) -> None:
    inside = ("nsenter", "-t", str(pid), "--net", "--mount", "--pid", "--")
    commands: Iterable[tuple[str, ...]] = (
        ("ip", "link", "add", HOST_DEVICE, "type", "veth", "peer", "name", NODE_DEVICE, "netns", str(pid)),
        ("ip", "address", "add", f"{HOST_ADDRESS}/{LINK_PREFIX}", "dev", HOST_DEVICE),
        ("ip", "link", "set", HOST_DEVICE, "up"),
        (*inside, "ip", "link", "set", "lo", "up"),
        (*inside, "ip", "address", "add", f"{NODE_ADDRESS}/{LINK_PREFIX}", "dev", NODE_DEVICE),
        (*inside, "ip", "link", "set", NODE_DEVICE, "up"),
        # An answer at once to what is not here, where no route at all would look the same to no program.
        (*inside, "ip", "route", "add", "unreachable", "default"),
        # The API server calls webhooks by their Service: a route must be found before kube-proxy's rules can lead elsewhere.
        (*inside, "ip", "route", "add", SERVICE_RANGE, "dev", NODE_DEVICE, "src", NODE_ADDRESS),
        (*inside, "sysctl", "-q", "-w", "net.ipv4.ip_forward=1"),
        ("ip", "route", "add", POD_RANGE, "via", NODE_ADDRESS),
        ("ip", "route", "add", SERVICE_RANGE, "via", NODE_ADDRESS),
    )
    for command in commands:
        try:
            _run(command)
        except subprocess.CalledProcessError as error:
            raise CannotStart(f"{shlex.join(command)}: {error.stderr.strip()}; see also {log}") from error


def _run(command: Sequence[str], *, may_fail: bool = False) -> None:
    subprocess.run(command, check=not may_fail, capture_output=True, text=True, timeout=30)


# --- control groups -------------------------------------------------------------------------------------------------


def _controllers() -> list[Path]:
    """The trees that containers are put into: one in version 2, one per controller in version 1."""
    if (CGROUPS / "cgroup.controllers").exists():
        return [CGROUPS]
    return [each for each in CGROUPS.iterdir() if each.is_dir() and not each.is_symlink()]


def _make_cgroups() -> None:
    for tree in _controllers():
        (tree / CGROUP).mkdir(exist_ok=True)
        if tree.name == "cpuset":
            for name in ("cpuset.cpus", "cpuset.mems"):  # version 1 starts a new group with none
                (tree / CGROUP / name).write_text((tree / name).read_text(encoding="ascii"), encoding="ascii")
        if tree.name == "cpu":
            # A machine weighs as many busy processes as it has cores, not as one.
            (tree / CGROUP / "cpu.shares").write_text(str(1024 * (os.cpu_count() or 1)), encoding="ascii")


def _remove_cgroups() -> None:
    deadline = time.monotonic() + START_S
    for tree in _controllers():
        while (tree / CGROUP).exists() and not _removed(tree / CGROUP):
            if time.monotonic() > deadline:
                return  # a process in there is still dying; the next start uses the same group
            time.sleep(processes.POLL_S)


def _removed(group: Path) -> bool:
    """Control groups go from the leaves up; one with a dying process in it refuses."""
    try:
        for inner in [each for each in group.iterdir() if each.is_dir()]:
            if not _removed(inner):
                return False
        group.rmdir()
    except OSError:
        return not group.exists()
    return True
