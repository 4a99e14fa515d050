"""The page `/clusters`: what this proxy knows of the endpoints behind each backend. Pure reading."""

from collections.abc import Iterator

from backstay.sidecar.engines.python.pool import Group, Pool, Pools


def clusters_text(pools: Pools) -> str:
    """One fact a line, `backend::address::name::value`."""
    groups = sorted(pools.groups, key=lambda group: (group.service, group.labels))
    return "".join(f"{line}\n" for group in groups for line in _group(group, pools.now))


def _group(group: Group, now: float) -> Iterator[str]:
    labels = ",".join(f"{name}={value}" for name, value in group.labels)
    name = f"{group.service}[{labels}]" if labels else group.service
    yield f"{name}::rq_active::{group.active}"
    yield f"{name}::rq_retry_active::{group.retries}"
    for pool in group.everyone:
        for fact, value in _pool(pool, now):
            yield f"{name}::{pool.key.address}:{pool.key.port}::{fact}::{value}"


def _pool(pool: Pool, now: float) -> Iterator[tuple[str, object]]:
    yield "hostname", pool.key.id
    yield "identity", pool.key.identity or "plaintext"
    yield "cx_active", pool.open
    yield "cx_idle", len(pool.idle)
    yield "rq_active", pool.active
    yield "rq_pending_active", len(pool.waiting)
    yield "health_flags", _health(pool, now)


def _health(pool: Pool, now: float) -> str:
    """In Envoy's words."""
    if pool.health.unhealthy:
        return "failed_active_hc"
    return "failed_outlier_check" if pool.health.is_out(now) else "healthy"
