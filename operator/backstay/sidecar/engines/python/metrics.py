"""Counters as Prometheus text, under Istio's names where Istio has one, so that existing dashboards work. Pure."""

from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Final

from backstay.config.model import LATENCY_BOUNDS_MS
from backstay.sidecar.engines.python.stats import Counters

_REPORTERS: Final = {"in": "destination", "out": "source"}


def render(
    sums: Iterable[Counters],
    *,
    workload: str,
    gauges: Iterable[tuple[str, float]],
    audited: Mapping[str, int] = MappingProxyType({}),
    refused: Mapping[tuple[int, str], int] = MappingProxyType({}),
    copies: Iterable[Counters] = (),
) -> bytes:
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
        *_family("backstay_audited_requests_total", "counter", _audited(audited, workload)),
        *_family("backstay_refused_connections_total", "counter", _refused(refused, workload)),
        *_family("backstay_mirrored_requests_total", "counter", _copied(copies, workload)),
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


def _audited(audited: Mapping[str, int], workload: str) -> Iterator[str]:
    for rule, count in sorted(audited.items()):
        yield f"backstay_audited_requests_total{{{_own(workload, 'destination')},rule={_quoted(rule)}}} {count}"


def _refused(refused: Mapping[tuple[int, str], int], workload: str) -> Iterator[str]:
    for (port, reason), count in sorted(refused.items()):
        labels = f'{_own(workload, "destination")},route="inbound:{port}",reason={_quoted(reason)}'
        yield f"backstay_refused_connections_total{{{labels}}} {count}"


def _copied(copies: Iterable[Counters], workload: str) -> Iterator[str]:
    for counters in sorted(copies, key=lambda counters: (counters.route, counters.backend)):
        labels = _labels(counters, workload)
        for code, count in sorted(counters.codes.items()):
            yield f'backstay_mirrored_requests_total{{{labels},response_code="{code}"}} {count}'


def _own(workload: str, role: str) -> str:
    namespace, _, name = workload.partition("/")
    return f"{role}_workload={_quoted(name)},{role}_workload_namespace={_quoted(namespace)}"


def _labels(counters: Counters, workload: str) -> str:
    service, _, subset = counters.backend.partition("/")
    role = "source" if counters.direction == "out" else "destination"
    pairs = [("route", counters.route)]
    if service:
        pairs += [("destination_service", service), ("destination_version", subset or "unknown")]
    reporter = f'reporter="{_REPORTERS[counters.direction]}",{_own(workload, role)}'
    return ",".join((reporter, *(f"{name}={_quoted(value)}" for name, value in pairs)))


def _quoted(value: str) -> str:
    escaped = value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
    return f'"{escaped}"'
