"""One request and its response in motion: tries, body bytes both ways, limits, and the count at the end.

A `Downstream` makes an exchange of every parsed request; a listener decides its lane; an `Upstream` tells it what came
back. What to do is asked of pure functions (framing, retry, balance, exchange); this module acts on the answers.
"""

import asyncio
from time import monotonic
from time import time as wall
from typing import TYPE_CHECKING, Final

from backstay.config.actions import hash_of
from backstay.sidecar.engines.python.actions import with_fields
from backstay.sidecar.engines.python.dial import seek
from backstay.sidecar.engines.python.exchange import (
    CODES,
    CONNECTING,
    DELAYED,
    ENDED,
    READ,
    RESPONDING,
    SENT,
    TUNNEL,
)  # fmt: skip
from backstay.sidecar.engines.python.failures import (
    CHALLENGES,
    FAILURES,
    STATUS_LINES,
    UNDELIVERED,
    UNDELIVERED_STATUS,
    Failure,
    says_undelivered,
)  # fmt: skip
from backstay.sidecar.engines.python.framing import (
    CHUNKED,
    LAST_CHUNK,
    UNTIL_CLOSE,
    Fields,
    Refusal,
    RequestHead,
    ResponseHead,
    chunk,
    read_response,
    upgrade_head,
    wants_websocket,
)  # fmt: skip
from backstay.sidecar.engines.python.limits import told
from backstay.sidecar.engines.python.mirror import send_copies
from backstay.sidecar.engines.python.outlier import UNREACHED
from backstay.sidecar.engines.python.peers import UNKNOWN, Peer
from backstay.sidecar.engines.python.pool import Group, Pool, hash_value
from backstay.sidecar.engines.python.retry import (
    FAILOVERS,
    IDEMPOTENT,
    MAX_REPLAY_BYTES,
    Outcome,
    backoff_seconds,
    outcome_of,
    should_retry,
    within_budget,
)  # fmt: skip
from backstay.sidecar.engines.python.spans import span_of
from backstay.sidecar.engines.python.stats import NO_FLAGS, Exemplar, Streams
from backstay.sidecar.engines.python.tunnel import splice
from backstay.sidecar.engines.python.upstream import MIN_UNPARSED, SWITCHING, Upstream

if TYPE_CHECKING:
    from backstay.sidecar.engines.python.actions import Actions, LocalAnswer
    from backstay.sidecar.engines.python.downstream import Downstream
    from backstay.sidecar.engines.python.listeners import TokenUse
    from backstay.sidecar.engines.python.runtime import Lane, Runtime
    from backstay.sidecar.engines.python.server import Server
    from backstay.sidecar.engines.python.stats import Counters
    from backstay.sidecar.engines.python.trace import Trace, Tracer

_NO_POOLS: Final[list[Pool]] = []
_ESTABLISHED: Final = b"HTTP/1.1 200 Connection established\r\n\r\n"
_CONTINUE_LINE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
SERVER_ERROR: Final = 500
FIRST_CLIENT_ERROR: Final = 400


