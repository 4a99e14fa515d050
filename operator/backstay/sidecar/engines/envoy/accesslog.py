"""Access logs: one that becomes the counters of reports, and one for people. Pure.

Envoy's stats logger adds every request to one histogram of durations whose tags say all that a row needs: rows, refusals and
attempts come from the same numbers and can never contradict each other. The log for people has the fields of the other
engine's.
"""

from typing import Final, Literal

from backstay.config.model import LATENCY_BOUNDS_MS
from backstay.sidecar.engines.envoy import rbac
from backstay.sidecar.engines.envoy.api import Json, percent, plain, typed
from backstay.sidecar.engines.envoy.names import ANY_SLOT, route_name

PREFIX: Final = "backstay"
REQUESTS: Final = "rq"
TAGS: Final = ("d", "r", "b", "c", "f", "w", "a", "g", "e")
"""Direction, route, backend, code, flags, what answered, attempts, gRPC status, whether a refusal was announced: short, because
they are part of every name."""
_LOGGERS: Final = "envoy.extensions.access_loggers."
_DURATION: Final = "%DURATION%"
"""Whole milliseconds, of requests whose client has gone as well; finer durations are missing there."""


def bucket_settings() -> Json:
    """Of the bootstrap: the buckets of reports, in milliseconds."""
    return {"match": {"prefix": f"{PREFIX}.{REQUESTS}"}, "buckets": list(LATENCY_BOUNDS_MS)}


def counted(direction: Literal["in", "out"]) -> Json:
    """Every request, by the name of its route."""
    return _counted(direction, "%ROUTE_NAME%", "%RESPONSE_CODE_DETAILS%")


def counted_connections(direction: Literal["in", "out"], route: str) -> Json:
    """Whole connections; they have no route of their own."""
    return _counted(direction, plain(route_name(ANY_SLOT, route)), "%CONNECTION_TERMINATION_DETAILS%")


def _counted(direction: str, route: str, what: str) -> Json:
    values = (
        direction, route, "%UPSTREAM_CLUSTER%", "%RESPONSE_CODE%", "%RESPONSE_FLAGS%", what,
        "%UPSTREAM_REQUEST_ATTEMPT_COUNT%", "%GRPC_STATUS_NUMBER%",
        f"%DYNAMIC_METADATA({rbac.METADATA}:{rbac.EXPECTED_BY})%",
    )  # fmt: skip
    tags = [{"name": name, "value_format": value} for name, value in zip(TAGS, values, strict=True)]
    histogram = {"stat": {"name": REQUESTS, "tags": tags}, "unit": "Milliseconds", "value_format": _DURATION}
    scope = {"prefix": PREFIX}
    return typed("envoy.access_loggers.stats", f"{_LOGGERS}stats.v3.Config", stats_scope=scope, histograms=[histogram])


_FIELDS: Final = {
    "time": "%START_TIME(%s.%3f)%",
    "method": "%REQUEST_HEADER(:METHOD)%",
    "authority": "%REQUEST_HEADER(:AUTHORITY)%",
    "path": "%REQUEST_HEADER(X-ENVOY-ORIGINAL-PATH?:PATH)%",
    "status": "%RESPONSE_CODE%",
    "flags": "%RESPONSE_FLAGS%",
    "reason": "%RESPONSE_CODE_DETAILS%",
    "duration_ms": "%DURATION%",
    "bytes_in": "%BYTES_RECEIVED%",
    "bytes_out": "%BYTES_SENT%",
    "tries": "%UPSTREAM_REQUEST_ATTEMPT_COUNT%",
    "route": "%ROUTE_NAME%",
    "backend": "%UPSTREAM_CLUSTER%",
    "upstream": "%UPSTREAM_HOST%",
    "source": "%DOWNSTREAM_PEER_URI_SAN%",
    "address": "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%",
    "traceparent": "%REQUEST_HEADER(TRACEPARENT)%",
    "audited": "%DYNAMIC_METADATA(envoy.filters.http.rbac:audit_shadow_effective_policy_id)%",
}


def shown(mode: Literal["off", "failures", "all"], share: float = 100.0) -> list[Json]:
    """Lines for people on standard output. `share`: percentage of those that did not fail."""
    if mode == "off":
        return []
    log = typed(
        "envoy.access_loggers.stdout", f"{_LOGGERS}stream.v3.StdoutAccessLog",
        log_format={"json_format": dict(_FIELDS), "omit_empty_values": True},
    )  # fmt: skip
    status = {"default_value": 500, "runtime_key": "backstay.none"}
    failed = [
        {"status_code_filter": {"comparison": {"op": "GE", "value": status}}},
        {"response_flag_filter": {}},
    ]
    if mode == "failures":
        log["filter"] = {"or_filter": {"filters": failed}}
    elif share < 100:
        chosen = {"runtime_key": "backstay.log", "percent_sampled": percent(share), "use_independent_randomness": True}
        log["filter"] = {"or_filter": {"filters": [*failed, {"runtime_filter": chosen}]}}
    return [log]
