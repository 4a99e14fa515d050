"""What the admin, health and Prometheus ports of a sidecar show. Pure reading; no key, token or certificate in it."""

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from backstay.sidecar import clock
from backstay.sidecar.admin import JSON, PROMETHEUS, TEXT, AdminServer, Answer, Page
from backstay.sidecar.agent import Agent
from backstay.sidecar.engine import Engine
from backstay.sidecar.settings import Settings


async def listen(admin: AdminServer, settings: Settings, pages: Mapping[str, Page]) -> None:
    """Every page on its port; equal addresses share a listener. Raises OSError, ValueError."""
    asking = _asking_pages(settings)
    pages = {**pages, **asking}
    places: dict[tuple[str, int], dict[str, Page]] = {}
    for host, port, paths in (
        (settings.admin_host, settings.admin_port, pages.keys()),
        (settings.health_host, settings.health_port, {"/healthz/ready", *asking} & pages.keys()),
        (settings.health_host, settings.prometheus_port, {"/stats/prometheus"} & pages.keys()),
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


def agent_pages(agent: Agent) -> dict[str, Page]:
    return {
        "/healthz/ready": lambda: _ready(agent.is_ready),
        "/stats/prometheus": lambda: (200, PROMETHEUS, engine_metrics(agent.engine) + agent_metrics(agent)),
        "/config_dump": lambda: (200, JSON, msgspec.json.format(msgspec.json.encode(dump(agent)))),
    }


def file_pages(engine: Engine, digest: Callable[[], str]) -> dict[str, Page]:
    return {
        "/healthz/ready": lambda: _ready(True),
        "/stats/prometheus": lambda: (200, PROMETHEUS, engine_metrics(engine)),
        "/config_dump": lambda: (200, JSON, msgspec.json.encode({"stable": digest()})),
    }


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


def engine_metrics(engine: Engine) -> bytes:
    """The engine's own Prometheus text; an engine without one (Envoy has its own port) adds nothing."""
    metrics: Callable[[], str | bytes] | None = getattr(engine, "metrics", None)
    text = metrics() if metrics else b""
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
