"""The operator's own metrics, made from a MeshView at scrape time: nothing is counted twice, nothing can drift.

Names follow Prometheus habits (`_total`, `_seconds`, base units); labels are bounded by what the mesh holds now: workloads
and phases, the connected proxies where their streams are counted, never revisions or messages.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric

from backstay.core.problems import Severity
from backstay.core.rollout.model import Phase
from backstay.core.status import RUNNING, repository_conditions
from backstay.core.view import MeshView

_CONDITIONS: Final = ("Ready", "Reconciling", "Stalled", "FetchFailed", "RolledBack", "Validated")


class StreamCount(NamedTuple):
    """What the control port counted of one connected proxy's stream."""

    proxy: str
    sent_bytes: int
    acks: int
    acked_at: float
    """Unix time of its last ack; 0: none yet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """One mesh's share of the metrics of an operator that has several."""

    mesh: str
    """`namespace/name`, the label `repository`."""
    view: MeshView
    streams: Sequence[StreamCount] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorReading:
    """What is counted of the whole process: metric -> values by labels, see OPERATOR_METRICS."""

    facts: Mapping[str, Mapping[tuple[str, ...], float]]


OPERATOR_METRICS: Final[Mapping[str, tuple[str, tuple[str, ...]]]] = {
    "backstay_leader": ("1 on the replica that leads.", ()),
    "backstay_term": ("Term of the Lease this replica leads in; 0: it does not.", ()),
    "backstay_process_start_time_seconds": ("Unix time this replica was started.", ()),
    "backstay_api_requests_total": ("Requests to the API server; status 0: no answer.", ("verb", "status")),
    "backstay_injections_total": ("Pods the webhook was asked about.", ("verdict", "reason")),
    "backstay_enrolments_refused_total": ("Enrolments and streams that were not let in.", ("reason",)),
}
"""Metric -> what it says, its labels."""


def render_all(readings: Sequence[Reading | OperatorReading]) -> tuple[bytes, str]:
    """Exposition text of several meshes, each sample labelled with its repository, and its content type."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Several(readings))
    return generate_latest(registry), CONTENT_TYPE_LATEST


class _Several:
    """The families of all meshes, each family once."""

    def __init__(self, readings: Sequence[Reading | OperatorReading]) -> None:
        self._readings = readings

    def collect(self) -> Iterator[Metric]:
        families: dict[str, Metric] = {}
        for reading in self._readings:
            if isinstance(reading, OperatorReading):
                yield from _of_the_process(reading)
            else:
                for family in _Collector(reading.view, reading.streams).collect():
                    into = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
                    for sample in family.samples:
                        into.samples.append(sample._replace(labels={"repository": reading.mesh, **sample.labels}))
        yield from families.values()


def _of_the_process(reading: OperatorReading) -> Iterator[Metric]:
    for name, values in reading.facts.items():
        text, labels = OPERATOR_METRICS[name]
        made = CounterMetricFamily if name.endswith("_total") else GaugeMetricFamily
        family = made(name, text, labels=labels)
        for key, value in values.items():
            family.add_metric(key, value)
        yield family


def render(view: MeshView, streams: Sequence[StreamCount] = ()) -> tuple[bytes, str]:
    """Exposition text and its content type."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(view, streams))
    return generate_latest(registry), CONTENT_TYPE_LATEST


class _Collector:
    def __init__(self, view: MeshView, streams: Sequence[StreamCount]) -> None:
        self._view = view
        self._streams = streams

    def collect(self) -> Iterator[Metric]:
        view = self._view
        yield InfoMetricFamily("backstay_operator", "Who answers.", {"version": view.version, "mesh": view.mesh})
        yield _gauge("backstay_operator_epoch", "Fencing number; grows with every start.", view.epoch)
        yield _gauge("backstay_operator_start_time_seconds", "Unix time of the start.", view.started_at)
        yield _conditions(view)
        yield _gauge("backstay_source_ok", "1 while the last look at the git remote went well.", float(view.source.ok))
        yield _gauge("backstay_source_last_fetch_seconds", "Unix time of the last look at git.", view.source.at)
        yield _gauge("backstay_suspended", "1 while a person has suspended the mesh.", float(view.state.suspended))
        yield from _documents(view)
        yield from _rollout(view)
        yield from _proxies(view)
        yield from _streamed(self._streams)


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=value)


