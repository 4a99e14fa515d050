"""Random repositories, registries and requests for the properties of evaluation and review.

Names, paths and values come from small sets, so that rules meet, shadow and contradict each other all the time.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

from hypothesis import strategies as st

from backstay.core.documents import parse
from backstay.core.evaluate import Request, World, world
from backstay.core.registry import Instance, Registry, Service, ServicePort, Workload
from backstay.core.snapshot import Snapshot

Json: TypeAlias = dict[str, Any]
NAMESPACE = "shop"
SERVICES = ("web", "api")
VERSIONS = ("v1", "v2")
CLIENTS = ("client", "batch")
PATHS = ("/", "/a", "/a/b", "/ab", "/c")
VALUES = ("1", "12", "2", "")
METHODS = ("GET", "POST")
PORT = 8080


def registry(*, replicas: int = 1) -> Registry:
    """Two services in two versions each, two clients; everything declares nothing and may reach all."""
    services = {
        f"{name}.{NAMESPACE}": Service(name=name, namespace=NAMESPACE, ports=(ServicePort(port=80, target_port=PORT),))
        for name in SERVICES
    }
    workloads, instances = {}, {}
    for name in SERVICES:
        for version in VERSIONS:
            item = Workload(
                name=f"{name}-{version}",
                namespace=NAMESPACE,
                service_account=name,
                services=(f"{name}.{NAMESPACE}",),
                ports=((PORT, "http"),),
            )
            workloads[item.key] = item
            for number in range(replicas):
                id = f"{name}-{version}-{number}"
                instances[id] = Instance(id=id, workload=item.key, address="127.0.0.1", labels={"version": version})
    for name in CLIENTS:
        item = Workload(name=name, namespace=NAMESPACE, service_account=name)
        workloads[item.key] = item
        instances[name] = Instance(id=name, workload=item.key, address="127.0.0.1")
    return Registry(services=services, workloads=workloads, instances=instances)


def document(kind: str, name: str, spec: Mapping[str, Any]) -> Json:
    return {
        "apiVersion": "backstay.dev/v1alpha1",
        "kind": kind,
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": dict(spec),
    }


def snapshot(documents: Sequence[Json], revision: str = "main@sha1:1") -> Snapshot:
    """A snapshot with each document in a file of its own.

    Only shapes are checked: rules that nobody reaches and the like are refused in a commit, but mean something all the same.
    """
    files = {f"{number:02}.yaml": json.dumps(item, indent=1).encode() for number, item in enumerate(documents)}
    parsed = parse(files, default_namespace=NAMESPACE)
    assert parsed.problems == ()
    return Snapshot(revision=revision, documents={item.key: item for item in parsed.documents})


def compiled(documents: Sequence[Json], known: Registry | None = None) -> World:
    return world(snapshot(documents), known or registry())


# --- strategies -------------------------------------------------------------------------------------------------------


def _value_matches(names: Sequence[str], field: str) -> st.SearchStrategy[list[Json]]:
    kinds = st.sampled_from(("Exact", "Prefix", "Present", "Absent"))

    @st.composite
    def one(draw: st.DrawFn) -> Json:
        kind = draw(kinds)
        found: Json = {"name": draw(st.sampled_from(names)), "type": kind}
        if kind in ("Exact", "Prefix"):
            found["value"] = draw(st.sampled_from(VALUES[:3]))
        return found

    return st.lists(one(), max_size=2, unique_by=lambda item: item["name"]).map(lambda items: items or [])


PATTERNS = ("/a.*", "/[a-c]+", "(/a|/c)(/.*)?")


@st.composite
def matches(draw: st.DrawFn, patterns: bool = False) -> Json:
    """`patterns`: regular expressions too, which reviews compare by examples only."""
    found: Json = {}
    if draw(st.booleans()):
        kind = draw(st.sampled_from(("Exact", "PathPrefix", *(["RegularExpression"] if patterns else []))))
        values = PATTERNS if kind == "RegularExpression" else PATHS
        found["path"] = {"type": kind, "value": draw(st.sampled_from(values))}
    if draw(st.integers(0, 5)) == 0:
        found["sources"] = [draw(st.sampled_from((*CLIENTS, f"{NAMESPACE}/*", "other/*")))]
    if draw(st.integers(0, 5)) == 0:
        found["authority"] = {"type": "Prefix", "value": draw(st.sampled_from(("web", "web.", "api.shop")))}
    if draw(st.booleans()):
        found["method"] = draw(st.sampled_from(METHODS))
    headers = draw(_value_matches(("x-a", "x-b"), "headers"))
    if headers:
        found["headers"] = headers
    query = draw(_value_matches(("p", "q"), "queryParams"))
    if query:
        found["queryParams"] = query
    return found


def path_modifiers() -> st.SearchStrategy[Json]:
    return st.sampled_from(
        (
            {"type": "ReplaceFullPath", "replaceFullPath": "/c"},
            {"type": "ReplacePrefixMatch", "replacePrefixMatch": "/new"},
            {"type": "ReplacePrefixMatch", "replacePrefixMatch": "/"},
            {"type": "ReplaceRegex", "pattern": "b", "substitution": "../x"},
        )
    )


@st.composite
def actions(draw: st.DrawFn) -> Json:
    """What a rule does besides choosing a backend; nothing most of the time."""
    kind = draw(st.sampled_from(("", "", "", "", "redirect", "direct", "rewrite", "headers", "fault")))
    if kind == "redirect":
        path = draw(st.one_of(st.none(), path_modifiers()))
        redirect: Json = {"hostname": "else.example", "statusCode": draw(st.sampled_from((301, 302)))}
        return {
            "filters": [{"type": "RequestRedirect", "requestRedirect": redirect | ({"path": path} if path else {})}]
        }
    if kind == "direct":
        answer = {"status": draw(st.sampled_from((200, 410))), "body": "by the proxy"}
        return {"filters": [{"type": "DirectResponse", "directResponse": answer}]}
    if kind == "rewrite":
        rewrite: Json = {"path": draw(path_modifiers())}
        if draw(st.booleans()):
            rewrite["hostname"] = "inner.example"
        return {"filters": [{"type": "URLRewrite", "urlRewrite": rewrite}]}
    if kind == "headers":
        edits = draw(st.sampled_from(({"set": [{"name": "x-a", "value": "1"}]}, {"remove": ["x-a", "x-b"]})))
        return {"filters": [{"type": "RequestHeaderModifier", "requestHeaderModifier": edits}]}
    return {"fault": {"abort": {"status": 418, "percentage": 100}}} if kind == "fault" else {}


@st.composite
def rules(draw: st.DrawFn, patterns: bool = False) -> Json:
    refs = draw(
        st.lists(
            st.tuples(st.sampled_from(SERVICES), st.sampled_from((None, *VERSIONS))),
            min_size=1,
            max_size=2,
            unique=True,
        )
    )
    weights = draw(st.sampled_from(((1, 1), (90, 10), (100, 0), (0, 100))))
    backends = []
    for (name, subset), weight in zip(refs, weights, strict=False):
        ref: Json = {"name": name, "port": 80, "weight": weight}
        if subset:
            ref["subset"] = subset
        backends.append(ref)
    if len(backends) == 1:
        backends[0]["weight"] = 1
    found: Json = draw(actions())
    kinds = {item["type"] for item in found.get("filters", ())}
    if not kinds & {"RequestRedirect", "DirectResponse"}:
        found["backendRefs"] = backends
    wanted = draw(st.lists(matches(patterns), max_size=2))
    if wanted:
        found["matches"] = wanted
    if draw(st.booleans()):
        found["timeouts"] = {"request": draw(st.sampled_from(("3s", "7s")))}
    return found


@st.composite
def routes(draw: st.DrawFn, service: str, patterns: bool = False) -> Json:
    wanted = draw(st.lists(rules(patterns), min_size=1, max_size=4))
    return document("Route", service, {"hosts": [service], "rules": wanted})


def _identities() -> st.SearchStrategy[str]:
    own = f"spiffe://backstay.local/ns/{NAMESPACE}/sa/"
    return st.sampled_from(
        (f"{own}client", f"{own}batch", f"{own}*", f"{own}c*", "*", "spiffe://backstay.local/ns/other/*")
    )


ISSUER = "https://issuer.example"
PRINCIPALS = ("*", f"{ISSUER}/ann", f"{ISSUER}/*", "*/bob")
GROUPS = ("admin", "ad*", "*ops")
KEYS = '{"keys": [{"kty": "OKP", "crv": "Ed25519", "x": "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"}]}'


@st.composite
def claims(draw: st.DrawFn) -> Json | None:
    """Of a request's token; None: it has none."""
    if draw(st.booleans()):
        return None
    found: Json = {"iss": ISSUER, "sub": draw(st.sampled_from(("ann", "bob", "eve")))}
    if draw(st.booleans()):
        found["group"] = draw(st.sampled_from(("admin", "devops", "admops", ["devops", "x"], "")))
    return found


