"""The parent of workers: an Engine that passes calls on, keeps the sockets, and starts anew what has died.

Calls block until all workers have answered: the parent serves no traffic, and a config that one of them refuses must be
refused by all. A worker that does not answer is killed. What is needed to start one is kept: the last call of each kind.
"""

import asyncio
import logging
import os
import socket
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec

from backstay.config.model import Config, Listeners
from backstay.config.wire import Endpoint, RefusalExpected
from backstay.redact import clean
from backstay.sidecar.backoff import Backoff
from backstay.sidecar.engine import Address, ContentRefused, IdentityFiles, Observed
from backstay.sidecar.engines.python.accept import bind
from backstay.sidecar.engines.python.places import gateway_host, is_optional, places
from backstay.sidecar.settings import MAX_PROCESSES
from backstay.sidecar.workers import calls, merge
from backstay.sidecar.workers.calls import Answer
from backstay.tasks import spawn, stop

ANSWER_WITHIN: Final = 10.0
"""Seconds until a worker that does not answer is killed. A config with 1,000 routes takes a tenth of one to apply."""
DRAIN_GRACE: Final = 2.0  # seconds that a worker may take beyond its drain, for the last lines of its log
SETTLED_AFTER: Final = 10.0  # seconds; who lived longer is started anew at once

Place = tuple[str, int]

_log: Final = logging.getLogger("backstay.sidecar.workers")


class WorkerLost(Exception):
    """A worker has gone, or does not answer."""


class Worker:
    """One process and the line to it."""

    def __init__(self, process: asyncio.subprocess.Process, line: socket.socket) -> None:
        self.process = process
        self.is_leaving = False
        self._line = line
        self.shown = ""
        """Its metrics, as they were shown last."""

    def ask(self, name: str, *arguments: object, sockets: Sequence[int] = ()) -> Answer:
        """Raises WorkerLost, ContentRefused."""
        try:
            calls.send(self._line, calls.encode_call(name, *arguments), sockets)
            answer = calls.decode_answer(calls.receive(self._line)[0])
        except (OSError, EOFError, ValueError) as error:
            self.kill()
            raise WorkerLost(f"{name}: {error or type(error).__name__}") from error
        if answer.refused:
            raise ContentRefused(answer.refused, answer.text)
        if answer.failed:
            self.kill()
            raise WorkerLost(f"{name}: {answer.failed}")
        return answer

    def give(self, ports: Mapping[Place, socket.socket]) -> None:
        """Hand over these listening sockets. Raises WorkerLost."""
        found = list(ports.items())
        for start in range(0, len(found), calls.MAX_SOCKETS):
            some = found[start : start + calls.MAX_SOCKETS]
            self.ask("ports", [place for place, _ in some], sockets=[sock.fileno() for _, sock in some])

    def last_words(self) -> calls.Last | None:
        """What it said when it ended in order; None if it did not."""
        try:
            return calls.decode_last(calls.receive(self._line)[0])
        except (OSError, EOFError, ValueError):
            return None
        finally:
            self._line.close()

    def kill(self) -> None:
        if self.process.returncode is None:
            self.process.kill()


