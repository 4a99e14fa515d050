"""What the admin, health and Prometheus ports of a sidecar show. Pure reading; no key, token or certificate in it."""

import logging
from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec

from backstay.sidecar import clock
from backstay.sidecar.admin import JSON, OPENMETRICS, PROMETHEUS, TEXT, Act, AdminServer, Answer, Asked, Page, Pages
from backstay.sidecar.agent import Agent
from backstay.sidecar.engine import Engine, deaths
from backstay.sidecar.settings import Settings

LEVELS: Final = ("debug", "info", "warning", "error")
METRICS: Final = ("/stats/prometheus", "/metrics")


async def listen(admin: AdminServer, settings: Settings, pages: Pages) -> None:
    """Every page on its port; equal addresses share a listener. Raises OSError, ValueError."""
    asking = _asking_pages(settings)
    pages = {**pages, **asking}
    places: dict[tuple[str, int], dict[str, Page | Act]] = {}
    for host, port, paths in (
        (settings.admin_host, settings.admin_port, pages.keys()),
        (settings.health_host, settings.health_port, {"/healthz/ready", "/ready", *asking} & pages.keys()),
        (settings.health_host, settings.prometheus_port, set(METRICS) & pages.keys()),
    ):
        if port:
            places.setdefault((host, port), {}).update({path: pages[path] for path in paths})
    for (host, port), shown in places.items():
        await admin.listen(host, port, shown)


def _asking_pages(settings: Settings) -> Mapping[str, Page]:
    """Pages whose answer is the application's. Raises ValueError."""
    if not settings.app_probes:
        return {}
    from backstay.sidecar import probes  # noqa: PLC0415 - most proxies of one machine have none

    is_redirected = settings.address.redirected is not None
    place = probes.Place.of(settings.health_host, settings.address.app_host, is_redirected=is_redirected)
    return probes.pages(probes.parse(settings.app_probes), place)


def agent_pages(agent: Agent) -> dict[str, Page | Act]:
    return {
        **_common_pages(agent.engine, lambda: agent.is_ready, agent.stop, lambda: agent_metrics(agent)),
        "/config_dump": lambda: (200, JSON, msgspec.json.format(msgspec.json.encode(dump(agent)))),
    }


def file_pages(engine: Engine, dumped: Callable[[], Any], stop: Callable[[], None]) -> dict[str, Page | Act]:
    """Of a sidecar that serves one file."""
    return {
        **_common_pages(engine, lambda: True, stop, bytes),
        "/config_dump": lambda: (200, JSON, msgspec.json.format(msgspec.json.encode(dumped()))),
    }


def _common_pages(
    engine: Engine, is_ready: Callable[[], bool], stop: Callable[[], None], more: Callable[[], bytes]
) -> dict[str, Page | Act]:
    metrics = Act(lambda asked: _metrics(engine, more, asked))
    return {
        "/healthz/ready": lambda: _ready(is_ready()),
        "/ready": lambda: _ready(is_ready()),
        **dict.fromkeys(METRICS, metrics),
        "/stats": lambda: (200, TEXT, plain_stats(engine_metrics(engine) + more())),
        "/clusters": lambda: (200, TEXT, clusters(engine).encode()),
        "/logging": Act(lambda asked: set_level(engine, asked), ("POST", "GET", "HEAD")),
        "/drain": Act(lambda _: _drain(stop), ("POST",)),
    }


def _metrics(engine: Engine, more: Callable[[], bytes], asked: Asked) -> Answer:
    """In OpenMetrics, which has exemplars, for who asks for it first."""
    if OPENMETRICS.partition(";")[0] not in asked.headers.get("accept", ""):
        return 200, PROMETHEUS, engine_metrics(engine) + more()
    shown = engine_metrics(engine, exemplars=True)
    if not shown.endswith(_END):
        return 200, PROMETHEUS, shown + more()
    return 200, OPENMETRICS, shown.removesuffix(_END) + _without_total(more()) + _END


_END: Final = b"# EOF\n"


def _without_total(text: bytes) -> bytes:
    """Prometheus text as OpenMetrics names counter families."""
    lines = text.decode().splitlines()
    return "".join(f"{_family_line(line)}\n" for line in lines).encode()


def _family_line(line: str) -> str:
    if not line.startswith("#"):
        return line
    mark, word, name, rest = line.split(" ", 3)
    return f"{mark} {word} {name.removesuffix('_total')} {rest}"


