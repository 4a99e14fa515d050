"""Watching git: a task of its own, so that a slow remote never delays a verdict.

It polls with jitter, is hurried by hints (webhook, folder watch, `backstay reconcile`), reads a new commit once, and
puts what it found into a mailbox that the loop empties.
"""

import asyncio
import logging
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from backstay.core.ports import Clock, Revision, SourceRefused, SourceRepo, SourceUnavailable, Tree
from backstay.core.view import SourceCondition
from backstay.redact import clean
from backstay.tasks import hinted

_log: Final = logging.getLogger("backstay.source")
RETRY_FIRST: Final = 1.0
"""Seconds before a failed look is repeated; doubles up to RETRY_MOST."""
RETRY_MOST: Final = 300.0
JITTER: Final = 0.05
"""Share of the interval that is random, as Flux's default of 5 %: a hundred operators do not knock at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """One commit with its files, and the commits after the one that serves, oldest first."""

    tree: Tree
    commits: Sequence[Revision]
    forced: bool
    """History was rewritten: the commit before is no ancestor of this one."""


class SourceWatch:
    """Looks at the remote; the newest find waits in `take` until the loop comes for it."""

    def __init__(
        self,
        source: SourceRepo,
        *,
        interval: float,
        clock: Clock,
        wake: Callable[[], None],
        active: Callable[[], str],
    ) -> None:
        """`active` is the commit that serves, "" for none: what is new is told against it."""
        self._source = source
        self._interval = interval
        self._clock = clock
        self._wake = wake
        self._known = ""
        self._active = active
        self._hint = asyncio.Event()
        self._found: Found | None = None
        self._failures = 0
        self._random = random.Random()  # noqa: S311 - spreads polls, protects nothing
        self.condition = SourceCondition()
        self.suspended = False

    def hint(self) -> None:
        """Look now: something says the remote has changed. Content of the hint is never trusted."""
        self._hint.set()

    def again(self) -> None:
        """Read the same commit again at the next look (an order of a person)."""
        self._known = ""
        self.hint()

    @property
    def is_taken_up(self) -> bool:
        """There was a look, and what it found has been fetched from here."""
        return self.condition.at > 0 and self._found is None

    def take(self) -> Found | None:
        found, self._found = self._found, None
        return found

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            if not self.suspended:
                await self.look()
            await self._pause()

    async def _pause(self) -> None:
        wait = self._interval * (1 + self._random.uniform(-JITTER, JITTER))
        if self._failures:
            wait = min(RETRY_FIRST * 2 ** (self._failures - 1), RETRY_MOST, max(self._interval, RETRY_FIRST))
        await hinted(self._hint, wait)

    async def look(self) -> None:
        """Ask the remote once; what is new waits in `take`, what failed is in `condition`."""
        try:
            await self._fetch()
        except SourceUnavailable as error:
            self._fail(error.reason, str(error), stalled=False)
        except SourceRefused as error:
            self._fail(error.reason, str(error), stalled=True)
        else:
            self._failures = 0
            recovered = not self.condition.ok
            self.condition = SourceCondition(at=self._clock.wall())
            if recovered:
                self._wake()

    def _fail(self, reason: str, message: str, *, stalled: bool) -> None:
        self._failures += 1
        message = clean(message)
        changed = self.condition.ok or self.condition.message != message
        self.condition = SourceCondition(
            ok=False, reason=reason, message=message, at=self._clock.wall(), stalled=stalled
        )
        if changed:
            _log.warning("source.failed reason=%s message=%s", reason, message)
            self._wake()

    async def _fetch(self) -> None:
        revision = await self._source.resolve()
        if revision.sha == self._known:
            return
        tree, commits, forced = await asyncio.gather(  # each waits for a git or several
            self._source.read(revision.sha), self._since_active(revision), self._is_forced(revision)
        )
        self._found = Found(
            tree=Tree(revision=revision, files=tree.files, refused=tree.refused), commits=commits, forced=forced
        )
        self._known = revision.sha
        self._wake()

    async def _since_active(self, revision: Revision) -> Sequence[Revision]:
        active = self._active()
        return await self._source.between(active, revision.sha) if active else (revision,)

    async def _is_forced(self, revision: Revision) -> bool:
        return bool(self._known) and not await self._source.is_ancestor(self._known, revision.sha)
