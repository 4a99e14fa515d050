"""Everything about one mesh at one instant, as one value: what status, the API and the CLI are made from.

The reconciler builds a MeshView after every tick; nothing that shows something looks anywhere else. So what people see
is always one consistent moment, and a view can be built by hand in a test or read back from a state file without an
operator.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from backstay.config.model import Manifest
from backstay.core.problems import Problem
from backstay.core.registry import Registry
from backstay.core.rollout.model import Digest, MeshState, ProxyId, ProxyView, WorkloadKey
from backstay.core.snapshot import DocumentKey, Snapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceCondition:
    """How the last look at the git remote went."""

    ok: bool = True
    reason: str = ""
    """CamelCase, of SourceUnavailable or SourceRefused."""
    message: str = ""
    at: float = 0.0
    """Wall clock of the last look, Unix seconds; 0: there was none yet."""
    stalled: bool = False
    """True for SourceRefused: trying again cannot help, git or the settings must change."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxyStatus:
    """One proxy with what only people want to know."""

    view: ProxyView
    engine: str = ""
    version: str = ""
    address: str = ""
    identity: str = ""
    since: float = 0.0
    """Wall clock when its stream came up, Unix seconds; 0: never."""
    last_report: float = 0.0
    last_nack: str = ""
    """`Reason: message` of its last refusal; empty when it has acked since."""
    went_back: str = ""
    """Why it left its last candidate by itself; empty if it did not."""
    turned_away: str = ""
    """`Reason: message` while the operator does not let it in."""
    certificate_expires: float = 0.0
    """Unix seconds; 0: unknown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MeshView:
    mesh: str
    now: float
    """Wall clock, Unix seconds."""
    state: MeshState

    url: str = ""
    """Without credentials."""
    ref: str = "main"
    path: str = ""
    interval: float = 30.0
    generation: int = 1
    """Grows with each change of the settings above; 1 on the local platform."""
    observed_generation: int = 0
    """Generation the loop has worked with; 0: not yet."""
    handled_reconcile: str = ""
    """The last reconcile request that was honoured, as its requester spelled it."""

    source: SourceCondition = field(default_factory=SourceCondition)
    problems: tuple[Problem, ...] = ()
    """Of the attempted revision; any ERROR means it is invalid and changes nothing."""
    fault: str = ""
    """What keeps the operator itself from working (disk full, state locked); empty while nothing does."""

    desired: Snapshot | None = None
    """The last valid snapshot of git."""
    effective: Snapshot | None = None
    """Desired with held documents replaced by their stable content: what is compiled."""
    stable: Snapshot | None = None
    """What the stable configs were compiled from."""
    held_dependency: str = ""
    """Why the effective snapshot is not valid and this and later commits wait; empty while it is."""
    waiting: Mapping[DocumentKey, Problem] = field(default_factory=dict)
    """Documents that wait for something the registry may still bring."""
    rollout_defaults: Mapping[str, object] = field(default_factory=dict)
    """`spec.rollout` where the Mesh document says nothing: a MeshRepository's."""

    registry: Registry = field(default_factory=Registry)
    proxies: Mapping[ProxyId, ProxyStatus] = field(default_factory=dict)
    stable_manifests: Mapping[WorkloadKey, Manifest] = field(default_factory=dict)
    candidate_manifests: Mapping[WorkloadKey, Manifest] = field(default_factory=dict)
    """Of the running rollout's present stage."""
    document_workloads: Mapping[DocumentKey, tuple[WorkloadKey, ...]] = field(default_factory=dict)
    """Document -> workloads whose config holds parts made from it (provenance)."""
    origins: Mapping[Digest, tuple[str, ...]] = field(default_factory=dict)
    """Part digest -> the `file:line` places it was made from."""

    version: str = ""
    """The operator's own."""
    epoch: int = 0
    started_at: float = 0.0