def plain_stats(text: bytes) -> bytes:
    """`name{labels}: value`, as Envoy's page of this name; without what is zero in histograms' buckets."""
    lines = (line for line in text.decode().splitlines() if line and not line.startswith("#"))
    found = (line.rpartition(" ") for line in lines if "_bucket{" not in line)
    return "".join(f"{name}: {value}\n" for name, _, value in found).encode()


def clusters(engine: Engine) -> str:
    """An engine without this page (Envoy has its own port) shows nothing."""
    shown: Callable[[], str] | None = getattr(engine, "clusters", None)
    return shown() if shown else ""


def set_level(engine: Engine, asked: Asked) -> Answer:
    """`POST /logging?level=debug`; without a level, the one in force."""
    log = logging.getLogger()
    level = asked.query.get("level", "")
    if asked.method == "POST":
        if level not in LEVELS:
            return 400, TEXT, f"level: expected one of {', '.join(LEVELS)}\n".encode()
        log.setLevel(level.upper())
        others: Callable[[str], None] | None = getattr(engine, "level", None)
        if others is not None:
            others(level.upper())
    return 200, TEXT, f"level: {logging.getLevelName(log.getEffectiveLevel()).lower()}\n".encode()


def _drain(stop: Callable[[], None]) -> Answer:
    """As SIGTERM: no new connections, what is open is finished, then the process ends."""
    stop()
    return 200, TEXT, b"draining\n"


def _ready(is_ready: bool) -> Answer:
    return (200, TEXT, b"ready\n") if is_ready else (503, TEXT, b"waiting for a config and an identity\n")


def dump(agent: Agent) -> dict[str, Any]:
    """All that decides what this proxy does, for `backstay proxy config`."""
    saved, svid = agent.store.saved, agent.svid
    return {
        "proxy": agent.settings.proxy,
        "boot": agent.boot,
        "connected": agent.connected,
        "epoch": saved.epoch,
        "share": saved.share if agent.candidate else 0.0,
        "lease": _lease(agent),
        "wentBack": {"reason": saved.went_back, "candidate": saved.went_back_from} if saved.went_back else None,
        "identity": {"id": svid.identity, "expiresAt": svid.expires_at} if svid else None,
        "trustDomains": sorted(agent.live.trust),
        "revoked": agent.live.revoked,
        "endpoints": agent.live.endpoints,
        "stable": {"digest": agent.stable.digest, "config": agent.stable} if agent.stable else None,
        "candidate": {"digest": agent.candidate.digest, "config": agent.candidate} if agent.candidate else None,
    }


def _lease(agent: Agent) -> dict[str, Any] | None:
    if agent.lease is None:
        return None
    left = max(0.0, agent.lease.ends - clock.now().since_boot)
    return {"candidate": agent.lease.candidate, "secondsLeft": round(left, 1), "confirmed": agent.lease.confirmed}


def engine_metrics(engine: Engine, *, exemplars: bool = False) -> bytes:
    """The engine's own Prometheus text; an engine without one (Envoy) adds nothing."""
    metrics: Callable[..., str | bytes] | None = getattr(engine, "metrics", None)
    text = (metrics(exemplars=True) if exemplars else metrics()) if metrics else b""
    return text.encode() if isinstance(text, str) else text


def agent_metrics(agent: Agent) -> bytes:
    now = clock.now()
    left = agent.svid.expires_at - now.wall if agent.svid else 0.0
    figures = (
        ("connected", "gauge", "1 while the control stream is up.", float(agent.connected)),
        ("epoch", "gauge", "Greatest operator epoch seen.", float(agent.store.saved.epoch)),
        ("candidate_share", "gauge", "Fraction of requests the candidate gets.", dump_share(agent)),
        ("certificate_seconds_left", "gauge", "Seconds until the certificate ends.", round(left, 1)),
        ("reports_pending", "gauge", "Reports the operator has not counted yet.", float(len(agent.ring))),
        ("reports_lost_total", "counter", "Reports given up after two minutes.", float(agent.ring.lost)),
        ("reconnects_total", "counter", "Control streams that ended.", float(agent.reconnects)),
        ("engine_deaths_total", "counter", "Deaths of the engine's process.", float(deaths(agent.engine))),
        ("store_damaged_total", "counter", "Objects found damaged on disk.", float(agent.store.objects.dropped)),
    )
    lines = (
        f"# HELP backstay_sidecar_{name} {text}\n# TYPE backstay_sidecar_{name} {kind}\n"
        f"backstay_sidecar_{name} {value:g}\n"
        for name, kind, text, value in figures
    )
    return "".join(lines).encode()


def dump_share(agent: Agent) -> float:
    return agent.store.saved.share if agent.candidate else 0.0
