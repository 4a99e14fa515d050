"""Starting and stopping the test cluster, as a whole and part by part.

There is one per machine: its addresses and control groups are fixed. A file says what is running; it is written before
anything else happens, so that whatever a crash leaves behind can be found and taken away.
"""

import enum
import os
import shutil
import ssl
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import msgspec

from cluster import build, images, layout, parts, pki, place, processes
from cluster.layout import Layout
from cluster.place import CannotStart
from cluster.processes import Process

ADDONS: Final = Path(__file__).resolve().parent / "addons"
CONTROL_BINARIES: Final = ("kubernetes",)
WHOLE_BINARIES: Final = ("pause", "kubernetes", "coredns")
PACKAGES: Final = {
    "containerd": "containerd",
    "runc": "runc",
    "iptables": "iptables",
    "conntrack": "conntrack",
    "ip": "iproute2",
    "unshare": "util-linux",
    "nsenter": "util-linux",
}
"""What a node needs besides Kubernetes, and the Debian package that has it."""
API_S: Final = 90.0
"""2.6 s on an idle machine; a CI machine in the middle of a build has taken 20."""
NODE_S: Final = 180
STOP_S: Final = 10.0

COMPACT: Final = """
import json, sys, urllib.request
def ask(path, body):
    request = urllib.request.Request(f"http://127.0.0.1:{sys.argv[1]}{path}", json.dumps(body).encode())
    return json.load(urllib.request.urlopen(request, timeout=10))
revision = ask("/v3/kv/range", {"key": "AA==", "limit": "1"})["header"]["revision"]
ask("/v3/kv/compaction", {"revision": revision, "physical": True})
"""

Say = Callable[[str], None]


class Level(enum.StrEnum):
    """How much of a cluster."""

    API = "api"
    """etcd, API server and controllers: objects, admission, authorization; pods stay pending."""
    WHOLE = "whole"
    """A node as well: pods run."""


class Record(msgspec.Struct, kw_only=True):
    """What is on disk about the cluster that runs here."""

    level: str
    isolated: bool
    ports: tuple[int, int, int, int]
    first: Process | None = None
    outer: Process | None = None
    parts: dict[str, Process] = {}
    ready: bool = False
    kept: bool = True
    """False: tests started it, and the last of them to leave stops it."""


# --- what can be had here -------------------------------------------------------------------------------------------


def lacking(level: Level) -> str | None:
    """What this machine lacks for that much of a cluster, as the end of a sentence; None if nothing."""
    if not sys.platform.startswith("linux"):
        return "Linux"
    if level is Level.API:
        return _lacking_build(CONTROL_BINARIES)
    if os.geteuid() != 0:
        return "root"
    packages = sorted({package for program, package in PACKAGES.items() if shutil.which(program) is None})
    if not (parts.CNI_PROGRAMS / "ptp").exists():
        packages.append("containernetworking-plugins")
    if packages:
        return f"the packages {', '.join(packages)}"
    return _lacking_build(WHOLE_BINARIES)


def _lacking_build(names: tuple[str, ...]) -> str | None:
    absent = build.missing(names)
    return f"a build of {' and '.join(absent)} (make cluster)" if absent else None


# --- one cluster ----------------------------------------------------------------------------------------------------


