"""The sidecar's agent: enrols, holds the stream, keeps configs and leases, reports. It drives an Engine, never traffic.

Rules that keep it safe: what is applied lies on disk first; a lower epoch is refused; a candidate is served only while
its lease runs; whatever fails, the engine keeps what it has. Decisions are in lease.py, reports.py and store.py.
"""

import asyncio
import errno
import logging
import ssl
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final, Literal

import msgspec

from backstay import __version__
from backstay.config.model import (
    SCHEMA_VERSION,
    Config,
    Manifest,
    Part,
    decode_part,
    digest_of,
    encode_manifest,
    encode_part,
)
from backstay.config.wire import (
    ENROL_PATH,
    PROTOCOL_MAX,
    PROTOCOL_MIN,
    RENEW_PATH,
    WISH_SUFFIX,
    Ack,
    Assign,
    Draining,
    EnrolAnswer,
    EnrolRequest,
    Goodbye,
    Hello,
    Live,
    Nack,
    Need,
    Offer,
    Parts,
    ReportAck,
    Secrets,
    ToOperator,
    ToProxy,
    Welcome,
    WentBack,
)
from backstay.redact import clean
from backstay.sidecar import clock, files, identity, lease, store
from backstay.sidecar.backoff import Backoff
from backstay.sidecar.connect import (
    Channel,
    ChannelClosed,
    OperatorElsewhere,
    OperatorRefused,
    OperatorUnreachable,
    ask_certificate,
)
from backstay.sidecar.engine import ContentRefused, Engine, IdentityFiles, deaths, settled
from backstay.sidecar.files import Outlives
from backstay.sidecar.lease import Lease, Reason
from backstay.sidecar.reports import ReportRing
from backstay.sidecar.settings import Settings
from backstay.sidecar.store import Saved, SavedLive, Store
from backstay.tasks import spawn, stop

CLOSE_FENCED: Final = 4001  # as control/server.py understands it
LEASE_WRITES: Final = 10
"""A lease is written to disk at every tenth of its length: a restart may lose that much of it, never gain."""
REFUSALS_BEFORE_ENROLLING: Final = 2
"""A certificate that is refused twice in a row is of no use any more (new CA, expired while away)."""
MAX_PAUSE: Final = 10.0  # seconds; whatever an operator asks, a lease of 60 s must see us back
LIVE_WRITE_AFTER: Final = 1.0  # seconds; endpoints may change in bursts
MISTAKE_PAUSE: Final = 1.0  # seconds; a repeated mistake must not fill the log
_REFUSED: Final = (401, 403)
_DISK: Final = {
    errno.ENOSPC: "DiskFull",
    errno.EDQUOT: "DiskFull",
    errno.EFBIG: "DiskFull",
    errno.EROFS: "DiskReadOnly",
}

_log: Final = logging.getLogger("backstay.agent")


class Fenced(Exception):
    """This operator's epoch is lower than one seen before: another one has taken over."""


class Incoming:
    """An assignment on its way in: what it needs, what has come of it."""

    def __init__(self, assign: Assign) -> None:
        self.assign = assign
        self.objects: dict[str, bytes] = {}
        for offer in filter(None, (assign.stable, assign.candidate)):
            self.take(offer.parts)
        self.asked: set[str] = set()

    def take(self, raw: dict[str, msgspec.Raw]) -> int:
        """Keep what is what its name says; returns how many."""
        good = {digest: bytes(data) for digest, data in raw.items() if digest_of(bytes(data)) == digest}
        self.objects |= good
        return len(good)


