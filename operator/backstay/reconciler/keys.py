"""Keys of who issues tokens: fetched where documents say, and told to all proxies as live data.

A rotated key reaches proxies within minutes and no rollout knows of it. What was fetched last stays good while an address
does not answer, up to a day; then it is taken away, and tokens of that issuer are refused: whoever keeps a key server from
us must not be able to keep a withdrawn key alive for ever.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from backstay.config.wire import Live
from backstay.core.compile.inbound import key_addresses
from backstay.core.ports import Clock, Fleet, KeySource, KeysUnavailable
from backstay.core.registry import Registry
from backstay.core.snapshot import Document
from backstay.reconciler.journal import Journal
from backstay.redact import clean

_log: Final = logging.getLogger("backstay.reconciler")
LOOK_SECONDS: Final = 1.0  # between looks at what documents name and at what is due
FRESH_SECONDS: Final = 300.0
"""Between fetches. Envoy's default for the same; Istio asks every 20 minutes, and a withdrawn key stays good as long."""
ASKED_SECONDS: Final = 30.0
"""The least between fetches where proxies meet tokens with keys that nobody has: anybody can write such a token, and an issuer
must not be asked once a token. A new key that is used at once is known within this time."""
FIRST_RETRY: Final = 1.0  # seconds; doubles
LONGEST_RETRY: Final = 60.0
STALE_SECONDS: Final = 24 * 3600.0
"""How long the last good keys count while their address does not answer: longer than an outage, and than a night."""
PREPARE_SECONDS: Final = 5.0  # a commit's new keys are waited for; then its rollout begins without them


@dataclass(slots=True)
class _Known:
    due: float = 0.0
    good_at: float = 0.0
    """When a fetch succeeded last; 0: never."""
    text: str = ""
    retry: float = FIRST_RETRY
    is_failing: bool = False


class KeysWatch:
    """Fetches what is due, one fetch of an address at a time, and tells the fleet what has changed."""

    def __init__(
        self,
        source: KeySource,
        fleet: Fleet,
        journal: Journal,
        clock: Clock,
        known: Callable[[], tuple[list[Document], Registry]],
        *,
        epoch: int,
    ) -> None:
        """`known` gives the documents that any proxy may go by now."""
        self._source = source
        self._fleet = fleet
        self._journal = journal
        self._clock = clock
        self._documents = known
        self._epoch = epoch
        self._keys: dict[str, _Known] = {}
        self._looking = asyncio.Lock()

    async def run(self) -> None:
        while True:
            await self.look()
            await asyncio.sleep(LOOK_SECONDS)

    async def prepare(self) -> None:
        """Fetch what nobody has fetched yet, for as long as a rollout may wait for it: its first proxies would refuse every
        token without it."""
        documents, _ = self._documents()
        if key_addresses(documents) - self._keys.keys():
            try:
                async with asyncio.timeout(PREPARE_SECONDS):
                    await self.look()
            except TimeoutError:
                _log.warning("keys.slow seconds=%g", PREPARE_SECONDS)

    def missed(self, addresses: Iterable[str]) -> None:
        """Proxies have met tokens whose keys these sets do not hold: fetch them early. Of others' addresses nothing is known
        here, and one that fails is asked as often as it is."""
        now = self._clock.monotonic()
        for address in addresses:
            known = self._keys.get(address)
            if known is not None and not known.is_failing:
                known.due = min(known.due, max(now, known.good_at + ASKED_SECONDS))

    async def look(self) -> None:
        """Fetch everything that is due, together."""
        async with self._looking:
            wanted = key_addresses(self._documents()[0])
            now = self._clock.monotonic()
            for gone in self._keys.keys() - wanted:
                del self._keys[gone]
            due = [address for address in sorted(wanted) if self._keys.setdefault(address, _Known()).due <= now]
            if due:
                await asyncio.gather(*(self._fetch(address, self._keys[address]) for address in due))

    async def _fetch(self, address: str, known: _Known) -> None:
        try:
            text = await self._source.fetch(address)
        except KeysUnavailable as error:
            self._failed(address, known, clean(str(error)))
            return
        now = self._clock.monotonic()
        known.good_at, known.due, known.retry = now, now + FRESH_SECONDS, FIRST_RETRY
        if known.is_failing:
            self._tell("KeysFetched", f"keys at {address} are there again", address, warning=False)
        known.is_failing = False
        if text != known.text:
            known.text = text
            self._fleet.publish(Live(epoch=self._epoch, key_sets={address: text}))

    def _failed(self, address: str, known: _Known, why: str) -> None:
        now = self._clock.monotonic()
        known.due, known.retry = now + known.retry, min(known.retry * 2, LONGEST_RETRY)
        if not known.is_failing:
            kept = "the last good ones stay in use" if known.text else "proxies use what they had, if anything"
            self._tell("KeysUnavailable", f"keys cannot be fetched: {why}; {kept}", address, warning=True)
        known.is_failing = True
        if known.text and now - known.good_at > STALE_SECONDS:
            known.text = ""
            self._fleet.publish(Live(epoch=self._epoch, key_sets={address: ""}))
            text = f"keys of {address} are a day old and count no more: tokens of their issuer are refused"
            self._tell("KeysStale", text, address, warning=True)

    def _tell(self, reason: str, text: str, address: str, *, warning: bool) -> None:
        self._journal.event("keys", reason, text, subject=address, warning=warning)
