"""Network namespaces of a node and its pods, made of nothing but what the kernel has, gone with the processes in them."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

HERE = Path(__file__).parent
APP_UID, PROXY_UID = 1000, 1337
TOOLS = ("unshare", "nsenter", "setpriv", "ip", "iptables-nft-save", "iptables-nft-restore")


def why_not() -> str:
    """Why this machine cannot make namespaces; empty if it can."""
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        return "redirecting connections needs Linux and root"
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        return f"redirecting connections needs {', '.join(missing)}"
    tried = subprocess.run(["unshare", "--net", "iptables-nft-save", "-t", "nat"], capture_output=True, check=False)
    return "" if tried.returncode == 0 else "this kernel or container makes no network namespaces with a nat table"


class Namespace:
    """One network namespace and what runs in it."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self._stack = stack
        self._askers: dict[int, subprocess.Popen[bytes]] = {}
        self._keeper = self._own(
            subprocess.Popen(["unshare", "--net", "sh", "-c", "echo made; exec sleep infinity"], stdout=subprocess.PIPE)
        )
        assert self._keeper.stdout is not None
        self._keeper.stdout.readline()
        self.run("ip", "link", "set", "lo", "up")
        self.run("sh", "-c", "echo 0 > /proc/sys/net/ipv4/ip_unprivileged_port_start")  # as container runtimes do

    @property
    def pid(self) -> int:
        return self._keeper.pid

    def _own(self, process: "subprocess.Popen[bytes]") -> "subprocess.Popen[bytes]":
        self._stack.callback(process.wait, timeout=10)
        self._stack.callback(process.kill)
        return process

    def _inside(self, command: Sequence[str], uid: int = 0) -> list[str]:
        # The interpreter may live where only root may read: its capability to read goes with it, no other does.
        keep = "--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"
        user = ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", *keep] if uid else []
        return ["nsenter", f"--net=/proc/{self.pid}/ns/net", *user, *command]

    def run(self, *command: str, uid: int = 0) -> str:
        done = subprocess.run(self._inside(command, uid), capture_output=True, text=True, timeout=60, check=False)
        if done.returncode:
            raise AssertionError(f"{' '.join(command)}: {done.stderr}")
        return done.stdout

    def start(self, *arguments: str, uid: int) -> "subprocess.Popen[bytes]":
        """Start an inhabitant that says when it is ready."""
        command = [sys.executable, str(HERE / "inhabitant.py"), *arguments]
        process = self._own(subprocess.Popen(self._inside(command, uid), stdin=subprocess.PIPE, stdout=subprocess.PIPE))
        assert process.stdout is not None
        line = process.stdout.readline()
        if line != b"ready\n":
            raise AssertionError(f"{arguments}: {line!r}")
        return process

    def program(self, *arguments: str, uid: int) -> None:
        """The sidecar itself."""
        self._own(subprocess.Popen(self._inside([sys.executable, "-m", "backstay.sidecar", *arguments], uid)))

    def wait_ready(self, host: str) -> str:
        """Wait for the sidecar as a pod without native sidecars does."""
        return self.run(sys.executable, "-m", "backstay.sidecar", "wait", "--host", host, "--timeout", "50")

    def ask(self, *arguments: str, uid: int = APP_UID) -> str:
        """Ask from in here, as this user."""
        asker = self._askers.get(uid)
        if asker is None:
            asker = self._askers[uid] = self.start("ask", uid=uid)
        assert asker.stdin is not None
        assert asker.stdout is not None
        asker.stdin.write(json.dumps(arguments).encode() + b"\n")
        asker.stdin.flush()
        return str(json.loads(asker.stdout.readline()))

    def redirect(self, *arguments: str) -> None:
        self.run(sys.executable, "-m", "backstay.sidecar", "redirect", *arguments)


class Node(Namespace):
    """Connects pods; stands for the rest of the world as well."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        super().__init__(stack)
        self.run("ip", "link", "add", "br0", "type", "bridge")
        self._address(self, "br0", 1)

    def pod(self, number: int, stack: contextlib.ExitStack | None = None) -> Namespace:
        """A pod, gone with the stack (the node's own if none is given)."""
        pod = Namespace(stack or self._stack)
        self.run("ip", "link", "add", f"pod{number}", "type", "veth", "peer", "name", "eth0", "netns", str(pod.pid))
        self.run("ip", "link", "set", f"pod{number}", "master", "br0", "up")
        self._address(pod, "eth0", number)
        pod.run("ip", "route", "add", "default", "via", "10.1.0.1")
        pod.run("ip", "-6", "route", "add", "default", "via", "fd01::1")
        return pod

    @staticmethod
    def _address(namespace: Namespace, device: str, number: int) -> None:
        namespace.run("ip", "address", "add", f"10.1.0.{number}/24", "dev", device)
        namespace.run("ip", "address", "add", f"fd01::{number}/64", "dev", device, "nodad")
        namespace.run("ip", "link", "set", device, "up")


@contextlib.contextmanager
def node() -> Iterator[Node]:
    with contextlib.ExitStack() as stack:
        yield Node(stack)
