"""Where events go besides the store: log lines, and a signed JSON webhook. Never waited for, never fatal.

`WebhookNotifier.notify` only queues; one task sends, in order, with time limits and back-off. When the receiver stays
away the oldest events are dropped and counted, and the next delivery says how many.
"""

import asyncio
import hashlib
import hmac
import logging
import random
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

import aiohttp
import msgspec

from backstay import redact, tasks
from backstay.core.ports import Event

QUEUE: Final = 1000  # events; an hour of a busy mesh, and under 1 MiB
BATCH: Final = 100  # events per request
TIMEOUT: Final = 10.0  # seconds per request, what forges give their own receivers
ATTEMPTS: Final = 6  # with the back-off below about two minutes: a restart of the receiver
BACKOFF: Final = 2.0  # seconds, doubled each time
BACKOFF_MAX: Final = 60.0
_GONE: Final = frozenset((408, 425, 429))  # client errors that say "later", not "never"
_CLIENT_ERRORS: Final = range(400, 500)
_SUCCESS: Final = range(200, 300)
_log: Final = logging.getLogger("backstay.events")


class LogNotifier:
    """One log line per event."""

    async def notify(self, events: Sequence[Event]) -> None:
        for event in events:
            level = logging.WARNING if event.warning else logging.INFO
            _log.log(level, "%s", line(event))


class WebhookNotifier:
    """POSTs events as JSON; signed with HMAC-SHA256 in `X-Signature: sha256=<hex>` where there is a secret."""

    def __init__(
        self,
        url: str,
        *,
        secret: bytes = b"",
        queue: int = QUEUE,
        timeout: float = TIMEOUT,
        attempts: int = ATTEMPTS,
        backoff: float = BACKOFF,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._url = url
        self._secret = secret
        self._timeout = timeout
        self._attempts = attempts
        self._backoff = backoff
        self._draw = draw
        self._waiting: deque[Event] = deque()
        self._room = queue
        self._dropped = 0
        self._arrived = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._task: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<WebhookNotifier {redact.clean(self._url)} waiting={len(self._waiting)} dropped={self._dropped}>"

    async def notify(self, events: Sequence[Event]) -> None:
        if not events:
            return
        self._waiting.extend(events)
        while len(self._waiting) > self._room:
            self._waiting.popleft()
            self._dropped += 1
        self._idle.clear()
        self._arrived.set()
        if self._task is None:
            self._task = tasks.spawn(self._deliver(), name="notify-webhook")

    async def close(self, *, grace: float = 5.0) -> None:
        """Give what is queued a last chance of `grace` seconds."""
        try:
            async with asyncio.timeout(grace):
                await self._idle.wait()
        except TimeoutError:
            _log.warning("notify.left_behind url=%s events=%d", redact.clean(self._url), len(self._waiting))
        await tasks.stop(self._task)
        self._task = None

    async def _deliver(self) -> None:
        limits = aiohttp.ClientTimeout(total=self._timeout)
        async with aiohttp.ClientSession(timeout=limits, trust_env=True) as session:
            while True:
                await self._arrived.wait()
                self._arrived.clear()
                while self._waiting:
                    await self._send_some(session)
                self._idle.set()

    async def _send_some(self, session: aiohttp.ClientSession) -> None:
        """One batch. What is given up counts as dropped, which the next batch that arrives says."""
        batch = [self._waiting.popleft() for _ in range(min(BATCH, len(self._waiting)))]
        told = self._dropped
        if await self._try(session, encode(batch, dropped=told)):
            self._dropped -= told
            return
        self._dropped += len(batch)
        _log.warning("notify.given_up url=%s events=%d", redact.clean(self._url), len(batch))

    async def _try(self, session: aiohttp.ClientSession, body: bytes) -> bool:
        for attempt in range(self._attempts):
            if attempt:
                await asyncio.sleep(delay(attempt, base=self._backoff, draw=self._draw()))
            status = await self._post(session, body)
            if status in _SUCCESS:
                return True
            if status in _CLIENT_ERRORS and status not in _GONE:
                return False
        return False

    async def _post(self, session: aiohttp.ClientSession, body: bytes) -> int:
        """The answer's status, 0 when there was none."""
        headers = {"Content-Type": "application/json"}
        if self._secret:
            headers["X-Signature"] = sign(self._secret, body)
        try:
            async with session.post(self._url, data=body, headers=headers, allow_redirects=False) as response:
                status = response.status
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            _log.info("notify.failed url=%s error=%s", redact.clean(self._url), redact.clean(repr(error), limit=200))
            return 0
        if status not in _SUCCESS:
            _log.info("notify.refused url=%s status=%d", redact.clean(self._url), status)
        return status


def line(event: Event) -> str:
    """An event as one log line: name and fields first, the sentence last."""
    fields = [f"revision={event.revision}"] if event.revision else []
    fields += [f"subject={event.subject}"] if event.subject else []
    return redact.clean(" ".join((f"{event.kind}.{event.reason}", *fields, event.message))).replace("\n", " ")


def encode(events: Sequence[Event], *, dropped: int) -> bytes:
    """The request body: `{"events": [...], "dropped": n}`, every text cleaned."""
    shown = [
        {
            "number": event.number,
            "at": event.at,
            "kind": event.kind,
            "reason": event.reason,
            "message": redact.clean(event.message),
            "revision": event.revision,
            "subject": event.subject,
            "warning": event.warning,
        }
        for event in events
    ]
    return msgspec.json.encode({"events": shown, "dropped": dropped})


def sign(secret: bytes, body: bytes) -> str:
    return f"sha256={hmac.new(secret, body, hashlib.sha256).hexdigest()}"


def delay(attempt: int, *, base: float, draw: float) -> float:
    """Seconds before the attempt (from 1): doubling, capped, with the upper half random so that crowds part."""
    full = min(BACKOFF_MAX, base * float(2 ** (attempt - 1)))
    return full * (0.5 + draw / 2)
