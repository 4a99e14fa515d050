"""Counters as Prometheus text, under Istio's names and labels where Istio has them, so that existing boards work. Pure.

Series are by source, destination, code and flags; never by config, path or Host header. Two labels are ours: `route` (the rule
that decided) on the request families. What is unknown is `unknown`, as in Istio.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

from backstay.config.model import LATENCY_BOUNDS_MS
from backstay.sidecar.engines.python.peers import UNKNOWN, Peer
from backstay.sidecar.engines.python.stats import SIZE_BOUNDS, Cell, Counters, Exemplar, Streams

_REPORTERS: Final = {"in": "destination", "out": "source"}
PASSTHROUGH: Final = "PassthroughCluster"  # Istio's word for what is no service of the mesh


@dataclass(frozen=True, slots=True, kw_only=True)
class Own:
    """The proxy's own workload."""

    workload: str
    """`<namespace>/<name>`"""
    identity: str = ""
    app: str = ""
    version: str = ""
    services: Mapping[int, str] = field(default_factory=dict)
    """Inbound port -> `service.namespace`."""


def render(
    sums: Iterable[Counters],
    *,
    own: Own,
    gauges: Iterable[tuple[str, float]],
    configs: Iterable[tuple[str, str]] = (),
    audited: Mapping[str, int] = MappingProxyType({}),
    refused: Mapping[tuple[int, str], int] = MappingProxyType({}),
    copies: Iterable[Counters] = (),
    exemplars: bool = False,
) -> bytes:
    """The whole exposition. `configs` are (role, digest). With `exemplars` it is OpenMetrics, else Prometheus text."""
    ordered = sorted(sums, key=lambda counters: (counters.direction, counters.route, counters.backend))
    cells = [
        (_labels(own, counters, peer), counters, cell) for counters in ordered for peer, cell in counters.cells.items()
    ]
    cells.sort(key=lambda found: found[0])
    write = Writer(exemplars)
    write.family(
        "istio_requests_total", "counter", (line for labels, _, cell in cells for line in _requests(labels, cell))
    )
    write.family(
        "istio_request_duration_milliseconds", "histogram",
        (line for labels, _, cell in cells for line in _durations(labels, cell, exemplars=exemplars)),
    )  # fmt: skip
    for name, kind in (("istio_request_bytes", "request"), ("istio_response_bytes", "response")):
        write.family(
            name, "histogram", (line for labels, _, cell in cells for line in _sizes(name, kind, labels, cell))
        )
    _write_streams(write, [(labels, cell.streams) for labels, _, cell in cells if cell.streams is not None])
    _write_own(write, ordered, own, audited, refused, copies)
    write.family("backstay_config_info", "gauge", _configs(configs, own))
    for name, value in gauges:
        write.family(name, "gauge", iter([f"{name} {value:g}"]))
    return write.text()


class Writer:
    """Collects families; in OpenMetrics a counter family is named without `_total`, and the text has an end."""

    def __init__(self, is_open: bool) -> None:
        self._lines: list[str] = []
        self._is_open = is_open

    def family(self, name: str, kind: str, lines: Iterator[str]) -> None:
        shown = name.removesuffix("_total") if self._is_open and kind == "counter" else name
        self._lines += (f"# TYPE {shown} {kind}", *lines)

    def text(self) -> bytes:
        end = "\n# EOF\n" if self._is_open else "\n"
        return ("\n".join(self._lines) + end).encode()


def _write_streams(write: Writer, streams: list[tuple[str, Streams]]) -> None:
    for name, attribute in (
        ("istio_tcp_connections_opened_total", "opened"),
        ("istio_tcp_connections_closed_total", "closed"),
        ("istio_tcp_received_bytes_total", "received"),
        ("istio_tcp_sent_bytes_total", "sent"),
    ):
        found = (
            f'{name}{{{labels},request_protocol="tcp",response_flags="-"}} {getattr(each, attribute)}'
            for labels, each in streams
        )
        write.family(name, "counter", found)


def _write_own(
    write: Writer,
    ordered: Iterable[Counters],
    own: Own,
    audited: Mapping[str, int],
    refused: Mapping[tuple[int, str], int],
    copies: Iterable[Counters],
) -> None:
    """Families that Istio does not have."""
    found = [(_route_labels(counters, own), counters) for counters in ordered]
    write.family("backstay_bad_requests_total", "counter", (line for labels, c in found for line in _bad(labels, c)))
    write.family(
        "backstay_upstream_tries_total", "counter", (line for labels, c in found for line in _tries(labels, c))
    )
    write.family("backstay_audited_requests_total", "counter", _audited(audited, own))
    write.family("backstay_refused_connections_total", "counter", _refused(refused, own))
    write.family("backstay_mirrored_requests_total", "counter", _copied(copies, own))


# --- lines of one cell --------------------------------------------------------------------------------------------


def _requests(labels: str, cell: Cell) -> Iterator[str]:
    for (code, flags), count in sorted(cell.codes.items()):
        yield (
            f'istio_requests_total{{{labels},request_protocol="http",response_code="{code}",'
            f"response_flags={_quoted(flags)}}} {count}"
        )


def _durations(labels: str, cell: Cell, *, exemplars: bool) -> Iterator[str]:
    name, total = "istio_request_duration_milliseconds", 0
    if not any(cell.latency):
        return
    labels += ',request_protocol="http"'
    for index, (bound, count) in enumerate(zip((*LATENCY_BOUNDS_MS, None), cell.latency, strict=True)):
        total += count
        edge = "+Inf" if bound is None else f"{bound:g}"
        note = _exemplar(cell.exemplars.get(index)) if exemplars and cell.exemplars else ""
        yield f'{name}_bucket{{{labels},le="{edge}"}} {total}{note}'
    yield f"{name}_sum{{{labels}}} {cell.seconds * 1000:.3f}"
    yield f"{name}_count{{{labels}}} {total}"