class Agent:
    """One proxy's agent. `run` returns when `stop` was called and the engine has drained."""

    def __init__(self, settings: Settings, engine: Engine, kept: Store) -> None:
        self.settings = settings
        self.engine = engine
        self.store = kept
        self.boot = uuid.uuid4().hex[:12]
        self.ring = ReportRing(self.boot)
        self.stable: Config | None = None
        self.candidate: Config | None = None
        self.lease: Lease | None = None
        self.live: SavedLive = kept.live()
        self.svid: identity.Svid | None = None
        self.connected = False
        """Hello was answered by Welcome."""
        self.reconnects = 0
        self.fenced_epoch = 0
        """The lower epoch that was refused last."""
        self._introduced = ""
        """The engine that the operator knows of."""
        self._channel: Channel | None = None
        self._incoming: Incoming | None = None
        self._renewal: identity.Renewal | None = None
        self._obtaining = asyncio.Lock()
        """A one-time token is good for one of two that want a certificate at once."""
        self._lease_written = 0.0
        self._deaths_seen = 0
        self._engine_deaths: tuple[float, ...] = ()
        """When the engine's process died under this candidate, by the boot clock."""
        self._refusals = 0
        self._pause = 0.0
        """Seconds the operator has asked us to stay away."""
        self._live_timer: asyncio.TimerHandle | None = None
        self._applying = asyncio.Lock()
        self._stopping = asyncio.Event()

    def __repr__(self) -> str:
        return f"Agent({self.settings.proxy}, connected={self.connected}, {self.store!r})"

    @property
    def is_ready(self) -> bool:
        return self.stable is not None and self.svid is not None

    # --- life ---

    def stop(self) -> None:
        """Drain and end."""
        self._stopping.set()

    async def run(self) -> None:
        self.restore()
        workers = [
            spawn(self._survive(self._hold_stream), name="agent-stream"),
            spawn(self._survive(self._tick), name="agent-tick"),
            spawn(self._survive(self._keep_identity), name="agent-identity"),
        ]
        await self._stopping.wait()
        await self._drain()
        await stop(*workers)
        self._end()

    async def _survive(self, work: Callable[[], Awaitable[None]]) -> None:
        """Traffic must not end because of a mistake in here: say it, and begin that work again."""
        while True:
            try:
                await work()
            except Exception:
                _log.exception("agent.mistake work=%s", getattr(work, "__name__", work))
            await asyncio.sleep(MISTAKE_PAUSE)

    async def _drain(self) -> None:
        self._send(Draining())
        await self.engine.drain(self.settings.drain_s)
        self._report()

    def _end(self) -> None:
        if self._live_timer is not None:
            self._live_timer.cancel()
        self._try_disk("end", lambda: self.store.save(_replace(self.store.saved, clean_end=True)))
        self._try_disk("live", lambda: self.store.save_live(self.live))
        self.store.close()

    # --- start from disk ---

    def restore(self) -> None:
        """Serve what lies on disk, before any operator is asked."""
        now = clock.now()
        svid = identity.read(self.store.identity)
        if svid is not None and svid.is_valid(now.wall):
            self._use_identity(svid)
        self.engine.trust(self.live.trust, self.live.revoked)
        self.engine.secrets(self.store.secrets())
        self.engine.key_sets(self.live.key_sets)
        if self.live.zone and not self.settings.address.zone:
            self.engine.place(self.live.zone)
        self.engine.endpoints(self.live.endpoints, full=True)
        self.engine.addresses(self.live.addresses)
        start = self._decide_start(now)
        try:
            self._restore_configs(start.with_candidate)
        except (msgspec.DecodeError, ContentRefused) as error:
            # Written by another version of this program: the operator will say what to serve now.
            _log.error("agent.restore-failed error=%s", clean(str(error)))

    def _decide_start(self, now: clock.Instant) -> lease.Start:
        saved, kept = self.store.saved, self.store.lease()
        start = lease.at_start(
            candidate=saved.candidate, lease=kept, restarts=saved.restarts, was_clean=saved.clean_end, now=now
        )
        self.lease = kept if start.with_candidate else None
        changed = _replace(saved, restarts=start.restarts, clean_end=False)
        if start.went_back:
            _log.warning("agent.went-back reason=%s candidate=%s", start.went_back, saved.candidate[:12])
            changed = _left(changed, start.went_back)
        if changed != saved and not self._try_disk("start", lambda: self.store.save(changed)):
            self.store.saved = changed
        return start

    def _restore_configs(self, with_candidate: bool) -> None:
        saved = self.store.saved
        stable = store.load_config(self.store.objects, saved.stable)
        if stable is None:
            return
        candidate = None
        if with_candidate:
            candidate = store.load_config(self.store.objects, saved.candidate, store.parts_of(stable))
        self.engine.apply(stable, candidate, saved.share if candidate else 0.0, saved.expect_refused)
        self.stable, self.candidate = stable, candidate
        _log.info(
            "agent.restored stable=%s candidate=%s", saved.stable[:12], saved.candidate[:12] if candidate else "-"
        )

    # --- identity ---

    def _use_identity(self, svid: identity.Svid) -> None:
        path = self.store.identity
        self.engine.identity(IdentityFiles(certificate=path, key=path))
        self.svid = svid
        self._renewal = identity.Renewal.plan(svid, now=clock.now().since_boot)

    async def _keep_identity(self) -> None:
        """Renew at half life, and go on trying until it works."""
        backoff = Backoff(base=1.0, cap=30.0)
        while True:
            await asyncio.sleep(1.0)
            now = clock.now()
            if self._renewal is None or not self._renewal.is_due(now=now.since_boot, wall=now.wall):
                continue
            try:
                await self._renew()
                backoff.reset()
            except (OperatorUnreachable, OperatorRefused, OSError) as error:
                _log.warning("identity.renewal-failed error=%s", clean(str(error)))
                await asyncio.sleep(backoff.next())

    async def _renew(self) -> None:
        """By the certificate itself, or by a token where nobody would take it: the machine slept through its end, or its
        clock was put back. Raises OperatorUnreachable, OperatorRefused, OSError."""
        async with self._obtaining:
            if self._has_identity():
                await self._obtain(RENEW_PATH, "")
            else:
                await self._enrol()

    def _has_identity(self) -> bool:
        return self.svid is not None and self.svid.is_valid(clock.now().wall)

    async def _enrol(self) -> None:
        """Raises OperatorUnreachable, OperatorRefused, OSError."""
        await self._obtain(ENROL_PATH, self._token())
        self._refusals = 0

    def _token(self) -> str:
        path = self.settings.token_file
        if path is None:
            return ""
        try:
            return path.read_text().strip()
        except FileNotFoundError:
            files.write(path.with_name(path.name + WISH_SUFFIX), b"", Outlives.KILL)
            raise OperatorUnreachable(f"there is no token at {path}; asked for one") from None

    async def _obtain(self, path: str, token: str) -> None:
        """Get a certificate for a new key; nothing is replaced before all of it is there."""
        own = self.store.identity if path == RENEW_PATH else None
        key, request = await identity.make_key()
        asked = EnrolRequest(proxy=self.settings.proxy, csr=request.decode(), token=token)
        answer = await self._ask_twice(path, asked, self._context(own))
        svid = identity.write(self.store.identity, key, answer, wall=clock.now().wall)
        self._use_identity(svid)
        self._take_live(Live(epoch=0, trust=answer.trust))
        _log.info("identity.obtained identity=%s expires_at=%.0f", svid.identity, svid.expires_at)

    async def _ask_twice(self, path: str, asked: EnrolRequest, context: ssl.SSLContext) -> EnrolAnswer:
        """A token is good once, but for the same key the operator repeats an answer that got lost."""
        where = self.settings.operator_host, self.settings.operator_port, path
        try:
            return await ask_certificate(*where, asked, context=context, trust_domain=self.settings.trust_domain)
        except OperatorUnreachable:
            return await ask_certificate(*where, asked, context=context, trust_domain=self.settings.trust_domain)

    def _context(self, own: Path | None) -> ssl.SSLContext:
        roots = identity.roots_for(self.settings.trust_domain, self.live.trust, self.settings.trust_file)
        if not roots.strip():
            raise OperatorUnreachable("no trusted roots: neither --trust-file nor a trust bundle is there yet")
        return identity.context(roots, own)

    # --- the stream ---

    async def _hold_stream(self) -> None:
        """Connect, listen, connect again; for ever."""
        backoff = Backoff()
        while True:
            try:
                await self._make_sure_of_identity()
                await self._follow_stream(backoff)
            except OperatorRefused as error:
                self._refusals += error.status in _REFUSED
                _log.warning("stream.refused error=%s", clean(str(error)))
            except (OperatorUnreachable, ChannelClosed, OSError, msgspec.DecodeError, Fenced) as error:
                self._refusals += isinstance(error.__cause__, ssl.SSLError | ChannelClosed)
                _log.info("stream.ended reason=%s", clean(str(error) or type(error).__name__))
            self.reconnects += 1
            await asyncio.sleep(self._pause + backoff.next())
            self._pause = 0.0

    async def _make_sure_of_identity(self) -> None:
        async with self._obtaining:
            refused = self._refusals >= REFUSALS_BEFORE_ENROLLING and self.settings.token_file is not None
            if refused or not self._has_identity():
                # One try, then the certificate again: the token may be the one that is of no use.
                self._refusals = 0
                await self._enrol()

    async def _follow_stream(self, backoff: Backoff) -> None:
        """One stream, at the replica that holds streams; one that is sent on twice waits for the next attempt."""
        try:
            await self._one_stream(backoff, self.settings.operator_host, self.settings.operator_port)
        except OperatorElsewhere as elsewhere:
            _log.info("stream.elsewhere host=%s port=%d", elsewhere.host, elsewhere.port)
            try:
                await self._one_stream(backoff, elsewhere.host, elsewhere.port)
            except OperatorElsewhere as again:
                raise OperatorUnreachable(f"{elsewhere} and not there: {again}") from again

    async def _one_stream(self, backoff: Backoff, host: str, port: int) -> None:
        channel = await Channel.open(
            host,
            port,
            context=self._context(self.store.identity),
            trust_domain=self.settings.trust_domain,
        )
        self._channel = channel
        try:
            channel.send(self._hello())
            while True:
                await self._hear(await channel.receive())
                if self.connected:
                    backoff.reset()
                    self._refusals = 0
        except Fenced as error:
            await channel.close(CLOSE_FENCED, str(error))
            raise
        except asyncio.CancelledError:
            # The agent ends. Only this task may read the stream, so the orderly close is its own.
            await channel.close()
            raise
        finally:
            self._channel = None
            self.connected = False
            self._incoming = None
            channel.abort()

    def _hello(self) -> Hello:
        saved = self.store.saved
        self._introduced = self.engine.name
        return Hello(
            proxy=self.settings.proxy,
            boot=self.boot,
            protocol_min=PROTOCOL_MIN,
            protocol_max=PROTOCOL_MAX,
            version=__version__,
            engine=self.engine.name,
            capabilities=list(self.engine.capabilities),
            stable=self.stable.digest if self.stable else "",
            candidate=self.candidate.digest if self.candidate else "",
            went_back=saved.went_back,
            went_back_from=saved.went_back_from,
        )

    def _send(self, message: ToOperator) -> None:
        """Say something if there is somebody; what matters is said again at the next connection."""
        if self._channel is None or not self.connected:
            return
        try:
            self._channel.send(message)
        except ChannelClosed as error:
            _log.info("stream.unsent error=%s", error)

    async def _hear(self, message: ToProxy) -> None:
        if not isinstance(message, Goodbye):
            await self._fence(message)
        match message:
            case Welcome():
                self._welcomed(message)
            case Live():
                self._take_live(message)
            case Secrets():
                self._take_secrets(message)
            case Assign():
                self._incoming = Incoming(message)
                await self._advance()
            case Parts():
                await self._take_parts(message)
            case ReportAck():
                self._report_acked(message)
            case Goodbye():
                self._pause = min(message.retry_after_s, MAX_PAUSE)
                raise OperatorRefused(403 if message.reason == "IdentityRefused" else 0, message.reason)

    async def _fence(self, message: Welcome | Live | Secrets | Assign | Parts | ReportAck) -> None:
        saved = self.store.saved
        if message.epoch < saved.epoch:
            self.fenced_epoch = message.epoch
            if isinstance(message, Assign):
                self._nack(message.serial, message.stable.digest, "StaleEpoch", f"{message.epoch} < {saved.epoch}")
            raise Fenced(f"epoch {message.epoch} is refused, {saved.epoch} was seen")
        if message.epoch > saved.epoch:
            # Before anything of this operator is obeyed, or a restart could obey its predecessor again.
            async with self._applying:
                await asyncio.to_thread(self.store.save, _replace(self.store.saved, epoch=message.epoch))

    def _welcomed(self, message: Welcome) -> None:
        self.connected = True
        self.engine.sample(message.samples)
        self._take_zone(message.zone)
        _log.info("stream.up epoch=%d mesh=%s", message.epoch, message.mesh)
        for report in self.ring.pending():
            self._send(report)

    # --- live data ---

    def _take_zone(self, zone: str) -> None:
        """Of the node that this proxy runs on; what it was told at its start counts more."""
        if zone and zone != self.live.zone and not self.settings.address.zone:
            self.live = msgspec.structs.replace(self.live, zone=zone)
            self.engine.place(zone)
            self._write_live_soon()

    def _take_live(self, message: Live) -> None:
        known = self.live
        endpoints = dict(message.endpoints) if message.full else known.endpoints | message.endpoints
        addresses = dict(message.addresses) if message.full else known.addresses | message.addresses
        self.live = SavedLive(
            endpoints={name: each for name, each in endpoints.items() if each},
            addresses={name: each for name, each in addresses.items() if each},
            trust=known.trust if message.trust is None else message.trust,
            revoked=known.revoked if message.revoked is None else message.revoked,
            zone=known.zone,
            key_sets={name: keys for name, keys in (known.key_sets | message.key_sets).items() if keys},
        )
        if message.key_sets:
            self.engine.key_sets(self.live.key_sets)
        if message.trust is not None or message.revoked is not None:
            self.engine.trust(self.live.trust, self.live.revoked)
        if message.endpoints or message.full:
            self.engine.endpoints(message.endpoints, full=message.full)
        if message.addresses or message.full:
            self.engine.addresses(self.live.addresses)
        self._write_live_soon()

    def _write_live_soon(self) -> None:
        if self._live_timer is None:
            loop = asyncio.get_running_loop()
            self._live_timer = loop.call_later(LIVE_WRITE_AFTER, self._write_live)

    def _take_secrets(self, message: Secrets) -> None:
        """Certificates lie on this proxy's private disk: the engine reads files, and a restart needs no operator."""
        if self._try_disk("secrets", lambda: self.store.save_secrets(message.tls)):
            self.engine.secrets(self.store.secrets())

    def _write_live(self) -> None:
        self._live_timer = None
        self._try_disk("live", lambda: self.store.save_live(self.live))

    # --- configs ---

    async def _take_parts(self, message: Parts) -> None:
        incoming = self._incoming
        if incoming is None:
            return
        if incoming.take(message.parts) + incoming.take(message.manifests):
            await self._advance()
        else:
            assign, self._incoming = incoming.assign, None
            self._nack(assign.serial, _named(assign), "PartUnavailable", "the operator does not have what it offered")

    async def _advance(self) -> None:
        """Ask for what the assignment still lacks, or apply it."""
        incoming = self._incoming
        if incoming is None:
            return
        assign = incoming.assign
        try:
            found = [self._resolve(offer, incoming) for offer in filter(None, (assign.stable, assign.candidate))]
        except msgspec.DecodeError as error:
            self._incoming = None
            self._nack(assign.serial, _named(assign), "SchemaVersion", clean(str(error)), content=True)
            return
        need = Need(
            parts=sorted({each for item in found if isinstance(item, list) for each in item}),
            manifests=[item for item in found if isinstance(item, str)],
        )
        if need.parts or need.manifests:
            fresh = {*need.parts, *need.manifests} - incoming.asked
            incoming.asked |= fresh
            if fresh:
                self._send(need)
            return
        self._incoming = None
        configs = [item for item in found if isinstance(item, Config)]
        async with self._applying:
            await self._apply(incoming, configs[0], configs[1] if assign.candidate else None)

    def _resolve(self, offer: Offer, incoming: Incoming) -> Config | list[str] | str:
        """The config, or digests of the parts it lacks, or the digest of the manifest that is lacking.

        Raises msgspec.DecodeError for what this version does not understand."""
        present = self._serving(offer.digest)
        if present is not None:
            return present
        manifest = self._manifest(offer, incoming)
        if manifest is None:
            return offer.digest
        if manifest.schema > SCHEMA_VERSION:
            raise msgspec.ValidationError(f"schema {manifest.schema}, this sidecar knows up to {SCHEMA_VERSION}")
        known = store.parts_of(self.stable, self.candidate)
        wanted = set(manifest.parts.values())
        from_disk = self.store.objects.read(part for part in wanted if part not in known)
        here = {part: decode_part(data) for part, data in (from_disk | incoming.objects).items() if part in wanted}
        every: dict[str, Part] = known | here
        lacking = sorted({part for part in wanted if part not in every})
        return lacking or Config(manifest=manifest, parts={key: every[part] for key, part in manifest.parts.items()})

    def _serving(self, digest: str) -> Config | None:
        """One of the two configs in force, by its digest."""
        saved = self.store.saved
        return self.stable if digest == saved.stable else self.candidate if digest == saved.candidate else None

    def _manifest(self, offer: Offer, incoming: Incoming) -> Manifest | None:
        """What is offered, if it can be worked out from what is here."""
        whole = self._known_manifest(offer.digest, incoming)
        if whole is not None:
            return whole
        empty = Manifest(workload=offer.workload, parts={}, schema=offer.schema or SCHEMA_VERSION)
        base = self._known_manifest(offer.base, incoming) if offer.base else empty
        return store.offered(base, offer) if base is not None else None

    def _known_manifest(self, digest: str, incoming: Incoming) -> Manifest | None:
        present = self._serving(digest)
        if present is not None:
            return present.manifest
        data = incoming.objects.get(digest) or self.store.objects.read([digest]).get(digest)
        return msgspec.json.decode(data, type=Manifest) if data is not None else None

    async def _apply(self, incoming: Incoming, stable: Config, candidate: Config | None) -> None:
        """Disk first, then the engine, then the word."""
        assign, before, now = incoming.assign, self.store.saved, clock.now()
        candidate_digest = assign.candidate.digest if assign.candidate else ""
        begun = lease.begin(candidate_digest, assign.lease_s, now, before=self.lease) if candidate else None
        saved = _replace(
            before,
            stable=assign.stable.digest,
            candidate=candidate_digest,
            share=assign.share if candidate else 0.0,
            lease_s=assign.lease_s,
            expect_refused=assign.expect_refused,
            went_back="",
            went_back_from="",
            restarts=before.restarts if candidate_digest == before.candidate else (),
            recent=self.store.remember(assign.stable.digest, candidate_digest),
        )
        try:
            await asyncio.to_thread(self._write_config, saved, begun, incoming.objects, (stable, candidate))
        except OSError as error:
            self._take_back(before)
            self._nack_disk(assign, error)
            return
        refusal = await self._offer_to_engine(assign, stable, candidate)
        if refusal is not None:
            # The disk first again: a kill between the two must not start with what was refused.
            self._take_back(before)
            self._nack(assign.serial, _named(assign), refusal.reason, clean(str(refusal)), content=True)
            return
        if begun is not None:  # served from now on: another engine may have needed its time to start
            begun = lease.begin(candidate_digest, assign.lease_s, clock.now(), before=self.lease)
        if candidate_digest != before.candidate:
            self._engine_deaths, self._deaths_seen = (), deaths(self.engine)
        self.stable, self.candidate, self.lease = stable, candidate, begun
        self._lease_written = now.since_boot
        self._send(Ack(serial=assign.serial, stable=saved.stable, candidate=saved.candidate, share=saved.share))
        await asyncio.to_thread(self._try_disk, "compaction", self.store.compact)
        if self.engine.name != self._introduced:
            raise ChannelClosed(
                f"the engine is {self.engine.name} now, which the operator hears at the next connection"
            )

    def _write_config(
        self,
        saved: Saved,
        begun: Lease | None,
        received: dict[str, bytes],
        configs: tuple[Config, Config | None],
    ) -> None:
        """Raises OSError."""
        objects = self.store.objects
        fresh: dict[str, bytes] = {}
        for digest, config in zip((saved.stable, saved.candidate), configs, strict=True):
            if config is None:
                continue
            if digest not in objects:
                fresh[digest] = encode_manifest(config.manifest)
            for key, part in config.manifest.parts.items():
                if part not in objects:
                    fresh[part] = received.get(part) or encode_part(config.parts[key])
        objects.add(fresh)
        self.store.save_lease(begun)
        self.store.save(saved)

    def _take_back(self, before: Saved) -> None:
        """Put the disk back to what the engine goes on with; objects may stay, they harm nobody."""
        if self.store.saved is not before:
            self._try_disk("state", lambda: self.store.save(before))
        self._try_disk("lease", lambda: self.store.save_lease(self.lease))

    async def _offer_to_engine(self, assign: Assign, stable: Config, candidate: Config | None) -> ContentRefused | None:
        share = assign.share if candidate else 0.0
        try:
            self.engine.apply(stable, candidate, share, assign.expect_refused)
            await settled(self.engine)
        except ContentRefused as error:
            return error
        except Exception as error:
            # A config that breaks the engine is the config's fault as far as the rollout goes; the agent must live.
            _log.exception("engine.broken-by-config digest=%s", _named(assign)[:12])
            return ContentRefused("EngineFailed", repr(error))
        _log.info("config.applied serial=%d stable=%s share=%g", assign.serial, assign.stable.digest[:12], share)
        return None

    def _nack(self, serial: int, digest: str, reason: str, message: str, *, content: bool = False) -> None:
        _log.warning("config.refused digest=%s reason=%s message=%s", digest[:12], reason, message)
        fault: Literal["content", "environment"] = "content" if content else "environment"
        self._send(Nack(serial=serial, digest=digest, fault=fault, reason=reason, message=message))

    def _nack_disk(self, assign: Assign, error: OSError) -> None:
        reason = _DISK.get(error.errno or 0, "DiskError")
        self._nack(assign.serial, _named(assign), reason, clean(str(error)))

    def _try_disk(self, what: str, act: Callable[[], None]) -> bool:
        """For writes that nobody waits for: a failure is said, and what is in memory stays right."""
        try:
            act()
        except OSError as error:
            _log.error("disk.failed what=%s error=%s", what, error)
            return False
        return True

    # --- reports and leases ---

    async def _tick(self) -> None:
        """Once a second: report, and see whether the candidate's lease still runs."""
        loop = asyncio.get_running_loop()
        due = loop.time()
        while True:
            due = max(due + self.settings.report_s, loop.time())
            await asyncio.sleep(due - loop.time())
            self._report()
            await self._check_lease()

    def _report(self) -> None:
        now = clock.now()
        self._send(self.ring.add(self.engine.collect(), at=now.wall, now=now.since_boot))

    def _report_acked(self, message: ReportAck) -> None:
        self.ring.acked(message.sequence)
        if self.lease is None:
            return
        now = clock.now()
        self.lease = lease.renew(self.lease, now)
        if now.since_boot - self._lease_written >= self.lease.length / LEASE_WRITES:
            self._lease_written = now.since_boot
            held = self.lease
            self._try_disk("lease", lambda: self.store.save_lease(held))

    async def _check_lease(self) -> None:
        async with self._applying:
            if self.lease is not None and lease.is_over(self.lease, clock.now()):
                self.go_back(lease.why_it_ended(self.lease, connected=self.connected))
            self._look_after_engine(clock.now())

    def _look_after_engine(self, now: clock.Instant) -> None:
        """An engine's process that dies under a candidate counts as we do when we die under one."""
        seen, self._deaths_seen = self._deaths_seen, deaths(self.engine)
        died = max(self._deaths_seen - seen, 0)  # another engine counts anew
        if not died:
            return
        _log.error("engine.died times=%d", died)
        self._engine_deaths = lease.after_deaths(self._engine_deaths, died, now) if self.candidate is not None else ()
        if len(self._engine_deaths) >= lease.RESTARTS_TO_GO_BACK:
            self.go_back("Restarts")

    def go_back(self, reason: Reason) -> None:
        """Serve only stable again, by ourselves, and say so."""
        if self.stable is None or self.candidate is None:
            return
        left = self.candidate.digest
        _log.warning("agent.went-back reason=%s candidate=%s", reason, left[:12])
        self.engine.apply(self.stable, None, 0.0, self.store.saved.expect_refused)
        self.candidate, self.lease, self._engine_deaths = None, None, ()
        changed = _left(self.store.saved, reason)
        if not self._try_disk("state", lambda: self.store.save(changed)):
            self.store.saved = changed
        self._try_disk("lease", lambda: self.store.save_lease(None))
        self._send(WentBack(candidate=left, reason=reason))


def _named(assign: Assign) -> str:
    """What a nack is about: the candidate if there is one, since stable has been served before."""
    return (assign.candidate or assign.stable).digest


def _left(saved: Saved, reason: str) -> Saved:
    return _replace(saved, candidate="", share=0.0, went_back=reason, went_back_from=saved.candidate, restarts=())


def _replace(saved: Saved, **changes: object) -> Saved:
    return msgspec.structs.replace(saved, **changes)
