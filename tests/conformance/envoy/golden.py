"""Configs whose rendering is kept in golden/*.json, each as one static bootstrap that `envoy --mode validate` can look at.

`python tests/conformance/envoy/golden.py` writes them anew; what has changed is then to be read in the diff.
"""

import json
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from backstay.config.model import (
    AuthorityMatch,
    Authorization,
    Backend,
    ClaimMatch,
    Config,
    Cors,
    DirectResponse,
    External,
    Fault,
    GatewayListener,
    HashOn,
    HeaderEdits,
    HealthCheck,
    HostRoutes,
    InboundPort,
    Jwt,
    JwtProvider,
    Listeners,
    Manifest,
    Match,
    Mirror,
    Operation,
    OriginTls,
    Outlier,
    Part,
    PathMatch,
    PathRewrite,
    Policy,
    PolicyRule,
    RateLimit,
    Redirect,
    Retry,
    Rewrite,
    Rule,
    Source,
    Sticky,
    Subset,
    TokenPlace,
    Tracing,
    ValueMatch,
    WeightedBackend,
    digest_of,
    encode_part,
)
from backstay.config.wire import Endpoint
from backstay.sidecar.engine import Address, ExplicitListener, Redirected
from backstay.sidecar.engines.envoy.bootstrap import RUNTIME
from backstay.sidecar.engines.envoy.files import Folder
from backstay.sidecar.engines.envoy.render import Rendered, World, render

FOLDER: Final = Path(__file__).parent / "golden"
DOMAIN: Final = "golden.mesh"
ADDRESS: Final = Address(
    host="127.0.0.2",
    inbound={8080: 18080, 7070: 17070},
    outbound=15001,
    explicit=(ExplicitListener(listen=15101, host="web.shop", port=80),),
    zone="a",
)
WEB: Final = Backend(
    service="web.shop",
    port=80,
    subsets=(Subset(name="v1", labels=(("version", "v1"),)), Subset(name="v2", labels=(("version", "v2"),))),
    balance="ring_hash",
    hash_on=HashOn(kind="header", name="x-user"),
    max_connections=100,
    max_requests=200,
    outlier=Outlier(consecutive_5xx=3, consecutive_gateway=2, consecutive_local=2),
    health=HealthCheck(path="/healthz"),
    same_zone_first=True,
)
API: Final = Backend(service="api.shop", port=80, balance="round_robin", slow_start_ms=30_000, tls="disable")
DATABASE: Final = Backend(service="db.shop", port=5432, protocol="tcp")


def to(*targets: str) -> tuple[WeightedBackend, ...]:
    return tuple(
        WeightedBackend(backend=target.partition("/")[0], subset=target.partition("/")[2]) for target in targets
    )


def path(kind: Any, value: str) -> PathMatch:
    return PathMatch(kind=kind, value=value)


MATCHES: Final = HostRoutes(
    host="web.shop",
    port=80,
    rules=(
        Rule(name="exact", matches=(Match(path=path("exact", "/a"), method="GET"),), backends=to("web.shop:80/v1")),
        Rule(name="regex", matches=(Match(path=path("regex", "/b[0-9]+")),), backends=to("web.shop:80/v2")),
        Rule(
            name="fields",
            matches=(
                Match(
                    headers=(
                        ValueMatch(name="x-a", kind="exact", value="1"),
                        ValueMatch(name="x-b", kind="absent"),
                        ValueMatch(name="x-c", kind="present"),
                    ),
                    query=(ValueMatch(name="q", kind="prefix", value="v"), ValueMatch(name="r", kind="absent")),
                    authority=AuthorityMatch(kind="prefix", value="web"),
                ),
            ),
            backends=to("api.shop:80"),
        ),
        Rule(name="others", matches=(Match(sources=("bank/*",)),), backends=to("api.shop:80")),
        Rule(
            name="split", backends=to("web.shop:80/v1", "web.shop:80/v2"), sticky=Sticky(cookie="side", cookie_ttl_s=60)
        ),
    ),
)
MOVED: Final = Redirect(status=301, scheme="https", path=PathRewrite(kind="prefix", value="/new"))
ACTIONS: Final = HostRoutes(
    host="api.shop",
    port=80,
    rules=(
        Rule(name="moved", matches=(Match(path=path("prefix", "/old")),), redirect=MOVED),
        Rule(name="said", matches=(Match(path=path("exact", "/said")),), direct=DirectResponse(status=418, body="100 % tea")),
        Rule(
            name="all",
            backends=to("api.shop:80"),
            timeout_ms=3_000,
            try_timeout_ms=1_000,
            idle_timeout_ms=2_000,
            retry=Retry(attempts=2, retry_on=("5xx", "retriable-status-codes"), statuses=(429,)),
            fault=Fault(delay_ms=100, delay_percent=1.5, abort_status=503, abort_percent=0.1),
            mirrors=(Mirror(backend="web.shop:80", percent=10),),
            request_headers=HeaderEdits(set=(("x-set", "50%"),), add=(("x-add", "a"),), remove=("x-gone",)),
            response_headers=HeaderEdits(add=(("x-answer", "%REQ(x)%"),)),
            rewrite=Rewrite(host="other.example", path=PathRewrite(kind="regex", pattern="^/v([0-9])", value=r"/\1")),
            cors=Cors(origins=(ValueMatch(name="", kind="exact", value="https://a.example"),), methods=("GET",), credentials=True),
            rate_limit=RateLimit(requests=100, per_ms=1000, burst=20),
        ),
    ),
)  # fmt: skip
TCP: Final = HostRoutes(host="db.shop", port=5432, rules=(Rule(name="default", backends=to("db.shop:5432")),))
POLICIES: Final = Authorization(
    policies=(
        Policy(
            name="shop/readers",
            action="allow",
            rules=(
                PolicyRule(
                    sources=(
                        Source(principals=(f"spiffe://{DOMAIN}/ns/shop/sa/*",), not_namespaces=("bank",)),
                        Source(ip_blocks=("10.0.0.0/8",), not_remote_ip_blocks=("192.0.2.0/24",)),
                    ),
                    operations=(
                        Operation(methods=("GET",), paths=("/open*", "*.css"), hosts=("*.example.com",), ports=(8080,)),
                    ),
                ),
            ),
        ),
        Policy(
            name="shop/looked-at",
            action="audit",
            rules=(PolicyRule(operations=(Operation(paths=("/admin*",)),)),),
        ),
        Policy(
            name="shop/never",
            action="deny",
            rules=(PolicyRule(operations=(Operation(headers=(ValueMatch(name="x-debug", kind="present"),)),)),),
        ),
    )
)