def _labelled(name: str, text: str, label: str, values: Iterable[tuple[str, float]]) -> Metric:
    family = GaugeMetricFamily(name, text, labels=[label])
    for key, value in values:
        family.add_metric([key], value)
    return family


def _conditions(view: MeshView) -> Metric:
    true = {condition.type for condition in repository_conditions(view) if condition.status == "True"}
    text = "1 while the MeshRepository's condition is True."
    return _labelled("backstay_condition", text, "type", ((name, float(name in true)) for name in _CONDITIONS))


def _documents(view: MeshView) -> Iterator[Metric]:
    errors = sum(problem.severity is Severity.ERROR for problem in view.problems)
    desired = len(view.desired.documents) if view.desired else 0
    held = len({key for held in view.state.held for key in held.documents})
    yield _gauge("backstay_documents", "Documents of the last valid revision.", desired)
    yield _gauge("backstay_documents_held", "Documents kept at their stable content.", held)
    yield _gauge("backstay_documents_waiting", "Documents that wait for the registry.", len(view.waiting))
    yield _gauge("backstay_problems", "Errors of the attempted revision.", errors)


def _rollout(view: MeshView) -> Iterator[Metric]:
    rollout = view.state.rollout
    phase = rollout.phase if rollout else None
    text = "1 for the phase the present rollout is in."
    yield _labelled("backstay_rollout_phase", text, "phase", ((item.value, float(item is phase)) for item in Phase))
    running = rollout is not None and rollout.phase in RUNNING
    yield _gauge(
        "backstay_rollout_wave",
        "Present wave from 1; 0: no rollout is running.",
        rollout.wave + 1 if running and rollout else 0,
    )
    yield _gauge(
        "backstay_rollout_harmed_requests", "Harmed requests of the present rollout.", rollout.harmed if rollout else 0
    )


def _proxies(view: MeshView) -> Iterator[Metric]:
    seen = [proxy.view for proxy in view.proxies.values()]
    connected = Counter(proxy.workload for proxy in seen if proxy.connected)
    trying = Counter(proxy.workload for proxy in seen if proxy.candidate)
    total = Counter(proxy.workload for proxy in seen)
    yield _labelled("backstay_proxies", "Proxies known, by workload.", "workload", _counted(total, total))
    yield _labelled("backstay_proxies_connected", "Proxies connected.", "workload", _counted(total, connected))
    yield _labelled("backstay_proxies_candidate", "Proxies serving a candidate.", "workload", _counted(total, trying))


def _streamed(streams: Sequence[StreamCount]) -> Iterator[Metric]:
    sent = CounterMetricFamily(
        "backstay_control_sent_bytes",
        "WebSocket bytes sent to a connected proxy since it was first seen.",
        labels=["proxy"],
    )
    for stream in streams:
        sent.add_metric([stream.proxy], stream.sent_bytes)
    yield sent
    acks = CounterMetricFamily(
        "backstay_control_acks", "Assignments a connected proxy has acknowledged.", labels=["proxy"]
    )
    for stream in streams:
        acks.add_metric([stream.proxy], stream.acks)
    yield acks
    text = "Unix time of a connected proxy's last ack."
    acked = ((stream.proxy, stream.acked_at) for stream in streams if stream.acked_at)
    yield _labelled("backstay_control_acked_time_seconds", text, "proxy", acked)


def _counted(keys: Iterable[str], counts: "Counter[str]") -> list[tuple[str, float]]:
    return [(key, float(counts[key])) for key in sorted(keys)]