def jwt(**rules: Any) -> Json:
    """Rules about tokens of one issuer."""
    return {"jwt": {"providers": [{"issuer": ISSUER, "jwks": KEYS}], **rules}}


BLOCKS = ("10.0.0.0/8", "10.1.0.0/16", "127.0.0.0/8", "192.0.2.7", "2001:db8::/32")
ADDRESSES = ("127.0.0.1", "10.1.2.3", "10.2.0.0", "192.0.2.7", "2001:db8::1", "203.0.113.9")


@st.composite
def _around_sources(draw: st.DrawFn) -> Json:
    """What a source asks besides identities; nothing most of the time."""
    kind = draw(st.sampled_from(("", "", "", "", "peer", "remote", "both", "token", "claims", "noToken")))
    if kind == "token":
        return {"requestPrincipals": draw(st.lists(st.sampled_from(PRINCIPALS), min_size=1, max_size=2, unique=True))}
    if kind == "noToken":
        return {"notRequestPrincipals": [draw(st.sampled_from(PRINCIPALS))]}
    if kind == "claims":
        return {
            "claims": [
                {"name": "group", draw(st.sampled_from(("values", "notValues"))): [draw(st.sampled_from(GROUPS))]}
            ]
        }
    found: Json = {}
    if kind in ("peer", "both"):
        name = draw(st.sampled_from(("ipBlocks", "notIpBlocks")))
        found[name] = draw(st.lists(st.sampled_from(BLOCKS), min_size=1, max_size=2, unique=True))
    if kind in ("remote", "both"):
        name = draw(st.sampled_from(("remoteIpBlocks", "notRemoteIpBlocks")))
        found[name] = draw(st.lists(st.sampled_from(BLOCKS), min_size=1, max_size=2, unique=True))
    return found


