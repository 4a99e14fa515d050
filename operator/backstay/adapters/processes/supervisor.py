"""Keeps one instance running: its sidecar first, then its application, each restarted with growing pauses.

Rule: an operator that is killed takes nothing with it. Processes are found again by their pid files (process.py); only
`stop` ends them, `detach` leaves them alone. A sidecar that ends is restarted under a running application, and the
other way round; the instance is ready only while both are.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from backstay import redact, tasks
from backstay.adapters.processes import process as processes
from backstay.adapters.processes.addresses import holder_of, is_free
from backstay.adapters.processes.launches import InstancePlan
from backstay.adapters.processes.process import Launch, Process
from backstay.adapters.processes.tokens import Tokens

_log: Final = logging.getLogger("backstay.processes")

TURN_S: Final = 2.0
"""The longest that one start keeps others waiting: twice what a sidecar needs on an idle core."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SupervisionSettings:
    """Times of supervision; tests shorten them."""

    first_pause: float = 0.2
    """Seconds before the first restart; doubles with every further one. A proxy lost is harm, so the first is quick."""
    longest_pause: float = 10.0
    """Cap of the pauses. Kubernetes stops at five minutes; a person in front of a terminal does not wait that long."""
    steady_after: float = 30.0
    """Seconds of uptime after which earlier failures are forgotten."""
    probe_every: float = 0.05
    """First pause between readiness probes; grows to half a second."""
    settle: float = 0.5
    """Seconds between "not ready" and SIGTERM when one instance stops: callers hear of it first (live data takes
    milliseconds on one machine)."""
    grace: float = 5.0
    """Seconds from SIGTERM to SIGKILL, for each of the two processes."""
    token_after: float = 5.0
    """Seconds after which a sidecar that is not ready gets a fresh enrolment token: its answer may have been lost."""
    wish_every: float = 1.0
    """Seconds between looks whether a running sidecar wants a token: its certificate ended while the machine slept, or
    while there was no operator; it asks again every few seconds."""


def pause_after(failures: int, settings: SupervisionSettings) -> float:
    """Seconds to wait before the next start after so many failures in a row."""
    return float(min(settings.first_pause * 2 ** min(failures - 1, 30), settings.longest_pause))


