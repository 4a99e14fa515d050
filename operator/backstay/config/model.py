"""The compiled configuration of one workload: parts, and the manifest that names them.

A *part* is a piece of meaning (the routes of one host, one backend, one authorization set, the listeners) named by the
digest of its canonical bytes. A *manifest* maps part keys to part digests and is itself named by its digest: that
digest is what "config" means everywhere (cohorts, acks, status). The same structs are what travels on the control
stream, what lies on a sidecar's disk and what `backstay sidecar --config` reads.

Rule: nothing in here may depend on file names, line numbers, time or endpoints, or a digest would change although
nothing a proxy does has changed. Provenance stays with the operator (core/compile/provenance), endpoints are live data.
"""

import hashlib
from collections.abc import Mapping
from typing import Final, Literal, TypeAlias

import msgspec

SCHEMA_VERSION: Final = 1
"""Version of the structs below; a sidecar that reads a greater one nacks with reason `SchemaVersion`."""

LATENCY_BOUNDS_MS: Final = (1, 2.5, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10000, 30000, 60000)
"""Upper bounds of the latency buckets in milliseconds; one more bucket counts what is slower than the last.

Envoy's default histogram with the rarely used ends dropped. Reports, metrics and the latency verdict share them."""


class Base(msgspec.Struct, frozen=True, gc=False, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """Common options: immutable, invisible to the collector (configs are trees), unknown fields refused."""


class PathMatch(Base, frozen=True, kw_only=True):
    kind: Literal["exact", "prefix", "regex"]
    value: str
    """Starts with `/` unless it is a pattern. A prefix matches per path element: `/v1` takes `/v1` and `/v1/x`, never
    `/v1beta`. A pattern (RE2) must take the whole path."""


class ValueMatch(Base, frozen=True, kw_only=True):
    """One header or query parameter. Names of headers are lower case; all values of a repeated header are joined by
    `,` before they are compared (threats.md H10)."""

    name: str
    kind: Literal["exact", "prefix", "regex", "present", "absent"]
    value: str = ""


class AuthorityMatch(Base, frozen=True, kw_only=True):
    """The host a request names, in lower case and without its port."""

    kind: Literal["exact", "prefix", "regex"]
    value: str


class Match(Base, frozen=True, kw_only=True):
    """All given fields must hold (AND); an empty match takes every request."""

    path: PathMatch | None = None
    method: str = ""
    headers: tuple[ValueMatch, ...] = ()
    query: tuple[ValueMatch, ...] = ()
    authority: AuthorityMatch | None = None
    sources: tuple[str, ...] = ()
    """Workloads (`<namespace>/<name>`, `<namespace>/*`) whose own requests this is about; none is every workload. Decided
    when a config is loaded, so that one part serves all callers."""


class WeightedBackend(Base, frozen=True, kw_only=True):
    backend: str
    """Key of a service port, `sa-logic.shop:80`; the backend part of that name must be in the same manifest."""
    subset: str = ""
    weight: int = 1
    """Share among the rule's backends is weight / sum of weights; 0 takes nothing."""


RetryCondition: TypeAlias = Literal[
    "connect-failure",
    "reset-before-request",
    "reset",
    "gateway-error",
    "5xx",
    "retriable-4xx",
    "retriable-status-codes",
]
"""Names as Envoy's retry-on. `reset-before-request`: the connection died before any response byte and either the
method is idempotent or no byte of the request had been written."""


class Retry(Base, frozen=True, kw_only=True):
    attempts: int
    """Retries after the first try."""
    retry_on: tuple[RetryCondition, ...]
    backoff_ms: int = 25
    """Base of the full-jitter exponential back-off: the n-th retry waits a random time below (2**n - 1) * base,
    capped at 10 * base (Envoy)."""
    budget_percent: int = 20
    """Retries in flight may be at most this share of the requests in flight (minimum 3), per backend and proxy."""
    statuses: tuple[int, ...] = ()
    """What `retriable-status-codes` means."""
    any_method: bool = False
    """True retries methods that are not idempotent too; only because the document says so."""


class Fault(Base, frozen=True, kw_only=True):
    delay_ms: int = 0
    delay_percent: float = 0.0
    abort_status: int = 0
    abort_percent: float = 0.0


class Mirror(Base, frozen=True, kw_only=True):
    """Copies of requests to another backend; nobody waits for them, their responses are thrown away."""

    backend: str
    subset: str = ""
    percent: float = 100.0


class HeaderEdits(Base, frozen=True, kw_only=True):
    """Removed first, then set (all values of the name replaced), then added. Names are lower case in `remove` and `set`."""

    set: tuple[tuple[str, str], ...] = ()
    add: tuple[tuple[str, str], ...] = ()
    remove: tuple[str, ...] = ()


class PathRewrite(Base, frozen=True, kw_only=True):
    """What becomes of a path; the query stays."""

    kind: Literal["full", "prefix", "regex"]
    value: str
    """The new path, the new prefix (of the prefix that matched), or what is put in place of each find (`\\1` a group)."""
    pattern: str = ""
    """Of kind `regex`: what is looked for."""


class Rewrite(Base, frozen=True, kw_only=True):
    host: str = ""
    """New Host; empty leaves it."""
    path: PathRewrite | None = None


class Redirect(Base, frozen=True, kw_only=True):
    """Answer with another place; what is empty stays as the request has it."""

    status: int = 302
    scheme: str = ""
    host: str = ""
    port: int = 0
    """0: the request's, left out where it is the scheme's own."""
    path: PathRewrite | None = None


class DirectResponse(Base, frozen=True, kw_only=True):
    status: int
    body: str = ""
    content_type: str = "text/plain"


class Cors(Base, frozen=True, kw_only=True):
    """Who may read answers from a browser. A preflight of an origin that is not listed is forwarded, as in Istio."""

    origins: tuple[ValueMatch, ...] = ()
    """Names are empty; kinds exact, prefix and regex. Exact `*` is every origin."""
    methods: tuple[str, ...] = ()
    headers: tuple[str, ...] = ()
    expose: tuple[str, ...] = ()
    max_age_s: int = 0
    """0: not said."""
    credentials: bool = False


class RateLimit(Base, frozen=True, kw_only=True):
    """A token bucket in each proxy."""

    requests: int
    per_ms: int
    burst: int
    """Size of the bucket."""


class Sticky(Base, frozen=True, kw_only=True):
    """Which of a rule's backends a request gets follows from a value it carries, not from chance."""

    header: str = ""
    cookie: str = ""
    cookie_ttl_s: int = -1
    """How long a cookie made here lives; 0 is the browser's session; -1 makes none."""


class Rule(Base, frozen=True, kw_only=True):
    """One ordered rule of a host; the first rule with a matching match takes the request."""

    name: str
    """Stable name within the host, used in counters, logs and provenance: the document's rule name or `rule-<index>`."""
    matches: tuple[Match, ...] = ()
    """Alternatives (OR); none takes everything."""
    backends: tuple[WeightedBackend, ...] = ()
    timeout_ms: int = 15_000
    """Whole exchange, retries included; 0 is no limit."""
    try_timeout_ms: int = 0
    """One attempt; 0 is no limit of its own."""
    idle_timeout_ms: int = 0
    """Without a byte in either direction; 0 is no limit of its own."""
    retry: Retry | None = None
    fault: Fault | None = None
    mirrors: tuple[Mirror, ...] = ()
    request_headers: HeaderEdits | None = None
    response_headers: HeaderEdits | None = None
    rewrite: Rewrite | None = None
    redirect: Redirect | None = None
    """Excludes backends; so does `direct`."""
    direct: DirectResponse | None = None
    cors: Cors | None = None
    rate_limit: RateLimit | None = None
    sticky: Sticky | None = None


class HostRoutes(Base, frozen=True, kw_only=True, tag="routes", tag_field="part"):
    """Outbound rules for one authority. No matching rule answers 404 `no-route`."""

    host: str
    """Canonical name: `<service>.<namespace>`, a name with dots of the user's own, `*.<name>` for every name below one
    that has no routes of its own, or `*`."""
    port: int
    """At a gateway the port it listens on: what a request says of the port in its Host counts for nothing there."""
    rules: tuple[Rule, ...]
    gateway: bool = False
    """For requests that come in at a gateway's port, not for those that this workload makes."""

    @property
    def key(self) -> str:
        return f"{'gateway' if self.gateway else 'routes'}/{self.host}:{self.port}"


class Subset(Base, frozen=True, kw_only=True):
    name: str
    labels: tuple[tuple[str, str], ...]
    """Sorted label pairs that an endpoint must all carry."""


class HashOn(Base, frozen=True, kw_only=True):
    """The value whose hash chooses an endpoint."""

    kind: Literal["header", "cookie", "query", "source"]
    name: str = ""
    """Header names are lower case; empty for `source`, the caller's address."""


class Outlier(Base, frozen=True, kw_only=True):
    """Endpoints that keep failing are left out for a while."""

    consecutive_5xx: int = 5
    """Failures of any kind in a row; 0 is off. So are the next two."""
    consecutive_gateway: int = 0
    """502, 503, 504, and tries that got no answer."""
    consecutive_local: int = 0
    """Tries that got no answer at all."""
    base_ms: int = 30_000
    """Times the number of ejections so far."""
    max_ms: int = 300_000
    max_percent: int = 10
    """Of the endpoints; one may always go."""


class HealthCheck(Base, frozen=True, kw_only=True):
    """GET requests of each caller's proxy; 2xx is healthy."""

    path: str
    interval_ms: int = 10_000
    timeout_ms: int = 1_000
    unhealthy: int = 3
    healthy: int = 1
    """Checks in a row that change what an endpoint is held to be."""


class OriginTls(Base, frozen=True, kw_only=True):
    """TLS to a host outside of the mesh."""

    sni: str
    names: tuple[str, ...] = ()
    """One of them must be a DNS name of the certificate; none: the SNI."""
    ca: str = ""
    """PEM of who may have signed it; empty: whom the system trusts."""


class External(Base, frozen=True, kw_only=True):
    """A host outside of the mesh: its name is its only endpoint."""

    host: str
    port: int
    tls: OriginTls | None = None


class Backend(Base, frozen=True, kw_only=True, tag="backend", tag_field="part"):
    """How to reach one service port. Endpoints are live data, matched by `service:port`."""

    service: str
    """`<name>.<namespace>`"""
    port: int
    protocol: Literal["http", "tcp"] = "http"
    subsets: tuple[Subset, ...] = ()
    balance: Literal["round_robin", "least_request", "random", "ring_hash", "maglev"] = "least_request"
    hash_on: HashOn | None = None
    """Of ring_hash and maglev."""
    connect_timeout_ms: int = 5_000
    max_connections: int = 0
    """Open connections from one proxy to the whole backend; 0 is no limit."""
    max_requests: int = 0
    """Requests under way from one proxy; one more is answered 503 `overflow`. 0 is no limit."""
    outlier: Outlier | None = None
    health: HealthCheck | None = None
    slow_start_ms: int = 0
    """An endpoint that is new gets its full share only after this time."""
    same_zone_first: bool = False
    """Endpoints of the proxy's own zone first, others for what it has lost."""
    tls: Literal["mesh", "disable"] = "mesh"
    """`mesh`: mTLS wherever the endpoint carries an identity. `disable`: plaintext always."""
    external: External | None = None
    """Reached by name, with no endpoints in live data."""

    @property
    def key(self) -> str:
        return f"backend/{self.service}:{self.port}"


class ClaimMatch(Base, frozen=True, kw_only=True):
    """One claim of a verified token. One of `values` must be among its values (none: it may be anything, but must be there
    unless `not_values` says more), and none of `not_values`."""

    name: str
    """A claim, or the way to one within another, joined by dots: `realm_access.roles`."""
    values: tuple[str, ...] = ()
    """Exact, `prefix*`, `*suffix` or `*`."""
    not_values: tuple[str, ...] = ()


class Source(Base, frozen=True, kw_only=True):
    """Who a caller may be; all non-empty fields must hold, values of one field are alternatives."""

    principals: tuple[str, ...] = ()
    """`spiffe://td/ns/shop/sa/x`, a prefix ending in `*`, or `*` (any authenticated caller)."""
    namespaces: tuple[str, ...] = ()
    not_principals: tuple[str, ...] = ()
    not_namespaces: tuple[str, ...] = ()
    ip_blocks: tuple[str, ...] = ()
    """CIDRs of the address that the connection comes from."""
    not_ip_blocks: tuple[str, ...] = ()
    remote_ip_blocks: tuple[str, ...] = ()
    """CIDRs of the address that began the request, by X-Forwarded-For and `Listeners.trusted_hops`."""
    not_remote_ip_blocks: tuple[str, ...] = ()
    request_principals: tuple[str, ...] = ()
    """`<issuer>/<subject>` of the request's verified token: exact, `prefix*`, `*suffix`, or `*` (any token)."""
    not_request_principals: tuple[str, ...] = ()
    claims: tuple[ClaimMatch, ...] = ()
    """All must hold."""


class Operation(Base, frozen=True, kw_only=True):
    """What is asked; all non-empty fields must hold, values of one field are alternatives."""

    methods: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()
    """Exact, `prefix*`, `*suffix` or `*`; compared with the path that is forwarded, without the query."""
    headers: tuple[ValueMatch, ...] = ()
    ports: tuple[int, ...] = ()
    hosts: tuple[str, ...] = ()
    """As paths; compared in lower case with the host that the request names, without its port."""
    not_methods: tuple[str, ...] = ()
    not_paths: tuple[str, ...] = ()
    not_ports: tuple[int, ...] = ()
    not_hosts: tuple[str, ...] = ()


class PolicyRule(Base, frozen=True, kw_only=True):
    """Sources are alternatives, operations are alternatives; an empty list of either is "any"."""

    sources: tuple[Source, ...] = ()
    operations: tuple[Operation, ...] = ()


class Policy(Base, frozen=True, kw_only=True):
    name: str
    """`<namespace>/<name>` of the Authorization document, named in logs when it decides."""
    action: Literal["allow", "deny", "audit"]
    rules: tuple[PolicyRule, ...] = ()
    """No rule matches nothing: an allow policy without rules lets nobody in."""


class Authorization(Base, frozen=True, kw_only=True, tag="authorization", tag_field="part"):
    """All policies of one workload. Deny first; then, if there is any allow policy, one must match."""

    policies: tuple[Policy, ...] = ()

    @property
    def key(self) -> str:
        return "authorization"


class InboundPort(Base, frozen=True, kw_only=True):
    port: int
    """The port the application listens on."""
    protocol: Literal["http", "tcp"] = "http"
    mtls: Literal["permissive", "strict", "disable"] = "permissive"


class GatewayListener(Base, frozen=True, kw_only=True):
    """One port of a gateway, or some of its hosts."""

    name: str
    """`<namespace>/<gateway>/<listener>`"""
    port: int
    protocol: Literal["http", "https", "tls"] = "http"
    hosts: tuple[str, ...] = ("*",)
    """Names, `*.<name>`, `*`; among all listeners of a port the most specific one takes a request."""
    secret: str = ""
    """`<namespace>/<name>` of certificate and key, which are live data."""
    min_tls: Literal["1.2", "1.3"] = "1.2"
    redirect_port: int = 0
    """Of the https listener that plaintext requests are sent to; 0: they are served."""


class TokenPlace(Base, frozen=True, kw_only=True):
    """Where a request may carry a token."""

    kind: Literal["header", "query", "cookie"]
    name: str
    """Of a header in lower case."""
    prefix: str = ""
    """What stands before the token in a header; case does not matter."""


BEARER: Final = (
    TokenPlace(kind="header", name="authorization", prefix="Bearer "),
    TokenPlace(kind="query", name="access_token"),
)
"""Where tokens stand if nothing is said (RFC 6750, and Istio's two defaults)."""


class JwtProvider(Base, frozen=True, kw_only=True):
    """Whose tokens are believed."""

    issuer: str
    audiences: tuple[str, ...] = ()
    """One of them must be among the token's; none: any."""
    jwks: str = ""
    """The key set, where it stands in the document."""
    jwks_uri: str = ""
    """Where the control plane fetches the key set: its content is live data under this name."""
    places: tuple[TokenPlace, ...] = BEARER
    forward: bool = False
    """The application gets the token as well."""
    claim_headers: tuple[tuple[str, str], ...] = ()
    """(header in lower case, claim): what the application is told of the token."""


class Jwt(Base, frozen=True, kw_only=True):
    """Tokens that requests to a workload bring, and paths that must bring one. A token that is there must be valid."""

    providers: tuple[JwtProvider, ...]
    required: tuple[str, ...] = ()
    """Path patterns as in policies."""
    not_required: tuple[str, ...] = ()
    """Exceptions of those."""


class Tracing(Base, frozen=True, kw_only=True):
    """Spans of requests, sent to a collector by OTLP over HTTP. W3C contexts are read and written."""

    endpoint: str = ""
    """`http://host[:port][/path]`; empty: contexts are passed on, and no spans are sent."""
    percent: float = 1.0
    """Of requests that bring no decision."""
    b3: bool = False
    """B3 headers as well."""


class Listeners(Base, frozen=True, kw_only=True, tag="listeners", tag_field="part"):
    """What the proxy itself is: whose it is, what it accepts, what it does with hosts it does not know."""

    namespace: str
    identity: str
    """The workload's own SPIFFE ID."""
    trust_domain: str
    inbound: tuple[InboundPort, ...] = ()
    other_ports: Literal["permissive", "strict", "disable"] = "permissive"
    """mTLS mode of the application's ports that `inbound` does not name; connections to them reach it only where they are
    redirected."""
    egress: Literal["allow_any", "registry_only"] = "allow_any"
    egress_hosts: tuple[str, ...] = ()
    """`host:port` and `*.<name>:port` that `registry_only` lets out all the same."""
    access_log: Literal["off", "failures", "all"] = "off"
    log_percent: float = 100.0
    """Of requests that did not fail, where all are logged; failures always are."""
    tracing: Tracing | None = None
    gateway: tuple[GatewayListener, ...] = ()
    trusted_hops: int = 0
    """Proxies in front whose word in X-Forwarded-For counts: the address that began a request is the entry that many before
    the last one."""
    jwt: Jwt | None = None
    client_cert: Literal["append_forward", "sanitize_set", "forward_only", "sanitize"] = "append_forward"
    """X-Forwarded-Client-Cert of requests by mTLS: what came with this caller added, this caller alone, what came, nothing.
    In plaintext there never is any."""
    engine: Literal["", "python", "envoy"] = ""
    """What does the traffic; empty: what the proxy was started with."""

    @property
    def key(self) -> str:
        return "listeners"


Part: TypeAlias = HostRoutes | Backend | Authorization | Listeners


class Manifest(Base, frozen=True, kw_only=True):
    """The config of one workload as a list of named parts."""

    workload: str
    """`<namespace>/<name>`"""
    parts: dict[str, str]
    """Part key -> part digest."""
    schema: int = SCHEMA_VERSION


_encoder: Final = msgspec.json.Encoder(order="sorted")
_part_decoder: Final[msgspec.json.Decoder[Part]] = msgspec.json.Decoder(Part)


def encode_part(part: Part) -> bytes:
    """Canonical bytes of a part: the same meaning always gives the same bytes."""
    return _encoder.encode(part)


def decode_part(data: bytes) -> Part:
    """Parse the bytes of a part. Raises msgspec.ValidationError for anything that is not exactly a known part."""
    part: Part = _part_decoder.decode(data)
    return part


def digest_of(data: bytes) -> str:
    """Hex SHA-256 of canonical bytes: the name of a part or of a manifest."""
    return hashlib.sha256(data).hexdigest()


def encode_manifest(manifest: Manifest) -> bytes:
    return _encoder.encode(manifest)


def config_digest(manifest: Manifest) -> str:
    """The digest that names a config: what proxies ack, what cohorts are compared by."""
    return digest_of(encode_manifest(manifest))


class Config(Base, frozen=True, kw_only=True):
    """A manifest with its parts at hand: what a proxy runs and what `backstay sidecar --config` reads from one file."""

    manifest: Manifest
    parts: dict[str, Part]
    """Part key -> part; exactly the keys of the manifest."""

    @property
    def digest(self) -> str:
        return config_digest(self.manifest)


def assemble(manifest: Manifest, parts: Mapping[str, bytes]) -> Config:
    """Build a config from stored part bytes keyed by digest.

    Raises KeyError(digest) for a part that is missing, ValueError for bytes that are not what their name says,
    msgspec.ValidationError for a part this version does not understand.
    """
    decoded: dict[str, Part] = {}
    for key, digest in manifest.parts.items():
        data = parts[digest]
        if digest_of(data) != digest:
            raise ValueError(f"part {key!r}: content does not match its digest {digest[:12]}")
        decoded[key] = decode_part(data)
    return Config(manifest=manifest, parts=decoded)
