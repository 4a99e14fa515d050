"""The rollout's state: everything the operator must remember to go on after a kill -9, as one value.

All of it is msgspec structs, persisted as JSON on every transition (StateStore.save). Nothing here acts; transitions
are in phases.py, decisions in decide.py, statistics in verdict.py, waves and seats in plan.py.
"""

import enum
from typing import Literal, TypeAlias

import msgspec

Digest: TypeAlias = str
WorkloadKey: TypeAlias = str
ProxyId: TypeAlias = str
Direction: TypeAlias = Literal["in", "out"]
Side: TypeAlias = Literal["in", "out", "both"]
"""Which requests the changed parts of a workload decide: those it answers, those it makes, or all."""


class State(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Common options of persisted state; unknown fields of a newer operator are ignored."""


class Phase(enum.Enum):
    PREPARING = "preparing"
    """The stage's configs go out to the first wave's seats; nothing is judged yet."""
    SHIFTING = "shifting"
    """A wave is out and is judged every second."""
    HOLDING = "holding"
    """Unknown or unproven: neither forward nor back until evidence comes or somebody says so."""
    SUSPECTING = "suspecting"
    """Harm that both cohorts share was seen: the last wave is taken back to see whether it falls."""
    PAUSED = "paused"
    """By a person, or by onFail: pause. Judged all the same; a fail still shows."""
    ROLLING_BACK = "rolling-back"
    """Stable is restored everywhere; finishes when all have acked or their leases have ended, never resumes."""
    BAKING = "baking"
    """Live, and still watched."""
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    """Rolled back; its documents are held."""
    ABORTED = "aborted"
    """By a person; its documents are held."""
    SUPERSEDED = "superseded"


class Verdict(enum.Enum):
    PASS = "pass"  # noqa: S105 - a verdict, not a password
    FAIL = "fail"
    INCONCLUSIVE = "inconclusive"
    """Too little traffic so far."""
    UNKNOWN = "unknown"
    """Could not measure."""


class Settings(State, frozen=True, kw_only=True):
    """Resolved settings of one rollout: the Mesh's, overridden by the documents that changed. Seconds and fractions."""

    shares: tuple[float, ...] = (0.05, 0.25, 0.6, 1.0)
    soak: float = 30.0
    deadline: float = 600.0
    warm_up: float = 60.0
    """Proxies younger than this give no evidence, where the platform says how old they are."""
    tolerance: float = 0.01
    """D: pass when surely less than this much worse (absolute share of requests)."""
    margin: float = 0.002
    """d: fail when surely more than this much worse."""
    false_alarm: float = 0.001
    """Alpha: chance of failing a wave that is no worse."""
    missed: float = 0.05
    """Beta: chance of passing a wave that is D worse."""
    on_fail: Literal["rollback", "pause"] = "rollback"
    on_no_traffic: Literal["proceed", "hold"] = "proceed"
    confirm_within: float = 60.0
    bake_time: float = 900.0
    on_bake_fail: Literal["rollback", "alert"] = "rollback"
    immediate: bool = False
    traffic: tuple[float, ...] = ()
    """Traffic steps as fractions; not empty: they replace the waves."""


class Cause(State, frozen=True, kw_only=True):
    """Why configs change."""

    kind: Literal["commit", "registry", "upgrade", "rollback", "retry"]
    revision: str
    """The revision this rollout makes live."""
    commits: tuple[str, ...] = ()
    """Commits (sha) that contributed changed parts, oldest first."""
    author: str = ""
    subject: str = ""
    """First line of the newest commit's message, cleaned."""


class Stage(State, frozen=True, kw_only=True):
    """One step of a change: expand, move or contract. Usually there is only one."""

    name: Literal["expand", "move", "contract"]
    configs: dict[WorkloadKey, Digest]
    """Config of each workload that differs from the stage before; others stay as they are."""


class BadCause(State, frozen=True, kw_only=True):
    """The most frequent reason among a cohort's bad requests, with the line that is responsible."""

    reason: str
    route: str
    count: int
    origin: str = ""
    """`file:line`, filled in by the reconciler from provenance."""
    aside: bool = False
    """Of requests that the change does not decide itself: a consequence, named last."""


class Evidence(State, frozen=True, kw_only=True):
    """What is known about one workload's candidate in the current wave. `tests` is verdict.py's own persisted state."""

    candidate_total: int = 0
    candidate_bad: int = 0
    stable_total: int = 0
    stable_bad: int = 0
    tests: msgspec.Raw = msgspec.Raw(b"null")
    verdict: Verdict = Verdict.INCONCLUSIVE
    sentence: str = ""
    """What a user reads, see reference verdict.md section 4; empty while there is nothing to say."""
    causes: tuple[BadCause, ...] = ()


class WorkloadRollout(State, frozen=True, kw_only=True):
    """One affected workload in the running rollout."""

    seats: dict[ProxyId, float] = {}
    """Proxy -> share of its requests the candidate gets (1.0: the whole proxy). Proxies not named serve stable."""
    share: float = 0.0
    """The share of the workload the current wave asks for."""
    evidence: Evidence = Evidence()
    wave: int = 0
    """Its own wave: a workload kept through a supersession may be ahead of others."""
    proven: bool = False
    passed: bool = False
    """The current wave has passed for this workload."""


class Rollout(State, frozen=True, kw_only=True):
    id: str
    """`r<number>`, ascending per mesh."""
    cause: Cause
    settings: Settings
    phase: Phase
    stages: tuple[Stage, ...]
    stage: int = 0
    wave: int = 0
    workloads: dict[WorkloadKey, WorkloadRollout] = {}
    documents: tuple[str, ...] = ()
    """Keys of the documents that contributed changed parts."""
    started_at: float = 0.0
    """Operator's wall clock, Unix seconds: shown to people. Durations are counted in `elapsed` fields, never by
    subtracting wall clocks."""
    wave_elapsed: float = 0.0
    """Seconds the current wave has lasted, not counting pauses."""
    elapsed: float = 0.0
    paused_from: Phase | None = None
    suspicions: int = 0
    """How often shared harm was confirmed."""
    restarts: int = 0
    """How often a stage began again at wave one (leases ended while stable proxies were cut off too)."""
    supersessions: int = 0
    sentence: str = ""
    """Why it ended or waits, for people."""
    harmed: int = 0
    """Bad requests under candidate configs beyond what stable's rate explains."""
    detected_after: float = 0.0
    """Seconds from the first bad candidate request to the verdict; 0: none."""
    restored_after: float = 0.0
    """Seconds from the verdict until every proxy had acked stable; 0: not yet."""
    actor: str = ""
    reason: str = ""
    """The person's words for pause, promote, abort, retry."""
    gateways: tuple[WorkloadKey, ...] = ()
    """Affected workloads that are gateways: they move after all others."""
    before: dict[WorkloadKey, Digest] = {}
    """Stable of each affected workload when the rollout began; "": it had none."""
    gaining: tuple[str, ...] = ()
    """Traffic steps: the `service:port/subset` that gain weight. `stages` then holds one stage per step, each with the
    configs whose weights are that step's; every step goes to all proxies at once, and the cohorts are requests to these
    destinations against requests to the others of the same services."""
    whole: tuple[WorkloadKey, ...] = ()
    """Workloads whose proxies cannot serve both configs at once, because each wants another engine."""
    sides: tuple[dict[WorkloadKey, Side], ...] = ()
    """Per stage: which requests each workload's changed parts decide; not named: all."""
    memo: msgspec.Raw = msgspec.Raw(b"null")
    """decide.py's own working memory (shared-harm baselines, timers)."""


class HeldSet(State, frozen=True, kw_only=True):
    """Documents of one failed commit, kept at their stable content until one changes or a person says retry."""

    commit: str
    revision: str
    rollout: str
    documents: dict[str, str]
    """Document key -> digest of the failed content; "" where the commit removed the document."""
    sentence: str
    since: float
    keep: dict[str, str] = {}
    """Document key -> blob of the content a rollback by hand restored ("" is absent); keys not named keep stable's."""


class RevisionRecord(State, frozen=True, kw_only=True):
    """One commit that was looked at, and what became of it."""

    sha: str
    revision: str
    author: str = ""
    subject: str = ""
    committed_at: float = 0.0
    seen_at: float = 0.0
    outcome: Literal["pending", "live", "partly-live", "rolled-back", "held", "invalid", "superseded", "aborted"] = (
        "pending"
    )
    sentence: str = ""
    documents: str = ""
    """Blob of the snapshot that served when it went live; "" if it never did."""


class Proven(State, frozen=True, kw_only=True):
    at: float
    """Unix seconds when this config was last promoted or left the stable place."""


class WorkloadState(State, frozen=True, kw_only=True):
    stable: Digest = ""
    previous: Digest = ""
    """Stable before the last promotion; kept through bakeTime."""


class MeshState(State, frozen=True, kw_only=True):
    """Everything about one mesh that outlives the process."""

    mesh: str
    epoch: int = 0
    workloads: dict[WorkloadKey, WorkloadState] = {}
    rollout: Rollout | None = None
    queued: str = ""
    """Revision that waits for the running rollout (after three supersessions in a row)."""
    held: tuple[HeldSet, ...] = ()
    history: tuple[Rollout, ...] = ()
    """The newest finished rollouts, newest first, at most 10, evidence trimmed."""
    desired_revision: str = ""
    """What git says."""
    attempted_revision: str = ""
    """The newest revision that was looked at (valid or not)."""
    active_revision: str = ""
    """What serves: the newest revision of which all that is not held is live."""
    stable_documents: str = ""
    """Blob digest of the stable snapshot's document list."""
    previous_documents: str = ""
    candidate_documents: str = ""
    """Blob of the snapshot the running rollout makes stable."""
    desired_documents: str = ""
    """Blob of the last valid snapshot of git."""
    revisions: tuple[RevisionRecord, ...] = ()
    """Newest first, at most 50."""
    frozen: dict[WorkloadKey, Digest] = {}
    """Workload -> config that failed for another cause than a commit: not tried again until it would be another."""
    counted: msgspec.Raw = msgspec.Raw(b"{}")
    """Up to where each proxy's reports are in the evidence (evidence.export)."""
    proven: dict[Digest, Proven] = {}
    compiled_by: str = ""
    """Version of the operator that made the stable configs."""
    next_rollout: int = 1
    suspended: bool = False
    suspended_by: str = ""
    revoked: tuple[str, ...] = ()
    """SPIFFE IDs that nobody of the mesh may speak to any more, sorted."""


# --- what the rollout sees ---------------------------------------------------------------------------------------------


class ProxyView(State, frozen=True, kw_only=True):
    """One proxy as the operator knows it this second."""

    id: ProxyId
    workload: WorkloadKey
    connected: bool
    can_split: bool = True
    is_gateway: bool = False
    warm: bool = True
    """False while it is too young for its evidence to count."""
    template: str = ""
    """Of which template its application is; proxies of one workload are compared within one."""
    stable: Digest = ""
    candidate: Digest = ""
    share: float = 0.0
    """As last acked."""
    silent_for: float = 0.0
    """Seconds since its last report."""


class Counts(State, frozen=True, kw_only=True):
    """Requests of one cohort in one second, or a sum of such."""

    total: int = 0
    bad: int = 0
    attempts: int = 0
    refused: int = 0
    latency: tuple[int, ...] = ()
    over: tuple[int, ...] = ()
    reasons: dict[str, dict[str, int]] = {}
    """Route -> bad reason -> count."""
    by_destination: dict[str, tuple[int, int]] = {}
    """Outbound `service:port` -> (total, bad)."""
    by_subset: dict[str, tuple[int, int]] = {}
    """Outbound `service:port/subset` -> (total, bad): the cohorts of traffic steps."""


class Stratum(State, frozen=True, kw_only=True):
    """One direction of a block."""

    cohorts: dict[Digest, Counts]
    whole: dict[Digest, Counts] = {}
    """Those of proxies that served this one config throughout the second. A proxy that serves two draws each direction by
    itself, so only whole proxies show what a config does to the direction it does not decide."""
    expected: float = 0.0
    """As the block's, of this direction's requests."""


class Block(State, frozen=True, kw_only=True):
    """One second of one workload: what each config's cohort saw. Blocks arrive in order, each once."""

    workload: WorkloadKey
    second: int
    """Operator's second number (monotonic, from its own start)."""
    cohorts: dict[Digest, Counts]
    share: float = 0.0
    """Part of what the workload's proxies serve that the candidate had throughout this second; 1: nothing else."""
    expected: float = 0.0
    """Part of the requests that should have gone to the candidate, by the proxies' usual traffic; 0: not known."""
    peers: dict[Digest, tuple[int, int]] = {}
    """Config the *called* proxy of this workload was serving -> (connection attempts, failures) by its callers."""
    directions: dict[Direction, Stratum] = {}
    """The same requests by direction, each in exactly one."""


class Nacked(State, frozen=True, kw_only=True):
    proxy: ProxyId
    workload: WorkloadKey
    digest: Digest
    fault: Literal["content", "environment"]
    reason: str
    message: str


class WentBack(State, frozen=True, kw_only=True):
    proxy: ProxyId
    workload: WorkloadKey
    digest: Digest
    reason: str
    """LeaseEnded, Restarts, ControlLost."""


class Order(State, frozen=True, kw_only=True):
    """What a person asks of the running rollout."""

    verb: Literal["pause", "resume", "promote", "promote-full", "abort"]
    actor: str
    reason: str = ""


class Observation(State, frozen=True, kw_only=True):
    """All that is new since the last look, plus the fleet as it is now."""

    elapsed: float
    """Seconds since the last look by the monotonic clock, at most 5 (a sleeping machine is not evidence)."""
    now: float
    """Wall clock for people, Unix seconds."""
    proxies: dict[ProxyId, ProxyView]
    blocks: tuple[Block, ...] = ()
    nacks: tuple[Nacked, ...] = ()
    went_back: tuple[WentBack, ...] = ()
    orders: tuple[Order, ...] = ()
    second: int = -1
    """The operator's second now, as blocks count them; -1: as the newest block."""
    resumed: bool = False
    """The operator has just taken this rollout up from its memory: until now everybody was cut off from it."""
    updating: dict[WorkloadKey, str] = {}
    """Workloads whose own rollout progresses -> how far it is, for people."""
    running: frozenset[WorkloadKey] = frozenset()
    """Workloads that the platform has ready instances of with a proxy, whether any of them has connected or not."""
    origins: dict[WorkloadKey, dict[str, str]] = {}
    """Workload -> route (as in Row.route) -> `file:line`, for the sentence that names a cause; may be incomplete."""


# --- what it wants done ------------------------------------------------------------------------------------------------


class SetSeats(State, frozen=True, kw_only=True, tag="set-seats"):
    """The workload's seats are now exactly these; the reconciler turns them into Assigns."""

    workload: WorkloadKey


class Promote(State, frozen=True, kw_only=True, tag="promote"):
    """The rollout's last stage is stable from now on; the previous stable is kept."""


class Restore(State, frozen=True, kw_only=True, tag="restore"):
    """Stable (as of the stage before) is restored for these workloads."""

    workloads: tuple[WorkloadKey, ...]
    to_previous: bool = False
    """True when baking failed: the stable before the promotion comes back."""


class Hold(State, frozen=True, kw_only=True, tag="hold"):
    """The rollout's documents are to be held, with this sentence."""

    sentence: str


class Tell(State, frozen=True, kw_only=True, tag="tell"):
    """An event for people (status, timeline, notifications)."""

    reason: str
    """CamelCase: WaveStarted, WavePassed, RolloutFailed, ..."""
    message: str
    warning: bool = False


Command: TypeAlias = SetSeats | Promote | Restore | Hold | Tell
