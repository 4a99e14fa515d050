"""Counters as Prometheus text, under Istio's names where Istio has one, so that existing dashboards work. Pure."""

from collections.abc import Iterable, Iterator
from typing import Final

from backstay.config.model import LATENCY_BOUNDS_MS
from backstay.sidecar.engines.python.stats import Counters

_REPORTERS: Final = {"in": "destination", "out": "source"}


def render(sums: Iterable[Counters], *, workload: str, gauges: Iterable[tuple[str, float]]) -> bytes:
    """The whole exposition. `workload` is `<namespace>/<name>` of the proxy's own workload."""
    ordered = sorted(sums, key=lambda counters: (counters.direction, counters.route, counters.backend))
    lines = [
        *_family("istio_requests_total", "counter", (line for c in ordered for line in _requests(c, workload))),
        *_family(
            "istio_request_duration_milliseconds",
            "histogram",
            (line for c in ordered for line in _durations(c, workload)),
        ),
        *_family("backstay_bad_requests_total", "counter", (line for c in ordered for line in _bad(c, workload))),
        *_family("backstay_upstream_tries_total", "counter", (line for c in ordered for line in _tries(c, workload))),
    ]
    for name, value in gauges:
        lines += (f"# TYPE {name} gauge", f"{name} {value:g}")
    return ("\n".join(lines) + "\n").encode()


def _family(name: str, kind: str, lines: Iterator[str]) -> list[str]:
    return [f"# TYPE {name} {kind}", *lines]


def _requests(counters: Counters, workload: str) -> Iterator[str]:
    for code, count in sorted(counters.codes.items()):
        yield f"istio_requests_total{{{_labels(counters, workload)},response_code={_quoted(str(code))}}} {count}"


def _durations(counters: Counters, workload: str) -> Iterator[str]:
    name, labels = "istio_request_duration_milliseconds", _labels(counters, workload)
    total = 0
    for bound, count in zip((*LATENCY_BOUNDS_MS, None), counters.latency, strict=True):
        total += count
        edge = "+Inf" if bound is None else f"{bound:g}"
        yield f'{name}_bucket{{{labels},le="{edge}"}} {total}'
    yield f"{name}_sum{{{labels}}} {counters.seconds * 1000:.3f}"
    yield f"{name}_count{{{labels}}} {total}"


def _bad(counters: Counters, workload: str) -> Iterator[str]:
    for reason, count in sorted(counters.bad.items()):
        yield f"backstay_bad_requests_total{{{_labels(counters, workload)},reason={_quoted(reason)}}} {count}"


def _tries(counters: Counters, workload: str) -> Iterator[str]:
    if counters.attempts:
        yield f"backstay_upstream_tries_total{{{_labels(counters, workload)}}} {counters.attempts}"


def _labels(counters: Counters, workload: str) -> str:
    own_namespace, _, own_name = workload.partition("/")
    service, _, subset = counters.backend.partition("/")
    role = "source" if counters.direction == "out" else "destination"
    pairs = [
        ("reporter", _REPORTERS[counters.direction]),
        (f"{role}_workload", own_name),
        (f"{role}_workload_namespace", own_namespace),
        ("route", counters.route),
    ]
    if service:
        pairs += [("destination_service", service), ("destination_version", subset or "unknown")]
    return ",".join(f"{name}={_quoted(value)}" for name, value in pairs)


def _quoted(value: str) -> str:
    escaped = value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
    return f'"{escaped}"'