class Keeper:
    """One process that has to run: starts or adopts it, says when it is ready, restarts it when it ends."""

    def __init__(
        self,
        *,
        name: str,
        launch: Launch,
        ports: tuple[tuple[str, int], ...],
        before: Callable[[], Awaitable[None]],
        probe: Callable[[], Awaitable[bool]],
        changed: Callable[[], None],
        gate: asyncio.Semaphore,
        settings: SupervisionSettings,
    ) -> None:
        self.name = name
        self.ready = asyncio.Event()
        self.looked = asyncio.Event()
        """Set once it is known whether an earlier operator's process runs, and whether that one is ready."""
        self.process: Process | None = None
        self.restarts = 0
        self.problem = ""
        self._launch = launch
        self._ports = ports
        self._before = before
        self._probe = probe
        self._changed = changed
        self._gate = gate
        self._settings = settings
        self._failures = 0

    def __repr__(self) -> str:
        return f"<Keeper {self.name} {'ready' if self.ready.is_set() else 'not ready'} restarts={self.restarts}>"

    @property
    def log_file(self) -> Path:
        return self._launch.log_file

    async def run(self) -> None:
        """Until cancelled; a cancelled keeper leaves its process running."""
        process = processes.adopt(self._launch)
        if process is None:
            await self._end_outdated()
            self.looked.set()
        while True:
            if process is None:
                process = await self._start()
            if process is not None:
                await self._attend(process)
                process = None
            self.restarts += 1
            await asyncio.sleep(pause_after(self._failures, self._settings))

    async def _end_outdated(self) -> None:
        outdated = processes.leftover(self._launch.pid_file)
        if outdated is not None:
            _log.info("process.outdated name=%s pid=%d", self.name, outdated.pid)
            await outdated.end(self._settings.grace)

    async def _start(self) -> Process | None:
        await self._before()
        taken = [f"{host}:{port}" for host, port in self._ports if not is_free(host, port)]
        if taken:
            self._failed(f"port {taken[0]} is in use" + _by(holder_of(int(taken[0].rpartition(":")[2]))))
            return None
        await self._gate.acquire()
        try:
            process = processes.start(self._launch)
        except OSError as error:
            self._gate.release()
            self._failed(f"cannot run {self._launch.argv[0]!r}: {error.strerror or error}")
            return None
        tasks.spawn(self._give_turn_on(), name=f"turn {self.name}")
        return process

    async def _give_turn_on(self) -> None:
        """Fifty interpreters that start at once on two cores all start late, so a few start at a time."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(TURN_S):
                await self.ready.wait()
        self._gate.release()

    async def _attend(self, process: Process) -> None:
        self.process = process
        since = time.monotonic()
        watcher = tasks.spawn(self._become_ready(process), name=f"ready {self.name}")
        try:
            code = await process.wait()
        finally:
            await tasks.stop(watcher)
        process.sweep()
        if time.monotonic() - since >= self._settings.steady_after:
            self._failures = 0
        self._failed("ended" if code is None else f"ended with exit code {code}")

    async def _become_ready(self, process: Process) -> None:
        await self._probe_until_ready()
        self.problem = ""
        self.ready.set()
        self.looked.set()
        _log.info("process.ready name=%s pid=%d adopted=%s", self.name, process.pid, process.adopted)
        self._changed()

    async def _probe_until_ready(self) -> None:
        pause = self._settings.probe_every
        while not await self._probe():
            self.looked.set()
            await asyncio.sleep(pause)
            pause = min(pause * 1.5, 0.5)

    def _failed(self, problem: str) -> None:
        self._failures += 1
        self.problem = redact.clean(problem)
        self.process = None
        self.ready.clear()
        self.looked.set()
        _log.warning("process.down name=%s problem=%s log=%s", self.name, self.problem, self._launch.log_file)
        self._changed()


class Supervisor:
    """One instance: at most a sidecar, and its application."""

    def __init__(
        self,
        plan: InstancePlan,
        *,
        sidecar: Launch | None,
        app: Launch,
        tokens: Tokens,
        changed: Callable[[], None],
        gate: asyncio.Semaphore,
        settings: SupervisionSettings,
    ) -> None:
        self.plan = plan
        self.stopping = False
        self._settings = settings
        self._changed = changed
        self._tokens = tokens
        self._token_at = 0.0
        self._running: list[asyncio.Task[None]] = []
        self.sidecar = (
            Keeper(
                name=f"{plan.id}/sidecar",
                launch=sidecar,
                ports=tuple((plan.place.address, port) for port in sidecar_ports(plan)),
                before=self._prepare_sidecar,
                probe=self._probe_sidecar,
                changed=self._sidecar_changed,
                gate=gate,
                settings=settings,
            )
            if sidecar is not None
            else None
        )
        self.app = Keeper(
            name=f"{plan.id}/app",
            launch=app,
            ports=tuple((plan.place.address, port) for port in plan.place.app_ports.values()),
            before=self._sidecar_ready,
            probe=self._probe_app,
            changed=changed,
            gate=gate,
            settings=settings,
        )

    def __repr__(self) -> str:
        return f"<Supervisor {self.plan.id} {'ready' if self.is_ready else 'not ready'}>"

    @property
    def is_ready(self) -> bool:
        keepers = [keeper for keeper in (self.sidecar, self.app) if keeper is not None]
        return not self.stopping and all(keeper.ready.is_set() for keeper in keepers)

    def start(self) -> None:
        keepers = [keeper for keeper in (self.sidecar, self.app) if keeper is not None]
        self._running = [tasks.spawn(keeper.run(), name=f"keep {keeper.name}") for keeper in keepers]
        if self.sidecar is not None:
            self._running.append(tasks.spawn(self._grant_wishes(), name=f"tokens {self.plan.id}"))

    async def looked(self) -> None:
        """Until it is known what an earlier operator left running."""
        if self.sidecar is not None:
            await self.sidecar.looked.wait()
        await self.app.looked.wait()

    async def detach(self) -> None:
        """Stop watching; the processes go on."""
        await tasks.stop(*self._running)

    async def stop(self, *, settle: float | None = None) -> None:
        """Say that it is leaving, then end the application, then its sidecar (which drains)."""
        self.stopping = True
        self._changed()
        if self.is_running:
            await asyncio.sleep(self._settings.settle if settle is None else settle)
        await self.detach()
        for keeper in (self.app, self.sidecar):
            if keeper is not None and keeper.process is not None:
                await keeper.process.end(self._settings.grace)
                keeper.process = None
        self._tokens.withdraw(self.plan.token_file)

    @property
    def is_running(self) -> bool:
        return any(keeper is not None and keeper.process is not None for keeper in (self.sidecar, self.app))

    async def _prepare_sidecar(self) -> None:
        self.plan.sidecar_state.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._issue_token()

    def _issue_token(self) -> None:
        self._tokens.issue(self.plan.token_file)
        self._token_at = time.monotonic()

    async def _grant_wishes(self) -> None:
        while True:
            await asyncio.sleep(self._settings.wish_every)
            try:
                if self._tokens.is_wanted(self.plan.token_file):
                    self._issue_token()
                    _log.info("process.token-again name=%s", self.plan.id)
            except OSError as error:
                _log.warning("process.token-failed name=%s error=%s", self.plan.id, redact.clean(str(error)))

    async def _sidecar_ready(self) -> None:
        """The application waits for its proxy, or its first requests would go past the mesh or nowhere."""
        if self.sidecar is not None:
            await self.sidecar.ready.wait()

    def _sidecar_changed(self) -> None:
        if self.sidecar is not None and self.sidecar.ready.is_set():
            self._tokens.withdraw(self.plan.token_file)
        self._changed()

    async def _probe_sidecar(self) -> bool:
        if await answers_ready(self.plan.place.address, self.plan.place.admin):
            return True
        if time.monotonic() - self._token_at > self._settings.token_after and not self.plan.token_file.exists():
            self._issue_token()
        return False

    async def _probe_app(self) -> bool:
        """Ready when all its ports accept; without ports, as soon as it runs."""
        place = self.plan.place
        return all([await accepts(place.address, port) for port in place.app_ports.values()])


def sidecar_ports(plan: InstancePlan) -> tuple[int, ...]:
    place = plan.place
    return (place.outbound, place.admin, *place.inbound.values(), *place.listeners.values())


async def accepts(host: str, port: int) -> bool:
    """True if a connection can be made."""
    try:
        async with asyncio.timeout(1.0):
            _, writer = await asyncio.open_connection(host, port)
    except (OSError, TimeoutError):
        return False
    writer.close()
    with contextlib.suppress(OSError):  # it accepted; how it ends does not matter
        await writer.wait_closed()
    return True


async def answers_ready(host: str, port: int) -> bool:
    """True if `/healthz/ready` answers 200."""
    try:
        async with asyncio.timeout(1.0):
            reader, writer = await asyncio.open_connection(host, port)
            try:
                writer.write(f"GET /healthz/ready HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
                status = await reader.readline()
            finally:
                writer.close()
    except (OSError, TimeoutError):
        return False
    return status.split(b" ")[1:2] == [b"200"]


def _by(holder: str) -> str:
    return f" by {holder}" if holder else ""