class Exchange:
    __slots__ = (  # noqa: RUF023 - by lifetime
        "downstream", "server",  # connection
        "body", "broken", "complete", "fields", "head", "keep_alive", "method", "raw", "size", "target", "upgrade",
        "version",  # what the client sent
        "audited", "cookie", "lane", "policy", "reason", "runtime", "started", "trace", "token",  # what was decided
        "end_sent", "failovers", "fresh", "phase", "pool", "retrying", "sent", "timer", "tried", "tries", "upstream",
        "waiting",  # tries
        "response", "response_bytes", "status",
    )  # fmt: skip

    def __init__(
        self, downstream: "Downstream", method: bytes, target: bytes, version: str, fields: Fields, keep_alive: bool
    ) -> None:
        self.downstream = downstream
        self.server: Server = downstream.server
        self.method = method
        self.target = target
        self.version = version
        self.fields = fields
        self.keep_alive = keep_alive
        self.body: list[bytes] = []
        """Chunks as received: all of them while a second try is possible, else those not sent yet."""
        self.sent = 0
        """How many of `body` went to the current upstream connection."""
        self.size = 0
        self.raw = 0
        self.complete = False
        self.upgrade = False
        self.broken = 0
        self.head: RequestHead = None  # type: ignore[assignment]  # set before anything reads it, in Downstream
        self.runtime: Runtime | None = None
        self.lane: Lane | None = None
        self.started = 0.0
        self.phase = READ
        self.upstream: Upstream | None = None
        self.pool: Pool | None = None
        self.tries = 0
        self.failovers = 0
        self.tried = _NO_POOLS
        self.retrying = False
        self.fresh = False
        """True: the next try must not use a kept connection, because one just turned out to be dead."""
        self.waiting = False
        self.end_sent = False
        self.timer: asyncio.TimerHandle | None = None
        self.status = 0
        self.response: ResponseHead | None = None
        self.response_bytes = 0
        self.reason = ""
        self.policy = ""
        self.trace: Trace | None = None
        """Its part of a trace that is sampled."""
        self.audited: tuple[str, ...] = ()
        """Audit rules that this request matched."""
        self.token: TokenUse | None = None
        self.cookie = b""
        """The value of a sticky cookie that the client does not have yet."""

    @property
    def counters(self) -> "Counters":
        return self.lane.counters  # type: ignore[union-attr]  # only asked of exchanges that have a lane

    @property
    def has_ended(self) -> bool:
        return self.phase == ENDED

    @property
    def moved(self) -> int:
        """Bytes of both bodies so far; with the answer's head it grows by one."""
        return self.size + self.response_bytes + (self.phase == RESPONDING)

    def begin_trace(self, tracer: "Tracer") -> None:
        """Continue the trace that came, or begin one; what is forwarded says so."""
        head = self.head
        fields, self.trace = tracer.begin(head.fields)
        if fields is not head.fields:
            head.block = with_fields(head, fields)
            head.fields = fields

    # --- decided ---------------------------------------------------------------------------------------------------

    def forward(self, lane: "Lane") -> None:
        """Go down this lane."""
        self.lane = lane
        lane.counters.open += 1
        lane.deadlines.add(self)
        if lane.is_plain:
            self.attempt()
        else:
            self._follow(lane)

    def _follow(self, lane: "Lane") -> None:
        """What a rule says besides where to: answers of its own, limits, faults, changes, copies; in Envoy's order."""
        if lane.idle_seconds:
            self.server.watch_idle(self)
        actions = lane.actions if self.head is not None else None
        if actions is not None and self._answered_at_once(actions):
            return
        if lane.fault is None or not self._inject():
            self._set_out()

    def _answered_at_once(self, actions: "Actions") -> bool:
        answer = actions.preflight(self.head)
        if answer is not None:
            self._answer(answer)
            return True
        bucket = actions.bucket
        verdict = bucket.take(monotonic()) if bucket is not None else None
        if bucket is None or verdict is None or verdict.passes:
            return False
        self.fail("rate-limited", fields=told(bucket.limit, verdict))
        return True

    def _set_out(self) -> None:
        """No fault is in the way: answer, or change the request, send its copies, and make the first try."""
        self.timer = None
        actions = self.lane.actions if self.head is not None else None  # type: ignore[union-attr]
        if actions is not None:
            answer = actions.answer(self.head, secure=self.downstream.secure)
            if answer is not None:
                self._answer(answer)
                return
            if actions.reshapes and not self._reshape(actions):
                self.fail("bad-rewrite")
                return
            if actions.copies and self.complete:
                send_copies(self, actions)
        self.attempt()

    def _reshape(self, actions: "Actions") -> bool:
        block = actions.reshaped(self.head)
        if block is not None:
            self.head.block = block
        return block is not None

    def _answer(self, answer: "LocalAnswer") -> None:
        self.status = answer.status
        if answer.body and self.method != b"HEAD":
            self.response_bytes = len(answer.body)
        self._end()
        self.downstream.answer(self, answer.status, "", answer.fields, answer.body)

    def _inject(self) -> bool:
        """Draw the fault of this lane; True if the exchange goes on later or is over."""
        fault = self.lane.fault  # type: ignore[union-attr]
        random = self.server.random
        delayed = fault.delay_ms > 0 and random() * 100 < fault.delay_percent  # type: ignore[union-attr]
        aborted = fault.abort_status > 0 and random() * 100 < fault.abort_percent  # type: ignore[union-attr]
        then = self._abort if aborted else self._set_out
        if delayed:
            self._move(DELAYED)
            self.timer = self.server.loop.call_later(fault.delay_ms / 1000, then)  # type: ignore[union-attr]
        elif aborted:
            then()
        return delayed or aborted

    def _abort(self) -> None:
        self.fail("fault", self.lane.fault.abort_status)  # type: ignore[union-attr]

    # --- tries -----------------------------------------------------------------------------------------------------

    def attempt(self) -> None:
        """Make the next try."""
        self.timer = None
        lane: Lane = self.lane  # type: ignore[assignment]
        group = lane.group
        if not group.is_simple and 0 < group.max_requests <= group.active:
            self.fail("overflow")
            return
        pool = group.choose(self.tried) if group.is_simple else self._hashed(group)
        if pool is None:
            self.fail("no-healthy-upstream")
            return
        may_reuse = not self.fresh and self.method != b"CONNECT"
        upstream = self._kept_connection(pool) if may_reuse else None
        if upstream is None and group.max_connections and group.is_full:
            upstream = self._any_kept_connection(group) if may_reuse else None
            if upstream is None:
                self._wait()
                return
            pool = upstream.pool
        self.pool = pool
        self.tries += 1
        lane.counters.attempts += 1
        pool.active += 1
        group.active += 1
        if upstream is not None:
            self._send(upstream)
            return
        self._move(CONNECTING)
        seek(self.server, pool, group, self, lane.digest)

    def _hashed(self, group: Group) -> Pool | None:
        """The endpoint that a value of the request stands for; any, where it carries none."""
        hash_on = group.hash_on
        value = b"" if hash_on is None else hash_value(hash_on, self.head, self.downstream.address)
        return group.choose_for(hash_of(value), self.tried) if value else group.choose(self.tried)

    def _kept_connection(self, pool: Pool) -> Upstream | None:
        upstream = pool.take()
        while upstream is not None and self.method not in IDEMPOTENT and not upstream.is_quiet():
            upstream.close()
            upstream = pool.take()
        return upstream

    def _any_kept_connection(self, group: Group) -> Upstream | None:
        """One to another endpoint: a full backend would otherwise wait beside connections that nobody uses."""
        return next((upstream for pool in group.members if (upstream := self._kept_connection(pool))), None)

    def _wait(self) -> None:
        """The backend has all the connections it may have: wait for one, and free one that only another subset can use."""
        group: Group = self.lane.group  # type: ignore[union-attr]
        if len(group.quota.pending) >= self.server.max_pending:
            self.fail("overflow")
            return
        self._move(CONNECTING)
        self.waiting = True
        group.quota.wait(self)
        spare = group.quota.spare(group)
        if spare is not None:
            spare.pool.forget(spare)
            spare.close()

    def connection_available(self) -> None:
        if not self.waiting:
            self.lane.group.quota.wake()  # type: ignore[union-attr]  # gone meanwhile: the next one's turn
            return
        self.waiting = False
        self.attempt()

    def connected(self, upstream: Upstream) -> None:
        if self.phase == CONNECTING and self.upstream is None and self.pool is upstream.pool:
            if self.method == b"CONNECT":
                self._pipe(upstream)
            else:
                self._send(upstream)
        else:
            upstream.release(reusable=True)

    def connect_failed(self, error: Exception) -> None:
        if self.phase != CONNECTING:
            return
        self.server.note_connect_failure(self.pool, error)
        self._note_unreached()
        if not self._try_elsewhere():
            self.fail("connect-failure", fields=self._undelivered())

    def _try_elsewhere(self) -> bool:
        """Another try for a request of which no byte was delivered; False if none may be made."""
        if self._try_again(Outcome.CONNECT_FAILURE, written=False):
            return True
        others = len(self.lane.group.members) > len(self.tried) + 1  # type: ignore[union-attr]
        if not others or self.failovers >= FAILOVERS:
            return False
        self.failovers += 1
        self._leave_try()
        self.attempt()
        return True

    def _undelivered(self) -> Fields | None:
        """What a calling proxy is told where this one's application takes no connection. Not once anything was sent: a kept
        connection may have died with the request on it (`fresh`)."""
        return None if self.fresh or not self.downstream.is_from_proxy else [UNDELIVERED]

    def _send(self, upstream: Upstream) -> None:
        self._move(SENT)
        self.upstream = upstream
        self.sent = 0
        self.end_sent = False
        upstream.begin(self, head_only=self.method == b"HEAD")
        if self.downstream.full_since:  # the client still has to take the response before this one
            upstream.pause()
        if self.complete and not self.body:
            self.end_sent = True
            upstream.write(self.head.block + LAST_CHUNK if self.head.length == CHUNKED else self.head.block)
        else:
            self._push(upstream, [self.head.block])
        if self.lane.try_seconds:  # type: ignore[union-attr]
            self.timer = self.server.loop.call_later(self.lane.try_seconds, self._try_expired)  # type: ignore[union-attr]

    def push(self) -> None:
        """Bytes of the request arrived."""
        if self.upstream is not None and not self.end_sent:
            self._push(self.upstream, [])
        if self.complete and self.tries and self.lane.actions is not None:  # type: ignore[union-attr]
            send_copies(self, self.lane.actions)  # type: ignore[union-attr]
        self.downstream.update_reading()

    def _push(self, upstream: Upstream, out: list[bytes]) -> None:
        chunks = self.body[self.sent :] if self.sent else self.body
        out += map(chunk, chunks) if self.head.length == CHUNKED else chunks
        if self.complete:
            self.end_sent = True
            if self.head.length == CHUNKED:
                out.append(LAST_CHUNK)
        if self.size <= MAX_REPLAY_BYTES:
            self.sent = len(self.body)
        else:
            self.body = []
            self.sent = 0
        if out:
            upstream.write(out[0] if len(out) == 1 else b"".join(out))
        self.downstream.update_reading()

    @property
    def unsent(self) -> int:
        """Bytes of the request that wait for a connection."""
        return 0 if self.upstream is not None else sum(map(len, self.body))

    def _leave_try(self) -> None:
        """The current try is over: stop counting it as load, and let go of its connection."""
        pool, self.pool = self.pool, None
        if pool is not None:
            pool.active -= 1
            if pool.waiting:
                pool.waiting.pop(self, None)
            self.lane.group.active -= 1  # type: ignore[union-attr]
            self.tried = [*self.tried, pool]
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        upstream, self.upstream = self.upstream, None
        if upstream is not None:
            upstream.close()

    def _try_again(self, outcome: Outcome, *, written: bool = True) -> bool:
        """Ask for a retry by the lane's policy; True if one was started."""
        lane: Lane = self.lane  # type: ignore[assignment]
        group, retry = lane.group, lane.retry
        if retry is None or self.size > MAX_REPLAY_BYTES:
            return False
        if not should_retry(retry, outcome, tries=self.tries - self.failovers, method=self.method, written=written):
            return False
        if not self.retrying and not within_budget(retry, retries_in_flight=group.retries, in_flight=group.active):
            return False
        if not self.retrying:
            self.retrying = True
            group.retries += 1
        self._leave_try()
        self._move(DELAYED)
        delay = backoff_seconds(retry, self.tries, self.server.random())
        self.timer = self.server.loop.call_later(delay, self.attempt)
        return True

    def _try_expired(self) -> None:
        self.timer = None
        if self.phase == SENT:
            self._note_unreached()
            if not self._try_again(Outcome.TRY_TIMEOUT):
                self.fail("timeout")

    def _note_unreached(self) -> None:
        """The endpoint of this try gave no answer."""
        group = self.lane.group  # type: ignore[union-attr]
        if group.outlier is not None and self.pool is not None:
            group.note(self.pool, UNREACHED, self.server.loop.time())

    # --- what upstream says ----------------------------------------------------------------------------------------

    def response_progress(self, upstream: Upstream) -> None:
        """The connection parsed something."""
        if upstream.broken:
            self.fail("bad-response")
            return
        if self.phase == SENT:
            if upstream.continued:
                self._continue(upstream)
            if not upstream.status:
                return
            if upstream.status == SWITCHING:
                self._switch(upstream)
                return
            head = self._respond(upstream)
            if head is None:
                return
            self._pass_on(upstream, [head])
        else:
            self._pass_on(upstream, [])

    def _continue(self, upstream: Upstream) -> None:
        upstream.continued = False
        if self.head.expects_continue and not self.complete:
            self.head.expects_continue = False
            self.downstream.write(_CONTINUE_LINE)

    def _respond(self, upstream: Upstream) -> bytes | None:
        """The response head that goes downstream; None if this try is made again or the exchange has failed."""
        status = upstream.status
        lane: Lane = self.lane  # type: ignore[assignment]
        if status == UNDELIVERED_STATUS and upstream.secure and says_undelivered(upstream.fields):
            self._note_unreached()
            if self._send_elsewhere(upstream):
                return None
        elif not lane.answers_plainly:
            self._note_answer(lane, status)
        if status >= FIRST_CLIENT_ERROR and lane.retry is not None:
            outcome = outcome_of(status, lane.retry)
            if outcome is not None and self._try_again(outcome):
                return None
        client_http11 = self.version == "1.1"
        line = STATUS_LINES.get(status)
        fields = upstream.fields if lane.answers_plainly else self._answer_fields(upstream)
        head = read_response(
            status, line or b"", fields, self.method, upstream.keep_alive, client_http11
        ) if line else Refusal(status=502, reason="bad-status")  # fmt: skip
        if isinstance(head, Refusal):
            self.fail("bad-response")
            return None
        self._move(RESPONDING)
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        self.status = status
        self.response = head
        if head.length >= MIN_UNPARSED:
            upstream.expect(head.length)
        if head.length < 0 and not client_http11:
            self.keep_alive = False  # the end of the connection is the only end an HTTP/1.0 client can see
        return head.block + self._connection_field()

    def _send_elsewhere(self, upstream: Upstream) -> bool:
        """The other end's proxy has not delivered the request: as if it could not be connected. False if no other try can be
        made; then its answer is the answer."""
        if self.size > MAX_REPLAY_BYTES:
            return False
        group = self.lane.group  # type: ignore[union-attr]
        is_done = upstream.complete and upstream.keep_alive and self.end_sent and not group.max_connections
        if is_done:
            self.upstream = None  # nothing is wrong with this connection: others would pay for a handshake
        if not self._try_elsewhere():
            self.upstream = upstream
            return False
        if is_done:
            upstream.release(reusable=True)
        return True

    def _note_answer(self, lane: "Lane", status: int) -> None:
        if lane.group.outlier is not None and self.pool is not None:
            lane.group.note(self.pool, status, self.server.loop.time())

    def _answer_fields(self, upstream: Upstream) -> Fields:
        actions = self.lane.actions  # type: ignore[union-attr]
        return upstream.fields if actions is None else actions.response(self.head, upstream.fields, self.cookie)

    def _connection_field(self) -> bytes:
        early = not self.complete  # answered before it was sent whole: what follows need not be read to its end
        if early or not self.keep_alive or self.server.draining or self.upgrade or self.downstream.leaving:
            self.keep_alive = False
            return b"Connection: close\r\n\r\n"
        return b"\r\n" if self.version == "1.1" else b"Connection: keep-alive\r\n\r\n"

    def _pass_on(self, upstream: Upstream, out: list[bytes]) -> None:
        """Write what was parsed in one go: one read upstream, one write downstream (a write per part costs 1.3 times the
        CPU of a small response)."""
        chunked = self.response.length < 0 and self.version == "1.1"  # type: ignore[union-attr]
        if upstream.body:
            for data in upstream.take_body():
                self.response_bytes += len(data)
                out.append(chunk(data) if chunked else data)
        if upstream.complete:
            if chunked:
                out.append(LAST_CHUNK)
            if out:
                self.downstream.write(b"".join(out))
            self._finish_response(upstream)
        elif out:
            self.downstream.write(b"".join(out))

    def _finish_response(self, upstream: Upstream) -> None:
        response: ResponseHead = self.response  # type: ignore[assignment]
        clean = response.reusable and self.end_sent and not self.upgrade
        self.upstream = None
        self._end()
        upstream.release(reusable=clean)
        self.downstream.exchange_ended(self)

    def _switch(self, upstream: Upstream) -> None:
        """101: both sides become pipes, if both agreed to speak WebSocket."""
        if not (self.upgrade and upstream.upgraded and wants_websocket(upstream.fields)):
            self.fail("bad-response")
            return
        self._move(TUNNEL)
        self.status = SWITCHING
        head = upgrade_head(STATUS_LINES[SWITCHING], self._answer_fields(upstream))
        self.upstream = None
        self._end()
        upstream.exchange = None
        downstream = self.downstream
        downstream.write(head + upstream.tail)
        early = downstream.leave_for_tunnel()
        tunnel = splice(downstream, upstream, early, self.lane.digest)  # type: ignore[union-attr]
        tunnel.began = self
        self.server.tunnels.add(tunnel)

    def _pipe(self, upstream: Upstream) -> None:
        """A CONNECT, or a connection of a TCP port: both sides become pipes."""
        self._move(TUNNEL)
        self.status = 200
        self._end()
        downstream = self.downstream
        if self.version:
            downstream.write(_ESTABLISHED)
        early = downstream.leave_for_tunnel()
        lane: Lane = self.lane  # type: ignore[assignment]
        tunnel = splice(downstream, upstream, early, lane.digest)
        tunnel.began = self
        cell = lane.counters.cell(self._peer(lane.counters))
        cell.streams = cell.streams or Streams()
        tunnel.count_into(cell.streams, len(early))
        self.server.tunnels.add(tunnel)

    def upstream_lost(self, upstream: Upstream, *, refused: bool) -> None:
        """The connection is gone before its response was complete."""
        self.upstream = None
        if self.phase == RESPONDING:
            self._lost_midway(upstream)
        elif self.phase == SENT:
            self._lost_unanswered(upstream, refused)

    def _lost_midway(self, upstream: Upstream) -> None:
        if self.response.length == UNTIL_CLOSE and not upstream.broken:  # type: ignore[union-attr]
            upstream.complete = True
            self._pass_on(upstream, [])
        else:
            self.fail("reset")

    def _lost_unanswered(self, upstream: Upstream, refused: bool) -> None:
        if refused:
            self.server.ledger.peer_failed_late(upstream.pool.key.id, self.lane.digest)  # type: ignore[union-attr]
            self._move(CONNECTING)
            self.connect_failed(ConnectionError("handshake refused"))
            return
        if upstream.never_spoke:  # a peer that takes handshakes and then hangs up is no good peer, whatever its reason
            self.server.ledger.peer_failed_late(upstream.pool.key.id, self.lane.digest)  # type: ignore[union-attr]
        # A kept connection that dies unanswered was most likely closed by its idle timer as the request left.
        was_stale = upstream.served > 0 and not upstream.raw and not self.fresh
        if was_stale and self.method in IDEMPOTENT and self.size <= MAX_REPLAY_BYTES:
            self.fresh = True
            self._leave_try()
            self.attempt()
            return
        self._note_unreached()
        if not self._try_again(Outcome.RESET):
            self.fail("reset")

    # --- ends ------------------------------------------------------------------------------------------------------

    def expire(self) -> None:
        """The time for the whole exchange is over."""
        if self.phase == SENT:
            self._note_unreached()
        self.fail("timeout")

    def fail(self, reason: str, status: int = 0, fields: Fields | None = None) -> None:
        """End with an answer of the mesh's own, or by cutting off a response that has begun."""
        failure = FAILURES[reason]
        self.reason = reason
        responding = self.phase == RESPONDING
        if self.lane is not None:
            self._count_failure(failure, self.lane.counters)
        if not responding:
            self.status = status or failure.status
        self._end()
        if responding or not self.status:
            self.downstream.abort()
        else:
            self.downstream.answer(self, self.status, failure_text(reason), fields)

    def refuse(self, reason: str, counters: "Counters", policy: str = "") -> None:
        """The rules of the mesh say no before any lane was chosen."""
        failure = FAILURES[reason]
        self.reason, self.policy, self.status = reason, policy, failure.status
        self._move(ENDED)
        self._count_failure(failure, counters)
        seconds = monotonic() - self.started
        self._measure(counters, seconds)
        self._log(seconds)
        self.downstream.answer(self, failure.status, failure_text(reason), CHALLENGES.get(reason))

    def _count_failure(self, failure: Failure, counters: "Counters") -> None:
        if not failure.bad:
            return
        if failure.is_refusal and self.server.is_excused(self):
            counters.excused += 1
        else:
            counters.blame(failure.bad)

    def client_gone(self) -> None:
        """The client closed its connection: nobody waits for the response."""
        if self.phase == ENDED:
            return
        self.reason = "client-gone"
        self._end()

    def _end(self) -> None:
        """Count once, and let go of everything."""
        if self.phase == ENDED:
            return
        self._move(ENDED)
        self.waiting = False
        lane = self.lane
        if lane is None:
            return
        lane.deadlines.remove(self)
        counters = lane.counters
        seconds = monotonic() - self.started
        counters.open -= 1
        self._measure(counters, seconds)
        if self.status >= SERVER_ERROR and not self.reason:
            counters.blame("5xx")
        if self.retrying:
            lane.group.retries -= 1
        self._leave_try()
        self._log(seconds)

    def _measure(self, counters: "Counters", seconds: float) -> None:
        """Count by what verdicts ask for, and by who was at the other end."""
        bucket = counters.finish(seconds, self.status)
        if not self.version:
            return  # no request, but a connection: its tunnel is counted
        peer = self._peer(counters)
        cell = counters.cells.get(peer) or counters.cell(peer)
        flags = self.flags if self.reason or self.retrying else NO_FLAGS
        cell.finish(bucket, seconds, (self.status, flags), self.size, self.response_bytes)
        if self.trace is not None:
            cell.note(bucket, Exemplar(self.trace.trace.decode(), seconds, wall()))

    def _peer(self, counters: "Counters") -> Peer:
        """The other end, as metrics name it."""
        if counters.direction == "in":
            return self.downstream.peer or self.downstream.find_peer()
        pool = self.pool or (self.tried[-1] if self.tried else None)
        return UNKNOWN if pool is None else pool.peer or self.server.peers.of_pool(pool)

    @property
    def flags(self) -> str:
        """Response flags as Envoy's users know them; `-` for none."""
        failure = FAILURES.get(self.reason)
        found = [failure.flag] if failure is not None else []
        lane = self.lane
        is_bad = self.status >= SERVER_ERROR or bool(self.reason)
        if is_bad and lane is not None and lane.retry is not None and self.tries - self.failovers > lane.retry.attempts:
            found.append("URX")
        return ",".join(found) or NO_FLAGS

    def _log(self, seconds: float) -> None:
        """Tell of a request that has ended, where the config asks for it."""
        if self.trace is not None:
            self.server.spans.add(span_of(self, self.trace, seconds, wall()))
        if self._is_logged():
            self.server.log.exchange(self, seconds)
        sampler = self.server.sampler
        sampler.left -= 1
        if sampler.left == 0:
            sampler.look(self)

    def _is_logged(self) -> bool:
        runtime = self.runtime
        logs = runtime.logs if runtime is not None else "off"
        if logs == "off" or self.audited:
            return bool(self.audited)
        if self.reason or self.status >= SERVER_ERROR:
            return True
        share = runtime.log_share  # type: ignore[union-attr]  # there is one, or nothing would be logged
        return logs == "all" and (share >= 1 or self.server.random() < share)

    def _move(self, phase: int) -> None:
        """Change phase by the table; a transition that is not in it cuts both sides."""
        if self.phase * 8 + phase in CODES:
            self.phase = phase
            return
        self.server.ledger.illegal_transitions += 1
        self.phase = phase
        if self.upstream is not None:
            self.upstream.close()
        self.downstream.abort()


def failure_text(reason: str) -> str:
    return "access denied" if reason == "denied" else reason
