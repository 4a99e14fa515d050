"""Envoy as the data plane: for HTTP/2, gRPC and the largest loads, under the same agent.

`EnvoyEngine` is the `Engine` that the agent drives. It renders what it is given (render.py), replaces Envoy's files in an order
that breaks nothing (updates.py), and reads Envoy's counters (stats.py). Envoy serves one config at a time: a candidate is
served by whole proxies, which the missing capability `split` says.
"""

import asyncio
import logging
import os
import secrets
import shutil
import socket
import ssl
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from time import monotonic
from typing import Final

import msgspec

from backstay.config.model import Config
from backstay.config.wire import Endpoint, PeerRow, RefusalExpected, Row
from backstay.redact import clean
from backstay.sidecar.engine import Address, ContentRefused, IdentityFiles, Observed
from backstay.sidecar.engines.envoy import files, process, stats, updates
from backstay.sidecar.engines.envoy.admin import Admin, AdminUnavailable
from backstay.sidecar.engines.envoy.bootstrap import bootstrap
from backstay.sidecar.engines.envoy.files import Folder
from backstay.sidecar.engines.envoy.names import Slots
from backstay.sidecar.engines.envoy.render import Rendered, World, render
from backstay.sidecar.engines.envoy.stats import Excuses
from backstay.tasks import spawn, stop

__all__ = ["EnvoyEngine"]

START_SECONDS: Final = 60.0  # for a process of 100 MB to come up on a machine that is busy
TAKE_SECONDS: Final = 30.0  # for an update to be taken up on a busy machine; then we go on, and say so
LOOK_SECONDS: Final = 0.02  # between looks at whether an update was taken: a refusal is to be known within a second
COUNT_SECONDS: Final = 0.5  # between looks at the counters: half of what reports take
CONCURRENCY: Final = "BACKSTAY_ENVOY_CONCURRENCY"
"""Worker threads; two do more than most pods are given."""

_log: Final = logging.getLogger("backstay.sidecar.envoy")


