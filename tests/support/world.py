"""A whole mesh in memory, second by second: the real reconciler and core between fakes of every port.

Proxies of the world ack what they are assigned in the next second, report every second what their configs do (a test says
which content fails how often), and go back to stable when their lease ends. Time moves only by `World.seconds`.
"""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from backstay.config.model import LATENCY_BOUNDS_MS, Manifest, config_digest
from backstay.config.wire import Ack, Hello, Live, Report, Row, WentBack
from backstay.core.ports import Assignment, Event, FleetEvent, Joined, Left, Said, TlsMaterial
from backstay.core.registry import Registry
from backstay.core.rollout.model import Direction
from backstay.core.view import MeshView
from backstay.reconciler.loop import LoopSettings, Ports, Reconciler
from ports.fakes import FakeDisk, FakeRepo, FakeStore
from support.meshes import registry, workload

QUICK_MESH = """
apiVersion: backstay.dev/v1alpha1
kind: Mesh
metadata: {name: mesh}
spec: {rollout: {soak: 2s, deadline: 20s, bakeTime: 5s, confirmWithin: 10s}}
"""
Badness = Callable[[bytes], float]
"""All parts of a config, joined -> share of requests that fail under it."""


def marked_bad(parts: bytes) -> float:
    """The usual badness: a timeout of 666 ms is the devil's."""
    return 0.5 if b'"timeout_ms":666,' in parts or b'"timeout_ms":666}' in parts else 0.0


def denies_callers(parts: bytes) -> float:
    """What is answered under a config that admits only service account c: nothing, as all callers are a."""
    return 1.0 if b'/sa/c"' in parts and b'/sa/a"' not in parts.partition(b'"part":"authorization"')[2] else 0.0


@dataclass
class FakeClock:
    now: float = 1000.0

    def monotonic(self) -> float:
        return self.now

    def wall(self) -> float:
        return 1_700_000_000.0 + self.now


class FakeAuthority:
    def sign(self, csr_pem: bytes, *, identity: str, lifetime: float | None = None) -> bytes:
        raise NotImplementedError("no proxy of this world asks for a certificate")

    def trust_bundle(self) -> Mapping[str, str]:
        return {"backstay.local": "roots"}


@dataclass
class FakePlatform:
    now: Registry

    async def registry(self) -> Registry:
        return self.now

    async def changes(self) -> AsyncIterator[None]:
        return
        yield


@dataclass
class SimProxy:
    id: str
    workload: str
    rate: int
    """Requests a second that it makes."""
    answers: int = 0
    """Requests a second that it gets."""
    boot: str = "boot"
    stable: str = ""
    candidate: str = ""
    share: float = 0.0
    sequence: int = 0
    unacked: list[Report] = field(default_factory=list)
    lease_left: float = 0.0
    lease: float = 0.0


