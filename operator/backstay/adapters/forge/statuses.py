"""Commit statuses that follow a rollout: pending with the wave, success when live, failure with the reason.

`notify` only keeps the newest state of each commit; one task sends them. A forge that is slow, limits us or is away never
holds anything up: what was not sent is replaced by what is newer, and a refusal is logged once.
"""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from backstay import tasks
from backstay.adapters.forge.client import Forge, ForgeRefused, ForgeUnavailable
from backstay.adapters.forge.requests import State
from backstay.core.ports import Event

MOST_WAITING: Final = 100  # commits; a push of more is told by its newest ones
_PENDING: Final = frozenset(
    ("CommitSeen", "StageStarted", "WaveStarted", "WavePassed", "RolloutHolding", "RolloutFailing", "NoTraffic",
     "HarmSuspected", "Paused", "Resumed", "ShareRaised")
)  # fmt: skip
_STATES: Final[dict[str, State]] = {
    **dict.fromkeys(_PENDING, "pending"),
    "Live": "success",
    "CommitInvalid": "failure",
    "RolloutFailed": "failure",
    "HeldDependency": "failure",
    "Aborted": "error",
    "Superseded": "error",
}
_OPENINGS: Final = {"CommitSeen": "seen: ", "WaveStarted": "wave of "}
"""What a timeline says by the event's name has to be said in the sentence here."""
_log: Final = logging.getLogger("backstay.forge")


def status_of(event: Event) -> tuple[str, State, str] | None:
    """(sha, state, description) of an event; None for one that says nothing of a commit."""
    state = _STATES.get(event.reason)
    sha = event.revision.rpartition(":")[2]
    if state is None or not sha:
        return None
    return sha, state, f"{_OPENINGS.get(event.reason, '')}{event.message}"


class StatusNotifier:
    """A Notifier that writes commit statuses."""

    def __init__(self, forge: Callable[[], Awaitable[Forge]], context: str) -> None:
        """`forge` makes a client, entered and left for each burst; `context` names the status, one for each mesh. It may
        raise ForgeUnavailable and ForgeRefused."""
        self._forge = forge
        self._context = context
        self._waiting: OrderedDict[str, tuple[State, str]] = OrderedDict()
        self._sent: dict[str, tuple[State, str]] = {}
        self._arrived = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._task: asyncio.Task[None] | None = None
        self.lost = 0
        """Statuses that were given up."""

    def __repr__(self) -> str:
        return f"<StatusNotifier {self._context} waiting={len(self._waiting)} lost={self.lost}>"

    async def notify(self, events: Sequence[Event]) -> None:
        for sha, state, text in filter(None, map(status_of, events)):
            self._waiting[sha] = (state, text)
            self._waiting.move_to_end(sha)
        while len(self._waiting) > MOST_WAITING:
            self._waiting.popitem(last=False)
            self.lost += 1
        if self._waiting:
            self._idle.clear()
            self._arrived.set()
            if self._task is None:
                self._task = tasks.spawn(self._deliver(), name="commit-status")

    async def close(self, *, grace: float = 5.0) -> None:
        """Give what waits a last chance of `grace` seconds."""
        try:
            async with asyncio.timeout(grace):
                await self._idle.wait()
        except TimeoutError:
            _log.warning("status.left_behind commits=%d", len(self._waiting))
        await tasks.stop(self._task)
        self._task = None

    async def _deliver(self) -> None:
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            try:
                async with await self._forge() as forge:
                    while self._waiting:
                        sha, (state, text) = self._waiting.popitem(last=False)
                        await self._send(forge, sha, state, text)
            except (ForgeRefused, ForgeUnavailable) as error:  # no token: what is newer by then is tried with the next
                _log.warning("status.not_sent commits=%d error=%s", len(self._waiting), error)
            self._idle.set()

    async def _send(self, forge: Forge, sha: str, state: State, text: str) -> None:
        if self._sent.get(sha) == (state, text):
            return
        try:
            await forge.status(sha, state, self._context, text)
        except (ForgeRefused, ForgeUnavailable) as error:
            self.lost += 1
            _log.warning("status.not_sent commit=%s error=%s", sha[:12], error)
            return
        self._sent = {**dict(list(self._sent.items())[-MOST_WAITING:]), sha: (state, text)}
