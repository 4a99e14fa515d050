"""The control port: proxies enrol, renew and hold their stream here. Implements the port Fleet.

It decides nothing about rollouts: assignments come from the reconciler, events go to it. It only sees to it that every
proxy learns its newest assignment and live data, at the cost of the change, and that who speaks is who they say.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final, TypeVar

import msgspec
from aiohttp import WSMsgType, web

from backstay.config.wire import (
    ENROL_PATH,
    MAX_MESSAGE_BYTES,
    PROTOCOL_MAX,
    PROTOCOL_MIN,
    RENEW_PATH,
    STREAM_PATH,
    Ack,
    Draining,
    EnrolAnswer,
    EnrolRequest,
    Hello,
    Live,
    Nack,
    Need,
    Parts,
    Report,
    ReportAck,
    Secrets,
    TlsSecret,
    ToOperator,
    Welcome,
    WentBack,
    decode_to_operator,
    encode,
)
from backstay.control.enrolment import AttemptLimiter, RecentAnswers
from backstay.control.links import AssignFrame, Link, ProxyRecord, refusals
from backstay.control.livesum import LiveSum
from backstay.control.metrics import StreamCount
from backstay.control.offers import Library, batches
from backstay.control.tls import OperatorTls, expiry, peer_of
from backstay.core.ports import (
    Assignment,
    CertificateAuthority,
    Certified,
    Enroller,
    FleetEvent,
    Identity,
    Joined,
    Left,
    Said,
    TlsMaterial,
    TurnedAway,
)
from backstay.core.review.traffic import Traffic, TrafficBook
from backstay.redact import clean
from backstay.tasks import spawn, stop

HELLO_WITHIN: Final = 10.0  # seconds after the upgrade; a proxy sends it at once
HANDSHAKE_WITHIN: Final = 10.0  # seconds; asyncio's 60 would let strangers hold sockets
CLOSE_WITHIN: Final = 3.0  # seconds a proxy may take to answer a close
MAX_BODY: Final = 64 * 1024  # an enrolment with the longest ServiceAccount token is under 16 KiB
MAX_EVENTS: Final = 65_536  # 50 proxies, 20 minutes of a stuck reconciler; reports are kept by the proxies as well
RETRY_AFTER_NACK: Final = 5.0  # seconds; an environment (full disk) may recover without anything changing here
GATHER: Final = 0.1  # seconds of reports and acks that make one look: fifty proxies speak at fifty different moments
GATHER_EACH: Final = (
    0.001  # seconds more for each proxy: a look at a thousand takes 50 ms, and each of them reports once a second
)
HOUSEKEEPING_EVERY: Final = 1.0  # seconds; certificates, trust, cut-offs and dead peers are due to the second
FORGET_AFTER: Final = 3600.0  # seconds a proxy may be away before it is a new one
DEFAULT_SAMPLES: Final = 5
"""Requests a second that each proxy may tell of for reviews: half a kilobyte, and an hour of it shows 18,000."""
MOST_PLAINTEXT: Final = 1024  # rows of a report that are read; ours tell of 257 at most
CLOSE_FENCED: Final = 4001
"""WebSocket close code by which a proxy says that it has seen a greater epoch (4000-4999 are private use)."""

_log: Final = logging.getLogger("backstay.control")
_Asked = TypeVar("_Asked")


class ControlServer:
    """All connected proxies of one mesh. Its methods belong to the loop that started it."""

    def __init__(
        self,
        *,
        ca: CertificateAuthority,
        enroller: Enroller,
        epoch: int,
        mesh: str,
        host: str = "127.0.0.1",
        port: int = 0,
        trust_domain: str = "",
        samples: int = DEFAULT_SAMPLES,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.host = host
        self.port = port
        """0: a free one; known after start."""
        self.mesh = mesh
        self.wake: Callable[[], None] = _nobody
        """Called when events wait in `drain`."""
        self.fenced = False
        """A proxy has refused us because it has seen a greater epoch: another operator rules."""
        self.limiter = AttemptLimiter()
        self.elsewhere: Callable[[], str | None] = _here
        """Where streams are held: None here, `host:port` of the one who leads, "" where nobody is known to lead."""
        self.traffic = TrafficBook(wall())
        """What proxies sampled, and who asked them without a certificate."""
        self.runs_at: Callable[[str], str] = _unknown
        """Key of the workload at an address, "" where nobody knows."""
        self._samples = samples
        self._ca = ca
        self._enroller = enroller
        self._epoch = epoch
        self._wall = wall
        self._trust_domain = trust_domain or next(iter(ca.trust_bundle()))
        self._answers = RecentAnswers()
        self._library = Library()
        self._live = LiveSum(dict(ca.trust_bundle()))
        self._secrets: dict[str, dict[str, TlsMaterial]] = {}
        """By workload."""
        self._records: dict[str, ProxyRecord] = {}
        self._links: dict[str, Link] = {}
        self._events: list[FleetEvent] = []
        self._runner: web.AppRunner | None = None
        self._listener: asyncio.Server | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._retries: set[asyncio.TimerHandle] = set()
        self._gathering: asyncio.TimerHandle | None = None
        self._tls: OperatorTls

    def __repr__(self) -> str:
        return f"ControlServer({self.host}:{self.port}, epoch={self._epoch}, proxies={len(self._links)})"

    # --- life ---

    async def start(self) -> None:
        """Bind the port. Raises OSError that names host and port."""
        self._tls = OperatorTls(self._ca, self._trust_domain, now=self._wall())
        application = web.Application(client_max_size=MAX_BODY)
        application.router.add_post(ENROL_PATH, self._enrol)
        application.router.add_post(RENEW_PATH, self._renew)
        application.router.add_get(STREAM_PATH, self._stream)
        self._runner = web.AppRunner(application, access_log=None, shutdown_timeout=1.0)
        await self._runner.setup()
        assert self._runner.server is not None  # noqa: S101 - set up one line above
        try:
            self._listener = await asyncio.get_running_loop().create_server(
                self._runner.server,
                self.host,
                self.port,
                ssl=self._tls.context,
                ssl_handshake_timeout=HANDSHAKE_WITHIN,
                backlog=1024,
            )
        except OSError as error:
            await self._runner.cleanup()
            raise OSError(error.errno, f"control port {self.host}:{self.port}: {error.strerror or error}") from error
        self.port = self._listener.sockets[0].getsockname()[1]
        self._keeper = spawn(self._keep_house(), name="control-housekeeping")

    async def close(self) -> None:
        """End all streams (proxies keep serving and look for the next operator) and free the port."""
        for handle in self._retries:
            handle.cancel()
        if self._gathering is not None:
            self._gathering.cancel()
        await stop(self._keeper)
        if self._listener is not None:
            self._listener.close()
        links = list(self._links.values())
        for link in links:
            link.cut("ShuttingDown", "this operator ends")
        await asyncio.gather(*(link.close() for link in links))
        if self._runner is not None:
            await self._runner.cleanup()

    def lead(self, epoch: int) -> None:
        """Speak with this epoch from now on: what was a standby holds streams itself."""
        self._epoch = epoch

    def stand_down(self) -> None:
        """Another operator leads: its word counts for every proxy, and nothing of what was said here."""
        for link in self._links.values():
            link.cut("NotLeader", "another replica leads")
        self._epoch, self.fenced = 0, False
        self._events, self._records = [], {}
        self._library, self._live = Library(), LiveSum(dict(self._ca.trust_bundle()))
        self.traffic = TrafficBook(self._wall())

    # --- the port Fleet ---

    def drain(self, mine: Callable[[str], bool] | None = None) -> Sequence[FleetEvent]:
        """Everything heard since the last call; with `mine` only of those workloads, the rest waits for others."""
        events = self._events if mine is None else [event for event in self._events if mine(event.workload)]
        self._events = [] if mine is None else [event for event in self._events if not mine(event.workload)]
        for event in events:
            record = self._records.get(event.proxy)
            if record is not None:
                # From now on whoever assigns knows that this proxy has left its candidate.
                record.left_candidate = ""
        return events

    def assign(self, proxy: str, assignment: Assignment, parts: Mapping[str, bytes]) -> None:
        record = self._record(proxy)
        record.stable = self._library.add(assignment.stable, parts)
        record.candidate = self._library.add(assignment.candidate, parts) if assignment.candidate else ""
        record.desired = assignment
        link = self._links.get(proxy)
        if link is not None:
            self._send_assignment(link)
        if len(self._library) > 2 * len(self._records) + 64:
            self._prune()

    def publish(self, live: Live) -> None:
        news = self._live.add(live)
        encoded: dict[frozenset[str] | None, bytes] = {}
        for link in self._links.values():
            wanted = None if link.services is None else frozenset(link.services & news.endpoints.keys())
            if news.concerns(wanted):
                frame = encoded.get(wanted) or encoded.setdefault(wanted, encode(news.only(wanted, self._epoch)))
                link.send(frame)
        self._cut_revoked()

    def secrets(self, by_workload: Mapping[str, Mapping[str, TlsMaterial]]) -> None:
        self.secrets_among(lambda _: True, by_workload)

    def secrets_among(self, mine: Callable[[str], bool], by_workload: Mapping[str, Mapping[str, TlsMaterial]]) -> None:
        """All secrets of those workloads that are `mine`."""
        former = self._secrets
        others = {workload: each for workload, each in former.items() if not mine(workload)}
        self._secrets = others | {workload: dict(each) for workload, each in by_workload.items() if mine(workload)}
        for link in self._links.values():
            workload = link.identity.workload
            if self._secrets.get(workload) != former.get(workload):
                self._send_secrets(link)

    def _send_secrets(self, link: Link) -> None:
        known = self._secrets.get(link.identity.workload, {})
        tls = {name: TlsSecret(certificate=each.certificate, key=each.key) for name, each in known.items()}
        link.send(encode(Secrets(epoch=self._epoch, tls=tls)))

    def acknowledge(self, proxy: str, sequence: int) -> None:
        link = self._links.get(proxy)
        if link is not None:
            link.send(encode(ReportAck(epoch=self._epoch, sequence=sequence)))

    # --- where several meshes share one control port ---

    def waiting(self) -> set[str]:
        """Workloads of which something waits to be drained."""
        return {event.workload for event in self._events}

    def newcomers(self) -> list[tuple[str, str]]:
        """(proxy, workload) of connected proxies that have no config and were never given one."""
        return [
            (proxy, link.identity.workload)
            for proxy, link in self._links.items()
            if link.record.desired is None and not link.record.believed
        ]

    def recall(self, mine: Callable[[str], bool]) -> None:
        """Have these workloads' proxies connect anew: somebody else listens to them from now on, and must hear what they
        serve and every report that was not acknowledged."""
        for link in self._links.values():
            if mine(link.identity.workload):
                link.cut("Recalled", "another part of the operator takes over")

    # --- for status and benchmarks ---

    def connected(self) -> Sequence[str]:
        return sorted(self._links)

    def sent_bytes(self, proxy: str) -> int:
        """WebSocket bytes sent to a proxy since it was first seen, TLS not counted."""
        record = self._records.get(proxy)
        return record.sent_bytes if record else 0

    def traffic_of(self, workloads: Iterable[str]) -> Traffic:
        """What was sampled of these workloads' requests in the last hour, and who asked them without a certificate."""
        return self.traffic.told(workloads, self._wall())

    def counts(self) -> list[StreamCount]:
        """What is counted of every connected proxy's stream."""
        records = [self._links[proxy].record for proxy in sorted(self._links)]
        return [StreamCount(each.proxy, each.sent_bytes, each.acks, each.acked_at) for each in records]

    # --- enrolment ---

    async def _enrol(self, request: web.Request) -> web.Response:
        address = request.remote or "unknown"
        if not self.limiter.admits(address, time.monotonic()):
            return web.json_response({"reason": "TooManyAttempts"}, status=429, headers={"Retry-After": "5"})
        asked = await _body(request, EnrolRequest)
        answer = self._answers.find(asked, time.monotonic())
        if answer is None:
            answer = await self._enrol_anew(asked, address)
            self._answers.keep(asked, answer, time.monotonic())
        return _json(answer)

    async def _enrol_anew(self, asked: EnrolRequest, address: str) -> EnrolAnswer:
        try:
            identity = await self._enroller.by_token(asked.proxy, asked.token, address)
            self._refuse_revoked(identity)
            answer = self._sign(asked, identity)
        except PermissionError as error:
            self.limiter.refused(address, time.monotonic())
            _log.warning("enrolment.refused proxy=%s address=%s reason=%s", asked.proxy, address, clean(str(error)))
            raise _refusal(web.HTTPForbidden, "EnrolmentRefused") from error
        self.limiter.granted()
        _log.info("enrolment.granted proxy=%s identity=%s", asked.proxy, identity.spiffe_id)
        return answer

    async def _renew(self, request: web.Request) -> web.Response:
        asked = await _body(request, EnrolRequest)
        identity, _ = await self._identify(request, asked.proxy)
        answer = self._sign(asked, identity)
        link = self._links.get(asked.proxy)
        if link is not None:
            link.valid_until = max(link.valid_until, answer.expires_at)
        return _json(answer)

    def _sign(self, asked: EnrolRequest, identity: Identity) -> EnrolAnswer:
        try:
            chain = self._ca.sign(asked.csr.encode(), identity=identity.spiffe_id)
        except ValueError as error:
            _log.warning("enrolment.bad-request proxy=%s reason=%s", asked.proxy, clean(str(error)))
            raise _refusal(web.HTTPBadRequest, "BadRequest") from error
        until = expiry(chain)
        self._tell(
            Certified(proxy=identity.proxy, workload=identity.workload, identity=identity.spiffe_id, expires_at=until)
        )
        return EnrolAnswer(
            certificate=chain.decode(), trust=self._live.trust, identity=identity.spiffe_id, expires_at=until
        )

    async def _identify(self, request: web.Request, proxy: str) -> tuple[Identity, float]:
        """Who is at the other end by their certificate, and until when; HTTP 401 or 403 where that fails."""
        peer = peer_of(request.transport)
        if peer is None:
            raise _refusal(web.HTTPUnauthorized, "CertificateNeeded")
        try:
            identity = await self._enroller.by_certificate(proxy, peer[0])
            self._refuse_revoked(identity)
        except PermissionError as error:
            _log.warning("stream.refused proxy=%s identity=%s reason=%s", proxy, peer[0], clean(str(error)))
            raise _refusal(web.HTTPForbidden, "IdentityRefused") from error
        return identity, peer[1]

    def _refuse_revoked(self, identity: Identity) -> None:
        if identity.spiffe_id in self._live.revoked:
            raise PermissionError(f"{identity.spiffe_id} is revoked")

    # --- the stream ---

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        leader = self.elsewhere()
        if leader is not None:
            raise _redirection(leader)
        if peer_of(request.transport) is None:
            raise _refusal(web.HTTPUnauthorized, "CertificateNeeded")
        socket = web.WebSocketResponse(
            max_msg_size=MAX_MESSAGE_BYTES,
            compress=False,
            timeout=CLOSE_WITHIN,
            decode_text=False,
        )
        await socket.prepare(request)
        link = await self._join(request, socket)
        if link is None:
            return socket
        try:
            await self._listen(link)
        finally:
            await self._leave(link)
        return socket

    async def _join(self, request: web.Request, socket: web.WebSocketResponse) -> Link | None:
        """The link of a proxy whose hello is right; None after telling it why not."""
        hello = await _hello(socket)
        if hello is None:
            await socket.close(code=1002, message=b"HelloExpected")
            return None
        # A record of its own until its certificate has spoken for it.
        record = ProxyRecord(proxy=hello.proxy)
        link = Link(socket=socket, transport=request.transport, record=record, identity=_NOBODY, valid_until=0.0)
        link.open()
        mismatch = _protocol_mismatch(hello)
        try:
            link.identity, link.valid_until = await self._identify(request, hello.proxy)
        except web.HTTPException:
            await _dismiss(link, "IdentityRefused", "the certificate is not this proxy's")
            return None
        if mismatch:
            self._turn_away(link.identity, hello, *mismatch)
            await _dismiss(link, *mismatch)
            return None
        link.record = self._record(hello.proxy)
        self._take_over(link, hello)
        return link

    def _turn_away(self, identity: Identity, hello: Hello, reason: str, message: str) -> None:
        """Have people told of a proxy that is who it says and cannot be spoken with."""
        _log.warning("proxy.turned-away proxy=%s reason=%s message=%s", hello.proxy, reason, message)
        away = TurnedAway(
            proxy=hello.proxy, workload=identity.workload, hello=hello, reason=reason, message=clean(message)
        )
        self._tell(away)

    def _take_over(self, link: Link, hello: Hello) -> None:
        record = link.record
        former = self._links.get(record.proxy)
        if former is not None:
            former.cut("Superseded", "this proxy has opened a newer stream")
        self._links[record.proxy] = link
        record.believe(hello.candidate, hello.stable)
        record.sent = None
        record.left_candidate = hello.went_back_from
        self._greet(link, hello)
        self._tell(Joined(proxy=record.proxy, workload=link.identity.workload, hello=hello))
        _log.info("proxy.joined proxy=%s workload=%s boot=%s", record.proxy, link.identity.workload, hello.boot)

    def _greet(self, link: Link, hello: Hello) -> None:
        protocol = min(PROTOCOL_MAX, hello.protocol_max)
        zone = link.identity.attributes.get("zone", "")
        welcome = Welcome(protocol=protocol, epoch=self._epoch, mesh=self.mesh, samples=self._samples, zone=zone)
        link.send(encode(welcome))
        record = link.record
        if record.desired is not None:
            link.services = set(self._library.services([record.stable, record.candidate, *record.believed]))
        link.send(encode(self._live.everything(self._epoch, link.services)))
        if link.identity.workload in self._secrets:
            self._send_secrets(link)
        self._send_assignment(link)

    async def _listen(self, link: Link) -> None:
        """Hear a proxy until it is gone, silent or wrong."""
        try:
            async for frame in link.socket:
                if frame.type is not WSMsgType.TEXT:
                    link.cut("ProtocolMismatch", "expected text frames only")
                    return
                link.heard_at = time.monotonic()
                self._hear(link, decode_to_operator(frame.data))
        except msgspec.DecodeError as error:
            link.cut("ProtocolMismatch", clean(str(error), limit=200))
        except ConnectionError as error:
            _log.info("proxy.lost proxy=%s error=%s", link.record.proxy, clean(str(error)))
        if link.socket.close_code == CLOSE_FENCED:
            self.fenced = True
            _log.error("control.fenced epoch=%d proxy=%s", self._epoch, link.record.proxy)
            self.wake()

    async def _leave(self, link: Link) -> None:
        record = link.record
        if self._links.get(record.proxy) is link:
            del self._links[record.proxy]
            record.sent = None
            record.away_since = time.monotonic()
            self._tell(Left(proxy=record.proxy, workload=link.identity.workload, draining=link.draining))
        await link.close()

    def _hear(self, link: Link, message: ToOperator) -> None:
        if self._links.get(link.record.proxy) is not link:
            return  # superseded: what it still says is the newer stream's to say
        match message:
            case Report():
                self._take_traffic(link, message)
                self._say(link, message)
            case Ack():
                link.record.believe(message.candidate, message.stable)
                link.record.acks += 1
                link.record.acked_at = self._wall()
                self._say(link, message)
            case Nack():
                self._say(link, message)
                self._retry_after(link, message)
            case WentBack():
                link.record.left_candidate = message.candidate
                link.record.sent = None
                self._say(link, message)
            case Need():
                self._answer(link, message)
            case Draining():
                link.draining = True
            case Hello():
                link.cut("ProtocolMismatch", "hello comes once")

    def _take_traffic(self, link: Link, report: Report) -> None:
        """Once, though a report may come again until it is acknowledged."""
        record = link.record
        boot, sequence = record.heard
        if report.boot == boot and report.sequence <= sequence:
            return
        record.heard = (report.boot, report.sequence)
        workload, now = link.identity.workload, self._wall()
        if report.samples:
            self.traffic.sampled(workload, report.samples[: self._samples], now)
        if report.plaintext:
            rows = report.plaintext[:MOST_PLAINTEXT]
            self.traffic.plaintext(workload, [(row, self.runs_at(row.address)) for row in rows], now)

    def _say(self, link: Link, message: Ack | Nack | Report | WentBack) -> None:
        self._tell(Said(proxy=link.record.proxy, workload=link.identity.workload, message=message))

    def _tell(self, event: FleetEvent) -> None:
        self._events.append(event)
        if len(self._events) == MAX_EVENTS:
            _log.error("control.overrun events=%d", MAX_EVENTS)
            for link in self._links.values():
                link.cut("Overloaded", "the operator does not keep up")
        if not isinstance(event, Said) or not isinstance(event.message, Report | Ack):
            self.wake()
        elif self._gathering is None:
            pause = max(GATHER, GATHER_EACH * len(self._links))
            self._gathering = asyncio.get_running_loop().call_later(pause, self._gathered)

    def _gathered(self) -> None:
        self._gathering = None
        self.wake()

    def _retry_after(self, link: Link, nack: Nack) -> None:
        """An environment may recover: offer the same again later. A refused content stays refused until it changes."""
        if nack.fault != "environment":
            return

        def again() -> None:
            self._retries.discard(handle)
            if self._links.get(link.record.proxy) is link and link.record.serial == nack.serial:
                link.record.sent = None
                self._send_assignment(link)

        handle = asyncio.get_running_loop().call_later(RETRY_AFTER_NACK, again)
        self._retries.add(handle)

    def _answer(self, link: Link, need: Need) -> None:
        parts = {digest: data for digest in need.parts if (data := self._library.part(digest)) is not None}
        manifests = {digest: data for digest in need.manifests if (data := self._library.manifest(digest)) is not None}
        link.record.believed = tuple(each for each in link.record.believed if each not in need.manifests)
        raw = {digest: msgspec.Raw(data) for digest, data in manifests.items()}
        if raw or not parts:
            link.send(encode(Parts(epoch=self._epoch, manifests=raw)))
        for batch in batches(parts):
            link.send(encode(Parts(epoch=self._epoch, parts=batch)))

    def _send_assignment(self, link: Link) -> None:
        record = link.record
        wanted = record.wanted()
        if wanted is None or record.desired is None or wanted == record.sent:
            return
        self._widen(link)
        record.sent = wanted
        record.serial += 1
        candidate = record.effective_candidate
        offer = self._library.offer
        frame = AssignFrame(
            epoch=self._epoch,
            serial=record.serial,
            stable=msgspec.Raw(offer(record.stable, record.believed)),
            candidate=msgspec.Raw(offer(candidate, (*record.believed, record.stable))) if candidate else None,
            share=record.desired.share if candidate else 0.0,
            lease_s=record.desired.lease_s,
            expect_refused=refusals(record.desired),
        )
        link.send(msgspec.json.encode(frame))

    def _widen(self, link: Link) -> None:
        """Endpoints of services that a new config names go out before it does."""
        wanted = set(self._library.services([link.record.stable, link.record.candidate]))
        if link.services is None:
            link.services = wanted
            return
        fresh = wanted - link.services
        link.services |= fresh
        if fresh:
            link.send(encode(self._live.part(self._epoch, fresh)))

    # --- upkeep ---

    async def _keep_house(self) -> None:
        while True:
            due = time.monotonic() + HOUSEKEEPING_EVERY
            await asyncio.sleep(HOUSEKEEPING_EVERY)
            now = self._wall()
            if self._tls.refresh(now):
                self.publish(Live(epoch=self._epoch, trust=dict(self._ca.trust_bundle())))
            for link in self._links.values():
                if now > link.valid_until:
                    link.cut("CertificateExpired", "the stream's certificate has ended")
                overdue = link.overdue(due)  # not by the time in which this process itself stood still
                if overdue:
                    _log.warning("proxy.silent proxy=%s reason=%s", link.record.proxy, overdue)
                    link.abort()  # its reader sees the end and cleans up

    def _cut_revoked(self) -> None:
        for link in self._links.values():
            if link.identity.spiffe_id in self._live.revoked:
                link.cut("Revoked", "this identity is revoked")

    def _prune(self) -> None:
        now = time.monotonic()
        gone = [
            proxy
            for proxy, record in self._records.items()
            if proxy not in self._links and now - record.away_since > FORGET_AFTER
        ]
        for proxy in gone:
            del self._records[proxy]
        self._library.prune(_in_play(self._records.values()))

    def _record(self, proxy: str) -> ProxyRecord:
        record = self._records.get(proxy)
        if record is None:
            record = self._records[proxy] = ProxyRecord(proxy=proxy, away_since=time.monotonic())
        return record