@st.composite
def _around_operations(draw: st.DrawFn) -> Json:
    kind = draw(st.sampled_from(("", "", "", "", "hosts", "notHosts", "notMethods", "notPaths", "notPorts")))
    values = {
        "hosts": ["web*"], "notHosts": ["*.shop"], "notMethods": ["POST"], "notPaths": ["/a/*"], "notPorts": [PORT],
    }  # fmt: skip
    return {kind: values[kind]} if kind else {}


@st.composite
def policy_rules(draw: st.DrawFn) -> Json:
    found: Json = {}
    sources = []
    for _ in range(draw(st.integers(0, 2))):
        source: Json = {}
        if draw(st.booleans()):
            source["principals"] = draw(st.lists(_identities(), min_size=1, max_size=2))
        if draw(st.booleans()):
            source["serviceAccounts"] = [draw(st.sampled_from(CLIENTS))]
        if draw(st.booleans()):
            source["namespaces"] = [draw(st.sampled_from((NAMESPACE, "other")))]
        if draw(st.integers(0, 3)) == 0:
            source["notPrincipals"] = [draw(_identities())]
        source |= draw(_around_sources())
        sources.append(source)
    if sources:
        found["from"] = sources
    operations = []
    for _ in range(draw(st.integers(0, 2))):
        operation: Json = {}
        if draw(st.booleans()):
            operation["methods"] = draw(st.lists(st.sampled_from(METHODS), min_size=1, max_size=2, unique=True))
        if draw(st.booleans()):
            operation["paths"] = draw(
                st.lists(st.sampled_from(("/a", "/a*", "/a/*", "*b", "*", "/c")), min_size=1, max_size=2, unique=True)
            )
        headers = draw(_value_matches(("x-a", "x-b"), "headers"))
        if headers:
            operation["headers"] = headers
        operation |= draw(_around_operations())
        operations.append(operation)
    if operations:
        found["to"] = operations
    return found


@st.composite
def policies(draw: st.DrawFn, name: str) -> Json:
    spec: Json = {
        "selector": {
            "workloads": draw(st.lists(st.sampled_from(("web-v1", "web-v2", "api-v1")), unique=True, max_size=2))
        },
        "action": draw(st.sampled_from(("Allow", "Allow", "Deny", "Audit"))),
        "rules": draw(st.lists(policy_rules(), max_size=3)),
    }
    return document("Authorization", name, spec)


@st.composite
def authentications(draw: st.DrawFn) -> Json:
    spec: Json = {
        "selector": {"workloads": ["web-v1"]},
        "mtls": {"mode": draw(st.sampled_from(("STRICT", "PERMISSIVE")))},
    }
    if draw(st.booleans()):
        rules: Json = {"required": draw(st.sampled_from(([], ["/a*"], ["*"])))}
        spec |= jwt(**rules, notRequired=draw(st.sampled_from(([], ["/a/b"]))))
    return document("Authentication", "all", spec)


