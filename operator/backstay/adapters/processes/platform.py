"""The local platform: the workloads file as processes on this machine, and the registry that says so.

Implements ports.Platform (what exists) and ports.Enroller (who a sidecar is). Decides where instances stand and how
many there are, and remembers both in the state folder; how one instance is kept running is supervisor.py's.
"""

import asyncio
import contextlib
import ipaddress
import logging
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Final

import msgspec

from backstay import tasks
from backstay.adapters.processes import addresses, process, workloads_file
from backstay.adapters.processes.addresses import Place, PortTaken
from backstay.adapters.processes.launches import InstancePlan, OperatorEndpoint, app_launch, sidecar_launch
from backstay.adapters.processes.supervisor import Keeper, SupervisionSettings, Supervisor, sidecar_ports
from backstay.adapters.processes.tokens import Tokens
from backstay.adapters.processes.workloads_file import WorkloadsFile
from backstay.core.ports import Identity, StateUnavailable
from backstay.core.registry import Instance, Registry, Workload

_log: Final = logging.getLogger("backstay.processes")

MAX_LOG_BYTES: Final = 5 * 1024 * 1024
"""Per process, and as much again for the part before: 50 instances stay under 1 GiB."""
LOG_LOOK_S: Final = 5.0
ADOPTION_S: Final = 2.0
"""How long a start waits to learn which processes of an earlier operator are ready, so that its first registry is not
an empty one."""


class _Remembered(msgspec.Struct, kw_only=True):
    """What must be the same after a restart."""

    version: int = 1
    places: dict[str, Place] = {}
    """By instance id."""
    replicas: dict[str, int] = {}
    """By workload, where somebody asked for another number than the file's."""
    stopped: list[str] = []
    """Instances that somebody stopped."""