class SimFleet:
    """Fleet whose proxies live in this object; they survive an operator that is replaced."""

    def __init__(self, badness: Badness, answering: Badness) -> None:
        self.badness = badness
        self.answering = answering
        self.proxies: dict[str, SimProxy] = {}
        self.parts: dict[str, bytes] = {}
        self.manifests: dict[str, Manifest] = {}
        self.assigned: list[tuple[str, str, str, float]] = []
        self.live: list[Live] = []
        self.told_secrets: Mapping[str, Mapping[str, TlsMaterial]] = {}
        self.epoch = 0
        self._events: list[FleetEvent] = []
        self._pending: dict[str, Assignment] = {}

    def secrets(self, by_workload: Mapping[str, Mapping[str, TlsMaterial]]) -> None:
        self.told_secrets = by_workload

    def join(self, proxy: SimProxy) -> None:
        self.proxies[proxy.id] = proxy
        self._hello(proxy)

    def leave(self, proxy: str) -> None:
        gone = self.proxies.pop(proxy)
        self._events.append(Left(proxy=proxy, workload=gone.workload))

    def _hello(self, proxy: SimProxy) -> None:
        hello = Hello(
            proxy=proxy.id,
            boot=proxy.boot,
            protocol_min=1,
            protocol_max=1,
            version="0",
            engine="python",
            capabilities=["split"],
            stable=proxy.stable,
            candidate=proxy.candidate,
        )
        self._events.append(Joined(proxy=proxy.id, workload=proxy.workload, hello=hello))

    def reconnect(self) -> None:
        """A new operator: nothing of what was on the way arrives, everybody says hello again."""
        self._events.clear()
        self._pending.clear()
        for proxy in self.proxies.values():
            self._hello(proxy)

    # --- the port ---

    def drain(self) -> Sequence[FleetEvent]:
        events, self._events = self._events, []
        return events

    def assign(self, proxy: str, assignment: Assignment, parts: Mapping[str, bytes]) -> None:
        self.parts.update(parts)
        for manifest in (assignment.stable, assignment.candidate):
            if manifest is not None:
                self.manifests[config_digest(manifest)] = manifest
        candidate = config_digest(assignment.candidate) if assignment.candidate else ""
        self.assigned.append((proxy, config_digest(assignment.stable), candidate, assignment.share))
        self._pending[proxy] = assignment

    def publish(self, live: Live) -> None:
        self.live.append(live)

    def acknowledge(self, proxy: str, sequence: int) -> None:
        known = self.proxies.get(proxy)
        if known is not None:
            known.unacked = [report for report in known.unacked if report.sequence > sequence]
            known.lease_left = known.lease

    # --- a second of the world ---

    def second(self, *, connected: bool) -> None:
        for proxy in self.proxies.values():
            if connected:
                self._take(proxy)
            self._serve(proxy)
            self._age(proxy, connected=connected)
        if connected:
            for proxy in self.proxies.values():
                self._events += [
                    Said(proxy=proxy.id, workload=proxy.workload, message=report) for report in proxy.unacked
                ]

    def _take(self, proxy: SimProxy) -> None:
        assignment = self._pending.pop(proxy.id, None)
        if assignment is None:
            return
        proxy.stable = config_digest(assignment.stable)
        proxy.candidate = config_digest(assignment.candidate) if assignment.candidate else ""
        proxy.share = assignment.share if assignment.candidate else 0.0
        proxy.lease = proxy.lease_left = assignment.lease_s
        ack = Ack(serial=1, stable=proxy.stable, candidate=proxy.candidate, share=proxy.share)
        self._events.append(Said(proxy=proxy.id, workload=proxy.workload, message=ack))

    def _serve(self, proxy: SimProxy) -> None:
        if not proxy.stable:
            return
        share = proxy.share if proxy.candidate else 0.0
        rows = []
        for total, row in ((proxy.rate, self._row), (proxy.answers, self._answered)):
            split = round(total * share)
            rows.append(row(proxy.stable, total - split))
            if proxy.candidate:
                rows.append(row(proxy.candidate, split))
        proxy.sequence += 1
        serving = {proxy.stable: 1 - proxy.share} | ({proxy.candidate: proxy.share} if proxy.candidate else {})
        proxy.unacked.append(
            Report(boot=proxy.boot, sequence=proxy.sequence, at=0.0, rows=[r for r in rows if r.total], serving=serving)
        )
        proxy.unacked = proxy.unacked[-120:]

    def _parts(self, digest: str) -> bytes:
        return b"".join(self.parts[name] for name in self.manifests[digest].parts.values())

    def _row(self, digest: str, total: int) -> Row:
        bad = round(total * self.badness(self._parts(digest)))
        return self._counted(digest, "out", total, {"5xx": bad} if bad else {})

    def _answered(self, digest: str, total: int) -> Row:
        bad = round(total * self.answering(self._parts(digest)))
        return self._counted(digest, "in", total, {"denied": bad} if bad else {})

    def _counted(self, digest: str, direction: Direction, total: int, bad: dict[str, int]) -> Row:
        latency = [0] * (len(LATENCY_BOUNDS_MS) + 1)
        latency[2] = total
        return Row(
            config=digest,
            direction=direction,
            route="routes/b.shop:80#rule-0" if direction == "out" else "inbound:8080",
            backend="b.shop:80/" if direction == "out" else "",
            total=total,
            bad=bad,
            excused=0,
            attempts=total,
            latency=latency,
            over=[0] * len(LATENCY_BOUNDS_MS),
        )

    def _age(self, proxy: SimProxy, *, connected: bool) -> None:
        if not proxy.candidate:
            return
        proxy.lease_left -= 1
        if proxy.lease_left <= 0:
            message = WentBack(candidate=proxy.candidate, reason="LeaseEnded")
            proxy.candidate, proxy.share = "", 0.0
            if connected:
                self._events.append(Said(proxy=proxy.id, workload=proxy.workload, message=message))