def world(*parts: Part, **more: Any) -> World:
    digests = {part.key: digest_of(encode_part(part)) for part in parts}
    config = Config(manifest=Manifest(workload="shop/web", parts=digests), parts={part.key: part for part in parts})
    return World(address=ADDRESS, folder=Folder(Path("/run/envoy")), config=config, **more)


def own(**more: Any) -> Listeners:
    return Listeners(namespace="shop", identity=f"spiffe://{DOMAIN}/ns/shop/sa/web", trust_domain=DOMAIN, **more)


ENDPOINTS: Final = {
    "web.shop:80": (
        Endpoint(id="a", address="10.0.0.1", port=1, identity=f"spiffe://{DOMAIN}/ns/shop/sa/a", zone="a", labels={"version": "v1"}),
        Endpoint(id="b", address="10.0.0.2", port=2, identity=f"spiffe://{DOMAIN}/ns/shop/sa/b", zone="b", labels={"version": "v2"}),
    ),
    "api.shop:80": (Endpoint(id="c", address="10.0.0.3", port=3),),
}  # fmt: skip
AUTHORITY: Final = """\
-----BEGIN CERTIFICATE-----
MIIBJTCBzKADAgECAgEBMAoGCCqGSM49BAMCMBExDzANBgNVBAMMBmdvbGRlbjAg
Fw0yMDAxMDEwMDAwMDBaGA8yMTE5MDEwMTAwMDAwMFowETEPMA0GA1UEAwwGZ29s
ZGVuMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEZmx4i3kRj5rQu3yMkW+HuYLB
OtQxet++Rpjuojq3kg1BCKCBHr/v2vZ4N5iebjKOjo7F5JcCgWFYEu5RX8JcIKMT
MBEwDwYDVR0TAQH/BAUwAwEB/zAKBggqhkjOPQQDAgNIADBFAiEA1pNocqJSKYRx
i8V5V/6VQY2Ba+qmEJ2KScUoJxH1WMgCIFGMjTqvFB+4Fn1HC02cOsvdYr6zyOlj
Yz3hUfLCGCcb
-----END CERTIFICATE-----
"""
"""Of nobody's; its key is gone."""
KEYS: Final = '{"keys":[{"kty":"oct","kid":"a","k":"AAAA"}]}'
TOKENS: Final = Jwt(
    providers=(
        JwtProvider(
            issuer="https://issuer.example", jwks=KEYS, audiences=("shop",), claim_headers=(("x-user", "sub"),)
        ),
        JwtProvider(
            issuer="https://other.example",
            jwks_uri="https://other.example/keys",
            places=(TokenPlace(kind="cookie", name="session"),),
            forward=True,
        ),
    ),
    required=("/api/*", "*.json"),
    not_required=("/api/public*",),
)
CLAIMED: Final = Authorization(
    policies=(
        Policy(
            name="shop/claimed",
            action="allow",
            rules=(
                PolicyRule(
                    sources=(
                        Source(request_principals=("https://issuer.example/ann", "https://other*", "*/bob")),
                        Source(
                            claims=(
                                ClaimMatch(name="realm.groups", values=("admin", "ops-*"), not_values=("7",)),
                                ClaimMatch(name="verified", values=("true",)),
                            ),
                            not_request_principals=("*",),
                        ),
                    ),
                ),
            ),
        ),
    )
)
GATEWAY: Final = (
    GatewayListener(name="shop/edge/http", port=8000, hosts=("shop.example",), redirect_port=8443),
    GatewayListener(name="shop/edge/any", port=8000, hosts=("*",)),
)