BACKENDS = [
    document(
        "Backend",
        name,
        {"service": name, "subsets": [{"name": version, "labels": {"version": version}} for version in VERSIONS]},
    )
    for name in SERVICES
]


@st.composite
def meshes(draw: st.DrawFn) -> Json:
    spec: Json = {"egress": draw(st.sampled_from(("ALLOW_ANY", "REGISTRY_ONLY")))}
    if draw(st.booleans()):
        spec["defaults"] = {"timeout": draw(st.sampled_from(("5s", "9s")))}
    return document("Mesh", "mesh", spec)


@st.composite
def externals(draw: st.DrawFn) -> Json:
    """Hosts outside that may be passed through."""
    hosts = draw(st.lists(st.sampled_from(("elsewhere.example", "*.elsewhere.example")), min_size=1, unique=True))
    ports = [{"port": draw(st.sampled_from((80, 443))), "protocol": "TLS"}]
    return document("ExternalService", "outside", {"hosts": hosts, "ports": ports})


@st.composite
def repositories(draw: st.DrawFn, patterns: bool = False) -> list[Json]:
    """Documents whose references hold."""
    found = list(BACKENDS)
    found += [draw(routes(service, patterns)) for service in SERVICES if draw(st.booleans())]
    found += [draw(policies(f"policy-{number}")) for number in range(draw(st.integers(0, 3)))]
    if draw(st.booleans()):
        found.append(draw(authentications()))
    if draw(st.booleans()):
        found.append(draw(meshes()))
    if draw(st.integers(0, 2)) == 0:
        found.append(draw(externals()))
    return found


@st.composite
def changed(draw: st.DrawFn, documents: list[Json]) -> list[Json]:
    """Another repository, most often one that differs in a document or two."""
    other = draw(repositories())
    if draw(st.integers(0, 3)) == 0:
        return other
    chosen = draw(st.sets(st.integers(0, max(len(other) - 1, 0)), max_size=2))
    taken = {(item["kind"], item["metadata"]["name"]): item for item in documents}
    for number in chosen:
        item = other[number]
        taken[item["kind"], item["metadata"]["name"]] = item
    if draw(st.booleans()) and len(taken) > len(BACKENDS):
        gone = draw(st.sampled_from([key for key in taken if key[0] != "Backend"]))
        del taken[gone]
    return list(taken.values())


@st.composite
def requests(draw: st.DrawFn, tokens: bool = False) -> Request:
    """`tokens`: some have one; the tests that send requests have nobody who signs them."""
    paths = (*PATHS, "/a/", "/a/b/c", "/a/xb", "/other", "/a/../c", "/abc")
    headers = [
        (name, draw(st.sampled_from((*VALUES, "other")))) for name in ("x-a", "X-B", "x-unused") if draw(st.booleans())
    ]
    if draw(st.integers(0, 3)) == 0:
        headers.append(("X-Forwarded-For", draw(st.sampled_from((*ADDRESSES, "junk", "10.1.1.1, 192.0.2.7")))))
    query = "&".join(
        f"{name}={draw(st.sampled_from((*VALUES, 'other')))}" for name in ("p", "q", "r") if draw(st.booleans())
    )
    return Request(
        method=draw(st.sampled_from((*METHODS, "PUT"))),
        authority=draw(
            st.sampled_from(
                ("web", "web.shop", "api:80", "API.shop.svc", "elsewhere.example", "deep.elsewhere.example")
            )
        ),
        path=draw(st.sampled_from(paths)),
        query=query,
        headers=tuple(headers),
        address="127.0.0.1",
        claims=draw(claims()) if tokens else None,
    )


# --- gateways ---------------------------------------------------------------------------------------------------------

GATEWAY = "edge"
PLAIN, SECURE = 8081, 8443
"""Ports of the gateway; what they speak is each repository's, but the first never TLS that ends there."""
OUTSIDE_HOSTS = ("a.example", "*.example", "deep.b.example", "*.b.example")
OUTSIDE_NAMES = ("a.example", "x.example", "deep.b.example", "y.b.example", "A.example.", "elsewhere.test")


def with_gateway(*, replicas: int = 1) -> Registry:
    """The registry with a workload in front that calls nothing of its own."""
    known = registry(replicas=replicas)
    edge = Workload(name=GATEWAY, namespace=NAMESPACE, service_account=GATEWAY, is_gateway=True)
    instance = Instance(id=GATEWAY, workload=edge.key, address="127.0.0.1")
    return Registry(
        services=known.services,
        workloads={**known.workloads, edge.key: edge},
        instances={**known.instances, instance.id: instance},
    )