class LocalPlatform:
    """Workloads of one file as processes. `await start(...)` first; later `close` ends them or `detach` leaves them."""

    def __init__(
        self,
        workloads: Path | WorkloadsFile,
        state: Path,
        *,
        trust_domain: str = "backstay.local",
        settings: SupervisionSettings | None = None,
        one_address: bool | None = None,
    ) -> None:
        """`one_address`: use ports of 127.0.0.1 only; None asks the system. Raises WorkloadsFileInvalid, OSError."""
        self.file = workloads_file.read(workloads) if isinstance(workloads, Path) else workloads
        self._state = state.absolute()
        self._trust_domain = trust_domain
        self._settings = settings or SupervisionSettings()
        self._one_address = not addresses.has_many_loopbacks() if one_address is None else one_address
        self._services = self.file.services()
        self._workloads = self.file.workloads()
        self._entries = self.file.entries()
        self._tokens = Tokens()
        self._gate = asyncio.Semaphore(2 * (os.cpu_count() or 1))
        self._supervisors: dict[str, Supervisor] = {}
        self._ready_since: dict[str, float] = {}
        self._listeners: set[asyncio.Event] = set()
        self._operator: OperatorEndpoint | None = None
        self._log_task: asyncio.Task[None] | None = None
        self._remembered = _Remembered()

    def __repr__(self) -> str:
        ready = sum(supervisor.is_ready for supervisor in self._supervisors.values())
        return f"<LocalPlatform {self.file.path} {ready}/{len(self._supervisors)} ready>"

    # --- life ---------------------------------------------------------------------------------------------------------

    async def start(self, operator: OperatorEndpoint) -> None:
        """Start or adopt every instance; returns as soon as it is known what runs already, not when all is ready.

        Raises PortTaken (all of them named) before anything is started, StateUnavailable for an unreadable memory.
        """
        self._operator = operator
        self._state.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._remembered = self._recall()
        strays = await process.end_strays(self._state / "instances")
        if strays:
            _log.warning("process.strays_killed sessions=%s", strays)
        plans = [self._plan(instance, key) for key in self._workloads for instance in self._wanted(key)]
        self._remember()
        _refuse_taken_ports(plans)
        await self._end_unwanted({plan.id for plan in plans})
        for plan in plans:
            self._supervise(plan)
        self._log_task = tasks.spawn(self._trim_logs(), name="trim logs")
        await self._looked()
        self._changed()

    async def close(self) -> None:
        """End everything: applications first, then their sidecars; nothing is left behind."""
        await tasks.stop(self._log_task)
        await asyncio.gather(*(supervisor.stop(settle=0) for supervisor in self._supervisors.values()))
        self._supervisors.clear()
        self._changed()

    async def detach(self) -> None:
        """Leave everything running; the next start with the same state folder adopts it."""
        await tasks.stop(self._log_task)
        await asyncio.gather(*(supervisor.detach() for supervisor in self._supervisors.values()))

    async def wait_ready(self, timeout: float = 60.0) -> None:
        """Until every instance is ready. Raises TimeoutError that names those that are not, and why."""
        try:
            async with asyncio.timeout(timeout):
                async for _ in self._looks():
                    if all(supervisor.is_ready for supervisor in self._supervisors.values()):
                        return
        except TimeoutError:
            raise TimeoutError(f"not ready after {timeout:g} s: {'; '.join(self.complaints())}") from None

    def complaints(self) -> list[str]:
        """One sentence per instance that is not ready."""
        return [_complaint(supervisor) for supervisor in self._supervisors.values() if not supervisor.is_ready]

    def counted(self) -> tuple[int, int]:
        """(ready, all) instances."""
        return sum(supervisor.is_ready for supervisor in self._supervisors.values()), len(self._supervisors)

    def troubled(self) -> dict[str, tuple[str, Keeper]]:
        """Instance that is not ready -> the sentence that says so, and the process it is about."""
        return {
            name: (_complaint(supervisor), _culprit(supervisor))
            for name, supervisor in self._supervisors.items()
            if not supervisor.is_ready
        }

    # --- ports.Platform -----------------------------------------------------------------------------------------------

    async def registry(self) -> Registry:
        return self.current()

    def current(self) -> Registry:
        """The registry now: all services and workloads of the file, and every instance that should run."""
        return Registry(
            services=self._services,
            workloads=self._workloads,
            instances={
                instance: self._instance(supervisor)
                for instance, supervisor in self._supervisors.items()
                if not supervisor.stopping
            },
        )

    async def changes(self) -> AsyncIterator[None]:
        """Yields after every change of the registry; changes while nobody waits are one."""
        async for _ in self._looks(first=False):
            yield None

    # --- ports.Enroller -----------------------------------------------------------------------------------------------

    async def by_token(self, proxy: str, token: str, peer_ip: str) -> Identity:
        supervisor = self._supervisors.get(proxy)
        if supervisor is None or supervisor.sidecar is None:
            raise PermissionError(f"no instance {proxy!r} with a sidecar runs here")
        if not ipaddress.ip_address(peer_ip).is_loopback:
            raise PermissionError(f"{proxy!r} asked from {peer_ip}, local instances ask from this machine only")
        if not self._tokens.redeem(supervisor.plan.token_file, token):
            raise PermissionError(f"{proxy!r} brought a token that was not issued to it or was used already")
        return self._identity(supervisor)

    async def by_certificate(self, proxy: str, spiffe_id: str) -> Identity:
        """Instances of one service account share an identity, so one of them could call itself by another's id; it
        gains nothing that the account does not have."""
        supervisor = self._supervisors.get(proxy)
        if supervisor is None or supervisor.sidecar is None:
            raise PermissionError(f"no instance {proxy!r} with a sidecar runs here")
        identity = self._identity(supervisor)
        if spiffe_id != identity.spiffe_id:
            raise PermissionError(f"{proxy!r} is {identity.spiffe_id}, its certificate says {spiffe_id!r}")
        return identity

    # --- orders -------------------------------------------------------------------------------------------------------

    async def scale(self, workload: str, replicas: int) -> None:
        """Run this many instances of `namespace/name` from now on; the highest numbers go first. Raises KeyError."""
        self._workloads[workload]
        if not 0 <= replicas <= workloads_file.MAX_REPLICAS:
            raise ValueError(f"replicas {replicas} is not between 0 and {workloads_file.MAX_REPLICAS}")
        before = set(self._ids(workload))
        self._remembered.replicas[workload] = replicas
        plans = [self._plan(instance, workload) for instance in self._wanted(workload)]
        wanted = {plan.id for plan in plans}
        self._remember()
        for plan in plans:
            if plan.id not in self._supervisors:
                self._supervise(plan)
        self._changed()
        await asyncio.gather(*(self._end(instance) for instance in before - wanted))

    async def stop_instance(self, instance: str) -> None:
        """End one instance in order (not ready, application, sidecar); it stays away until start_instance."""
        if instance not in self._remembered.stopped:
            self._remembered.stopped.append(instance)
        self._remember()
        await self._end(instance)

    async def start_instance(self, instance: str) -> None:
        """Let a stopped instance come back."""
        if instance in self._remembered.stopped:
            self._remembered.stopped.remove(instance)
        self._remember()
        if instance not in self._supervisors:
            workload = next(key for key in self._workloads if instance in self._wanted(key))
            self._supervise(self._plan(instance, workload))
            self._changed()

    def kill_instance(self, instance: str, *, app: bool = True, sidecar: bool = True) -> None:
        """SIGKILL to the process groups; supervision brings them back."""
        supervisor = self._supervisors[instance]
        for keeper, wanted in ((supervisor.app, app), (supervisor.sidecar, sidecar)):
            if wanted and keeper is not None and keeper.process is not None:
                keeper.process.signal(signal.SIGKILL)

    def keepers(self, instance: str) -> tuple[Keeper | None, Keeper]:
        """(sidecar, application) of an instance: pids, restarts, the last problem."""
        supervisor = self._supervisors[instance]
        return supervisor.sidecar, supervisor.app

    def place(self, instance: str) -> Place:
        """Address and ports of an instance. Raises KeyError."""
        return self._remembered.places[instance]

    # --- inside -------------------------------------------------------------------------------------------------------

    def _ids(self, workload: str) -> list[str]:
        """Every instance a workload should have, stopped ones included: `name-0`, and `name-0.other` outside the file's
        own namespace."""
        entry, namespace = self._entries[workload], self._workloads[workload].namespace
        suffix = "" if namespace == self.file.contents.namespace else f".{namespace}"
        count = self._remembered.replicas.get(workload, entry.replicas)
        return [f"{entry.name}-{number}{suffix}" for number in range(count)]

    def _wanted(self, workload: str) -> list[str]:
        return [instance for instance in self._ids(workload) if instance not in self._remembered.stopped]

    def _plan(self, instance: str, key: str) -> InstancePlan:
        workload, entry = self._workloads[key], self._entries[key]
        return InstancePlan(
            id=instance,
            workload=workload,
            entry=entry,
            place=self._place(instance, workload),
            folder=self._folder(instance),
            home=self.file.path.absolute().parent,
        )

    def _folder(self, instance: str) -> Path:
        return self._state / "instances" / instance

    def _place(self, instance: str, workload: Workload) -> Place:
        """The remembered place if it still fits the entry and is either ours or free, else a new one."""
        app = _declared_ports(self._entries[workload.key], workload)
        listeners = [entry.local_port for entry in self._entries[workload.key].listen]
        old = self._remembered.places.get(instance)
        if old is not None and (list(old.app_ports), list(old.listeners)) == (app, listeners):
            in_use = any(process.leftover(file) for file in _pid_files(self._folder(instance)))
            if in_use or all(addresses.is_free(old.address, port) for port in old.ports()):
                return old
        others = [place for name, place in self._remembered.places.items() if name != instance]
        if self._one_address:
            place = addresses.shared_address(app, listeners, (port for other in others for port in other.ports()))
        else:
            place = addresses.own_address(self._state, app, listeners, (other.address for other in others))
        self._remembered.places[instance] = place
        return place

    def _supervise(self, plan: InstancePlan) -> None:
        if self._operator is None:
            raise RuntimeError("the platform was not started")
        plan.data.mkdir(mode=0o700, parents=True, exist_ok=True)
        sidecar = (
            sidecar_launch(plan, self._operator, self._trust_domain, self._settings.grace, os.environ)
            if plan.entry.sidecar
            else None
        )
        supervisor = Supervisor(
            plan,
            sidecar=sidecar,
            app=app_launch(plan, os.environ),
            tokens=self._tokens,
            changed=self._changed,
            gate=self._gate,
            settings=self._settings,
        )
        self._supervisors[plan.id] = supervisor
        supervisor.start()

    async def _looked(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(ADOPTION_S):
                await asyncio.gather(*(supervisor.looked() for supervisor in self._supervisors.values()))

    async def _end(self, instance: str) -> None:
        supervisor = self._supervisors.get(instance)
        if supervisor is None:
            return
        await supervisor.stop()
        if self._supervisors.get(instance) is supervisor:
            del self._supervisors[instance]
        self._changed()

    async def _end_unwanted(self, wanted: set[str]) -> None:
        """Processes of instances that the file or an order took away while no operator was there."""
        folders = [folder for folder in (self._state / "instances").glob("*") if folder.name not in wanted]
        for folder in folders:
            for pid_file in _pid_files(folder):
                left = process.leftover(pid_file)
                if left is not None:
                    _log.info("process.unwanted instance=%s pid=%d", folder.name, left.pid)
                    await left.end(self._settings.grace)

    def _instance(self, supervisor: Supervisor) -> Instance:
        plan = supervisor.plan
        return Instance(
            id=plan.id,
            workload=plan.workload.key,
            address=plan.place.address,
            inbound=plan.place.inbound if plan.entry.sidecar else plan.place.app_ports,
            labels=plan.entry.labels,
            ready=supervisor.is_ready,
            meshed=plan.entry.sidecar,
            zone=plan.entry.zone,
            started_at=self._ready_since.get(plan.id, 0.0),
        )

    def _identity(self, supervisor: Supervisor) -> Identity:
        plan = supervisor.plan
        spiffe_id = plan.workload.identity(self._trust_domain)
        return Identity(proxy=plan.id, workload=plan.workload.key, spiffe_id=spiffe_id)

    def _changed(self) -> None:
        for instance, supervisor in self._supervisors.items():
            if not supervisor.is_ready:
                self._ready_since.pop(instance, None)
            else:
                self._ready_since.setdefault(instance, time.time())
        for event in self._listeners:
            event.set()

    async def _looks(self, *, first: bool = True) -> AsyncIterator[None]:
        event = asyncio.Event()
        self._listeners.add(event)
        try:
            if first:
                yield None
            while True:
                await event.wait()
                event.clear()
                yield None
        finally:
            self._listeners.discard(event)

    async def _trim_logs(self) -> None:
        while True:
            await asyncio.sleep(LOG_LOOK_S)
            for instance in self._supervisors:
                for log in self._folder(instance).glob("*.log"):
                    trim(log, MAX_LOG_BYTES)

    # --- memory -------------------------------------------------------------------------------------------------------

    @property
    def _memory(self) -> Path:
        return self._state / "platform.json"

    def _recall(self) -> _Remembered:
        try:
            remembered = msgspec.json.decode(self._memory.read_bytes(), type=_Remembered)
        except FileNotFoundError:
            return _Remembered()
        except msgspec.DecodeError as error:
            raise StateUnavailable(f"{self._memory} cannot be read ({error}); move it away to start anew") from error
        if remembered.version != _Remembered().version:
            raise StateUnavailable(f"{self._memory} was written by another version ({remembered.version}) of Backstay")
        return remembered

    def _remember(self) -> None:
        fresh = self._memory.with_suffix(".new")
        try:
            fresh.write_bytes(msgspec.json.format(msgspec.json.encode(self._remembered)))
            fresh.replace(self._memory)
        except OSError as error:
            raise StateUnavailable(f"{self._memory} cannot be written: {error.strerror or error}") from error


def trim(log: Path, limit: int) -> None:
    """Keep a log that its process holds open under `limit` bytes: what there is becomes `.1`, the file starts again.

    Lines written between copy and cut are lost; the process appends (O_APPEND), so it goes on at the new end.
    """
    with contextlib.suppress(FileNotFoundError):
        if log.stat().st_size > limit:
            with log.open("rb") as file:
                file.seek(-limit, os.SEEK_END)
                log.with_suffix(".log.1").write_bytes(file.read(limit))
            os.truncate(log, 0)


def _declared_ports(entry: workloads_file.WorkloadEntry, workload: Workload) -> list[int]:
    """In the order of the entry, for the first is the application's PORT; then those only services name."""
    named = [port if isinstance(port, int) else port.port for port in entry.ports]
    return list(dict.fromkeys([*named, *(port for port, _ in workload.ports)]))


def _pid_files(folder: Path) -> tuple[Path, Path]:
    """The application's first: it must not talk without its sidecar."""
    return folder / "app.pid", folder / "sidecar.pid"


def _refuse_taken_ports(plans: list[InstancePlan]) -> None:
    taken = [complaint for plan in plans for complaint in _taken_ports(plan)]
    if taken:
        raise PortTaken("; ".join(taken))


def _taken_ports(plan: InstancePlan) -> Iterator[str]:
    if any(process.leftover(file) for file in _pid_files(plan.folder)):
        return
    place = plan.place
    for port in (*place.app_ports.values(), *sidecar_ports(plan)):
        if not addresses.is_free(place.address, port):
            holder = addresses.holder_of(port) or "another process"
            yield f"{plan.id}: port {port} at {place.address} is taken by {holder}"


def _culprit(supervisor: Supervisor) -> Keeper:
    """The process that an instance waits for: its sidecar goes first."""
    sidecar = supervisor.sidecar
    return sidecar if sidecar is not None and not sidecar.ready.is_set() else supervisor.app


def _complaint(supervisor: Supervisor) -> str:
    keeper = _culprit(supervisor)
    if keeper.ready.is_set():
        return f"{supervisor.plan.id}: is stopping"
    name = "application" if keeper is supervisor.app else "sidecar"
    return f"{supervisor.plan.id}: {name} {keeper.problem or 'is not ready yet'}"