def worlds() -> Mapping[str, World]:
    """What is kept, by file name."""
    ports = (InboundPort(port=8080, mtls="strict"), InboundPort(port=7070, protocol="tcp"))
    return {
        "first": World(address=ADDRESS, folder=Folder(Path("/run/envoy"))),
        "routes": world(own(access_log="failures"), MATCHES, ACTIONS, TCP, WEB, API, DATABASE, endpoints=ENDPOINTS),
        "policies": world(
            own(inbound=ports, egress="registry_only", access_log="all", trusted_hops=1),
            POLICIES,
            revoked=(f"spiffe://{DOMAIN}/ns/shop/sa/thief",),
        ),
        "outside": world(
            own(
                access_log="all",
                log_percent=2.5,
                tracing=Tracing(endpoint="http://collector.example", percent=10),
                egress="registry_only",
                egress_hosts=("*.example.com:443", "plain.example:80"),
            ),
            HostRoutes(host="api.example", port=80, rules=(Rule(name="r", backends=to("api.example:80")),)),
            Backend(
                service="api.example",
                port=80,
                external=External(host="api.example", port=443, tls=OriginTls(sni="api.example", names=("a.example",), ca=AUTHORITY)),
            ),
        ),
        "tokens": world(own(inbound=ports, jwt=TOKENS), CLAIMED),
        "passing": world(
            own(gateway=(GatewayListener(name="shop/edge/tls", port=8443, protocol="tls", hosts=("*.example",)),)),
            HostRoutes(host="*.example", port=8443, rules=(Rule(name="r", backends=to("api.shop:80")),), gateway=True),
            POLICIES,
            API,
        ),
        "redirected": replace(
            world(
                own(inbound=ports, egress="registry_only", egress_hosts=("203.0.113.9:5432", "api.example:80")),
                HostRoutes(host="web.shop", port=80, rules=(Rule(name="r", backends=to("web.shop:80")),)),
                Backend(service="web.shop", port=80),
                Backend(service="db.shop", port=5432, protocol="tcp"),
                endpoints={"db.shop:5432": (Endpoint(id="d", address="10.0.0.4", port=5432),)},
            ),
            address=Address(host="127.0.0.1", inbound={}, outbound=0, redirected=Redirected()),
            addresses={"web.shop": ("10.96.0.10", "fd96::10"), "db.shop": ("10.96.0.11",)},
        ),
        "gateway": world(
            own(gateway=GATEWAY),
            HostRoutes(host="shop.example", port=8000, rules=(Rule(name="r", backends=to("api.shop:80")),), gateway=True),
            HostRoutes(host="*.example", port=8000, rules=(Rule(name="r", backends=to("api.shop:80")),), gateway=True),
            POLICIES,
            API,
        ),
    }  # fmt: skip


def bootstrap(rendered: Rendered) -> dict[str, Any]:
    """Everything in one static file, with routes and endpoints where they are asked for."""
    listeners = _inlined(rendered.listeners, rendered)
    clusters = [_static(cluster, rendered) for cluster in rendered.clusters]
    internal = {"@type": "type.googleapis.com/envoy.extensions.bootstrap.internal_listener.v3.InternalListener"}
    return {
        "bootstrap_extensions": [{"name": "envoy.bootstrap.internal_listener", "typed_config": internal}],
        "layered_runtime": {"layers": [{"name": "backstay", "static_layer": RUNTIME}]},
        "static_resources": {"listeners": _untyped(listeners), "clusters": _untyped(clusters)},
    }


def _static(cluster: dict[str, Any], rendered: Rendered) -> dict[str, Any]:
    if cluster.get("type") != "EDS":
        return cluster
    kept = {name: value for name, value in cluster.items() if name != "eds_cluster_config"}
    return kept | {"type": "STATIC", "load_assignment": _untyped([rendered.endpoints[cluster["name"]]])[0]}


def _untyped(resources: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of a list whose type is known no element says it again."""
    return [{name: value for name, value in each.items() if name != "@type"} for each in resources]


def _inlined(found: Any, rendered: Rendered) -> Any:
    if isinstance(found, list):
        return [_inlined(each, rendered) for each in found]
    if not isinstance(found, dict):
        return found
    if "config_discovery" in found:
        return _untyped([rendered.filters[found["name"]]])[0]
    plain = {name: _inlined(value, rendered) for name, value in found.items() if name != "rds"}
    if "rds" in found:
        plain["route_config"] = _untyped([rendered.routes[found["rds"]["route_config_name"]]])[0]
    return plain


def text(given: World) -> str:
    return json.dumps(bootstrap(render(given)), indent=1, sort_keys=True) + "\n"


if __name__ == "__main__":
    for name, given in worlds().items():
        (FOLDER / f"{name}.json").write_text(text(given), encoding="utf-8")
        sys.stdout.write(f"golden/{name}.json\n")
