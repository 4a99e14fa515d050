"""One kind of object, kept up to date: list, watch with bookmarks, list again when the server has forgotten our place.

Keeps the facts that `read` makes of each object, not the objects. What the rest of the operator sees changes in one step
per list and per event. A list that lost half of what was there, or a first one that is empty, is asked for twice.
"""

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from typing import Any, Final, Generic, TypeVar

import msgspec

from backstay.adapters.kubernetes.client import ApiClient, ApiError, Change, Expired
from backstay.core.registry import is_half_lost
from backstay.redact import clean

_T = TypeVar("_T")
_log: Final = logging.getLogger("backstay.kubernetes")

PAGE: Final = 250
"""Objects a list asks for at once. A pod is about 10 KiB of JSON and ten times that in memory while it is read."""
CONFIRM_AFTER: Final = 1.0  # seconds; an API server whose cache is still filling has it by then
SILENT_AFTER: Final = 150.0  # seconds without anything: bookmarks come every minute, so the connection is dead
FIRST_PAUSE: Final = 0.5  # seconds
LONGEST_PAUSE: Final = 10.0  # seconds: an API server that comes back is noticed well within half a minute
STEADY_AFTER: Final = 5.0  # seconds a watch must hold before its end counts as ordinary


class Kept(Generic[_T]):
    """Facts by key, and what lists and events do to them. Pure."""

    def __init__(
        self, read: Callable[[Mapping[str, Any]], _T | None], weigh: Callable[[_T], int] = lambda _: 1
    ) -> None:
        self.items: dict[str, _T] = {}
        self.unreadable = 0
        """Objects that were not as the API promises; each was left out."""
        self._read = read
        self._weigh = weigh

    def facts(self, found: Mapping[str, Any]) -> _T | None:
        """None for an object that is none of our business or cannot be read."""
        try:
            return self._read(found)
        except (msgspec.ValidationError, ValueError, IndexError) as error:
            self.unreadable += 1
            _log.warning("kubernetes.unreadable object=%s error=%s", key_of(found), clean(str(error)))
            return None

    def weight(self, items: Mapping[str, _T]) -> int:
        return sum(map(self._weigh, items.values()))

    def doubts(self, items: Mapping[str, _T], *, is_first: bool) -> bool:
        """Whether this list should be asked for a second time before anybody acts on it."""
        after = self.weight(items)
        return after == 0 if is_first else is_half_lost(self.weight(self.items), after)

    def replace(self, items: dict[str, _T]) -> bool:
        """Take a list; says whether anything is different."""
        is_changed = items != self.items
        self.items = items
        return is_changed

    def apply(self, change: Change) -> bool:
        """Take one event; says whether anything is different."""
        key = key_of(change.object)
        fresh = None if change.kind == "DELETED" else self.facts(change.object)
        if fresh is None:
            return self.items.pop(key, None) is not None
        is_changed = self.items.get(key) != fresh
        self.items[key] = fresh
        return is_changed


class Watched(Generic[_T]):
    """`run` it in a task; `items` are right once `synced` is set, and as new as the API server's answers since."""

    def __init__(
        self,
        client: ApiClient,
        path: str,
        read: Callable[[Mapping[str, Any]], _T | None],
        *,
        changed: Callable[[], None],
        weigh: Callable[[_T], int] = lambda _: 1,
        fields: str = "",
        confirm_after: float = CONFIRM_AFTER,
    ) -> None:
        self.path = path
        self.synced = asyncio.Event()
        self.relists = 0
        """Lists after the first."""
        self.fault = ""
        """Why we may be behind; empty while the watch holds."""
        self._client = client
        self._kept = Kept(read, weigh)
        self._changed = changed
        self._fields = fields
        self._confirm_after = confirm_after
        self._version = ""
        self._failures = 0

    def __repr__(self) -> str:
        return f"<Watched {self.path} items={len(self.items)} version={self._version} fault={self.fault!r}>"

    @property
    def items(self) -> Mapping[str, _T]:
        return self._kept.items

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            try:
                if not self._version:
                    await self._list()
                await self._follow()
                continue
            except Expired:
                self._version = ""
                _log.info("kubernetes.expired path=%s", self.path)
            except (ApiError, TimeoutError) as error:
                self._note(error)
            self._failures += 1
            await asyncio.sleep(pause(self._failures, random.random()))  # noqa: S311 - spreads load, hides nothing

    def _note(self, error: Exception) -> None:
        fault = clean(str(error)) or "the watch is silent"
        if fault != self.fault:
            _log.warning("kubernetes.watch-broken path=%s error=%s", self.path, fault)
        self.fault = fault

    # --- list -----------------------------------------------------------------------------------------------------

    async def _list(self) -> None:
        items, version = await self._pages()
        if self._kept.doubts(items, is_first=not self.synced.is_set()):
            before, after = self._kept.weight(self.items), self._kept.weight(items)
            _log.warning("kubernetes.list-doubted path=%s before=%d after=%d", self.path, before, after)
            await asyncio.sleep(self._confirm_after)
            items, version = await self._pages()
        self._version = version
        self.relists += self.synced.is_set()
        is_changed = self._kept.replace(items)
        is_first = not self.synced.is_set()
        self.synced.set()
        self.fault = ""
        if is_changed or is_first:
            self._changed()

    async def _pages(self) -> tuple[dict[str, _T], str]:
        """Everything, read page by page so that only facts are held of what was read before."""
        query = {"limit": str(PAGE)} | ({"fieldSelector": self._fields} if self._fields else {})
        items: dict[str, _T] = {}
        while True:
            answer = await self._client.get(self.path, **query)
            for found in answer.get("items") or ():
                facts = self._kept.facts(found)
                if facts is not None:
                    items[key_of(found)] = facts
            metadata = answer.get("metadata") or {}
            if not metadata.get("continue"):
                return items, str(metadata.get("resourceVersion", ""))
            query["continue"] = metadata["continue"]

    # --- watch ----------------------------------------------------------------------------------------------------

    async def _follow(self) -> None:
        """One watch, until the server ends it in order. Raises Expired, ApiError, TimeoutError."""
        began = time.monotonic()
        changes = self._client.watch(self.path, resource_version=self._version, fields=self._fields)
        async with contextlib.aclosing(_lively(changes)) as lively:
            async for change in lively:
                self._version = change.resource_version
                self.fault = ""
                self._failures = 0
                if change.kind != "BOOKMARK" and self._kept.apply(change):
                    self._changed()
        if time.monotonic() - began < STEADY_AFTER:
            raise ApiError(0, "WatchEnded", f"{self.path}: the server ended the watch at once")
        self.fault = ""
        self._failures = 0


async def _lively(changes: AsyncIterator[Change]) -> AsyncGenerator[Change, None]:
    """Raises TimeoutError when nothing comes for too long."""
    while True:
        try:
            async with asyncio.timeout(SILENT_AFTER):
                change = await anext(changes)
        except StopAsyncIteration:
            return
        yield change


def pause(failures: int, luck: float) -> float:
    """Seconds to wait after so many failures in a row; `luck` between 0 and 1 spreads those that failed together."""
    longest: float = min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** min(failures - 1, 10))
    return longest * (0.5 + luck / 2)


def key_of(found: Mapping[str, Any]) -> str:
    """`namespace/name`, or the name of what has no namespace."""
    metadata = found.get("metadata") or {}
    namespace = metadata.get("namespace")
    return f"{namespace}/{metadata.get('name')}" if namespace else str(metadata.get("name"))
