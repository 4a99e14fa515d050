"""What Backstay keeps in the Kubernetes API, as types: the one source of bootstrap/crds and of what is read from there.

A person writes MeshRepository; MeshRollout and MeshIntent are written by the operator, from `core/status`. Statuses are
made there as plain objects; the types here say which fields they have, and a test holds both together, because the API
server drops what the schema does not know.

Rule: a field that was once here stays, or kubectl prunes what an older operator wrote.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from backstay.core.intents import Duration, Name, Node, Percent

GROUP: Final = "backstay.dev"
VERSION: Final = "v1alpha1"

GitUrl = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=2048,
        description="Address of the mesh repository: `https://host/path`, `ssh://user@host/path` or `user@host:path`. "
        "No passwords inside: they belong into `secretRef`.",
        examples=["https://git.example.com/shop/mesh.git"],
    ),
]


class SecretRef(Node, frozen=True, kw_only=True):
    """A Secret in the repository's own namespace."""

    name: Annotated[str, Meta(min_length=1, max_length=253, pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")]


class GitRef(Node, frozen=True, kw_only=True):
    """Which commit is wanted. At most one of these; none is the remote's default branch."""

    branch: Annotated[str, Meta(max_length=255, description="The newest commit of this branch.")] = ""
    tag: Annotated[str, Meta(max_length=255, description="This tag.")] = ""
    semver: Annotated[
        str, Meta(max_length=255, description="The newest tag in this range.", examples=[">=1.2.0 <2.0.0"])
    ] = ""
    commit: Annotated[str, Meta(pattern=r"^([0-9a-f]{40}|[0-9a-f]{64})?$", description="This commit.")] = ""


class RepositoryWebhook(Node, frozen=True, kw_only=True):
    """Lets a forge knock at `/hooks/<namespace>/<name>`; a knock is a hint to look at git, nothing in it is trusted."""

    secret_ref: Annotated[SecretRef, Meta(description="Key `token`: what the forge signs its knocks with.")]


class RepositoryForge(Node, frozen=True, kw_only=True):
    """The forge that hosts the repository: where commit statuses go, and what is said of pull requests."""

    provider: Annotated[
        Literal["github", "gitlab", "gitea"], Meta(description="What it speaks; `gitea` is Forgejo as well.")
    ]
    url: Annotated[
        str,
        Meta(
            max_length=2048,
            description="Address of its API; left out: the usual one of the host in `spec.url`.",
            examples=["https://git.example.com/api/v1"],
        ),
    ] = ""
    project: Annotated[
        str,
        Meta(
            max_length=512,
            pattern=r"^([A-Za-z0-9_.-]+(/[A-Za-z0-9_.-]+)*)?$",
            description="`owner/name` there; left out: the path of `spec.url`.",
            examples=["shop/mesh"],
        ),
    ] = ""
    secret_ref: Annotated[SecretRef, Meta(description="Key `token`: what the forge knows the operator by.")]
    commit_status: Annotated[bool, Meta(description="Each commit's status there follows its rollout.")] = True


class RolloutDefaults(Node, frozen=True, kw_only=True):
    """`spec.rollout` of a Mesh document, where git does not say: what a Mesh document says wins, field by field."""

    shares: Annotated[
        tuple[Annotated[float, Meta(gt=0, le=100)], ...],
        Meta(description="Percentage of each affected workload per wave, ascending, ending in 100.", max_length=20),
    ] = ()
    soak: Duration | None = None
    deadline: Duration | None = None
    warm_up: Duration | None = None
    tolerance: Percent | None = None
    margin: Percent | None = None
    on_fail: Literal["rollback", "pause"] | None = None
    on_no_traffic: Literal["proceed", "hold"] | None = None
    confirm_within: Duration | None = None
    bake_time: Duration | None = None
    on_bake_fail: Literal["rollback", "alert"] | None = None


class PruneGuard(Node, frozen=True, kw_only=True):
    """A commit that removes too much at once is refused: more often a mistake than a wish."""

    max_percent: Annotated[
        int, Meta(ge=0, le=100, description="Share of the documents that one commit may remove; 100 switches this off.")
    ] = 50


class Allow(Node, frozen=True, kw_only=True):
    """What documents of this repository may be about. A commit with any other document is refused as a whole."""

    namespaces: Annotated[
        tuple[Name, ...],
        Meta(
            max_length=256,
            description="Namespaces its documents may be in; left out: the repository's own. A foreign namespace must "
            "grant it by the annotation `backstay.dev/repository: <namespace>/<name>` on the Namespace.",
        ),
    ] = ()
    kinds: Annotated[
        tuple[str, ...], Meta(max_length=32, description="Kinds of documents; left out: all of them.")
    ] = ()


class MeshRepositorySpec(Node, frozen=True, kw_only=True):
    """A git repository whose documents are to be the mesh's configuration."""

    url: GitUrl
    ref: GitRef = GitRef()
    path: Annotated[
        str,
        Meta(max_length=1024, description="Folder inside the repository that holds the documents; empty: all of it."),
    ] = ""
    interval: Annotated[Duration, Meta(description="Time between looks at the remote.")] = "30s"
    timeout: Annotated[Duration, Meta(description="The longest one look may take.")] = "60s"
    secret_ref: Annotated[
        SecretRef | None,
        Meta(
            description="How to get in. Keys as Flux has them: `username` and `password`, or `bearerToken`, or `identity` "
            "and `known_hosts`; `ca.crt` for a server of your own."
        ),
    ] = None
    webhook: RepositoryWebhook | None = None
    suspend: Annotated[bool, Meta(description="Do not look at git; what is live stays.")] = False
    prune_guard: PruneGuard = PruneGuard()
    allow: Allow = Allow()
    forge: RepositoryForge | None = None
    reviews: Annotated[
        bool,
        Meta(
            description="Answer the pull requests at `forge`: what each would change, with the workloads and the traffic of "
            "now, as one comment and a status. Nothing of them is applied."
        ),
    ] = False
    rollout: RolloutDefaults | None = None


# --- what the operator writes: shapes of core/status --------------------------------------------------------------------


class Shown(msgspec.Struct, frozen=True, rename="camel", kw_only=True, omit_defaults=True):
    """Common options of everything the operator writes."""


class ShownCondition(Shown, frozen=True, kw_only=True):
    """As metav1.Condition."""

    type: Annotated[str, Meta(max_length=316)]
    status: Literal["True", "False", "Unknown"]
    reason: Annotated[str, Meta(max_length=1024)]
    message: Annotated[str, Meta(max_length=32768)] = ""
    last_transition_time: str
    observed_generation: int = 0


class ShownHeld(Shown, frozen=True, kw_only=True):
    """Documents of one commit that are kept at their stable content."""

    commit: str = ""
    revision: str = ""
    rollout: str = ""
    documents: dict[str, str] = {}
    sentence: str = ""
    since: str = ""


class ShownProblem(Shown, frozen=True, kw_only=True):
    file: str = ""
    line: int = 0
    column: int = 0
    path: str = ""
    message: str = ""
    reason: str = ""
    severity: str = ""
    document: str = ""


class ShownHistory(Shown, frozen=True, kw_only=True):
    """One finished rollout."""

    rollout: str = ""
    revision: str = ""
    cause: str = ""
    author: str = ""
    subject: str = ""
    phase: str = ""
    sentence: str = ""
    started_at: str = ""
    lasted: str = ""
    harmed: int = 0


class ShownTurnedAway(Shown, frozen=True, kw_only=True):
    """One proxy that is not let in. It serves what it has, and hears of nothing new."""

    proxy: str = ""
    message: str = ""


class ShownOperator(Shown, frozen=True, kw_only=True):
    """Who wrote this."""

    version: str = ""
    epoch: int = 0
    started_at: str = ""
    fault: str = ""


Generation = Annotated[int, Meta(description="Generation that the conditions are about; -1: not looked at yet.")]


class MeshRepositoryStatus(Shown, frozen=True, kw_only=True):
    observed_generation: Generation = -1
    conditions: tuple[ShownCondition, ...] = ()
    ref: Annotated[str, Meta(description="What of `spec.ref` is followed.")] = ""
    desired_revision: Annotated[str, Meta(description="What git says.")] = ""
    active_revision: Annotated[str, Meta(description="What is live.")] = ""
    last_attempted_revision: str = ""
    last_applied_revision: str = ""
    queued_revision: str = ""
    last_handled_reconcile_at: Annotated[
        str, Meta(description="The last `backstay.dev/requestedAt` that was honoured.")
    ] = ""
    last_fetch_at: str = ""
    suspended_by: str = ""
    rollout: Annotated[str, Meta(description="The present or last rollout.")] = ""
    phase: Annotated[str, Meta(description="Where that rollout is: `wave 2/4`, or how it ended.")] = ""
    namespaces: Annotated[tuple[str, ...], Meta(description="Namespaces that follow this repository.")] = ()
    held: tuple[ShownHeld, ...] = ()
    problems: tuple[ShownProblem, ...] = ()
    waiting: int = 0
    turned_away: Annotated[
        tuple[ShownTurnedAway, ...], Meta(description="The first of the proxies that the operator cannot speak with.")
    ] = ()
    history: tuple[ShownHistory, ...] = ()
    operator: ShownOperator = ShownOperator()


class RolloutCause(Shown, frozen=True, kw_only=True):
    kind: str = ""
    revision: str = ""
    commits: tuple[str, ...] = ()
    author: str = ""
    subject: str = ""


class RolloutStage(Shown, frozen=True, kw_only=True):
    name: str = ""
    configs: dict[str, str] = {}


class MeshRolloutSpec(Shown, frozen=True, kw_only=True):
    """One rollout of a change, written by the operator. Orders are given by the annotation `backstay.dev/order`."""

    cause: RolloutCause = RolloutCause()
    documents: tuple[str, ...] = ()
    stages: tuple[RolloutStage, ...] = ()
    strategy: str = ""
    shares: tuple[float, ...] = ()
    traffic: tuple[float, ...] = ()


class Cohort(Shown, frozen=True, kw_only=True):
    requests: int = 0
    bad: int = 0


class Cohorts(Shown, frozen=True, kw_only=True):
    candidate: Cohort = Cohort()
    stable: Cohort = Cohort()


class RollingProxies(Shown, frozen=True, kw_only=True):
    on_candidate: int = 0
    total: int = 0


class RollingCause(Shown, frozen=True, kw_only=True):
    reason: str = ""
    route: str = ""
    count: int = 0
    origin: str = ""


class RollingWorkload(Shown, frozen=True, kw_only=True):
    workload: str = ""
    candidate: str = ""
    wave: int = 0
    share: float = 0.0
    seats: dict[str, float] = {}
    proxies: RollingProxies = RollingProxies()
    cohorts: Cohorts = Cohorts()
    verdict: str = ""
    sentence: str = ""
    causes: tuple[RollingCause, ...] = ()
    passed: bool = False
    proven: bool = False


class HandledOrder(Shown, frozen=True, kw_only=True):
    """The last order given by annotation, and what became of it."""

    order: str = ""
    actor: str = ""
    reason: str = ""
    at: str = ""
    done: bool = False
    message: str = ""


class MeshRolloutStatus(Shown, frozen=True, kw_only=True):
    observed_generation: Generation = -1
    conditions: tuple[ShownCondition, ...] = ()
    id: str = ""
    phase: str = ""
    stage: str = ""
    stage_number: int = 0
    stages: int = 0
    wave: int = 0
    waves: int = 0
    progress: Annotated[str, Meta(description="`wave 2/4`, for tables.")] = ""
    verdict: str = ""
    harmed: int = 0
    sentence: str = ""
    started_at: str = ""
    elapsed: str = ""
    wave_elapsed: str = ""
    actor: str = ""
    reason: str = ""
    detected_after: str = ""
    restored_after: str = ""
    paused_from: str = ""
    suspicions: int = 0
    restarts: int = 0
    supersessions: int = 0
    last_order: HandledOrder = HandledOrder()
    workloads: tuple[RollingWorkload, ...] = ()


class MeshIntentSpec(Shown, frozen=True, kw_only=True):
    """A document of the mesh repository, shown read-only: git is where it is changed."""

    kind: str = ""
    name: str = ""
    namespace: str = ""
    file: str = ""
    line: int = 0
    place: Annotated[str, Meta(description="`file:line`.")] = ""
    revision: str = ""
    digest: str = ""
    repository: Annotated[str, Meta(description="`namespace/name` of the MeshRepository it comes from.")] = ""


class IntentProxies(Shown, frozen=True, kw_only=True):
    updated: int = 0
    total: int = 0


class MeshIntentStatus(Shown, frozen=True, kw_only=True):
    observed_generation: Generation = -1
    conditions: tuple[ShownCondition, ...] = ()
    proxies: IntentProxies = IntentProxies()
    programmed: Annotated[str, Meta(description="`3/4`: proxies that serve it to every request, of all.")] = ""
    workloads: tuple[str, ...] = ()
    state: str = ""
    held: ShownHeld | None = None


class Column(msgspec.Struct, frozen=True, kw_only=True):
    """One column of `kubectl get`."""

    name: str
    path: str
    type: Literal["string", "integer", "date"] = "string"
    wide: bool = False
    """Only with `-o wide`."""


class Rule(msgspec.Struct, frozen=True, kw_only=True):
    """A CEL expression that must hold, at a path of the schema."""

    at: str
    expression: str
    message: str


class Kind(msgspec.Struct, frozen=True, kw_only=True):
    """One CustomResourceDefinition."""

    name: str
    plural: str
    short: tuple[str, ...]
    spec: type[msgspec.Struct]
    status: type[msgspec.Struct]
    columns: tuple[Column, ...]
    rules: tuple[Rule, ...] = ()
    description: str
    is_written_by_people: bool = False

    @property
    def resource(self) -> str:
        return f"{self.plural}.{GROUP}"

    def path(self, namespace: str = "", name: str = "", subresource: str = "") -> str:
        """API path of all, of a namespace's, of one object, or of its subresource."""
        parts = ["/apis", GROUP, VERSION, *(("namespaces", namespace) if namespace else ()), self.plural]
        return "/".join([*parts, *(part for part in (name, subresource) if part)])


_READY: Final = '.status.conditions[?(@.type=="Ready")].status'
_REASON: Final = '.status.conditions[?(@.type=="Ready")].reason'
_MESSAGE: Final = '.status.conditions[?(@.type=="Ready")].message'
_AGE: Final = Column(name="Age", path=".metadata.creationTimestamp", type="date")

MESH_REPOSITORY: Final = Kind(
    name="MeshRepository",
    plural="meshrepositories",
    short=("meshrepo", "mrepo"),
    spec=MeshRepositorySpec,
    status=MeshRepositoryStatus,
    description="A git repository whose documents are the configuration of its namespaces' workloads.",
    is_written_by_people=True,
    columns=(
        Column(name="URL", path=".spec.url"),
        Column(name="Ref", path=".status.ref"),
        Column(name="Ready", path=_READY),
        Column(name="Reason", path=_REASON),
        Column(name="Revision", path=".status.activeRevision"),
        Column(name="Rollout", path=".status.phase"),
        _AGE,
        Column(name="Message", path=_MESSAGE, wide=True),
    ),
    rules=(
        Rule(
            at="",
            # It is the value of a label, and the beginning of the names of its rollouts.
            expression="size(self.metadata.name) <= 53",
            message="a name of at most 53 characters",
        ),
        Rule(
            at="spec.url",
            # A password in the address would be shown to everybody who may list repositories.
            expression="self.matches('^(https://[^@/?#\\\\s]+(/[^\\\\s]*)?|ssh://[^:/?#\\\\s]+(:[0-9]+)?/[^\\\\s]+|"
            "[A-Za-z0-9._-]+@[A-Za-z0-9.-]+:[^/\\\\s][^\\\\s]*)$')",
            message="expected https://host/path, ssh://user@host/path or user@host:path, without a password",
        ),
        Rule(
            at="spec.ref",
            expression="[has(self.branch) && self.branch != '', has(self.tag) && self.tag != '', "
            "has(self.semver) && self.semver != '', has(self.commit) && self.commit != ''].filter(x, x).size() <= 1",
            message="at most one of branch, tag, semver and commit",
        ),
        Rule(
            at="spec.path",
            expression="!self.startsWith('/') && !self.split('/').exists(p, p == '..')",
            message="a folder inside the repository: no leading `/`, no `..`",
        ),
        Rule(
            at="spec.interval",
            expression="duration(self) >= duration('1s')",
            message="at least 1s",
        ),
        Rule(
            at="spec.timeout",
            expression="duration(self) >= duration('1s')",
            message="at least 1s",
        ),
        Rule(
            at="spec.forge.url",
            # The token goes there.
            expression="self == '' || self.matches('^https://[^@/?#\\\\s]+(/[^?#\\\\s]*)?$')",
            message="expected https://host/path, without a password",
        ),
        Rule(
            at="spec",
            expression="!has(self.reviews) || !self.reviews || has(self.forge)",
            message="reviews needs forge: it names where the pull requests are",
        ),
        Rule(
            at="spec.rollout.shares",
            expression="size(self) == 0 || (self.isSorted() && self[size(self) - 1] == 100.0)",
            message="percentages that ascend, the last one 100",
        ),
        Rule(
            at="spec.rollout.deadline",
            expression="duration(self) > duration('0s')",
            message="more than 0s",
        ),
        Rule(
            at="spec.rollout.confirmWithin",
            expression="duration(self) >= duration('5s')",
            message="at least 5s: proxies report once a second, and a few lost reports must not end a lease",
        ),
    ),
)
MESH_ROLLOUT: Final = Kind(
    name="MeshRollout",
    plural="meshrollouts",
    short=("mrollout", "mro"),
    spec=MeshRolloutSpec,
    status=MeshRolloutStatus,
    description="One rollout of a change, written by the operator.",
    columns=(
        Column(name="Phase", path=".status.phase"),
        Column(name="Progress", path=".status.progress"),
        Column(name="Verdict", path=".status.verdict"),
        Column(name="Harmed", path=".status.harmed", type="integer"),
        Column(name="Revision", path=".spec.cause.revision"),
        _AGE,
        Column(name="Subject", path=".spec.cause.subject", wide=True),
        Column(name="Sentence", path=".status.sentence", wide=True),
    ),
)
MESH_INTENT: Final = Kind(
    name="MeshIntent",
    plural="meshintents",
    short=("mintent", "mi"),
    spec=MeshIntentSpec,
    status=MeshIntentStatus,
    description="One document of a mesh repository and what became of it, written by the operator.",
    columns=(
        Column(name="Kind", path=".spec.kind"),
        Column(name="State", path=".status.state"),
        Column(name="Proxies", path=".status.programmed"),
        Column(name="Place", path=".spec.place"),
        Column(name="Proven", path='.status.conditions[?(@.type=="Proven")].status'),
        _AGE,
        Column(name="Revision", path=".spec.revision", wide=True),
    ),
)
RESOURCES: Final[Mapping[str, Kind]] = {kind.name: kind for kind in (MESH_REPOSITORY, MESH_ROLLOUT, MESH_INTENT)}


def repository_spec(spec: Mapping[str, Any]) -> MeshRepositorySpec:
    """A spec as the API server has it. Raises msgspec.ValidationError: it was written before its schema.

    Fields that only a newer release knows are left aside: its definitions come first in an upgrade, with defaults that the
    API server writes into every object, and this operator has to go on until its successor leads.
    """
    known = {field.encode_name for field in msgspec.structs.fields(MeshRepositorySpec)}
    return msgspec.convert({key: value for key, value in spec.items() if key in known}, MeshRepositorySpec)