class Cluster:
    """The cluster of this machine, running or not."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or build.cache() / "run"

    def __repr__(self) -> str:
        return f"<Cluster {self.folder} {self.level() or 'stopped'}>"

    @property
    def kubeconfig(self) -> Path:
        return self.folder / "admin.kubeconfig"

    def level(self) -> Level | None:
        """How much of it is up; None if it is not, or was left half done."""
        record = self._record()
        if record is None or not record.ready or not all(processes.is_alive(each) for each in record.parts.values()):
            return None
        return Level(record.level)

    def up(self, level: Level, say: Say, *, keep: bool = True) -> None:
        """Start what is not running; a larger cluster than asked for is left alone. One to be kept outlives all tests."""
        with build.locked(build.cache() / "cluster.lock"):
            have = self.level()
            if have is level or have is Level.WHOLE:
                if keep:
                    self._keep()
                return
            self._down()
            try:
                self._start(level, say, keep)
            except BaseException:
                self._keep_logs()
                self._down()
                raise

    def down(self) -> None:
        """Stop everything and remove every trace, also of a start that was interrupted."""
        with build.locked(build.cache() / "cluster.lock"):
            self._down()

    def down_unless_kept(self) -> None:
        """`down`, if tests started it."""
        with build.locked(build.cache() / "cluster.lock"):
            record = self._record()
            if record is not None and not record.kept:
                self._down()

    def _keep(self) -> None:
        record = self._must_run()
        record.kept = True
        self._write(record)

    def stop_part(self, name: str) -> None:
        """End one part, as its machine's power would.

        An API server that ends in order takes itself out of the Service `kubernetes`, and kube-proxy, which pauses for up to
        a minute between tries by then, puts it in again: pods reach one that is back only after that.
        """
        processes.kill(self._must_run().parts[name])

    def start_part(self, name: str) -> None:
        """Start a part again after `stop_part`; returns at once."""
        record = self._must_run()
        record.parts[name] = self._spawn(name, record)
        self._write(record)

    def is_part_running(self, name: str) -> bool:
        return processes.is_alive(self._must_run().parts[name])

    def compact(self) -> None:
        """Have etcd forget every state before the present one, as it is made to every five minutes anyway."""
        port = str(self._layout(self._must_run()).etcd_port)
        subprocess.run(self.inside(("python3", "-c", COMPACT, port)), check=True, timeout=60)

    def wait_api(self, seconds: float = API_S) -> None:
        self._wait_api(self._layout(self._must_run()), seconds)

    def inside(self, command: Sequence[str]) -> tuple[str, ...]:
        """The command line that runs this in the cluster's namespaces."""
        record = self._must_run()
        return place.enter(record.first, command) if record.first is not None else tuple(command)

    def kubectl(self, *arguments: str, stdin: str | None = None, timeout: float = 120) -> str:
        """What kubectl prints, as the cluster's administrator."""
        command = (str(build.binary("kubernetes")), "kubectl", "--kubeconfig", str(self.kubeconfig), *arguments)
        done = subprocess.run(command, input=stdin, check=False, capture_output=True, text=True, timeout=timeout)
        if done.returncode != 0:
            raise subprocess.CalledProcessError(done.returncode, arguments, done.stdout, done.stderr)
        return done.stdout

    def load(self, archive: Path) -> None:
        """Import an image archive into the node's container runtime, unless this very one was the last of its name."""
        mark = self.folder / "loaded" / archive.name.rpartition("-")[0]
        if mark.exists() and mark.read_text(encoding="utf-8") == archive.name:
            return
        images.load(archive, self.inside, self._layout(self._must_run()).containerd_socket)
        mark.parent.mkdir(exist_ok=True)
        mark.write_text(archive.name, encoding="utf-8")

    # --- starting ---------------------------------------------------------------------------------------------------

    def _start(self, level: Level, say: Say, keep: bool) -> None:
        started = time.monotonic()
        for name in WHOLE_BINARIES if level is Level.WHOLE else CONTROL_BINARIES:
            build.build(name, say)
        record, places = self._begin(level, keep)
        for name in parts.CONTROL_PLANE:
            self._launch(name, record)
        if level is Level.WHOLE:
            self._prepare_node(record, places)
        self._wait_api(places, API_S)
        if level is Level.WHOLE:
            self._finish_node(record)
        record.ready = True
        self._write(record)
        say(f"the test cluster is up after {time.monotonic() - started:.1f} s")

    def _begin(self, level: Level, keep: bool) -> tuple[Record, Layout]:
        isolated = os.geteuid() == 0 and build.binary("pause").exists()
        places = layout.isolated(self.folder) if isolated else layout.shared(self.folder)
        self.folder.mkdir(parents=True)
        places.logs.mkdir()
        pki.write(places)
        ports = (places.api_port, places.etcd_port, places.peer_port, places.controllers_port)
        record = Record(level=level.value, isolated=isolated, ports=ports, kept=keep)
        self._write(record)
        if isolated:
            record.first, record.outer = place.create(build.binary("pause"), places.logs / "namespaces.log")
            self._write(record)
        return record, places

    def _prepare_node(self, record: Record, places: Layout) -> None:
        (places.folder / "containerd.toml").write_text(
            parts.containerd_config(places, images.snapshotter(places.folder)), encoding="utf-8"
        )
        (places.folder / "cni").mkdir()
        (places.folder / "cni" / "10-pods.conflist").write_text(parts.cni_config(places), encoding="utf-8")
        (places.folder / "kubelet.json").write_text(parts.kubelet_config(places), encoding="utf-8")
        (places.folder / "resolv.conf").write_text("nameserver 127.0.0.1\n", encoding="utf-8")
        self._launch("containerd", record)
        images.wait_containerd(self.inside, places.containerd_socket)
        for archive in images.system(places.folder):
            images.load(archive, self.inside, places.containerd_socket)

    def _finish_node(self, record: Record) -> None:
        for name in parts.NODE_PARTS[1:]:
            self._launch(name, record)
        self.kubectl("apply", "-f", str(ADDONS))
        self.kubectl("wait", "--for=create", f"node/{layout.NODE}", f"--timeout={NODE_S}s", timeout=NODE_S + 10)
        self.kubectl(
            "wait", "--for=condition=Ready", f"node/{layout.NODE}", f"--timeout={NODE_S}s", timeout=NODE_S + 10
        )
        self.kubectl(
            "rollout", "status", "-n", "kube-system", "deployment/coredns", f"--timeout={NODE_S}s", timeout=NODE_S + 10
        )

    def _launch(self, name: str, record: Record) -> None:
        record.parts[name] = self._spawn(name, record)
        self._write(record)

    def _spawn(self, name: str, record: Record) -> Process:
        places = self._layout(record)
        command = parts.part(name, places, build.binary("kubernetes")).command
        if record.first is not None:
            command = place.enter(record.first, command)
        return processes.spawn(command, places.logs / f"{name}.log", places.folder)

    def _wait_api(self, places: Layout, seconds: float) -> None:
        context = ssl.create_default_context(cafile=str(places.pki / "ca.crt"))
        context.load_cert_chain(places.pki / "admin.crt", places.pki / "admin.key")
        deadline = time.monotonic() + seconds
        while not _answers(f"{places.api}/readyz", context):
            self._complain_of_dead_parts(places)
            if time.monotonic() > deadline:
                raise CannotStart(f"the API server did not get ready in {seconds:.0f} s; see {places.logs}")
            time.sleep(0.1)

    def _complain_of_dead_parts(self, places: Layout) -> None:
        for name, process in self._must_run().parts.items():
            if not processes.is_alive(process):
                log = places.logs / f"{name}.log"
                raise CannotStart(f"{name} ended; the last of {log}:\n{_tail(log)}")

    # --- stopping ---------------------------------------------------------------------------------------------------

    def _down(self) -> None:
        record = self._record()
        if record is not None:
            if not record.isolated:
                for process in reversed(record.parts.values()):
                    processes.stop(process, STOP_S)
            else:
                place.remove(record.first, record.outer)
                for process in record.parts.values():
                    processes.stop(process, STOP_S)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _keep_logs(self) -> None:
        """What the parts said is all there is to see why they did not come up; the folder itself goes."""
        kept = self.folder.with_name("last-logs")
        shutil.rmtree(kept, ignore_errors=True)
        if (self.folder / "logs").exists():
            shutil.copytree(self.folder / "logs", kept)

    # --- the record -------------------------------------------------------------------------------------------------

    def _record(self) -> Record | None:
        try:
            return msgspec.json.decode((self.folder / "record.json").read_bytes(), type=Record)
        except (FileNotFoundError, msgspec.DecodeError):
            return None

    def _must_run(self) -> Record:
        record = self._record()
        if record is None:
            raise RuntimeError("the test cluster is not running; start it with `make cluster`")
        return record

    def _write(self, record: Record) -> None:
        unfinished = self.folder / "record.unfinished"
        unfinished.write_bytes(msgspec.json.encode(record))
        unfinished.replace(self.folder / "record.json")

    def _layout(self, record: Record) -> Layout:
        if record.isolated:
            return layout.isolated(self.folder)
        api, etcd, peer, controllers = record.ports
        return Layout(
            folder=self.folder,
            address="127.0.0.1",
            api_port=api,
            etcd_port=etcd,
            peer_port=peer,
            controllers_port=controllers,
            isolated=False,
        )


def _answers(url: str, context: ssl.SSLContext) -> bool:
    try:
        with urllib.request.urlopen(url, context=context, timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def _tail(log: Path, lines: int = 12) -> str:
    return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])
