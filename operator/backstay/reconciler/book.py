"""What the operator knows of each proxy: folded from the fleet's events, shown in status, given to the rollout.

Rule: no awaiting and no clock; the loop passes time in.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from backstay.config.wire import Ack, Hello, Nack, Report, WentBack
from backstay.core.ports import Certified, FleetEvent, Joined, Left, Said, TurnedAway
from backstay.core.registry import Registry
from backstay.core.rollout.model import Nacked, ProxyView
from backstay.core.rollout.model import WentBack as ProxyWentBack
from backstay.core.view import ProxyStatus


@dataclass(slots=True)
class Page:
    """One proxy."""

    proxy: str
    workload: str
    connected: bool = False
    since: float = 0.0
    heard_at: float = 0.0
    """Monotonic time of the last message."""
    reported_wall: float = 0.0
    hello: Hello | None = None
    stable: str = ""
    candidate: str = ""
    share: float = 0.0
    last_nack: str = ""
    went_back: str = ""
    turned_away: str = ""
    """`Reason: message` while it is not let in."""
    draining: bool = False
    identity: str = ""
    certificate_expires: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Heard:
    """What one drain of the fleet brought that the rollout must see."""

    nacks: tuple[Nacked, ...] = ()
    went_back: tuple[ProxyWentBack, ...] = ()
    reports: tuple[tuple[str, str, Report], ...] = ()
    """(proxy, workload, report)"""
    joined: tuple[str, ...] = ()
    left: tuple[str, ...] = ()
    certified: tuple[Certified, ...] = ()
    turned_away: tuple[TurnedAway, ...] = ()
    """Proxies that are not let in, told once for each reason."""


@dataclass(slots=True)
class _Pile:
    nacks: list[Nacked] = field(default_factory=list)
    went_back: list[ProxyWentBack] = field(default_factory=list)
    reports: list[tuple[str, str, Report]] = field(default_factory=list)
    joined: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    certified: list[Certified] = field(default_factory=list)
    turned_away: list[TurnedAway] = field(default_factory=list)


class FleetBook:
    """One page a proxy; pages of proxies whose instance is gone are removed."""

    def __init__(self) -> None:
        self._pages: dict[str, Page] = {}

    def __iter__(self) -> Iterator[Page]:
        return iter(self._pages.values())

    def __getitem__(self, proxy: str) -> Page:
        return self._pages[proxy]

    def get(self, proxy: str) -> Page | None:
        return self._pages.get(proxy)

    def fold(self, events: "list[FleetEvent]", *, monotonic: float, wall: float) -> Heard:
        """Write events down and return what the rollout must hear of them."""
        pile = _Pile()
        for event in events:
            page = self._pages.setdefault(event.proxy, Page(event.proxy, event.workload))
            page.workload, page.heard_at = event.workload, monotonic
            match event:
                case Joined():
                    _join(page, event.hello, wall, pile)
                case Left():
                    page.connected, page.draining = False, event.draining
                    pile.left.append(event.proxy)
                case Said(message=message):
                    _say(page, message, wall, pile)
                case Certified():
                    page.identity, page.certificate_expires = event.identity, event.expires_at
                    pile.certified.append(event)
                case TurnedAway():
                    _turn_away(page, event, pile)
        return Heard(
            nacks=tuple(pile.nacks),
            went_back=tuple(pile.went_back),
            reports=tuple(pile.reports),
            joined=tuple(pile.joined),
            left=tuple(pile.left),
            certified=tuple(pile.certified),
            turned_away=tuple(pile.turned_away),
        )

    def forget_missing(self, registry: Registry) -> list[str]:
        """Drop pages of instances that are gone and not connected; returns their ids."""
        gone = [p.proxy for p in self._pages.values() if not p.connected and p.proxy not in registry.instances]
        for proxy in gone:
            del self._pages[proxy]
        return gone

    def views(self, registry: Registry, monotonic: float, *, young_after: float = 0.0) -> dict[str, ProxyView]:
        """All proxies that have ever said hello and whose instance exists. Those that started after `young_after` (Unix
        seconds) are too young for their evidence to count, where the platform makes them from templates."""
        return {
            page.proxy: _view(page, registry, monotonic, young_after)
            for page in self._pages.values()
            if page.hello is not None and (page.connected or page.proxy in registry.instances)
        }

    def statuses(self, registry: Registry, views: Mapping[str, ProxyView]) -> dict[str, ProxyStatus]:
        return {proxy: _status(self._pages[proxy], registry, view) for proxy, view in views.items()}


def _join(page: Page, hello: Hello, wall: float, pile: _Pile) -> None:
    page.connected, page.draining, page.since, page.hello = True, False, wall, hello
    page.turned_away = ""
    page.stable, page.candidate = hello.stable, hello.candidate
    page.share = 0.0 if not hello.candidate else page.share
    pile.joined.append(page.proxy)
    if hello.went_back and hello.went_back_from:
        _went_back(page, hello.went_back_from, hello.went_back, pile)


def _turn_away(page: Page, event: TurnedAway, pile: _Pile) -> None:
    """It tries again every few seconds, which is no news."""
    told = f"{event.reason}: {event.message}"
    if page.turned_away != told:
        pile.turned_away.append(event)
    page.connected, page.turned_away, page.hello = False, told, event.hello
    page.stable, page.candidate = event.hello.stable, event.hello.candidate


def _went_back(page: Page, digest: str, reason: str, pile: _Pile) -> None:
    page.went_back, page.candidate, page.share = reason, "", 0.0
    pile.went_back.append(ProxyWentBack(proxy=page.proxy, workload=page.workload, digest=digest, reason=reason))


def _say(page: Page, message: Ack | Nack | Report | WentBack, wall: float, pile: _Pile) -> None:
    match message:
        case Ack():
            page.stable, page.candidate, page.share = message.stable, message.candidate, message.share
            page.last_nack = ""
            if message.candidate:
                page.went_back = ""
        case Nack():
            page.last_nack = f"{message.reason}: {message.message}"
            pile.nacks.append(
                Nacked(
                    proxy=page.proxy,
                    workload=page.workload,
                    digest=message.digest,
                    fault=message.fault,
                    reason=message.reason,
                    message=message.message,
                )
            )
        case Report():
            page.reported_wall = wall
            pile.reports.append((page.proxy, page.workload, message))
        case WentBack():
            _went_back(page, message.candidate, message.reason, pile)


def _view(page: Page, registry: Registry, monotonic: float, young_after: float) -> ProxyView:
    workload, instance = registry.workloads.get(page.workload), registry.instances.get(page.proxy)
    template = instance.template if instance is not None else ""
    capabilities = page.hello.capabilities if page.hello else []
    return ProxyView(
        id=page.proxy,
        workload=page.workload,
        connected=page.connected,
        can_split="split" in capabilities,
        is_gateway=bool(workload and workload.is_gateway),
        warm=instance is None or not template or instance.started_at <= young_after,
        template=template,
        stable=page.stable,
        candidate=page.candidate,
        share=page.share,
        silent_for=max(0.0, monotonic - page.heard_at),
    )


def _status(page: Page, registry: Registry, view: ProxyView) -> ProxyStatus:
    instance = registry.instances.get(page.proxy)
    hello = page.hello
    return ProxyStatus(
        view=view,
        engine=hello.engine if hello else "",
        version=hello.version if hello else "",
        address=instance.address if instance else "",
        identity=page.identity,
        since=page.since,
        certificate_expires=page.certificate_expires,
        last_report=page.reported_wall,
        last_nack=page.last_nack,
        went_back=page.went_back,
        turned_away=page.turned_away,
    )
