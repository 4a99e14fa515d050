"""What the loop needs of the world, in domain words. Adapters implement these and map foreign errors to the few here.

Local processes and Kubernetes implement the same ports; one suite per port (tests/ports/) runs against every real
implementation and against its fake.
"""

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from backstay.config.model import Manifest
from backstay.config.wire import Ack, Hello, Live, Nack, Report, WentBack
from backstay.core.registry import Registry


class SourceUnavailable(Exception):
    """The git remote did not answer or refused us. Nothing a document's author can mend; try again later.

    `reason` is CamelCase for conditions: AuthenticationFailed, GitOperationFailed, Timeout, DubiousOwnership.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class SourceRefused(Exception):
    """What git holds must not be read (symlink, submodule, too big, bad ref): stalled until it changes.

    `reason` for conditions: URLInvalid, InvalidPath, RefNotFound, LimitExceeded, NotFastForward.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class StateUnavailable(Exception):
    """The state cannot be read or written (locked, corrupt, disk full); nothing was overwritten."""


class Fenced(Exception):
    """Another operator has taken over (greater epoch): this one must stop acting at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Revision:
    """One commit of the mesh repository."""

    sha: str
    ref: str
    """What was asked for: branch, tag, range or commit."""
    author: str = ""
    subject: str = ""
    committed_at: float = 0.0

    def __str__(self) -> str:
        return f"{self.ref}@sha1:{self.sha}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tree:
    """The files of a revision that may hold documents, plus what had to be refused by name."""

    revision: Revision
    files: Mapping[str, bytes]
    """Path from the repository's sub-path -> content; only regular *.yaml and *.yml files."""
    refused: Sequence[tuple[str, str, str]] = ()
    """(path, reason, message): symlinks, submodules, files over a cap. Each makes the commit invalid."""


class SourceRepo(Protocol):
    """The mesh repository."""

    async def resolve(self) -> Revision:
        """Ask the remote which commit is desired now, fetching what is missing. Raises SourceUnavailable, SourceRefused."""

    async def read(self, sha: str) -> Tree:
        """Files of a commit that was resolved before (works with the remote down). Raises SourceRefused, SourceUnavailable."""

    async def between(self, old: str, new: str) -> Sequence[Revision]:
        """Commits after `old` up to `new`, oldest first, at most 100; only `new` if `old` is unknown or no ancestor."""

    async def is_ancestor(self, old: str, new: str) -> bool:
        """False also when `old` is unknown: a force-push."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One entry of the timeline: commits, waves, endpoints, certificates, people's orders."""

    at: float
    kind: str
    """commit, validate, rollout, endpoints, certificate, proxy, order, operator, source, review."""
    reason: str
    """CamelCase."""
    message: str
    revision: str = ""
    subject: str = ""
    """Host, workload or proxy it is about."""
    warning: bool = False
    number: int = 0
    """Given by the store; ascending."""


class StateStore(Protocol):
    """Durable memory of one mesh. Every write carries the epoch it was claimed with."""

    async def claim(self) -> int:
        """Become the one operator: returns a new greatest epoch. Raises StateUnavailable if another one is alive."""

    async def load(self) -> bytes | None:
        """The last saved state, None on a new store. Raises StateUnavailable when it is corrupt."""

    async def save(
        self, epoch: int, state: bytes, blobs: Mapping[str, bytes] = {}, events: Sequence[Event] = ()
    ) -> None:
        """State, blobs (by digest) and events, all or nothing, durable on return. Raises Fenced, StateUnavailable."""

    async def blobs(self, digests: Iterable[str]) -> Mapping[str, bytes]:
        """Those of the asked that exist."""

    async def prune(self, epoch: int, keep: Iterable[str]) -> int:
        """Forget all other blobs; returns how many. Raises Fenced."""

    async def events(self, *, after: int = 0, since: float = 0.0, limit: int = 1000) -> Sequence[Event]:
        """Events with a greater number and not before `since`, oldest first."""

    async def close(self) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """What one proxy is to serve. The control server turns it into an Assign with offers."""

    stable: Manifest
    candidate: Manifest | None = None
    share: float = 0.0
    lease_s: float = 60.0
    expect_refused: tuple[tuple[str, str, str], ...] = ()
    """(source, host, path)"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Joined:
    """A proxy's control stream came up (again)."""

    proxy: str
    workload: str
    hello: Hello


@dataclass(frozen=True, slots=True, kw_only=True)
class Left:
    proxy: str
    workload: str
    draining: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """One message of a connected proxy that matters to the rollout."""

    proxy: str
    workload: str
    message: Ack | Nack | Report | WentBack


