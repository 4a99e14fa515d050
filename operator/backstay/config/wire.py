"""The messages of the control channel (WebSocket over mTLS, one JSON text frame each) and what they promise.

Order on a connection: proxy sends `Hello`; operator answers `Welcome`, then `Live` (all of it), then `Assign`. From then
on the proxy reports every second and both sides send what they have. Every message of the operator carries its epoch;
a proxy remembers the greatest one it has seen (on disk) and refuses lower ones, so that an operator that was replaced
cannot speak any more.

An `Assign` is the whole truth about one proxy (never a delta on the previous Assign): which config is stable, which is
the candidate, which share of requests the candidate gets. Configs travel as a manifest delta against a config the proxy
said it has, with the parts the operator believes it lacks; whatever is still missing the proxy asks for by `Need`.
"""

from typing import Final, Literal, TypeAlias

import msgspec

PROTOCOL_MIN: Final = 1
PROTOCOL_MAX: Final = 1

ENROL_PATH: Final = "/v1/enrol"
RENEW_PATH: Final = "/v1/renew"
STREAM_PATH: Final = "/v1/stream"
WISH_SUFFIX: Final = ".wanted"
"""On one machine a sidecar whose certificate is of no use any more puts a file of this ending beside its token's place."""
MAX_MESSAGE_BYTES: Final = 16 * 1024 * 1024
"""A first config with 1,000 routes is under 1 MiB; sixteen times that is a peer gone mad."""


class Message(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="type"):
    """Unknown fields are ignored on purpose: within one protocol version fields may be added."""


# --- operator -> proxy -------------------------------------------------------------------------------------------


class Welcome(Message, frozen=True, kw_only=True, tag="welcome"):
    protocol: int
    epoch: int
    mesh: str
    samples: int = 0
    """Most requests that a report may tell of as samples; 0: none are taken."""
    zone: str = ""
    """Where this proxy runs, as the platform knows it; empty: it does not, or the proxy was told at its start."""


class Endpoint(msgspec.Struct, frozen=True, gc=False, kw_only=True, omit_defaults=True):
    """One instance behind a service port, as a caller reaches it."""

    id: str
    """Instance (= proxy) id; failures to connect are reported under it."""
    address: str
    port: int
    identity: str = ""
    """SPIFFE ID its certificate must show; empty: not in the mesh, plaintext."""
    labels: dict[str, str] = {}
    zone: str = ""
    workload: str = ""
    """`<namespace>/<name>` of its workload, for metrics; empty if nobody knows."""


class Live(Message, frozen=True, kw_only=True, tag="live"):
    """Endpoints, trust and revocations. Never waits for a rollout."""

    epoch: int
    full: bool = False
    """True: forget all endpoints and addresses not named here."""
    endpoints: dict[str, list[Endpoint]] = {}
    """`service.namespace:port` -> all its endpoints now; an empty list takes them away."""
    addresses: dict[str, list[str]] = {}
    """`service.namespace` -> virtual addresses that stand for it (a cluster's service IPs): what a redirected connection was
    meant for; an empty list takes them away."""
    trust: dict[str, str] | None = None
    """Trust domain -> PEM bundle (several roots); None: unchanged."""
    revoked: list[str] | None = None
    """SPIFFE IDs that are refused and whose connections are closed; None: unchanged."""
    key_sets: dict[str, str] = {}
    """Address -> JWKS that was fetched there; empty takes it away, one that is not named stays, `full` or not: the last good
    keys outlive an operator that cannot fetch them."""


class TlsSecret(msgspec.Struct, frozen=True, kw_only=True):
    """A certificate with its key, for callers from outside of the mesh."""

    certificate: str
    """PEM chain, leaf first."""
    key: str


class Secrets(Message, frozen=True, kw_only=True, tag="secrets"):
    """All certificates that this proxy shows as a gateway; sent to no other. Proxies of workloads without any never get this
    message, so that it needs no protocol version of its own."""

    epoch: int
    tls: dict[str, TlsSecret] = {}
    """`<namespace>/<name>` -> what is to be shown."""