class Slot:
    """One share of the traffic: its sockets stay, its worker may change."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.ports: dict[Place, socket.socket] = {}
        self.worker: Worker | None = None
        self.keeper: asyncio.Task[None] | None = None
        self.backoff = Backoff()

    def close(self, gone: Iterable[Place]) -> None:
        for place in list(gone):
            self.ports.pop(place).close()


class Workers:
    """Implements `backstay.sidecar.engine.Engine` by processes that each run the Python engine."""

    name = "python"
    capabilities: tuple[str, ...] = ("split",)

    def __init__(
        self,
        count: int,
        *,
        log_level: str = "info",
        beside: bool = False,
        inherited: Mapping[Place, socket.socket] | None = None,
    ) -> None:
        """`beside`: its first ports are another engine's as well, which it takes over from. `inherited`: one process goes on
        with these listening sockets of another engine, so that not even what waits in their queues is lost."""
        self._slots = [Slot(number) for number in range(count)]
        self._slots[0].ports.update(inherited or {})
        self._level = log_level
        self._is_beside = beside
        self._address: Address | None = None
        self._state: dict[str, tuple[object, ...]] = {}
        """The last arguments of each call that a new worker must be told of, in the order they are told."""
        self._endpoints: dict[str, Sequence[Endpoint]] = {}
        self._leaving: set[Worker] = set()
        self._left: list[Observed] = []
        """What workers that ended in order had not been asked for yet."""
        self._ended = merge.Exposition()
        """Counters of workers that are gone."""
        self._draining = False
        self.restarts = 0

    def __repr__(self) -> str:
        alive = sum(slot.worker is not None for slot in self._slots)
        return f"Workers({alive} of {len(self._slots)}, restarts={self.restarts})"

    @property
    def _here(self) -> list[Worker]:
        return [slot.worker for slot in self._slots if slot.worker is not None]

    @property
    def deaths(self) -> int:
        """A candidate that kills processes has to be left, whoever starts them again."""
        return self.restarts

    @property
    def processes(self) -> list[int]:
        """Process ids of those that take traffic."""
        return [worker.process.pid for worker in self._here]

    # --- start and end ---

    def prepare(self, address: Address) -> None:
        """What is told before `start` is kept for it."""

    def share_ports(self) -> None:
        for sock in (sock for slot in self._slots for sock in slot.ports.values()):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)  # inherited ones may not have it

    async def start(self, address: Address) -> None:
        self._address = address
        try:
            for host, port in places(address):
                if (host, port) not in self._slots[0].ports:
                    self._open(host, port, optional=is_optional(address, host))
            stable, candidate, *_ = self._state.get("apply", (None, None))
            self._open_gateway_ports(stable, candidate)  # type: ignore[arg-type]  # as `apply` was given them
            await asyncio.gather(*(self._fill(slot) for slot in self._slots))
        except BaseException:
            self._close_ports()
            for worker in self._here:
                worker.kill()
            raise
        self._is_beside = False
        for slot in self._slots:
            slot.keeper = spawn(self._keep(slot), name=f"worker-{slot.number}")

    def _open(self, host: str, port: int, *, optional: bool = False) -> None:
        """One socket of this place for each slot. Raises OSError, also where another process has the port."""
        try:
            if not self._is_beside:
                bind(host, port).close()  # with SO_REUSEPORT two sidecars of one user would share a port unnoticed
            found = [bind(host, port, shared=True) for _ in self._slots]
        except OSError as error:
            if optional:
                _log.info("workers.no-port place=%s:%d error=%s", host, port, error)
                return
            raise
        for slot, sock in zip(self._slots, found, strict=True):
            slot.ports[host, port] = sock

    def _close_ports(self) -> None:
        for slot in self._slots:
            slot.close(list(slot.ports))

    async def _fill(self, slot: Slot) -> None:
        slot.worker = await self._launch(slot)  # at once: what is told from now on it must hear

    async def _launch(self, slot: Slot) -> Worker:
        """A process that serves what all others serve. Raises OSError, ContentRefused."""
        ours, theirs = socket.socketpair()
        ours.settimeout(ANSWER_WITHIN)
        with theirs:
            command = (sys.executable, "-m", f"{__package__}.child", str(theirs.fileno()), self._level)
            process = await asyncio.create_subprocess_exec(*command, pass_fds=(theirs.fileno(),))
        worker = Worker(process, ours)
        try:
            worker.give(slot.ports)
            worker.ask("begin", list(self._everything()))
        except (WorkerLost, ContentRefused) as error:
            worker.kill()
            await process.wait()
            if isinstance(error, ContentRefused):
                raise
            raise OSError(f"a worker did not start: {error}") from error
        _log.info("worker.started slot=%d pid=%d", slot.number, process.pid)
        return worker

    def _everything(self) -> Iterator[msgspec.Raw]:
        """All calls that a new worker needs."""
        yield msgspec.Raw(calls.encode_call("start", self._address))
        if self._endpoints:
            yield msgspec.Raw(calls.encode_call("endpoints", self._endpoints, True))
        for name, arguments in self._state.items():
            yield msgspec.Raw(calls.encode_call(name, *arguments))

    async def _keep(self, slot: Slot) -> None:
        """Have a worker in this slot, always."""
        loop = asyncio.get_running_loop()
        while True:
            worker, began = slot.worker, loop.time()
            if worker is not None:
                await worker.process.wait()
                if slot.worker is not worker:
                    continue  # replaced
                slot.worker = None
                self._gone(worker)
                if self._draining:
                    return
                self.restarts += 1
                _log.error(
                    "worker.died slot=%d pid=%d status=%s", slot.number, worker.process.pid, worker.process.returncode
                )
                if loop.time() - began > SETTLED_AFTER:
                    slot.backoff.reset()
            await asyncio.sleep(slot.backoff.next())
            try:
                slot.worker = await self._launch(slot)
            except (OSError, ContentRefused) as error:
                _log.error("worker.start-failed slot=%d error=%s", slot.number, clean(str(error)))

    def _gone(self, worker: Worker) -> None:
        """Keep the counts of one that has ended."""
        last = worker.last_words()
        if last is not None:
            self._left.append(last.observed)
        self._ended.add(last.metrics if last is not None else worker.shown, with_gauges=False)

    async def replace(self, timeout: float) -> None:
        """A new process for every slot, one after the other; the former one finishes what it has begun."""
        for slot in self._slots:
            former = slot.worker
            try:
                fresh = await self._launch(slot)
            except (OSError, ContentRefused) as error:
                _log.error("worker.not-replaced slot=%d error=%s", slot.number, clean(str(error)))
                continue
            slot.worker = fresh
            if former is not None:
                spawn(self._see_off(former, timeout), name=f"worker-leaving-{slot.number}")
                await stop(slot.keeper)
                slot.keeper = spawn(self._keep(slot), name=f"worker-{slot.number}")

    async def _see_off(self, worker: Worker, timeout: float) -> None:
        worker.is_leaving = True
        self._leaving.add(worker)
        try:
            worker.ask("drain", timeout)
            async with asyncio.timeout(timeout + DRAIN_GRACE):
                await worker.process.wait()
        except (TimeoutError, WorkerLost) as error:
            _log.warning("worker.killed pid=%d error=%s", worker.process.pid, error)
            worker.kill()
            await worker.process.wait()
        finally:
            self._leaving.discard(worker)
            self._gone(worker)

    async def drain(self, timeout: float) -> None:
        self._draining = True
        self._close_ports()  # ours only: each worker closes its own when it is that port's turn
        await stop(*(slot.keeper for slot in self._slots))
        workers = self._here
        for slot in self._slots:
            slot.worker = None
        await asyncio.gather(*(self._see_off(worker, timeout) for worker in workers))
        ends = asyncio.get_running_loop().time() + timeout + DRAIN_GRACE
        while self._leaving and asyncio.get_running_loop().time() < ends:  # noqa: ASYNC110 - once in a process's life
            await asyncio.sleep(0.02)
        for worker in list(self._leaving):
            worker.kill()

    # --- Engine ---

    def apply(
        self, stable: Config, candidate: Config | None, share: float, expect_refused: Sequence[RefusalExpected] = ()
    ) -> None:
        arguments = (stable, candidate, share, list(expect_refused))
        if self._address is None:
            self._state["apply"] = arguments
            return
        opened = self._open_gateway_ports(stable, candidate)
        former = self._state.get("apply")
        done: list[Worker] = []
        for worker in self._here:
            try:
                worker.ask("apply", *arguments)
                done.append(worker)
            except WorkerLost as error:
                _log.error("worker.lost call=apply error=%s", error)
            except ContentRefused:
                self._take_back(done, former, opened)
                raise
        self._state["apply"] = arguments
        self._close_gateway_ports(stable, candidate)

    def _take_back(self, done: Iterable[Worker], former: tuple[object, ...] | None, opened: Iterable[Place]) -> None:
        for worker in done:
            if former is not None:
                self._ask(worker, "apply", former)
        for slot in self._slots:
            slot.close(opened)

    def _open_gateway_ports(self, *configs: Config | None) -> list[Place]:
        """Open what is new, and hand it to everybody. Raises ContentRefused."""
        known = self._slots[0].ports.keys()
        new = sorted(self._gateway_places(configs) - known)
        try:
            for host, port in new:
                self._open(host, port)
        except OSError as error:
            for slot in self._slots:
                slot.close(place for place in new if place in slot.ports)
            raise ContentRefused("PortUnavailable", str(error)) from error
        for slot in self._slots:
            if slot.worker is not None and new:
                self._give(slot.worker, {place: slot.ports[place] for place in new})
        return new

    def _give(self, worker: Worker, ports: Mapping[Place, socket.socket]) -> None:
        try:
            worker.give(ports)
        except WorkerLost as error:
            _log.error("worker.lost call=ports error=%s", error)

    def _gateway_places(self, configs: Iterable[Config | None]) -> set[Place]:
        address = self._address
        assert address is not None  # noqa: S101 - `start` comes first
        host = gateway_host(address)
        listeners = (
            part for config in configs if config for part in config.parts.values() if isinstance(part, Listeners)
        )
        return {(host, entry.port) for part in listeners for entry in part.gateway}

    def _close_gateway_ports(self, *configs: Config | None) -> None:
        assert self._address is not None  # noqa: S101 - `start` comes first
        wanted = self._gateway_places(configs) | set(places(self._address))
        for slot in self._slots:
            slot.close(slot.ports.keys() - wanted)

    def endpoints(self, changed: Mapping[str, Sequence[Endpoint]], *, full: bool) -> None:
        known = {} if full else self._endpoints
        self._endpoints = {name: each for name, each in {**known, **changed}.items() if each}
        self._tell("endpoints", dict(changed), full)

    def place(self, zone: str) -> None:
        self._remember("place", zone)

    def addresses(self, services: Mapping[str, Sequence[str]]) -> None:
        self._remember("addresses", dict(services))

    def trust(self, bundles: Mapping[str, str], revoked: Sequence[str]) -> None:
        self._remember("trust", dict(bundles), list(revoked))

    def identity(self, files: IdentityFiles) -> None:
        self._remember("identity", str(files.certificate), str(files.key))

    def key_sets(self, known: Mapping[str, str]) -> None:
        self._remember("key_sets", dict(known))

    def secrets(self, files: Mapping[str, Path]) -> None:
        self._remember("secrets", {name: str(path) for name, path in files.items()})

    def sample(self, most: int) -> None:
        self._remember("sample", -(-most // len(self._slots)))

    def level(self, level: str) -> None:
        self._remember("level", level)

    def collect(self) -> Observed:
        left, self._left = self._left, []
        found = [answer.observed for answer in self._tell("collect", everybody=True) if answer.observed is not None]
        return merge.observed([*found, *left] or [Observed(rows=(), peers=(), serving={}, open_requests=0)])

    def metrics(self, *, exemplars: bool = False) -> bytes:
        """Prometheus text: one set of counters, whichever worker counted."""
        shown = merge.Exposition()
        shown.add(self._ended.text())
        for worker in (*self._here, *self._leaving):
            answer = self._ask(worker, "metrics", (exemplars,))
            worker.shown = answer.text if answer is not None else worker.shown
            shown.add(worker.shown)
        own = f"# TYPE backstay_worker_restarts_total counter\nbackstay_worker_restarts_total {self.restarts}\n"
        own += f"# TYPE backstay_workers gauge\nbackstay_workers {len(self._here)}\n"
        shown.add(own)
        return shown.text().encode()

    def clusters(self) -> str:
        """Each worker has its own connections and its own view of who is well."""
        answers = ((worker, self._ask(worker, "clusters", ())) for worker in self._here)
        return "".join(
            f"worker::{worker.process.pid}\n{answer.text}" for worker, answer in answers if answer is not None
        )

    # --- calls ---

    def _remember(self, name: str, *arguments: object) -> None:
        """Tell everybody, and everybody who comes later; what traffic is decided by is told last."""
        applied = self._state.pop("apply", None)
        self._state[name] = arguments
        if applied is not None:
            self._state["apply"] = applied
        self._tell(name, *arguments)

    def _tell(self, name: str, *arguments: object, everybody: bool = False) -> list[Answer]:
        workers = (*self._here, *self._leaving) if everybody else self._here
        found = (self._ask(worker, name, arguments) for worker in workers)
        return [answer for answer in found if answer is not None]

    def _ask(self, worker: Worker, name: str, arguments: Sequence[object]) -> Answer | None:
        try:
            return worker.ask(name, *arguments)
        except (WorkerLost, ContentRefused) as error:
            _log.error("worker.lost pid=%d error=%s", worker.process.pid, clean(str(error)))
            return None


def workers_wanted(concurrency: int) -> int:
    """How many processes; 0 asks for as many as this one may use cores."""
    if concurrency:
        return concurrency
    mine = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1  # macOS has none
    return min(MAX_PROCESSES, mine)