@dataclass(frozen=True, slots=True, kw_only=True)
class Certified:
    """A certificate was issued to a proxy, at enrolment or at renewal."""

    proxy: str
    workload: str
    identity: str
    expires_at: float
    """Unix seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnedAway:
    """A proxy that has proven who it is was not let in; it serves what it has and tries again."""

    proxy: str
    workload: str
    hello: Hello
    reason: str
    """CamelCase: ProtocolMismatch."""
    message: str


FleetEvent = Joined | Left | Said | Certified | TurnedAway


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsMaterial:
    """What a gateway shows callers from outside."""

    certificate: str
    """PEM chain, leaf first."""
    key: str = field(repr=False)


class TlsSecretsUnavailable(Exception):
    """Secrets cannot be read now; what proxies have stays."""


class TlsSecrets(Protocol):
    """Where the platform keeps certificates with their keys: a folder, or Kubernetes Secrets of type kubernetes.io/tls."""

    async def read(self, names: Iterable[str]) -> Mapping[str, TlsMaterial]:
        """Those of the asked (`<namespace>/<name>`) that are there, with a key that belongs to the certificate. Raises
        TlsSecretsUnavailable."""

    def lacking(self, name: str) -> str:
        """Why a secret that was asked for was not among them, for people."""


class KeysUnavailable(Exception):
    """An address has no usable key set now; what was fetched before stays."""


class KeySource(Protocol):
    """Where key sets of token issuers come from."""

    async def fetch(self, address: str) -> str:
        """The key set (JWKS) at this address, checked. Raises KeysUnavailable."""


class Fleet(Protocol):
    """The connected proxies. Sending never waits for a slow proxy: each has a bounded queue, the slow one is cut."""

    def drain(self) -> Sequence[FleetEvent]:
        """Everything heard since the last call, in order."""

    def assign(self, proxy: str, assignment: Assignment, parts: Mapping[str, bytes]) -> None:
        """Tell one proxy what to serve; a proxy that is away gets it when it joins. `parts` holds every part of both
        manifests by digest. The same assignment as last acked or pending is not sent again."""

    def publish(self, live: Live) -> None:
        """Send live data to all proxies; new ones get all of it when they join (the fleet keeps the sum)."""

    def secrets(self, by_workload: Mapping[str, Mapping[str, TlsMaterial]]) -> None:
        """All certificates that each workload's proxies show, by name. Sent to those proxies only, when they join and when
        they changed; a workload that is not named has none (any more)."""

    def acknowledge(self, proxy: str, sequence: int) -> None:
        """All of the proxy's reports up to here are durable."""


class CertificateAuthority(Protocol):
    """Issues SVIDs for keys it never sees."""

    def sign(self, csr_pem: bytes, *, identity: str, lifetime: float | None = None) -> bytes:
        """PEM chain, leaf first, for the CSR's key with exactly this URI SAN. Raises ValueError for a bad CSR."""

    def trust_bundle(self) -> Mapping[str, str]:
        """Trust domain -> PEM roots."""


class Platform(Protocol):
    """Where workloads run."""

    async def registry(self) -> Registry: ...

    def changes(self) -> AsyncIterator[None]:
        """Yields after every change of the registry (coalesced)."""


class Notifier(Protocol):
    """Where sentences go besides the store: commit status, chat. Never waited for, never fatal."""

    async def notify(self, events: Sequence[Event]) -> None: ...


class ForgeUnavailable(Exception):
    """The forge did not answer, or only with failures; trying later may help."""


class ForgeRefused(Exception):
    """The forge answered no: a token without the right, a place that is not there."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True, kw_only=True)
class PullRequest:
    """A change that somebody proposes, open now."""

    number: int
    head: str
    """Commit id, as the forge says."""
    base: str
    """Name of the branch that it is to become part of."""


class ReviewDesk(Protocol):
    """The forge, as far as reviews need it. Every call raises ForgeUnavailable, ForgeRefused."""

    async def open_requests(self) -> Sequence[PullRequest]:
        """Lately changed first, within a bound."""

    async def comment(self, request: int, text: str) -> None:
        """Make our one comment on it say this."""

    async def status(self, sha: str, *, good: bool, description: str) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal:
    """What a pull request would change, as files."""

    base: Tree
    """Where it left the followed branch."""
    head: Tree
    notes: tuple[str, ...] = ()


class Proposals(Protocol):
    """Commits that are proposed and never applied, kept apart from those that are. Raises as SourceRepo does."""

    async def branch(self) -> str:
        """The branch that is followed; empty where the mesh follows tags or one commit."""

    async def fetch(self, request: PullRequest) -> Proposal: ...

    async def keep_only(self, heads: Iterable[str]) -> None:
        """Forget all other proposals."""

    async def close(self) -> None: ...


class JobFailed(Exception):
    """Work in a process of its own came to no result: it took too long, too much, or crashed. The message says which."""


class Workbench(Protocol):
    """Work on what strangers wrote, in a process of its own with limits on time and memory."""

    async def review(self, job: bytes) -> bytes:
        """A ReviewJob to a Report, both encoded. Raises JobFailed."""


class Clock(Protocol):
    def monotonic(self) -> float: ...

    def wall(self) -> float: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Who a control connection is, as the platform vouches for it."""

    proxy: str
    workload: str
    spiffe_id: str
    attributes: Mapping[str, str] = field(default_factory=dict)
    """`zone` is told to the proxy; others are for logs."""


class Enroller(Protocol):
    """Decides who a proxy is from what it brings."""

    async def by_token(self, proxy: str, token: str, peer_ip: str) -> Identity:
        """Raises PermissionError with a reason that may be shown to the operator's log (not to the caller)."""

    async def by_certificate(self, proxy: str, spiffe_id: str) -> Identity:
        """Raises PermissionError."""