class Offer(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How to come by one manifest: start from `base` ("" is an empty one), apply, check the digest."""

    digest: str
    base: str = ""
    workload: str = ""
    """Of the manifest; empty: as the base's."""
    schema: int = 0
    """Of the manifest; 0: as the base's."""
    set: dict[str, str] = {}
    unset: list[str] = []
    parts: dict[str, msgspec.Raw] = {}
    """Part digest -> canonical bytes of the part, for those the operator believes the proxy lacks."""


class RefusalExpected(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Refusals that a tightening is meant to cause; they are counted as `excused`, not as bad."""

    source: str
    """A SPIFFE ID or a CIDR; never `*`."""
    host: str = ""
    path: str = ""
    """Exact, or a prefix ending in `*`; empty is any."""


class Assign(Message, frozen=True, kw_only=True, tag="assign"):
    epoch: int
    serial: int
    """Grows with every Assign to this proxy within an epoch; acks name it."""
    stable: Offer
    candidate: Offer | None = None
    share: float = 0.0
    """Fraction of requests (and of accepted connections) the candidate gets: 0 < share <= 1 if there is one."""
    lease_s: float = 60.0
    """Without an acked report for this long the proxy goes back to stable by itself."""
    expect_refused: list[RefusalExpected] = []


class Parts(Message, frozen=True, kw_only=True, tag="parts"):
    """Answer to `Need`. A digest or manifest that is asked for and not here does not exist any more."""

    epoch: int
    parts: dict[str, msgspec.Raw] = {}
    manifests: dict[str, msgspec.Raw] = {}


class ReportAck(Message, frozen=True, kw_only=True, tag="report-ack"):
    """All reports up to `sequence` are durably counted; renews the lease of the candidate."""

    epoch: int
    sequence: int


class Goodbye(Message, frozen=True, kw_only=True, tag="goodbye"):
    """The operator refuses or ends this connection on purpose."""

    reason: str
    """CamelCase: ProtocolMismatch, UnknownProxy, Superseded, ShuttingDown, Fenced."""
    message: str
    retry_after_s: float = 1.0


ToProxy: TypeAlias = Welcome | Live | Secrets | Assign | Parts | ReportAck | Goodbye

# --- proxy -> operator -------------------------------------------------------------------------------------------


class Hello(Message, frozen=True, kw_only=True, tag="hello"):
    proxy: str
    """Instance id; must agree with the connection's certificate (workload) and enrolment."""
    boot: str
    """Random per process start: report sequence numbers start again with it."""
    protocol_min: int
    protocol_max: int
    version: str
    engine: str
    """`python` or `envoy`."""
    capabilities: list[str]
    """`split`: can serve two configs at once."""
    stable: str = ""
    candidate: str = ""
    """Digests on its disk now."""
    went_back: str = ""
    """Why it left its last candidate by itself: LeaseEnded, Restarts, ControlLost; empty if it did not."""
    went_back_from: str = ""
    """The candidate digest it left."""


class Need(Message, frozen=True, kw_only=True, tag="need"):
    parts: list[str] = []
    manifests: list[str] = []


class Ack(Message, frozen=True, kw_only=True, tag="ack"):
    serial: int
    stable: str
    candidate: str = ""
    share: float = 0.0


class Nack(Message, frozen=True, kw_only=True, tag="nack"):
    serial: int
    digest: str
    fault: Literal["content", "environment"]
    reason: str
    """CamelCase: SchemaVersion, MissingBackend, DiskFull, ..."""
    message: str


class Row(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """What happened to one kind of request since the previous report: all numbers are increments."""

    config: str
    """Digest of the config that decided these requests."""
    direction: Literal["in", "out"]
    route: str
    """Outbound: `routes/<host>:<port>#<rule>` (`#` and nothing: no rule). Inbound: `inbound:<port>`."""
    backend: str
    """Outbound: `<service>:<port>/<subset>`; empty inbound and where none was chosen."""
    total: int
    """Requests finished."""
    bad: dict[str, int]
    """Reason -> count, among total; see BAD_REASONS."""
    excused: int
    """Refusals that are no evidence: stable would have refused them too, or `expect_refused` names them."""
    attempts: int
    """Tries sent upstream, retries included."""
    latency: list[int]
    """Finished requests per bucket of LATENCY_BOUNDS_MS (one more than bounds)."""
    over: list[int]
    """Requests that crossed each bound since the last report, counted when they cross it, finished or not."""


def add_rows(one: Row, other: Row) -> Row:
    """What both say of the same kind of requests."""
    bad = dict(one.bad)
    for reason, count in other.bad.items():
        bad[reason] = bad.get(reason, 0) + count
    return Row(
        config=one.config,
        direction=one.direction,
        route=one.route,
        backend=one.backend,
        total=one.total + other.total,
        bad=bad,
        excused=one.excused + other.excused,
        attempts=one.attempts + other.attempts,
        latency=[left + right for left, right in zip(one.latency, other.latency, strict=True)],
        over=[left + right for left, right in zip(one.over, other.over, strict=True)],
    )


BAD_REASONS: Final = (
    "5xx", "connect-failure", "reset", "timeout", "no-healthy-upstream", "overflow",  # traffic failed
    "no-route", "denied", "plaintext-refused", "bad-token", "rate-limited", "handshake-refused", "fault",  # the mesh itself refused
)  # fmt: skip
"""`5xx`: an application's answer. All others are the mesh's own doing, as seen by this proxy."""


class PeerRow(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """Connections this proxy tried to open to one endpoint since the previous report."""

    peer: str
    """Endpoint id."""
    config: str
    attempts: int
    failures: int


class Sample(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """One kind of request among those that were looked at: for reviews, never for decisions. Neither header, nor body, nor any
    value of the query leaves the proxy."""

    method: str
    authority: str
    target: str
    """Path and names of query parameters."""
    caller: str
    """Address of a caller without a certificate; empty: the application beside this proxy."""
    port: int
    """Where such a caller's request came in: the application's own port, or a gateway's; 0 for the application's requests."""
    status: int
    weight: int
    """Requests that it stands for."""


class PlaintextRow(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """Connections without a certificate since the previous report; both counts 0: one from before is still open."""

    port: int
    """The application's own; 0: ports that the config does not name."""
    address: str
    accepted: int
    refused: int


class Report(Message, frozen=True, kw_only=True, tag="report"):
    boot: str
    sequence: int
    """1, 2, 3, ... since boot: one a second. Kept 120 s and sent again until acked."""
    at: float
    """The proxy's wall clock at the end of the second (Unix seconds); only for people, never for decisions."""
    rows: list[Row] = []
    peers: list[PeerRow] = []
    serving: dict[str, float] = {}
    """Config digest -> share of requests at the end of the second."""
    open_requests: int = 0
    samples: list[Sample] = []
    plaintext: list[PlaintextRow] = []
    missing_keys: list[str] = []
    """Addresses of key sets without the key that a token named: it may have been rotated in since they were fetched."""


class WentBack(Message, frozen=True, kw_only=True, tag="went-back"):
    """The proxy left its candidate by itself while connected (the lease ended for want of acks)."""

    candidate: str
    reason: str


class Draining(Message, frozen=True, kw_only=True, tag="draining"):
    """SIGTERM received: no new requests; the connection ends when the last one has."""


ToOperator: TypeAlias = Hello | Need | Ack | Nack | Report | WentBack | Draining

_encoder: Final = msgspec.json.Encoder()
_to_proxy: Final[msgspec.json.Decoder[ToProxy]] = msgspec.json.Decoder(ToProxy)
_to_operator: Final[msgspec.json.Decoder[ToOperator]] = msgspec.json.Decoder(ToOperator)


def encode(message: ToProxy | ToOperator) -> bytes:
    return _encoder.encode(message)


def decode_to_proxy(data: bytes | str) -> ToProxy:
    """Raises msgspec.DecodeError (ValidationError included) for anything that is not such a message."""
    return _to_proxy.decode(data)


def decode_to_operator(data: bytes | str) -> ToOperator:
    """Raises msgspec.DecodeError (ValidationError included) for anything that is not such a message."""
    return _to_operator.decode(data)


# --- enrolment (HTTPS, JSON) ---------------------------------------------------------------------------------------


class EnrolRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """POST ENROL_PATH without client certificate (token) or RENEW_PATH with the current one (no token)."""

    proxy: str
    csr: str
    """PEM; its subject and SAN are ignored, only key and signature count."""
    token: str = ""


class EnrolAnswer(msgspec.Struct, frozen=True, kw_only=True):
    certificate: str
    """PEM chain, leaf first."""
    trust: dict[str, str]
    identity: str
    expires_at: float
