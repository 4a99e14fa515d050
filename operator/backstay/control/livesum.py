"""The sum of all live data published so far, and which piece of it one proxy is told. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from backstay.config.wire import Endpoint, Live


@dataclass(frozen=True, slots=True, kw_only=True)
class News:
    """What one publish has changed."""

    full: bool
    endpoints: dict[str, list[Endpoint]]
    trust: dict[str, str] | None
    revoked: list[str] | None

    def concerns(self, services: frozenset[str] | None) -> bool:
        """Whether a proxy that gets these of the changed services must be told at all."""
        others = self.full or self.trust is not None or self.revoked is not None
        return others or bool(self.endpoints if services is None else services)

    def only(self, services: frozenset[str] | None, epoch: int) -> Live:
        """The message for proxies that get these of the changed services; None: all."""
        chosen = self.endpoints if services is None else {name: self.endpoints[name] for name in sorted(services)}
        return Live(epoch=epoch, full=self.full, endpoints=chosen, trust=self.trust, revoked=self.revoked)


@dataclass(slots=True)
class LiveSum:
    trust: dict[str, str]
    revoked: list[str] = field(default_factory=list)
    endpoints: dict[str, list[Endpoint]] = field(default_factory=dict)
    is_complete: bool = False
    """False until the first publish: before it, "nothing" means "not known yet" and must take nothing away."""

    def add(self, live: Live) -> News:
        """Add what was published; returns only what is new in it."""
        first = not self.is_complete
        full = live.full or first
        known = {} if first else self.endpoints
        changed = {name: each for name, each in live.endpoints.items() if known.get(name) != each}
        vanished = [name for name in known if full and name not in live.endpoints]
        self._remember(live, vanished)
        return News(
            full=first,
            endpoints={**changed, **{name: [] for name in vanished}},
            trust=live.trust,
            revoked=live.revoked,
        )

    def _remember(self, live: Live, vanished: Iterable[str]) -> None:
        for name in vanished:
            del self.endpoints[name]
        for name, each in live.endpoints.items():
            if each:
                self.endpoints[name] = each
            else:
                self.endpoints.pop(name, None)
        self.trust = self.trust if live.trust is None else live.trust
        self.revoked = self.revoked if live.revoked is None else live.revoked
        self.is_complete = True

    def everything(self, epoch: int, services: Iterable[str] | None) -> Live:
        """For a proxy that joins; None: all services."""
        chosen = self.endpoints if services is None else self._of(services)
        return Live(epoch=epoch, full=self.is_complete, endpoints=chosen, trust=self.trust, revoked=self.revoked)

    def part(self, epoch: int, services: Iterable[str]) -> Live:
        return Live(epoch=epoch, endpoints=self._of(services))

    def _of(self, services: Iterable[str]) -> dict[str, list[Endpoint]]:
        return {name: self.endpoints[name] for name in sorted(services) if name in self.endpoints}
