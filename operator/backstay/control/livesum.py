"""The sum of all live data published so far, and which piece of it one proxy is told. Pure."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from backstay.config.wire import Endpoint, Live

Each = TypeVar("Each")


@dataclass(frozen=True, slots=True, kw_only=True)
class News:
    """What one publish has changed."""

    full: bool
    endpoints: dict[str, list[Endpoint]]
    addresses: dict[str, list[str]]
    trust: dict[str, str] | None
    revoked: list[str] | None
    key_sets: dict[str, str]

    def concerns(self, services: frozenset[str] | None) -> bool:
        """Whether a proxy that gets these of the changed services must be told at all."""
        others = (
            self.full or bool(self.addresses or self.key_sets) or self.trust is not None or self.revoked is not None
        )
        return others or bool(self.endpoints if services is None else services)

    def only(self, services: frozenset[str] | None, epoch: int) -> Live:
        """The message for proxies that get these of the changed services; None: all."""
        chosen = self.endpoints if services is None else {name: self.endpoints[name] for name in sorted(services)}
        return Live(
            epoch=epoch,
            full=self.full,
            endpoints=chosen,
            addresses=self.addresses,  # they hardly ever change, and are small: everybody is told
            trust=self.trust,
            revoked=self.revoked,
            key_sets=self.key_sets,
        )


@dataclass(slots=True)
class LiveSum:
    trust: dict[str, str]
    revoked: list[str] = field(default_factory=list)
    endpoints: dict[str, list[Endpoint]] = field(default_factory=dict)
    addresses: dict[str, list[str]] = field(default_factory=dict)
    key_sets: dict[str, str] = field(default_factory=dict)
    is_complete: bool = False
    """False until the first publish: before it, "nothing" means "not known yet" and must take nothing away."""

    def add(self, live: Live) -> News:
        """Add what was published; returns only what is new in it."""
        if live.key_sets and live == Live(epoch=live.epoch, key_sets=live.key_sets):
            self.key_sets |= live.key_sets
            return News(full=False, endpoints={}, addresses={}, trust=None, revoked=None, key_sets=live.key_sets)
        first = not self.is_complete
        full = live.full or first
        endpoints = _news({} if first else self.endpoints, live.endpoints, full=full)
        addresses = _news({} if first else self.addresses, live.addresses, full=full)
        _keep(self.endpoints, endpoints)
        _keep(self.addresses, addresses)
        self.trust = self.trust if live.trust is None else live.trust
        self.revoked = self.revoked if live.revoked is None else live.revoked
        self.key_sets |= live.key_sets
        self.is_complete = True
        return News(
            full=first,
            endpoints=endpoints,
            addresses=addresses,
            trust=live.trust,
            revoked=live.revoked,
            key_sets=live.key_sets,
        )

    def everything(self, epoch: int, services: Iterable[str] | None) -> Live:
        """For a proxy that joins; None: all services."""
        chosen = self.endpoints if services is None else self._of(services)
        addresses = self.addresses if services is None else self._addresses_of(services)
        return Live(
            epoch=epoch,
            full=self.is_complete,
            endpoints=chosen,
            addresses=addresses,
            trust=self.trust,
            revoked=self.revoked,
            key_sets=self.key_sets,
        )

    def part(self, epoch: int, services: Iterable[str]) -> Live:
        return Live(epoch=epoch, endpoints=self._of(services), addresses=self._addresses_of(services))

    def _of(self, services: Iterable[str]) -> dict[str, list[Endpoint]]:
        return {name: self.endpoints[name] for name in sorted(services) if name in self.endpoints}

    def _addresses_of(self, services: Iterable[str]) -> dict[str, list[str]]:
        """By service, though `services` name ports of them."""
        names = {name.rpartition(":")[0] for name in services}
        return {name: self.addresses[name] for name in sorted(names) if name in self.addresses}


def _news(known: Mapping[str, list[Each]], told: Mapping[str, list[Each]], *, full: bool) -> dict[str, list[Each]]:
    """What is not known yet; what is gone has none."""
    changed = {name: each for name, each in told.items() if known.get(name) != each}
    return {**changed, **{name: [] for name in known if full and name not in told}}


def _keep(known: dict[str, list[Each]], news: Mapping[str, list[Each]]) -> None:
    for name, each in news.items():
        if each:
            known[name] = each
        else:
            known.pop(name, None)
