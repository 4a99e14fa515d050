"""A real control server in this process, real sidecar processes beside it, all on loopback in a temporary folder."""

import asyncio
import json
import os
import resource
import signal
import socket
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from backstay.adapters.certificates import LocalCA
from backstay.config.model import Backend, HostRoutes, Manifest, Part, Rule, WeightedBackend, digest_of, encode_part
from backstay.config.wire import Report
from backstay.control.server import ControlServer
from backstay.core.ports import Assignment, FleetEvent, Identity, Said

HERE = Path(__file__).parent
OPERATOR = HERE.parents[1] / "operator"
IDENTITY = "spiffe://backstay.local/ns/shop/sa/logic"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Enrolling:
    """Tokens `token-<proxy>`, each good once."""

    def __init__(self) -> None:
        self.used: set[str] = set()
        self.zone = ""

    async def by_token(self, proxy: str, token: str, peer_ip: str) -> Identity:
        if token != f"token-{proxy}" or token in self.used:
            raise PermissionError(f"token of {proxy} is wrong or used")
        self.used.add(token)
        return await self.by_certificate(proxy, IDENTITY)

    async def by_certificate(self, proxy: str, spiffe_id: str) -> Identity:
        if spiffe_id != IDENTITY:
            raise PermissionError(f"{spiffe_id} is not {proxy}")
        attributes = {"zone": self.zone} if self.zone else {}
        return Identity(proxy=proxy, workload="shop/logic", spiffe_id=spiffe_id, attributes=attributes)


Parts = dict[str, bytes]


def config(weight: int = 1, *, hosts: int = 3, extra: str = "") -> tuple[Manifest, Parts]:
    """A config of `hosts` routes, the first of which has this weight."""
    parts: list[Part] = [Backend(service="logic.shop", port=80)]
    names = [f"h{index}.shop" for index in range(hosts)] + ([f"{extra}.shop"] if extra else [])
    for index, host in enumerate(names):
        backend = WeightedBackend(backend="logic.shop:80", weight=weight if index == 0 else 1)
        parts.append(HostRoutes(host=host, port=80, rules=(Rule(name="all", backends=(backend,)),)))
    encoded = {part.key: encode_part(part) for part in parts}
    manifest = Manifest(workload="shop/logic", parts={key: digest_of(data) for key, data in encoded.items()})
    return manifest, {digest_of(data): data for data in encoded.values()}


def assignment(
    stable: tuple[Manifest, Parts], candidate: tuple[Manifest, Parts] | None = None, **more: Any
) -> tuple[Assignment, Parts]:
    fields = {"share": 0.5 if candidate else 0.0, **more}
    wanted = Assignment(stable=stable[0], candidate=candidate[0] if candidate else None, **fields)
    return wanted, stable[1] | (candidate[1] if candidate else {})


class Operator:
    """A control server with a reader that files events and, if it may, acknowledges reports."""

    def __init__(self, folder: Path, *, epoch: int, port: int, lifetime: float = 86400.0) -> None:
        self.ca = LocalCA.open(folder / "ca", "backstay.local", lifetime=lifetime)
        self.enroller = Enrolling()
        self.server = ControlServer(ca=self.ca, enroller=self.enroller, epoch=epoch, mesh="demo", port=port)
        self.events: list[FleetEvent] = []
        self.acknowledges = True
        self._news = asyncio.Event()
        self.server.wake = self._wake

    def _wake(self) -> None:
        asyncio.get_running_loop().call_soon(self._drain)

    def _drain(self) -> None:
        for event in self.server.drain():
            self.events.append(event)
            if self.acknowledges and isinstance(event, Said) and isinstance(event.message, Report):
                self.server.acknowledge(event.proxy, event.message.sequence)
        self._news.set()

    def said(self, kind: type[Any]) -> list[Any]:
        return [each.message for each in self.events if isinstance(each, Said) and isinstance(each.message, kind)]

    async def until(self, happened: Callable[[], Any], within: float = 15.0) -> Any:
        """Wait for something to be true of the events; woken by events, not by time."""
        async with asyncio.timeout(within):
            while not (found := happened()):
                self._news.clear()
                await self._news.wait()
            return found


class Sidecar:
    def __init__(self, folder: Path, proxy: str, port: int) -> None:
        self.proxy = proxy
        self.state = folder / proxy
        self.log = folder / f"{proxy}.jsonl"
        self.admin = free_port()
        self._token = folder / f"{proxy}.token"
        self._token.write_text(f"token-{proxy}")
        self._roots = folder / "roots.pem"
        self._errors = folder / f"{proxy}.log"
        self._port = port
        self.process: asyncio.subprocess.Process | None = None

    async def start(self, *more: str, limit_file_bytes: int = 0) -> None:
        """`limit_file_bytes`: no file may grow beyond, as on a disk that is nearly full."""
        environment = os.environ | {
            "PYTHONPATH": f"{OPERATOR}{os.pathsep}{HERE}",
            "RECORDING": str(self.log),
        }
        with self._errors.open("ab") as errors:
            self.process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "backstay.sidecar", "--proxy", self.proxy, "--state", str(self.state)),
                *("--operator", f"https://127.0.0.1:{self._port}", "--token-file", str(self._token)),
                *("--trust-file", str(self._roots), "--engine", "recording_engine:RecordingEngine"),
                *("--admin-port", str(self.admin), "--health-port", "0", "--prometheus-port", "0", "--drain", "1"),
                *("--report-interval", "0.2", *more),
                env=environment,
                stderr=errors,
                preexec_fn=partial(_limit_files, limit_file_bytes) if limit_file_bytes else None,
            )

    async def end(self, number: signal.Signals) -> int:
        assert self.process is not None
        if self.process.returncode is None:
            self.process.send_signal(number)
        async with asyncio.timeout(15):
            return await self.process.wait()

    async def ended(self) -> int:
        assert self.process is not None
        async with asyncio.timeout(15):
            return await self.process.wait()

    def recorded(self, what: str) -> list[dict[str, Any]]:
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return [entry for entry in map(json.loads, lines) if entry["what"] == what]

    def said(self) -> str:
        """Its log."""
        return self._errors.read_text()

    async def until(self, happened: Callable[[], Any], within: float = 15.0) -> Any:
        """Poll files and pages of another process; there is nothing to be woken by."""
        async with asyncio.timeout(within):
            while not (found := happened()):
                await asyncio.sleep(0.05)
            return found

    def admin_is_open(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.admin)) == 0

    async def page(self, path: str) -> tuple[int, bytes]:
        return await asyncio.to_thread(self._get, path)

    def _get(self, path: str) -> tuple[int, bytes]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.admin}{path}", timeout=5) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()


def _limit_files(size: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


class World:
    """One operator (after another, on the same port) and any number of sidecars."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.operators: list[Operator] = []
        self.sidecars: list[Sidecar] = []

    async def operator(self, *, epoch: int = 1, lifetime: float = 86400.0) -> Operator:
        operator = Operator(self.folder, epoch=epoch, port=self.port, lifetime=lifetime)
        (self.folder / "roots.pem").write_text(operator.ca.trust_bundle()["backstay.local"])
        await operator.server.start()
        self.operators.append(operator)
        return operator

    async def sidecar(self, proxy: str = "logic-1", *more: str) -> Sidecar:
        sidecar = Sidecar(self.folder, proxy, self.port)
        self.sidecars.append(sidecar)
        await sidecar.start(*more)
        return sidecar

    async def close(self) -> None:
        for sidecar in self.sidecars:
            await sidecar.end(signal.SIGKILL)
        for operator in self.operators:
            await operator.server.close()
