"""The intents a person writes, as types: the one source of schemas/, of the reference docs and of the CRDs to come.

Field names follow Gateway API where it has the concept, then Istio, then Envoy. Descriptions and examples here become
those of the JSON Schemas (core/validate/schema.py generates them; a test fails on drift). Values are already checked by
the schema when one of these is made; what needs more than one document is core/validate/rules.py.

Rule: no field may be called on, off, yes, no, y or n (kubectl turns such keys into booleans).
"""

from collections.abc import Iterator
from typing import Annotated, Any, Final, Literal, TypeAlias

import msgspec
from msgspec import Meta

API_VERSION: Final = "backstay.dev/v1alpha1"

Name = Annotated[
    str,
    Meta(
        pattern=r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$",
        description="A DNS label: lower-case letters, digits and `-`, at most 63 characters.",
        examples=["sa-logic"],
    ),
]
Host = Annotated[
    str,
    Meta(
        pattern=r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?(\.[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?)*$",
        max_length=253,
        description="A host name in lower case. A name without dots is a service of the document's own namespace; "
        "`service.namespace` is one of another.",
        examples=["sa-logic", "sa-logic.shop"],
    ),
]
HostPattern = Annotated[
    str,
    Meta(
        pattern=r"^(\*|(\*\.)?[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?(\.[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?)*)$",
        max_length=253,
        description="A host name in lower case; `*.example.com` is every name below it, `*` every name. A name without "
        "dots is a service of the document's own namespace; `service.namespace` is one of another.",
        examples=["sa-logic", "sa-logic.shop", "*.example.com"],
    ),
]
Duration = Annotated[
    str,
    Meta(
        pattern=r"^([0-9]{1,8}(\.[0-9]{1,8})?(ms|s|m|h)){1,4}$",
        description="A duration as Go writes it: `250ms`, `15s`, `1m30s`, `24h`. `0s` means none.",
        examples=["15s", "250ms"],
    ),
]
Port = Annotated[int, Meta(ge=1, le=65535, description="A TCP port.", examples=[80])]
Percent = Annotated[float, Meta(ge=0, le=100, description="A percentage from 0 to 100.", examples=[10, 0.5])]
Method = Annotated[
    str, Meta(pattern=r"^[A-Z]{1,20}$", description="An HTTP method in capitals.", examples=["GET", "POST"])
]
HeaderName = Annotated[
    str,
    Meta(
        pattern=r"^[A-Za-z0-9!#$%&'*+.^_`|~-]{1,128}$",
        description="A header name; case does not matter.",
        examples=["x-version"],
    ),
]
SpiffeId = Annotated[
    str,
    Meta(
        pattern=r"^(\*|spiffe://[a-z0-9._-]+(/[A-Za-z0-9._-]+)*(/?\*)?)$",
        description="`spiffe://<trust-domain>/ns/<namespace>/sa/<service-account>`, a prefix of it ending in `*`, or `*` "
        "for any authenticated caller.",
        examples=["spiffe://backstay.local/ns/shop/sa/sa-webapp"],
    ),
]


class Node(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel", kw_only=True, omit_defaults=True):
    """Common options of everything a person writes."""


# --- rollout settings (Mesh defaults, and spec.rollout of any document) ---------------------------------------------


class ExpectRefused(Node, frozen=True, kw_only=True):
    """Refusals that this change is meant to cause. They are not held against it; all others are."""

    source: Annotated[
        str,
        Meta(
            min_length=1,
            description="Who will be refused: a SPIFFE ID or a CIDR. Never `*`: a policy that refuses everybody must "
            "still be caught.",
            examples=["spiffe://backstay.local/ns/shop/sa/legacy-batch", "10.2.0.0/16"],
        ),
    ]
    host: Annotated[str, Meta(description="Only requests to this host; empty is any.")] = ""
    path: Annotated[str, Meta(description="Only this path, exact or a prefix ending in `*`; empty is any.")] = ""


class DocumentRollout(Node, frozen=True, kw_only=True):
    """How a change of this document is rolled out. Fields left out come from the Mesh."""

    strategy: Annotated[
        Literal["Progressive", "Immediate"],
        Meta(
            description="`Progressive`: in waves. `Immediate`: everyone at once, for emergencies; validated as ever, and "
            "it preempts a running rollout."
        ),
    ] = "Progressive"
    on_fail: Annotated[
        Literal["rollback", "pause", ""],
        Meta(description="What happens when the verdict is fail. Empty: as the Mesh says."),
    ] = ""
    on_no_traffic: Annotated[
        Literal["proceed", "hold", ""],
        Meta(description="What happens at a wave's deadline when there was too little traffic to judge."),
    ] = ""
    expect_refused: Annotated[
        tuple[ExpectRefused, ...], Meta(description="Refusals that this change is meant to cause.", max_length=32)
    ] = ()


class TrafficSteps(DocumentRollout, frozen=True, kw_only=True):
    """A Route's rollout; it may ramp its weights instead of moving proxies."""

    traffic: Annotated[
        tuple[Annotated[float, Meta(gt=0, le=100)], ...],
        Meta(
            description="Percentages of the way from the old to the new weights, ascending, ending in 100. The steps "
            "replace the waves; the cohorts are the destinations that gain weight against the others.",
            examples=[[5, 25, 50, 100]],
            max_length=20,
        ),
    ] = ()


class MeshRollout(Node, frozen=True, kw_only=True):
    """Defaults of every rollout in the mesh."""

    shares: Annotated[
        tuple[Annotated[float, Meta(gt=0, le=100)], ...],
        Meta(description="Percentage of each affected workload per wave, ascending, ending in 100.", max_length=20),
    ] = (5.0, 25.0, 60.0, 100.0)
    soak: Annotated[Duration, Meta(description="The least time a wave lasts; evidence decides the rest.")] = "30s"
    deadline: Annotated[Duration, Meta(description="The longest a wave waits for evidence.")] = "10m"
    warm_up: Annotated[
        Duration,
        Meta(
            description="Pods younger than this give no evidence: an application that starts fails and is slow for reasons "
            "of its own."
        ),
    ] = "60s"
    tolerance: Annotated[
        Percent, Meta(description="Pass when the candidate is surely less than this many percentage points worse.")
    ] = 1.0
    margin: Annotated[
        Percent, Meta(description="Fail when the candidate is surely more than this many percentage points worse.")
    ] = 0.2
    on_fail: Literal["rollback", "pause"] = "rollback"
    on_no_traffic: Annotated[
        Literal["proceed", "hold"],
        Meta(
            description="At a wave's deadline without evidence. Changes of Authorization, Authentication and Gateway "
            "hold unless their own document says `proceed`."
        ),
    ] = "proceed"
    confirm_within: Annotated[
        Duration, Meta(description="A proxy that has no acked report for this long leaves the candidate by itself.")
    ] = "60s"
    bake_time: Annotated[Duration, Meta(description="How long a live change is still watched.")] = "15m"
    on_bake_fail: Literal["rollback", "alert"] = "rollback"


# --- Mesh -------------------------------------------------------------------------------------------------------------


class MeshRetry(Node, frozen=True, kw_only=True):
    attempts: Annotated[int, Meta(ge=0, le=10, description="Retries after the first try; 0 switches retries off.")] = 2
    budget_percent: Annotated[int, Meta(ge=0, le=100, description="Retries may be at most this share of requests.")] = (
        20
    )


class MeshDefaults(Node, frozen=True, kw_only=True):
    """What holds for every route and workload that does not say otherwise."""

    timeout: Annotated[Duration, Meta(description="Request timeout, retries included.")] = "15s"
    retry: Annotated[
        MeshRetry, Meta(description="Retries of idempotent requests after connect failures and early resets.")
    ] = MeshRetry()
    mtls: Annotated[
        Literal["PERMISSIVE", "STRICT", "DISABLE"],
        Meta(description="What servers accept. Between proxies mTLS is always used unless `DISABLE`."),
    ] = "PERMISSIVE"


class AccessLog(Node, frozen=True, kw_only=True):
    mode: Annotated[Literal["none", "failures", "all"], Meta(description="Which requests are logged.")] = "none"
    sampling: Annotated[
        Percent, Meta(description="Of mode `all`: share of the requests that did not fail. Failures are always logged.")
    ] = 100.0


class MeshTracing(Node, frozen=True, kw_only=True):
    """Spans of requests for a collector (OpenTelemetry, Jaeger, Tempo). Applications forward `traceparent`."""

    endpoint: Annotated[
        str,
        Meta(
            pattern=r"^http://(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9.-]{1,253})(:[0-9]{1,5})?(/[\x21-\x7e]*)?$",
            max_length=512,
            description="Takes OTLP over HTTP as JSON. Port 4318 and path `/v1/traces` if left out.",
            examples=["http://collector.observability:4318"],
        ),
    ]
    sampling: Annotated[
        Percent, Meta(description="Share of requests that are traced where the caller has not decided.")
    ] = 1.0
    propagation: Annotated[
        tuple[Literal["w3c", "b3"], ...],
        Meta(min_length=1, max_length=2, description="`b3` is read and written besides `w3c`, which always is."),
    ] = ("w3c",)


EngineName: TypeAlias = Literal["python", "envoy"]


WorkloadNames = Annotated[
    tuple[
        Annotated[
            str,
            Meta(
                pattern=r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?/(\*|[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?)$",
                description="`namespace/workload`, or `namespace/*`.",
                examples=["shop/sa-webapp", "shop/*"],
            ),
        ],
        ...,
    ],
    Meta(min_length=1, max_length=256),
]


class WorkloadEngine(Node, frozen=True, kw_only=True):
    """What does the traffic of some workloads, where that is not what the mesh says."""

    workloads: WorkloadNames
    engine: EngineName


class WorkloadTelemetry(Node, frozen=True, kw_only=True):
    """What is logged and traced of some workloads, where that is not what the mesh says."""

    workloads: WorkloadNames
    access_log: Annotated[AccessLog | None, Meta(description="Left out: as for the mesh.")] = None
    tracing: Annotated[MeshTracing | None, Meta(description="Left out: as for the mesh.")] = None


class MeshSpec(Node, frozen=True, kw_only=True):
    """Settings of the whole mesh. There is at most one Mesh document."""

    trust_domain: Annotated[
        str, Meta(pattern=r"^[a-z0-9._-]{1,255}$", description="SPIFFE trust domain of all identities.")
    ] = "backstay.local"
    defaults: MeshDefaults = MeshDefaults()
    egress: Annotated[
        Literal["ALLOW_ANY", "REGISTRY_ONLY"],
        Meta(description="What proxies do with hosts outside the mesh: pass them through, or answer 502."),
    ] = "ALLOW_ANY"
    access_log: AccessLog = AccessLog()
    tracing: MeshTracing | None = None
    telemetry: Annotated[
        tuple[WorkloadTelemetry, ...],
        Meta(
            max_length=64,
            description="Workloads with an access log or traces of their own. For each of the two a name counts more than "
            "`namespace/*`, the first entry more than the next.",
        ),
    ] = ()
    trusted_hops: Annotated[
        int,
        Meta(
            ge=0,
            le=16,
            description="Proxies in front of the mesh's gateways (load balancers, a CDN) that write X-Forwarded-For. The "
            "address that began a request is the entry that many before the last.",
        ),
    ] = 0
    engine: Annotated[
        EngineName | None,
        Meta(
            description="What does the traffic of every proxy (docs/engines.md); left out: what each was started with. A "
            "proxy changes its engine as a whole, wave by wave."
        ),
    ] = None
    engines: Annotated[
        tuple[WorkloadEngine, ...],
        Meta(
            max_length=64,
            description="Workloads with another engine. A name counts more than `namespace/*`, the first entry more than "
            "the next.",
        ),
    ] = ()
    rollout: MeshRollout = MeshRollout()


# --- Route ------------------------------------------------------------------------------------------------------------


ValueMatchType: TypeAlias = Literal["Exact", "Prefix", "RegularExpression", "Present", "Absent"]
"""A regular expression is RE2 and must take the whole value."""


class HTTPPathMatch(Node, frozen=True, kw_only=True):
    type: Annotated[
        Literal["Exact", "PathPrefix", "RegularExpression"],
        Meta(
            description="`PathPrefix` is per path element: `/v1` takes `/v1` and `/v1/x`, not `/v1beta`. "
            "`RegularExpression` (RE2) must take the whole path."
        ),
    ] = "PathPrefix"
    value: Annotated[
        str,
        Meta(
            pattern=r"^\S+$",
            max_length=1024,
            description="Starts with `/`, without query; or the expression.",
            examples=["/analyse"],
        ),
    ]


class HTTPHeaderMatch(Node, frozen=True, kw_only=True):
    name: HeaderName
    type: ValueMatchType = "Exact"
    value: Annotated[
        str, Meta(max_length=4096, pattern=r"^[^\x00-\x1f\x7f]*$", description="Left out for `Present` and `Absent`.")
    ] = ""


class HTTPQueryParamMatch(Node, frozen=True, kw_only=True):
    name: Annotated[str, Meta(min_length=1, max_length=256)]
    type: ValueMatchType = "Exact"
    value: Annotated[str, Meta(max_length=1024)] = ""


class AuthorityMatch(Node, frozen=True, kw_only=True):
    """The host that a request names, in lower case and without its port."""

    type: Literal["Exact", "Prefix", "RegularExpression"] = "Exact"
    value: Annotated[str, Meta(min_length=1, max_length=1024, pattern=r"^\S+$", examples=["shop.example.com"])]


SourceName = Annotated[
    str,
    Meta(
        pattern=r"^([a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?/(\*|[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?)|[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?)$",
        description="A workload of the document's namespace, `namespace/workload`, or `namespace/*`.",
        examples=["sa-webapp", "shop/sa-webapp", "shop/*"],
    ),
]


class HTTPRouteMatch(Node, frozen=True, kw_only=True):
    """All given fields must hold."""

    path: HTTPPathMatch | None = None
    method: Method | None = None
    headers: Annotated[tuple[HTTPHeaderMatch, ...], Meta(max_length=16)] = ()
    query_params: Annotated[tuple[HTTPQueryParamMatch, ...], Meta(max_length=16)] = ()
    authority: Annotated[
        AuthorityMatch | None, Meta(description="For hosts with several spellings, and wildcard hosts of a Gateway.")
    ] = None
    port: Annotated[Port | None, Meta(description="Only requests to this port of the hosts.")] = None
    sources: Annotated[
        tuple[SourceName, ...], Meta(max_length=64, description="Only requests that these workloads make.")
    ] = ()


class ServiceRef(Node, frozen=True, kw_only=True):
    """A port of a service, or a subset of the instances behind it."""

    name: Annotated[Host, Meta(description="The service: `name`, or `name.namespace` for another namespace's.")]
    port: Annotated[Port | None, Meta(description="Port of the service; left out: the route's port.")] = None
    subset: Annotated[Name | None, Meta(description="A subset that the service's Backend document defines.")] = None


class BackendRef(ServiceRef, frozen=True, kw_only=True):
    weight: Annotated[int, Meta(ge=0, le=1_000_000, description="Share among the rule's backendRefs.")] = 1


# --- filters of a rule (Gateway API's form: a type, and a field of that name) -------------------------------------------

HeaderValue = Annotated[str, Meta(max_length=4096, pattern=r"^[^\x00-\x1f\x7f]*$")]
NewPath = Annotated[str, Meta(pattern=r"^/[^\s?#]*$", max_length=1024, examples=["/v2"])]


class HeaderField(Node, frozen=True, kw_only=True):
    name: HeaderName
    value: HeaderValue


class HeaderModifier(Node, frozen=True, kw_only=True):
    """Header edits: names in `remove` go first, then `set` replaces, then `add` adds."""

    set: Annotated[tuple[HeaderField, ...], Meta(max_length=16)] = ()
    add: Annotated[tuple[HeaderField, ...], Meta(max_length=16)] = ()
    remove: Annotated[tuple[HeaderName, ...], Meta(max_length=16)] = ()


class PathModifier(Node, frozen=True, kw_only=True):
    """A new path; the query stays."""

    type: Annotated[
        Literal["ReplaceFullPath", "ReplacePrefixMatch", "ReplaceRegex"],
        Meta(description="`ReplacePrefixMatch` replaces the prefix by which the rule took the request."),
    ]
    replace_full_path: NewPath | None = None
    replace_prefix_match: NewPath | None = None
    pattern: Annotated[
        str, Meta(max_length=1024, description="RE2; every find is replaced.", examples=["^/v1/([^/]+)$"])
    ] = ""
    substitution: Annotated[str, Meta(max_length=1024, description="What is put there; `\\1` is the first group.")] = ""


class UrlRewrite(Node, frozen=True, kw_only=True):
    hostname: Annotated[Host | None, Meta(description="The Host header that the service gets, as written here.")] = None
    path: PathModifier | None = None


class RequestRedirect(Node, frozen=True, kw_only=True):
    """An answer that sends the caller elsewhere. What is left out stays as in the request."""

    scheme: Literal["http", "https"] | None = None
    hostname: Host | None = None
    port: Annotated[Port | None, Meta(description="Left out: the scheme's own port where `scheme` is given.")] = None
    path: PathModifier | None = None
    status_code: Annotated[
        int, Meta(ge=301, le=308, description="301, 302, 303, 307 or 308; 302 as in Gateway API.")
    ] = 302


class DirectResponse(Node, frozen=True, kw_only=True):
    """An answer that the proxy gives itself."""

    status: Annotated[int, Meta(ge=200, le=599)]
    body: Annotated[str, Meta(max_length=65536, description="At most 64 KiB: it travels with the config.")] = ""
    content_type: Annotated[str, Meta(max_length=128, pattern=r"^[!-~]+(; ?[!-~]+)*$")] = "text/plain"


class RequestMirror(Node, frozen=True, kw_only=True):
    """Copies of requests to another service. Nobody waits for them, and their answers are thrown away."""

    backend_ref: ServiceRef
    percent: Percent = 100.0


class OriginMatch(Node, frozen=True, kw_only=True):
    type: Literal["Exact", "Prefix", "RegularExpression"] = "Exact"
    value: Annotated[
        str,
        Meta(
            min_length=1,
            max_length=1024,
            pattern=r"^\S+$",
            description="An origin, scheme included; `*` is every origin.",
            examples=["https://shop.example.com"],
        ),
    ]


class CorsPolicy(Node, frozen=True, kw_only=True):
    """Which pages of other origins may read the answers. A preflight of an origin that is not listed is forwarded."""

    allow_origins: Annotated[tuple[OriginMatch, ...], Meta(min_length=1, max_length=32)]
    allow_methods: Annotated[tuple[Method, ...], Meta(max_length=16)] = ()
    allow_headers: Annotated[tuple[HeaderName, ...], Meta(max_length=64)] = ()
    expose_headers: Annotated[tuple[HeaderName, ...], Meta(max_length=64)] = ()
    max_age: Annotated[Duration | None, Meta(description="How long a browser may remember a preflight.")] = None
    allow_credentials: bool = False


class RateLimit(Node, frozen=True, kw_only=True):
    """A token bucket in each proxy: requests beyond it are answered 429 with `Retry-After`."""

    requests: Annotated[int, Meta(ge=1, le=1_000_000, description="How many requests are let through in each `per`.")]
    per: Annotated[Duration, Meta(description="At least 10ms.")] = "1s"
    burst: Annotated[
        Annotated[int, Meta(ge=1, le=1_000_000)] | None, Meta(description="Size of the bucket; left out: `requests`.")
    ] = None


FILTER_FIELDS: Final = {
    "RequestHeaderModifier": "requestHeaderModifier",
    "ResponseHeaderModifier": "responseHeaderModifier",
    "RequestMirror": "requestMirror",
    "RequestRedirect": "requestRedirect",
    "URLRewrite": "urlRewrite",
    "DirectResponse": "directResponse",
    "CORS": "cors",
    "RateLimit": "rateLimit",
}
"""Type of a filter -> the field that holds its settings."""


class RouteFilter(Node, frozen=True, kw_only=True):
    """One thing done to requests or answers of a rule: `type`, and the field of that name."""

    type: Literal[
        "RequestHeaderModifier",
        "ResponseHeaderModifier",
        "RequestMirror",
        "RequestRedirect",
        "URLRewrite",
        "DirectResponse",
        "CORS",
        "RateLimit",
    ]
    request_header_modifier: HeaderModifier | None = None
    response_header_modifier: HeaderModifier | None = None
    request_mirror: RequestMirror | None = None
    request_redirect: RequestRedirect | None = None
    url_rewrite: UrlRewrite | None = None
    direct_response: DirectResponse | None = None
    cors: CorsPolicy | None = None
    rate_limit: RateLimit | None = None


class SessionPersistence(Node, frozen=True, kw_only=True):
    """Requests that carry the same value go to the same one of the rule's backendRefs as long as weights stay."""

    type: Literal["Header", "Cookie"]
    name: Annotated[HeaderName, Meta(description="Name of the header or cookie.")]
    ttl: Annotated[
        Duration | None,
        Meta(
            description="With it callers without the cookie get one that lives so long (`0s`: as long as the browser is "
            "open); without it only cookies of others are looked at."
        ),
    ] = None


class Timeouts(Node, frozen=True, kw_only=True):
    request: Annotated[Duration | None, Meta(description="The whole exchange, retries included; `0s` is no limit.")] = (
        None
    )
    backend_request: Annotated[Duration | None, Meta(description="One attempt; at most `request`.")] = None
    idle: Annotated[
        Duration | None, Meta(description="Without a byte in either direction; looked at about twice a second.")
    ] = None


RetryOn: TypeAlias = Literal[
    "connect-failure",
    "reset-before-request",
    "reset",
    "gateway-error",
    "5xx",
    "retriable-4xx",
    "retriable-status-codes",
]


class RouteRetry(Node, frozen=True, kw_only=True):
    attempts: Annotated[int, Meta(ge=0, le=10, description="Retries after the first try.")] = 2
    retry_on: Annotated[tuple[RetryOn, ...], Meta(description="Conditions, named as Envoy names them.")] = (
        "connect-failure",
        "reset-before-request",
    )
    backoff: Annotated[Duration, Meta(description="Base of the full-jitter exponential back-off.")] = "25ms"
    budget_percent: Annotated[int, Meta(ge=0, le=100)] = 20
    status_codes: Annotated[
        tuple[Annotated[int, Meta(ge=400, le=599)], ...],
        Meta(max_length=16, description="What `retriable-status-codes` means."),
    ] = ()
    any_method: Annotated[
        bool, Meta(description="Retry requests that are not idempotent (POST, PATCH) too. Know what you do.")
    ] = False


class FaultDelay(Node, frozen=True, kw_only=True):
    duration: Duration
    percentage: Percent = 100.0


class FaultAbort(Node, frozen=True, kw_only=True):
    status: Annotated[int, Meta(ge=400, le=599)]
    percentage: Percent = 100.0


class FaultInjection(Node, frozen=True, kw_only=True):
    delay: FaultDelay | None = None
    abort: FaultAbort | None = None


class RouteRule(Node, frozen=True, kw_only=True):
    """One rule; the first rule of a route with a matching match takes the request."""

    name: Name | None = None
    matches: Annotated[
        tuple[HTTPRouteMatch, ...], Meta(max_length=32, description="Alternatives; none takes every request.")
    ] = ()
    backend_refs: Annotated[
        tuple[BackendRef, ...],
        Meta(max_length=32, description="Needed unless a filter answers (redirect, direct response)."),
    ] = ()
    filters: Annotated[
        tuple[RouteFilter, ...],
        Meta(max_length=16, description="What is done to requests and answers; each type once, mirrors excepted."),
    ] = ()
    session_persistence: SessionPersistence | None = None
    timeouts: Timeouts = Timeouts()
    retry: RouteRetry | None = None
    fault: Annotated[FaultInjection | None, Meta(description="Failures made on purpose, for tests of callers.")] = None


def service_refs(rule: RouteRule) -> Iterator[tuple[str, ServiceRef]]:
    """Every service that a rule names, with its path inside the rule: backends first, then mirrors."""
    for index, ref in enumerate(rule.backend_refs):
        yield f"backendRefs[{index}]", ref
    for index, item in enumerate(rule.filters):
        if item.request_mirror is not None:
            yield f"filters[{index}].requestMirror.backendRef", item.request_mirror.backend_ref


class ParentRef(Node, frozen=True, kw_only=True):
    """Where a Route holds: at a Gateway's listeners, or in the mesh (at every caller's proxy)."""

    kind: Annotated[Literal["Gateway", "Mesh"], Meta(description="`Mesh` has no name: there is one.")] = "Gateway"
    name: Annotated[Name | None, Meta(description="Name of the Gateway.")] = None
    namespace: Annotated[Name | None, Meta(description="Namespace of the Gateway; left out: the Route's.")] = None
    section_name: Annotated[
        Name | None, Meta(description="One listener of the Gateway; left out: every one that serves the host.")
    ] = None


class RouteSpec(Node, frozen=True, kw_only=True):
    """Where requests to a host go."""

    parent_refs: Annotated[
        tuple[ParentRef, ...],
        Meta(max_length=16, description="Gateways that this route is for; left out: the mesh."),
    ] = ()
    hosts: Annotated[tuple[HostPattern, ...], Meta(min_length=1, max_length=32, description="Hosts this route is for.")]
    port: Annotated[Port | None, Meta(description="Only this port of the hosts; left out: every HTTP port.")] = None
    rules: Annotated[tuple[RouteRule, ...], Meta(min_length=1, max_length=256)]
    rollout: TrafficSteps = TrafficSteps()


# --- Backend ----------------------------------------------------------------------------------------------------------


class SubsetSpec(Node, frozen=True, kw_only=True):
    name: Name
    labels: Annotated[
        dict[str, str],
        Meta(
            min_length=1, max_length=16, description="Labels an instance must all carry.", examples=[{"version": "v2"}]
        ),
    ]


class HashOn(Node, frozen=True, kw_only=True):
    """The value by which requests keep their instance."""

    type: Annotated[
        Literal["Header", "Cookie", "QueryParam", "Source"], Meta(description="`Source` is the caller's address.")
    ]
    name: Annotated[str, Meta(max_length=256, description="Of the header, cookie or parameter.")] = ""


class LoadBalancing(Node, frozen=True, kw_only=True):
    policy: Annotated[
        Literal["LeastRequest", "RoundRobin", "Random", "RingHash", "Maglev"],
        Meta(description="`LeastRequest` takes the better of two random picks; `RingHash` and `Maglev` need `hashOn`."),
    ] = "LeastRequest"
    hash_on: HashOn | None = None
    slow_start: Annotated[
        Duration,
        Meta(description="A new instance gets its full share after this time (LeastRequest, RoundRobin, Random)."),
    ] = "0s"
    same_zone_first: Annotated[
        bool,
        Meta(
            description="Instances of the caller's zone, and others for what too few of them that are well cannot take."
        ),
    ] = False


class ConnectionLimits(Node, frozen=True, kw_only=True):
    connect_timeout: Duration = "5s"
    max_connections: Annotated[int, Meta(ge=0, description="From one proxy to the service; 0 is no limit.")] = 0
    max_requests: Annotated[
        int, Meta(ge=0, description="Under way from one proxy to a subset; one more gets 503. 0 is no limit.")
    ] = 0


class OutlierDetection(Node, frozen=True, kw_only=True):
    """Instances that keep failing are left out for a while, as each caller's proxy sees it."""

    consecutive_5xx: Annotated[
        int, Meta(ge=0, description="Failures in a row, tries without an answer included; 0 is off, as below.")
    ] = msgspec.field(default=5, name="consecutive5xx")
    consecutive_gateway_errors: Annotated[int, Meta(ge=0, description="502, 503, 504, or no answer.")] = 0
    consecutive_local_failures: Annotated[int, Meta(ge=0, description="No answer at all.")] = 0
    base_ejection_time: Annotated[Duration, Meta(description="Times the number of ejections so far.")] = "30s"
    max_ejection_time: Duration = "5m"
    max_ejection_percent: Annotated[
        int, Meta(ge=0, le=100, description="Of the instances; one may always go, unless it is the only one.")
    ] = 10


class ActiveHealthCheck(Node, frozen=True, kw_only=True):
    """GET requests of each caller's proxy to every instance, from its first request to the service on; 2xx is healthy."""

    path: Annotated[str, Meta(pattern=r"^/[^\s?#]*$", max_length=1024, examples=["/healthz"])]
    interval: Annotated[Duration, Meta(description="At least 500ms.")] = "10s"
    timeout: Duration = "1s"
    unhealthy_threshold: Annotated[int, Meta(ge=1, le=100)] = 3
    healthy_threshold: Annotated[int, Meta(ge=1, le=100)] = 1


class UpstreamTls(Node, frozen=True, kw_only=True):
    mode: Annotated[
        Literal["MESH", "DISABLE"], Meta(description="`MESH`: mTLS to every instance that has a proxy.")
    ] = "MESH"


class BackendSpec(Node, frozen=True, kw_only=True):
    """How callers reach one service."""

    service: Annotated[Host, Meta(description="The service this document is about.")]
    subsets: Annotated[tuple[SubsetSpec, ...], Meta(max_length=64)] = ()
    load_balancing: LoadBalancing = LoadBalancing()
    connections: ConnectionLimits = ConnectionLimits()
    outlier_detection: Annotated[OutlierDetection | None, Meta(description="Left out: nobody is ejected.")] = None
    health_check: Annotated[ActiveHealthCheck | None, Meta(description="Left out: nobody is checked.")] = None
    tls: UpstreamTls = UpstreamTls()
    rollout: DocumentRollout = DocumentRollout()


# --- Authentication, Authorization ------------------------------------------------------------------------------------


class WorkloadSelector(Node, frozen=True, kw_only=True):
    """Which workloads of the document's namespace a policy is for; empty selects all of them."""

    workloads: Annotated[tuple[Name, ...], Meta(description="Names of workloads.", max_length=64)] = ()


class PortMtls(Node, frozen=True, kw_only=True):
    port: Port
    mode: Literal["PERMISSIVE", "STRICT", "DISABLE"]


class Mtls(Node, frozen=True, kw_only=True):
    mode: Annotated[
        Literal["PERMISSIVE", "STRICT", "DISABLE"],
        Meta(description="`STRICT`: only mTLS. `PERMISSIVE`: plaintext too. `DISABLE`: only plaintext."),
    ] = "PERMISSIVE"
    ports: Annotated[tuple[PortMtls, ...], Meta(description="Exceptions by the application's own port.")] = ()


PathPattern = Annotated[
    str,
    Meta(
        pattern=r"^(\*|/[^\s?#*]*\*?|\*[^\s?#*]+)$",
        description="Exact (`/feedback`), a prefix (`/static/*`), a suffix (`*.ico`) or `*`.",
        examples=["/analyse/*"],
    ),
]


class TokenHeader(Node, frozen=True, kw_only=True):
    name: HeaderName
    prefix: Annotated[
        str, Meta(max_length=64, pattern=r"^[ -~]*$", description="What stands before the token.", examples=["Bearer "])
    ] = ""


class ClaimHeader(Node, frozen=True, kw_only=True):
    header: Annotated[HeaderName, Meta(description="What callers send under this name is removed.")]
    claim: Annotated[str, Meta(min_length=1, max_length=256, pattern=r"^\S+$", examples=["sub", "realm_access.roles"])]


class JwtProvider(Node, frozen=True, kw_only=True):
    """Whose tokens (JWT) are believed, and where a request carries them."""

    issuer: Annotated[
        str, Meta(min_length=1, max_length=512, pattern=r"^\S+$", description="The tokens' `iss`, exactly.")
    ]
    audiences: Annotated[
        tuple[Annotated[str, Meta(min_length=1, max_length=512)], ...],
        Meta(max_length=32, description="One of them must be in `aud`; left out: any."),
    ] = ()
    jwks: Annotated[
        str, Meta(max_length=65536, description="The issuer's public keys as a JSON Web Key Set; or `jwksUri`.")
    ] = ""
    jwks_uri: Annotated[
        str,
        Meta(
            max_length=1024,
            pattern=r"^(https?://[^\s/?#@]+(/[^\s#]*)?)?$",
            description="Where the operator fetches the key set. Proxies get it from the operator and keep the last good one.",
            examples=["https://issuer.example/.well-known/jwks.json"],
        ),
    ] = ""
    from_headers: Annotated[
        tuple[TokenHeader, ...],
        Meta(
            max_length=8,
            description="Where tokens stand. If no place is given: `Authorization: Bearer`, and the parameter `access_token`.",
        ),
    ] = ()
    from_params: Annotated[
        tuple[Annotated[str, Meta(min_length=1, max_length=256, pattern=r"^[^\s&=#?]+$")], ...],
        Meta(max_length=8, description="Query parameters."),
    ] = ()
    from_cookies: Annotated[
        tuple[Annotated[str, Meta(min_length=1, max_length=256, pattern=r"^[^\s;=,]+$")], ...], Meta(max_length=8)
    ] = ()
    forward_original_token: Annotated[bool, Meta(description="Whether the application gets the token, too.")] = False
    output_claim_to_headers: Annotated[
        tuple[ClaimHeader, ...], Meta(max_length=16, description="What the application is told of the token.")
    ] = ()


class JwtRules(Node, frozen=True, kw_only=True):
    """Tokens of requests. One that is there must be valid; one that is missing is no fault unless it is required."""

    providers: Annotated[tuple[JwtProvider, ...], Meta(min_length=1, max_length=16)]
    required: Annotated[
        tuple[PathPattern, ...],
        Meta(max_length=128, description="Paths that must bring a token; `*` is all. Left out: policies decide."),
    ] = ()
    not_required: Annotated[tuple[PathPattern, ...], Meta(max_length=128, description="Exceptions of those.")] = ()


ForwardClientCert: TypeAlias = Literal["APPEND_FORWARD", "SANITIZE_SET", "FORWARD_ONLY", "SANITIZE"]


class AuthenticationSpec(Node, frozen=True, kw_only=True):
    """What callers must prove."""

    selector: WorkloadSelector = WorkloadSelector()
    mtls: Mtls = Mtls()
    forward_client_cert: Annotated[
        ForwardClientCert,
        Meta(
            description="What applications are told of callers that use mTLS, in X-Forwarded-Client-Cert, with Envoy's "
            "words: what came and this caller (`APPEND_FORWARD`), this caller alone (`SANITIZE_SET`), what came "
            "(`FORWARD_ONLY`), nothing (`SANITIZE`). Callers in plaintext never have any."
        ),
    ] = "APPEND_FORWARD"
    jwt: Annotated[JwtRules | None, Meta(description="Left out: tokens are not looked at.")] = None
    rollout: DocumentRollout = DocumentRollout()


IpBlock = Annotated[
    str,
    Meta(
        pattern=r"^[0-9a-fA-F:.]{2,45}(/[0-9]{1,3})?$",
        description="An address, or a block of them (CIDR).",
        examples=["10.2.0.0/16", "2001:db8::1"],
    ),
]
TokenPattern = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=512,
        pattern=r"^(\*|[^*]+\*?|\*[^*]+)$",
        description="Exact, a prefix ending in `*`, a suffix that begins with `*`, or `*` for any.",
        examples=["admin", "https://issuer.example/*"],
    ),
]
ServiceAccount = Annotated[str, Meta(pattern=r"^([a-z0-9-]+/)?[a-z0-9-]+$", examples=["shop/sa-webapp"])]


class ClaimCondition(Node, frozen=True, kw_only=True):
    """One claim of the request's token (JWT). Without a verified token no condition holds."""

    name: Annotated[
        str,
        Meta(
            min_length=1,
            max_length=256,
            pattern=r"^\S+$",
            description="A claim, or one within another, joined by dots. A claim that is a list has all its elements as "
            "values; `scope` is a list written as one text.",
            examples=["groups", "realm_access.roles"],
        ),
    ]
    values: Annotated[
        tuple[TokenPattern, ...], Meta(max_length=64, description="One of them; left out: any value, but one.")
    ] = ()
    not_values: Annotated[tuple[TokenPattern, ...], Meta(max_length=64, description="None of them.")] = ()


class AuthorizationSource(Node, frozen=True, kw_only=True):
    """Who calls. All given fields must hold; values of one field are alternatives, of a `not...` field none may hold."""

    principals: Annotated[tuple[SpiffeId, ...], Meta(max_length=128)] = ()
    service_accounts: Annotated[
        tuple[ServiceAccount, ...],
        Meta(description="`namespace/name`, or a name of the document's namespace.", max_length=128),
    ] = ()
    namespaces: Annotated[tuple[Name, ...], Meta(max_length=128)] = ()
    ip_blocks: Annotated[
        tuple[IpBlock, ...], Meta(description="Where the connection comes from: the last hop.", max_length=128)
    ] = ()
    remote_ip_blocks: Annotated[
        tuple[IpBlock, ...],
        Meta(
            description="Where the request began, by X-Forwarded-For and the Mesh's `trustedHops`. As true as what stands in "
            "front of this workload: a caller inside of the mesh may write any.",
            max_length=128,
        ),
    ] = ()
    request_principals: Annotated[
        tuple[TokenPattern, ...],
        Meta(description="`<issuer>/<subject>` of the request's token; `*` is any valid token.", max_length=128),
    ] = ()
    claims: Annotated[
        tuple[ClaimCondition, ...], Meta(description="All of them must hold for the token.", max_length=32)
    ] = ()
    not_principals: Annotated[tuple[SpiffeId, ...], Meta(max_length=128)] = ()
    not_service_accounts: Annotated[tuple[ServiceAccount, ...], Meta(max_length=128)] = ()
    not_namespaces: Annotated[tuple[Name, ...], Meta(max_length=128)] = ()
    not_ip_blocks: Annotated[tuple[IpBlock, ...], Meta(max_length=128)] = ()
    not_remote_ip_blocks: Annotated[tuple[IpBlock, ...], Meta(max_length=128)] = ()
    not_request_principals: Annotated[
        tuple[TokenPattern, ...], Meta(description="A request without a token meets this.", max_length=128)
    ] = ()


AuthorityPattern = Annotated[
    str,
    Meta(
        pattern=r"^(\*|[A-Za-z0-9.-]{1,253}\*?|\*[A-Za-z0-9.-]{1,253})$",
        description="Exact, a prefix ending in `*`, a suffix that begins with `*`, or `*`; case does not matter.",
        examples=["shop.example.com", "*.example.com"],
    ),
]


class AuthorizationOperation(Node, frozen=True, kw_only=True):
    """What is asked. All given fields must hold; values of one field are alternatives, of a `not...` field none may hold."""

    methods: Annotated[tuple[Method, ...], Meta(max_length=32)] = ()
    paths: Annotated[tuple[PathPattern, ...], Meta(max_length=128)] = ()
    headers: Annotated[tuple[HTTPHeaderMatch, ...], Meta(max_length=16)] = ()
    ports: Annotated[tuple[Port, ...], Meta(description="The application's own ports.", max_length=32)] = ()
    hosts: Annotated[
        tuple[AuthorityPattern, ...],
        Meta(description="The host that the request names, without its port.", max_length=64),
    ] = ()
    not_methods: Annotated[tuple[Method, ...], Meta(max_length=32)] = ()
    not_paths: Annotated[tuple[PathPattern, ...], Meta(max_length=128)] = ()
    not_ports: Annotated[tuple[Port, ...], Meta(max_length=32)] = ()
    not_hosts: Annotated[tuple[AuthorityPattern, ...], Meta(max_length=64)] = ()


class AuthorizationRule(Node, frozen=True, kw_only=True):
    """Matches when one of `from` and one of `to` match; a list left out matches everything."""

    from_: Annotated[tuple[AuthorizationSource, ...], Meta(description="Callers, as alternatives.", max_length=64)] = (
        msgspec.field(default=(), name="from")
    )
    to: Annotated[
        tuple[AuthorizationOperation, ...], Meta(description="Operations, as alternatives.", max_length=64)
    ] = ()


class AuthorizationSpec(Node, frozen=True, kw_only=True):
    """Who may ask what of the selected workloads. Deny goes first; once there is any Allow, one must match."""

    selector: WorkloadSelector = WorkloadSelector()
    action: Literal["Allow", "Deny", "Audit"] = "Allow"
    rules: Annotated[
        tuple[AuthorizationRule, ...],
        Meta(description="Alternatives. An Allow without rules lets nobody in.", max_length=256),
    ] = ()
    rollout: DocumentRollout = DocumentRollout()


# --- Guardrail, Expectation -------------------------------------------------------------------------------------------


class GuardrailValidation(Node, frozen=True, kw_only=True):
    """One condition that a changed document must meet."""

    expression: Annotated[
        str,
        Meta(
            min_length=1,
            max_length=2048,
            description="CEL, true where all is well. `object` is the document as it would be (defaults filled in), "
            "`oldObject` as it is live (null for a new one), `operation` is `CREATE`, `UPDATE` or `DELETE`, and "
            "`change.weightStep` the greatest move of traffic in percentage points.",
            examples=["object.spec.rules.all(r, r.retry == null || r.retry.attempts <= 3)"],
        ),
    ]
    message: Annotated[str, Meta(max_length=512, description="What to tell the author.")] = ""


class GuardrailSpec(Node, frozen=True, kw_only=True):
    """Conditions for documents and for their changes, judged in review and by the operator.

    Live guardrails judge a commit, also one that changes the guardrails: loosening one takes a commit of its own.
    """

    kinds: Annotated[
        tuple[Literal["Mesh", "Route", "Backend", "Gateway", "Authentication", "Authorization", "ExternalService",
              "Telemetry", "Guardrail", "Expectation"], ...],
        Meta(description="Kinds of documents that are looked at; none is every kind.", max_length=16),
    ] = ()  # fmt: skip
    namespaces: Annotated[tuple[Name, ...], Meta(description="Only these namespaces; none is all.", max_length=64)] = ()
    operations: Annotated[
        tuple[Literal["CREATE", "UPDATE", "DELETE"], ...],
        Meta(description="Changes that are looked at; `object` is null when a document is deleted.", min_length=1),
    ] = ("CREATE", "UPDATE")
    severity: Annotated[
        Literal["Deny", "Warn", "Audit"],
        Meta(description="`Deny` makes the commit invalid; `Warn` and `Audit` are only said, `Audit` in reviews only."),
    ] = "Deny"
    validations: Annotated[tuple[GuardrailValidation, ...], Meta(min_length=1, max_length=32)]
    failure_policy: Annotated[
        Literal["Fail", "Ignore"],
        Meta(description="What an expression that cannot be evaluated for a document means (a missing field, say)."),
    ] = "Fail"


class ExpectedRequest(Node, frozen=True, kw_only=True):
    method: Method = "GET"
    url: Annotated[
        str,
        Meta(pattern=r"^(http://)?[^\s/?#@]+(/[^\s#]*)?$", max_length=2048, examples=["http://sa-logic/analyse"]),
    ]
    headers: Annotated[dict[str, str], Meta(max_length=32)] = {}


class ExpectedShare(Node, frozen=True, kw_only=True):
    name: Annotated[Host, Meta(description="The service.")]
    port: Port | None = None
    subset: Name | None = None
    percent: Percent = 100.0


class Expected(Node, frozen=True, kw_only=True):
    """What must become of a request; what is left out may be anything."""

    outcome: Annotated[
        Literal["Routed", "Redirected", "Answered", "NoRoute", "PassedThrough", "Refused", "Denied", ""],
        Meta(
            description="`Routed`: somebody would answer. `Denied`: whoever it is sent to refuses it. `Answered`: by the "
            "proxy itself. `Refused`: the caller's own proxy does not let it out."
        ),
    ] = ""
    rule: Annotated[str, Meta(max_length=64, description="Name of the rule that takes it.")] = ""
    destinations: Annotated[
        tuple[ExpectedShare, ...], Meta(max_length=32, description="All destinations with their shares.")
    ] = ()
    timeout: Annotated[Duration | None, Meta(description="Of the whole exchange.")] = None
    retries: Annotated[int | None, Meta(description="Tries after the first.")] = None


class ExpectationSpec(Node, frozen=True, kw_only=True):
    """A request and what must become of it: a repository's own tests. A commit that breaks one is invalid."""

    from_: Annotated[str, Meta(description="Whose request it is: a workload, `name` or `namespace/name`.")] = (
        msgspec.field(name="from")
    )
    request: ExpectedRequest
    expect: Expected


# --- Gateway ----------------------------------------------------------------------------------------------------------


class SecretRef(Node, frozen=True, kw_only=True):
    """A certificate with its key, kept outside of git: on Kubernetes a Secret of type `kubernetes.io/tls` in the Gateway's
    namespace, on one machine the folder `<secrets>/<namespace>/<name>` with `tls.crt` and `tls.key`."""

    name: Name


class GatewayTls(Node, frozen=True, kw_only=True):
    secret_ref: Annotated[SecretRef | None, Meta(description="Needed for protocol HTTPS.")] = None
    min_version: Literal["1.2", "1.3"] = "1.2"


class GatewayListener(Node, frozen=True, kw_only=True):
    """One port, or some of the hosts of one: listeners of a port are told apart by SNI and Host."""

    name: Name
    port: Annotated[int, Meta(ge=1, le=65535, description="The port that the gateway listens on.", examples=[8080])]
    protocol: Annotated[
        Literal["HTTP", "HTTPS", "TLS"],
        Meta(description="`HTTPS` ends TLS here. `TLS` passes it through to the service that the SNI's Route names."),
    ] = "HTTP"
    hosts: Annotated[tuple[HostPattern, ...], Meta(max_length=64, description="Left out: every host.")] = ()
    tls: Annotated[GatewayTls | None, Meta(description="For protocol HTTPS.")] = None
    redirect_to_https: Annotated[
        bool, Meta(description="Answer 301 with the same place under https; for protocol HTTP.")
    ] = False


class GatewaySpec(Node, frozen=True, kw_only=True):
    """Ports at which callers from outside reach the mesh, and the workloads that open them."""

    selector: WorkloadSelector = WorkloadSelector()
    listeners: Annotated[tuple[GatewayListener, ...], Meta(min_length=1, max_length=64)]
    rollout: DocumentRollout = DocumentRollout()


# --- ExternalService --------------------------------------------------------------------------------------------------

ExternalHost = Annotated[
    str,
    Meta(
        pattern=r"^(\*\.)?[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?(\.[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?)+$",
        max_length=253,
        description="A host name with dots in lower case; `*.example.com` is every name below it.",
        examples=["api.payments.example", "*.example.com"],
    ),
]


class ExternalPort(Node, frozen=True, kw_only=True):
    port: Port
    protocol: Annotated[
        Literal["HTTP", "TLS", "TCP"],
        Meta(
            description="`HTTP`: callers get routes, timeouts, retries and limits, as for a service of the mesh. `TLS` and "
            "`TCP` are passed through."
        ),
    ] = "HTTP"


class TlsOrigination(Node, frozen=True, kw_only=True):
    """TLS that the caller's proxy begins: the application speaks plain HTTP to it."""

    port: Annotated[Port, Meta(description="Where the host speaks TLS.")] = 443
    sni: Annotated[Host | None, Meta(description="Left out: the host.")] = None
    subject_alt_names: Annotated[
        tuple[Host, ...], Meta(max_length=16, description="One of them must be in the certificate; left out: the SNI.")
    ] = ()
    ca_certificates: Annotated[
        str,
        Meta(
            max_length=65536,
            description="Who may have signed the certificate, as PEM (`>-` joins its lines); left out: whom the system trusts.",
        ),
    ] = ""


class ExternalServiceSpec(Node, frozen=True, kw_only=True):
    """Hosts outside of the mesh. With `egress: REGISTRY_ONLY` of the Mesh nothing else is let out."""

    hosts: Annotated[tuple[ExternalHost, ...], Meta(min_length=1, max_length=64)]
    ports: Annotated[tuple[ExternalPort, ...], Meta(min_length=1, max_length=16)]
    tls: Annotated[
        TlsOrigination | None, Meta(description="For ports of protocol HTTP. Left out: they are asked in plain text.")
    ] = None
    rollout: DocumentRollout = DocumentRollout()


# --- envelope ---------------------------------------------------------------------------------------------------------


class Metadata(Node, frozen=True, kw_only=True):
    name: Name
    namespace: Annotated[Name, Meta(description="Left out: the repository's default namespace.")] = "default"
    labels: Annotated[dict[str, str], Meta(description="For people; they select nothing.")] = {}
    annotations: Annotated[dict[str, str], Meta(description="For people.")] = {}


Spec: TypeAlias = (
    MeshSpec
    | RouteSpec
    | BackendSpec
    | AuthenticationSpec
    | AuthorizationSpec
    | GatewaySpec
    | ExternalServiceSpec
    | GuardrailSpec
    | ExpectationSpec
)

KINDS: Final[dict[str, Any]] = {
    "Mesh": MeshSpec,
    "Route": RouteSpec,
    "Backend": BackendSpec,
    "Authentication": AuthenticationSpec,
    "Authorization": AuthorizationSpec,
    "Gateway": GatewaySpec,
    "ExternalService": ExternalServiceSpec,
    "Guardrail": GuardrailSpec,
    "Expectation": ExpectationSpec,
}
"""Kind -> type of its spec. A new kind is added here and nowhere else first: schemas, docs and CLI follow."""