def _exemplar(found: Exemplar | None) -> str:
    return f' # {{trace_id="{found.trace}"}} {found.seconds * 1000:.3f} {found.at:.3f}' if found is not None else ""


def _sizes(name: str, kind: str, labels: str, cell: Cell) -> Iterator[str]:
    counts, size = (cell.requests, cell.received) if kind == "request" else (cell.responses, cell.sent)
    total = 0
    if not any(counts):
        return
    labels += ',request_protocol="http"'
    for bound, count in zip((*SIZE_BOUNDS, None), counts, strict=True):
        total += count
        yield f'{name}_bucket{{{labels},le="{"+Inf" if bound is None else bound}"}} {total}'
    yield f"{name}_sum{{{labels}}} {size}"
    yield f"{name}_count{{{labels}}} {total}"


def _bad(labels: str, counters: Counters) -> Iterator[str]:
    for reason, count in sorted(counters.bad.items()):
        yield f"backstay_bad_requests_total{{{labels},reason={_quoted(reason)}}} {count}"


def _tries(labels: str, counters: Counters) -> Iterator[str]:
    if counters.attempts:
        yield f"backstay_upstream_tries_total{{{labels}}} {counters.attempts}"


def _audited(audited: Mapping[str, int], own: Own) -> Iterator[str]:
    for rule, count in sorted(audited.items()):
        yield f"backstay_audited_requests_total{{{_workload(own, 'destination')},rule={_quoted(rule)}}} {count}"


def _refused(refused: Mapping[tuple[int, str], int], own: Own) -> Iterator[str]:
    for (port, reason), count in sorted(refused.items()):
        labels = f'{_workload(own, "destination")},route="inbound:{port}",reason={_quoted(reason)}'
        yield f"backstay_refused_connections_total{{{labels}}} {count}"


def _copied(copies: Iterable[Counters], own: Own) -> Iterator[str]:
    for counters in sorted(copies, key=lambda counters: (counters.route, counters.backend)):
        labels = _route_labels(counters, own)
        for code, count in sorted(counters.codes.items()):
            yield f'backstay_mirrored_requests_total{{{labels},response_code="{code}"}} {count}'


def _configs(configs: Iterable[tuple[str, str]], own: Own) -> Iterator[str]:
    namespace, _, name = own.workload.partition("/")
    for role, digest in configs:
        yield (
            f"backstay_config_info{{workload={_quoted(name)},workload_namespace={_quoted(namespace)},"
            f'role="{role}",config="{digest}"}} 1'
        )


# --- labels -------------------------------------------------------------------------------------------------------


def _labels(own: Own, counters: Counters, peer: Peer) -> str:
    """All labels of one cell but what differs from request to request."""
    namespace, _, name = own.workload.partition("/")
    mine = Peer(name, namespace, own.identity, own.app, own.version, _own_service(own, counters))
    is_in = counters.direction == "in"
    source, destination = (peer, mine) if is_in else (mine, peer)
    security = ("mutual_tls" if peer.principal else "none") if is_in else "unknown"
    if is_in and not peer.principal:
        mine.principal = ""  # nobody asked for it
    return ",".join(
        (
            f'reporter="{_REPORTERS[counters.direction]}"',
            *_end("source", source),
            *_end("destination", destination, counters.backend.partition("/")[2]),
            *_service(own, counters),
            f'connection_security_policy="{security}"',
            f"route={_quoted(counters.route)}",
        )
    )


def _end(role: str, peer: Peer, subset: str = "") -> Iterator[str]:
    version = peer.version or subset
    values = (
        ("workload", peer.workload), ("workload_namespace", peer.namespace), ("principal", peer.principal),
        ("app", peer.app), ("version", version), ("canonical_service", peer.service or peer.app or peer.workload),
        ("canonical_revision", version or ("latest" if peer is not UNKNOWN else "")),
    )  # fmt: skip
    for name, value in values:
        yield f"{role}_{name}={_quoted(value or 'unknown')}"


def _own_service(own: Own, counters: Counters) -> str:
    return _inbound_service(own, counters).partition(".")[0] if counters.direction == "in" else ""


def _inbound_service(own: Own, counters: Counters) -> str:
    port = counters.route.rpartition(":")[2]
    return own.services.get(int(port), "") if port.isdecimal() else ""


def _service(own: Own, counters: Counters) -> Iterator[str]:
    full = _inbound_service(own, counters) if counters.direction == "in" else counters.backend.partition(":")[0]
    name, _, namespace = full.partition(".")
    if not full and counters.direction == "out":
        name = PASSTHROUGH
    yield f"destination_service={_quoted(full or 'unknown')}"
    yield f"destination_service_name={_quoted(name or 'unknown')}"
    yield f"destination_service_namespace={_quoted(namespace or 'unknown')}"


def _workload(own: Own, role: str) -> str:
    namespace, _, name = own.workload.partition("/")
    return f"{role}_workload={_quoted(name)},{role}_workload_namespace={_quoted(namespace)}"


def _route_labels(counters: Counters, own: Own) -> str:
    service, _, subset = counters.backend.partition("/")
    role = "source" if counters.direction == "out" else "destination"
    pairs = [("route", counters.route)]
    if service:
        pairs += [("destination_service", service), ("destination_version", subset or "unknown")]
    reporter = f'reporter="{_REPORTERS[counters.direction]}",{_workload(own, role)}'
    return ",".join((reporter, *(f"{name}={_quoted(value)}" for name, value in pairs)))


def _quoted(value: str) -> str:
    escaped = value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
    return f'"{escaped}"'