class EnvoyEngine:
    """Implements `backstay.sidecar.engine.Engine`."""

    name = "envoy"
    capabilities: tuple[str, ...] = ()

    def __init__(self, environment: Mapping[str, str] = os.environ, *, beside: bool = False) -> None:
        """`beside`: its ports are another engine's as well, which it takes over from."""
        self._environment = environment
        self._beside = beside
        self._slots = Slots()
        self._sums = stats.Sums()
        self._excuses = Excuses()
        self._rows: list[Row] = []
        self._peers: list[PeerRow] = []
        self._open = 0
        self._world: World | None = None
        self._given = 0
        """How many changes were asked for; `_settled` is how many Envoy has answered."""
        self._answered = 0
        self._refused: tuple[int, ContentRefused] | None = None
        self._rendered: Rendered | None = None
        self._served: Config | None = None
        """The config that Envoy has taken last."""
        self._served_excuses = Excuses()
        self._version = 0
        self._changed = asyncio.Event()
        self._progress = asyncio.Condition()
        self._process: process.Process | None = None
        self._admin: Admin | None = None
        self._workers: list[asyncio.Task[None]] = []

    def __repr__(self) -> str:
        return f"EnvoyEngine({self._process!r}, given={self._given}, answered={self._answered})"

    @property
    def world(self) -> World:
        """What Envoy's files follow from; there once started."""
        if self._world is None:
            raise RuntimeError("the engine was not started")
        return self._world

    @property
    def pid(self) -> int:
        """Of Envoy; 0 while there is none."""
        return self._process.pid if self._process is not None else 0

    @property
    def deaths(self) -> int:
        """How often Envoy has died and was started again."""
        return self._process.restarts if self._process is not None else 0

    # --- start -----------------------------------------------------------------------------------------------------

    def share_ports(self) -> None:
        """Envoy always lets others of this user open its ports."""

    def prepare(self, address: Address) -> None:
        """Take what will be said before `start`, which then opens ports with all of it in force. Makes no file."""
        if self._world is None:
            folder = Folder(_private() / _folder_name())
            self._world = World(address=address, folder=folder, roots=system_roots(), has_ipv6=has_ipv6())

    async def start(self, address: Address) -> None:
        """Raises OSError, and ContentRefused for a config that was given before."""
        binary = process.find_binary(self._environment)
        if not self._beside:
            for host, port in _ports(address):
                _claim(host, port)
        self.prepare(address)
        folder = self.world.folder
        folder.make()
        files.write(folder.bootstrap, msgspec.json.encode(bootstrap(folder, address.host)))
        self._write_first(render(self.world))
        threads = int(self._environment.get(CONCURRENCY, "") or 2)
        self._process = process.Process(process.command(binary, folder.bootstrap, threads), died=self._died)
        self._admin = Admin(folder.admin)
        await self._process.start()
        await self.alive()
        await self._take_first()
        self._workers = [
            spawn(self._keep_files(), name="envoy-files"),
            spawn(self._keep_counting(), name="envoy-counters"),
        ]

    def _write_first(self, rendered: Rendered) -> None:
        for step in updates.steps(None, rendered, self.world.folder):
            for write in step.writes:
                files.write(write.path, updates.encode(write, "0"))
        self._rendered = rendered

    async def _take_first(self) -> None:
        """Envoy listens by what it was started with. Raises ContentRefused."""
        rendered = self._rendered
        if rendered is None or self.world.config is None:
            return
        ends = monotonic() + TAKE_SECONDS
        waits = updates.steps(None, rendered, self.world.folder)
        while monotonic() < ends:
            values = await self._answers()
            if any(updates.rejected(step, {}, values) for step in waits):
                await asyncio.sleep(LOOK_SECONDS)
                said = updates.words(self._process.lines if self._process else ())
                await self._end()
                raise ContentRefused("EnvoyRefused", said)
            if all(updates.is_taken(step, "0", {}, values) for step in waits):
                return
            await asyncio.sleep(LOOK_SECONDS)
        _log.warning("envoy.slow version=0")

    async def alive(self) -> None:
        """Wait until Envoy serves. Raises OSError with its last words if it does not come up."""
        admin, ends = self._reach(), monotonic() + START_SECONDS
        while monotonic() < ends:
            try:
                if "LIVE" in await admin.get("/ready"):
                    return
            except AdminUnavailable:
                pass  # not yet
            await asyncio.sleep(LOOK_SECONDS)
        said = list(self._process.lines)[-3:] if self._process is not None else []
        await self._end()
        raise OSError(f"envoy did not start within {START_SECONDS:g} s: {clean(' '.join(said))}")

    def _reach(self) -> Admin:
        if self._admin is None:
            raise RuntimeError("the engine was not started")
        return self._admin

    # --- what the agent says ---------------------------------------------------------------------------------------

    def apply(
        self, stable: Config, candidate: Config | None, share: float, expect_refused: Sequence[RefusalExpected] = ()
    ) -> None:
        self._refused = None  # what was refused before is not asked for any more
        serves_candidate = candidate is not None and share > 0
        config = candidate if serves_candidate and candidate is not None else stable
        known = self.world.config
        expected = tuple(expect_refused)
        is_other = known is None or (known is not config and known.digest != config.digest)
        if is_other or expected != self.world.expected:
            changed = replace(self.world, config=config, slot=self._slots.peek(config.digest), expected=expected)
            render(changed)  # refuses what cannot be served before anything is changed
            self._slots.take(config.digest)
            self._change(changed)
        self._excuses = excuses(stable, config)

    async def settled(self) -> None:
        """Wait until Envoy serves what was given last. Raises ContentRefused with Envoy's words; then it serves what it served
        before."""
        wanted = self._given
        async with self._progress:
            await self._progress.wait_for(lambda: self._answered >= wanted)
        if self._refused is not None and self._refused[0] >= wanted:
            raise self._refused[1]

    def endpoints(self, changed: Mapping[str, Sequence[Endpoint]], *, full: bool) -> None:
        known = {} if full else dict(self.world.endpoints)
        found = {name: tuple(each) for name, each in (known | dict(changed)).items() if each}
        self._change(replace(self.world, endpoints=found))

    def place(self, zone: str) -> None:
        self._change(replace(self.world, address=replace(self.world.address, zone=zone)))

    def sample(self, most: int) -> None:
        """Envoy shows requests in its access log only: there is none to tell of."""

    def addresses(self, services: Mapping[str, Sequence[str]]) -> None:
        """Virtual addresses matter to redirected connections only."""
        if self.world.address.redirected is not None:
            self._change(replace(self.world, addresses={name: tuple(each) for name, each in services.items()}))

    def key_sets(self, known: Mapping[str, str]) -> None:
        self._change(replace(self.world, key_sets=dict(known)))

    def trust(self, bundles: Mapping[str, str], revoked: Sequence[str]) -> None:
        self._change(replace(self.world, trust=dict(bundles), revoked=tuple(sorted(revoked))))

    def identity(self, files: IdentityFiles) -> None:
        paths = dict.fromkeys((files.certificate, files.key))
        self._change(replace(self.world, identity="\n".join(path.read_text() for path in paths)))

    def secrets(self, files: Mapping[str, Path]) -> None:
        self._change(replace(self.world, secrets=dict(_readable(files))))

    def _change(self, world: World) -> None:
        self._world = world
        self._given += 1
        self._changed.set()

    # --- files -----------------------------------------------------------------------------------------------------

    async def _keep_files(self) -> None:
        """Bring Envoy to what is wanted, whatever has changed meanwhile."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            given, world = self._given, self.world
            try:
                await self._bring(world)
            except ContentRefused as refusal:
                self._refuse(given, world, refusal)
            except OSError as error:
                _log.error("envoy.files-failed error=%s", clean(str(error)))
            async with self._progress:
                self._answered = given
                self._progress.notify_all()

    def _refuse(self, given: int, world: World, refusal: ContentRefused) -> None:
        """Go on with the config before, and with everything else as it is now."""
        _log.warning("envoy.refused error=%s", clean(str(refusal)))
        self._refused = (given, refusal)
        former = self._served
        if world.config is not former and self.world.config is world.config:
            slot = self._slots.take(former.digest) if former is not None else 0
            self._world = replace(self.world, config=former, slot=slot)
            self._excuses = self._served_excuses
            self._changed.set()

    async def _bring(self, world: World) -> None:
        """Raises ContentRefused, OSError."""
        before, after = self._rendered, render(world)
        for step in updates.steps(before, after, world.folder):
            try:
                await self._take_step(step)
            except ContentRefused:
                self._take_back(before, world.folder, step)
                raise
        self._rendered, self._served = after, world.config
        if self.world.config is world.config:
            self._served_excuses = self._excuses
        self._sweep(after, world.folder)

    async def _take_step(self, step: updates.Step) -> None:
        before = await self._answers()
        self._version += 1
        version = str(self._version)
        for write in step.writes:
            files.write(write.path, updates.encode(write, version))
        if not any(write.subscription for write in step.writes):
            return
        ends = monotonic() + TAKE_SECONDS
        while monotonic() < ends:
            values = await self._answers()
            if updates.rejected(step, before, values):
                await asyncio.sleep(LOOK_SECONDS)  # its words come by another way than its counters
                raise ContentRefused("EnvoyRefused", updates.words(self._process.lines if self._process else ()))
            if updates.is_taken(step, version, before, values):
                return
            await asyncio.sleep(LOOK_SECONDS)
        _log.warning("envoy.slow version=%s", version)

    async def _answers(self) -> Mapping[str, str]:
        try:
            return stats.parse_values(await self._reach().get(updates.ANSWERS))
        except AdminUnavailable as error:
            _log.info("envoy.silent error=%s", error)
            return {}

    def _take_back(self, before: Rendered | None, folder: Folder, refused: updates.Step) -> None:
        """What lies on disk must be what can be served: Envoy may start again at any time."""
        if before is None:
            return
        self._version += 1
        for step in updates.steps(None, before, folder):
            for write in step.writes:
                files.write(write.path, updates.encode(write, str(self._version)))

    def _sweep(self, rendered: Rendered, folder: Folder) -> None:
        """Files that nothing reads any more."""
        kinds = (
            (rendered.endpoints, folder.endpoints),
            (rendered.routes, folder.routes),
            (rendered.secrets, folder.secret),
            (rendered.filters, folder.filter),
        )
        for names, place in kinds:
            kept = {place(name) for name in names}
            for path in place("x").parent.glob("*.json"):
                if path not in kept:
                    path.unlink(missing_ok=True)

    def _died(self) -> None:
        """Envoy was started again, with the files as they are."""
        self._sums.forget()

    # --- counters --------------------------------------------------------------------------------------------------

    async def _keep_counting(self) -> None:
        while True:
            await asyncio.sleep(COUNT_SECONDS)
            await self._count()

    async def _count(self) -> None:
        try:
            text = await self._reach().get(stats.QUERY)
            hosts = await self._reach().get("/clusters?format=json")
            self._open = await self._active()
        except AdminUnavailable as error:
            _log.info("envoy.silent error=%s", error)
            return
        added = self._sums.grown(stats.parse(text))
        self._rows += stats.rows(added, self._slots, self._excuses)
        tried = self._sums.connected(stats.parse_clusters(hosts))
        self._peers += stats.peer_rows(tried, dict(self._ids()), self._slots.current)

    async def _active(self) -> int:
        values = stats.parse_values(await self._reach().get(stats.ACTIVE))
        return stats.active(values)

    def _ids(self) -> Iterator[tuple[str, str]]:
        for endpoints in self.world.endpoints.values():
            for endpoint in endpoints:
                yield f"{endpoint.address}:{endpoint.port}", endpoint.id

    def collect(self) -> Observed:
        rows, self._rows = self._rows, []
        peers, self._peers = self._peers, []
        serving = {self._slots.current: 1.0} if self._slots.current else {}
        return Observed(rows=rows, peers=peers, serving=serving, open_requests=self._open)

    # --- end -------------------------------------------------------------------------------------------------------

    async def drain(self, timeout: float) -> None:
        """What came in may still need what goes out: its listeners close first."""
        if self._process is None:
            return
        await stop(*self._workers)
        ends = monotonic() + timeout
        try:
            await self._reach().post("/drain_listeners?inboundonly")
            await self._await_idle("in", ends)
            await self._reach().post("/drain_listeners")
            await self._await_idle("", ends)
            await asyncio.sleep(stats.FLUSHED_SECONDS if timeout else 0)
            await self._count()
        except AdminUnavailable as error:
            _log.info("envoy.silent error=%s", error)
        await self._end()

    async def _await_idle(self, prefix: str, ends: float) -> None:
        while monotonic() < ends:
            values = stats.parse_values(await self._reach().get(stats.ACTIVE))
            if stats.active(values, prefix) == 0:
                return
            await asyncio.sleep(LOOK_SECONDS)

    async def _end(self) -> None:
        if self._process is not None:
            await self._process.stop()
        shutil.rmtree(self.world.folder.path, ignore_errors=True)


def excuses(stable: Config, served: Config) -> Excuses:
    """Which refusals of the config that is served prove nothing, because stable refuses the same."""
    if stable is served or stable.digest == served.digest:
        return Excuses()
    before, after = stable.manifest.parts, served.manifest.parts
    same = frozenset(key for key, digest in after.items() if before.get(key) == digest)
    return Excuses(
        everything=False,
        denials=before.get("authorization") == after.get("authorization"),
        routes=same,
        tokens="listeners" in same,
        unknown_hosts="listeners" in same and {*_routes(before)} == {*_routes(after)},
    )


def _routes(parts: Mapping[str, str]) -> Iterator[str]:
    return (key for key in parts if key.startswith("routes/"))


def _readable(paths: Mapping[str, Path]) -> Iterator[tuple[str, str]]:
    for name, path in paths.items():
        try:
            yield name, path.read_text()
        except OSError as error:
            _log.warning("gateway.bad-secret secret=%s error=%s", name, clean(str(error)))


def _ports(address: Address) -> Iterator[tuple[str, int]]:
    for listen in address.inbound.values():
        yield address.host, listen
    for entry in address.explicit:
        yield address.app_host, entry.listen
    if address.outbound:
        yield address.app_host, address.outbound
    if address.redirected is not None:
        yield "127.0.0.1", address.redirected.outbound
        yield "0.0.0.0", address.redirected.inbound  # noqa: S104 - any address of this pod


def system_roots() -> str:
    """The file of who the system trusts; where Debian has it, if nothing says otherwise."""
    found = ssl.get_default_verify_paths().cafile
    return next((path for path in (found, *_ROOTS) if path and Path(path).is_file()), _ROOTS[0])


_ROOTS: Final = (
    "/etc/ssl/certs/ca-certificates.crt",  # Debian, Alpine
    "/etc/pki/tls/certs/ca-bundle.crt",  # Fedora, RHEL
    "/etc/ssl/ca-bundle.pem",  # SUSE
    "/etc/ssl/cert.pem",  # macOS
)


def has_ipv6() -> bool:
    """Whether this network has the loopback of IPv6."""
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as sock:
            sock.bind(("::1", 0))
    except OSError:
        return False
    return True


def _private() -> Path:
    """Where to make the folder: in the memory of a pod whose file system is read-only."""
    try:
        return Path(tempfile.gettempdir())
    except FileNotFoundError:
        return _MEMORY


_MEMORY: Final = Path("/dev/shm")  # noqa: S108 - the folder in it is our own, with a name that nobody can guess


def _folder_name() -> str:
    return f"backstay-envoy-{secrets.token_hex(8)}"


def _claim(host: str, port: int) -> None:
    """Raises OSError that names the port if somebody else has it: Envoy would only write so into its log."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((host, port))
        except OSError as error:
            raise OSError(error.errno, f"cannot listen on {host}:{port}: {error.strerror}") from error