_NOBODY: Final = Identity(proxy="", workload="", spiffe_id="")


def _nobody() -> None:
    """Before anybody listens, events wait for the first drain."""


def _unknown(address: str) -> str:
    """Before there is a registry, an address is all that is known of a caller."""
    return ""


def _here() -> str | None:
    """Where there is one operator, streams are held by it."""
    return None


def _redirection(leader: str) -> web.HTTPException:
    """To the one who leads; whoever answers there must prove to be the operator as well."""
    if not leader:
        return web.HTTPServiceUnavailable(headers={"Retry-After": "1"}, text='{"reason": "NoLeader"}')
    return web.HTTPTemporaryRedirect(f"https://{leader}{STREAM_PATH}")


def _in_play(records: Iterable[ProxyRecord]) -> set[str]:
    digests: set[str] = set()
    for record in records:
        digests.update((record.stable, record.candidate, *record.believed))
    return digests


async def _dismiss(link: Link, reason: str, message: str) -> None:
    link.cut(reason, message)
    await link.close()


def _protocol_mismatch(hello: Hello) -> tuple[str, str] | None:
    if hello.protocol_min <= PROTOCOL_MAX and hello.protocol_max >= PROTOCOL_MIN:
        return None
    theirs = f"{hello.protocol_min}-{hello.protocol_max}"
    return "ProtocolMismatch", f"the proxy speaks protocol {theirs}, this operator {PROTOCOL_MIN}-{PROTOCOL_MAX}"


async def _hello(socket: web.WebSocketResponse) -> Hello | None:
    try:
        frame = await socket.receive(timeout=HELLO_WITHIN)
        message = decode_to_operator(frame.data) if frame.type is WSMsgType.TEXT else None
    except (TimeoutError, ConnectionError, msgspec.DecodeError):
        return None
    return message if isinstance(message, Hello) else None


async def _body(request: web.Request, kind: type[_Asked]) -> _Asked:
    try:
        async with asyncio.timeout(HANDSHAKE_WITHIN):
            return msgspec.json.decode(await request.read(), type=kind)
    except (msgspec.DecodeError, TimeoutError) as error:
        raise _refusal(web.HTTPBadRequest, "BadRequest") from error


def _json(answer: EnrolAnswer) -> web.Response:
    return web.Response(body=msgspec.json.encode(answer), content_type="application/json")


def _refusal(kind: type[web.HTTPException], reason: str) -> web.HTTPException:
    """An answer that tells a stranger no more than a word; the log has the rest."""
    return kind(text=f'{{"reason": "{reason}"}}', content_type="application/json")