def gateway_listener(name: str, port: int, protocol: str, hosts: Sequence[str], *, redirect: bool = False) -> Json:
    found: Json = {"name": name, "port": port, "protocol": protocol, "hosts": list(hosts)}
    if protocol == "HTTPS":
        found["tls"] = {"secretRef": {"name": f"{name}-cert"}}
    return found | ({"redirectToHttps": True} if redirect else {})


@st.composite
def gateways(draw: st.DrawFn, passed: bool = True) -> Json:
    """Two listeners with hosts of their own on the first port, and perhaps one on the second. `passed`: TLS that passes
    through is among the protocols."""
    protocols = ("HTTPS", "TLS") if passed else ("HTTPS",)
    listeners = []
    hosts = draw(st.permutations((*OUTSIDE_HOSTS, "*")))
    cut = draw(st.integers(1, 3))
    for number, own in enumerate((hosts[:cut], hosts[cut : cut + draw(st.integers(0, 2))])):
        if own:
            redirect = draw(st.integers(0, 2)) == 0
            listeners.append(gateway_listener(f"plain-{number}", PLAIN, "HTTP", own, redirect=redirect))
    if draw(st.booleans()):
        own = draw(st.lists(st.sampled_from((*OUTSIDE_HOSTS, "*")), min_size=1, max_size=2, unique=True))
        listeners.append(gateway_listener("secure", SECURE, draw(st.sampled_from(protocols)), own))
    for item in listeners:
        if item["protocol"] == "HTTPS" and draw(st.booleans()):
            item["tls"]["minVersion"] = "1.3"
    return document("Gateway", "public", {"listeners": listeners})


@st.composite
def outside_routes(draw: st.DrawFn, name: str, host: str) -> Json:
    found: list[Json] = draw(st.lists(rules(), min_size=1, max_size=3))
    for item in found:
        for match in item.get("matches", ()):
            if "authority" in match:
                value = draw(st.sampled_from(("a.", "x", "deep.b.example")))
                match["authority"] = {"type": draw(st.sampled_from(("Exact", "Prefix"))), "value": value}
            if "sources" in match:
                match["sources"] = [draw(st.sampled_from((GATEWAY, CLIENTS[0])))]
    return document("Route", name, {"hosts": [host], "parentRefs": [{"name": "public"}], "rules": found})


@st.composite
def outside_policies(draw: st.DrawFn) -> Json:
    spec: Json = {
        "selector": {"workloads": [GATEWAY]},
        "action": draw(st.sampled_from(("Allow", "Deny"))),
        "rules": draw(st.lists(policy_rules(), min_size=1, max_size=2)),
    }
    return document("Authorization", "at-the-gate", spec)


@st.composite
def gateway_repositories(draw: st.DrawFn, passed: bool = True) -> list[Json]:
    """What is about a gateway, and one policy behind it."""
    found = [*BACKENDS, draw(gateways(passed))]
    hosts = draw(st.lists(st.sampled_from((*OUTSIDE_HOSTS, "*")), max_size=3, unique=True))
    found += [draw(outside_routes(f"out-{number}", host)) for number, host in enumerate(hosts)]
    if draw(st.integers(0, 2)) == 0:
        found.append(draw(outside_policies()))
    if draw(st.integers(0, 2)) == 0:
        found.append(draw(policies("policy-0")))
    return found


@st.composite
def gateway_changed(draw: st.DrawFn, documents: list[Json], passed: bool = True) -> list[Json]:
    """The same with a document or two of another one."""
    taken = {(item["kind"], item["metadata"]["name"]): item for item in documents}
    other = draw(gateway_repositories(passed))
    for item in draw(st.lists(st.sampled_from(other), min_size=1, max_size=2)):
        taken[item["kind"], item["metadata"]["name"]] = item
    gone = [key for key in taken if key[0] in ("Route", "Authorization")]
    if gone and draw(st.integers(0, 2)) == 0:
        del taken[draw(st.sampled_from(gone))]
    return list(taken.values())


@st.composite
def outside_requests(draw: st.DrawFn) -> Request:
    port = draw(st.sampled_from(("", ":8081", ":80")))
    request = draw(requests())
    return replace(
        request, authority=draw(st.sampled_from(OUTSIDE_NAMES)) + port, address=draw(st.sampled_from(ADDRESSES))
    )