class World:
    """`await World.begin()`, then push and let seconds pass."""

    def __init__(
        self,
        callers: int = 8,
        rate: int = 50,
        badness: Badness = marked_bad,
        *,
        answers: int = 0,
        answering: Badness = denies_callers,
    ) -> None:
        """`answers`: requests a second that each proxy of workload b gets; 0: b is outside the mesh, as c is."""
        self.clock = FakeClock()
        self.repo = FakeRepo()
        self.disk = FakeDisk()
        self.fleet = SimFleet(badness, answering)
        found = registry(
            ("a", "b", "c"), [workload("a", "a"), workload("b", "b"), workload("c", "c")], replicas=callers
        )
        inside = {"shop/a", "shop/b"} if answers else {"shop/a"}
        instances = {key: replace(item, meshed=item.workload in inside) for key, item in found.instances.items()}
        self.platform = FakePlatform(replace(found, instances=instances))
        self.reconciler: Reconciler
        self.operator_up = False
        self._store: FakeStore
        for instance in self.platform.now.instances.values():
            if instance.workload == "shop/a":
                self.fleet.join(SimProxy(id=instance.id, workload=instance.workload, rate=rate))
            if instance.workload == "shop/b" and answers:
                self.fleet.join(SimProxy(id=instance.id, workload=instance.workload, rate=0, answers=answers))

    async def begin(self) -> None:
        """Start an operator on whatever is on the disk."""
        self._store = FakeStore(self.disk)
        epoch = await self._store.claim()
        ports = Ports(
            source=self.repo,
            store=self._store,
            fleet=self.fleet,
            platform=self.platform,
            authority=FakeAuthority(),
            clock=self.clock,
        )
        self.reconciler = Reconciler(LoopSettings(mesh="m", url="repo", default_namespace="shop"), ports, epoch)
        await self.reconciler.load()
        self.operator_up = True

    def kill(self) -> None:
        """The operator is gone; nothing of its memory is left."""
        self.disk.owner = None
        self.operator_up = False
        self.fleet._pending.clear()

    async def revive(self) -> None:
        self.fleet.reconnect()
        await self.begin()

    def push(self, *documents: str, subject: str = "change") -> str:
        text = "---\n".join((QUICK_MESH, *documents))
        return self.repo.commit({"mesh.yaml": text.encode()}, subject)

    async def seconds(self, count: int = 1, until: Callable[[], bool] | None = None) -> bool:
        """Let time pass, at most until something is true; says whether it is."""
        for _ in range(count):
            if until is not None and until():
                return True
            await self.one_second()
        return until is None or until()

    async def one_second(self) -> None:
        self.clock.now += 1
        self.fleet.second(connected=self.operator_up)
        if self.operator_up:
            await self.reconciler.look_at_remote()
            await self.reconciler.step()

    @property
    def view(self) -> MeshView:
        return self.reconciler.view()

    def outcome(self, sha: str) -> str:
        found = [record.outcome for record in self.view.state.revisions if record.sha == sha]
        return found[0] if found else ""

    def reasons(self) -> list[str]:
        return [event.reason for event in self.disk.events]

    def happened(self, reason: str) -> list[Event]:
        return [event for event in self.disk.events if event.reason == reason]
