"""Snapshot + registry -> one manifest per workload, the parts they name, and where each part came from.

Deterministic: equal intents, service names, ports and workloads give equal bytes. Cost follows the change: a part is
made again only when one of its inputs changed (`PartCache`), and a part shared by many workloads is made once.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial

from backstay.config.model import Manifest, Part, config_digest, digest_of, encode_part
from backstay.core.compile.facts import Index
from backstay.core.compile.inbound import authorization_part, listeners_part
from backstay.core.compile.index import index
from backstay.core.compile.outbound import backend_part, host_routes, rule_places
from backstay.core.registry import Registry, Workload, qualify
from backstay.core.snapshot import Document, DocumentKey, Snapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class Origins:
    """Which documents a part came from, and the line of each of its rules."""

    documents: tuple[DocumentKey, ...] = ()
    rules: Mapping[str, str] = field(default_factory=dict)
    """Rule name -> `file:line`; "" is the part as a whole."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Compiled:
    """Everything a mesh is to run."""

    manifests: Mapping[str, Manifest]
    """By workload."""
    digests: Mapping[str, str]
    """Workload -> config digest."""
    parts: Mapping[str, bytes]
    """Part digest -> canonical bytes."""
    origins: Mapping[str, Origins]
    """Part digest -> where it came from."""


class PartCache:
    """Remembers encoded parts by their inputs; forgets what the last two compilations did not use."""

    def __init__(self) -> None:
        self._old: dict[object, tuple[str, bytes]] = {}
        self._new: dict[object, tuple[str, bytes]] = {}
        self.made = 0
        """Parts that really had to be compiled, ever: tests show by it that cost follows the change."""

    def turn(self) -> None:
        """A new compilation begins."""
        self._old, self._new = self._new, {}

    def take(self, inputs: object, make: Callable[[], Part]) -> tuple[str, bytes]:
        """Digest and bytes of the part with these inputs, made only if it is not known."""
        found = self._new.get(inputs) or self._old.get(inputs)
        if found is None:
            data = encode_part(make())
            self.made += 1
            found = (digest_of(data), data)
        self._new[inputs] = found
        return found


class _Build:
    """Collects the parts of one compilation."""

    def __init__(self, cache: PartCache) -> None:
        self.cache = cache
        self.parts: dict[str, bytes] = {}
        self.origins: dict[str, Origins] = {}

    def add(self, inputs: object, make: Callable[[], Part], origins: Origins) -> str:
        digest, data = self.cache.take(inputs, make)
        self.parts[digest] = data
        known = self.origins.get(digest)
        self.origins[digest] = origins if known is None else _merge(known, origins)
        return digest


def _merge(one: Origins, other: Origins) -> Origins:
    documents = tuple(dict.fromkeys((*one.documents, *other.documents)))
    return Origins(documents=documents, rules={**one.rules, **other.rules})


def compile_mesh(
    snapshot: Snapshot, registry: Registry, cache: PartCache | None = None, *, named: bool = True
) -> Compiled:
    """Compile every workload of the registry.

    Documents must be valid together (validate); a document that names a service the registry does not have must have
    been taken out before (it waits), or the service be remembered by the caller. `named=False` leaves out the digests of
    whole configs, which only rollouts need and which cost as much as all the rest where everybody reaches everything.
    """
    cache = cache or PartCache()
    cache.turn()
    build = _Build(cache)
    facts = index(snapshot, registry)
    routed = _compile_hosts(facts, build)
    backends = _compile_backends(facts, build)
    outbound: dict[tuple[str, ...] | None, dict[str, str]] = {}
    manifests = {}
    for workload in sorted(registry.workloads.values(), key=lambda workload: workload.key):
        reaches = declared(workload)
        if reaches not in outbound:
            outbound[reaches] = _outbound(reaches, facts, routed, backends)
        own = {
            "listeners": _listeners(workload, facts, build),
            "authorization": _authorization(workload, facts, build),
        }
        ingress = _ingress(workload.key, facts, build, backends)
        makes = {} if workload.is_gateway and reaches is None else outbound[reaches]
        manifests[workload.key] = Manifest(workload=workload.key, parts=makes | ingress | own)
    return Compiled(
        manifests=manifests,
        digests={key: config_digest(manifest) for key, manifest in manifests.items()} if named else {},
        parts=build.parts,
        origins=build.origins,
    )


@dataclass(frozen=True, slots=True)
class _Host:
    key: str
    digest: str
    needs: tuple[str, ...]
    """Part keys of the backends its rules name."""


def _compile_hosts(facts: Index, build: _Build) -> dict[str, list[_Host]]:
    """Host -> its routes parts, one a port."""
    hosts: dict[str, list[_Host]] = {}
    for wanted in facts.routed():
        inputs = ("routes", wanted.host, wanted.port, _digest(wanted.document), facts.mesh_digest)
        origins = _origins(facts, wanted.document, rule_places(wanted))
        digest = build.add(inputs, lambda wanted=wanted: host_routes(wanted, facts), origins)  # type: ignore[misc]
        needs = tuple(sorted({f"backend/{name}" for name in wanted.backends()}))
        hosts.setdefault(wanted.host, []).append(_Host(f"routes/{wanted.host}:{wanted.port}", digest, needs))
    return hosts


def _digest(document: Document | None) -> str:
    return document.digest if document else ""


def _origins(facts: Index, document: Document | None, rules: Mapping[str, str]) -> Origins:
    """The Mesh is an origin of everything its defaults flow into."""
    found = (document, facts.mesh_document)
    return Origins(documents=tuple(item.key for item in found if item is not None), rules=rules)


def _compile_backends(facts: Index, build: _Build) -> dict[str, str]:
    """Part key -> digest."""
    backends: dict[str, str] = {}
    for service in facts.services.values():
        document = facts.backends.get(service.key)
        external = facts.externals.get(service.key)
        origins = _origins(facts, document or external, _backend_places(document or external))
        for port in service.ports:
            inputs = ("backend", service.key, port, _digest(document), _digest(external), facts.mesh_digest)
            make = partial(backend_part, service, port, document, facts)
            backends[f"backend/{service.key}:{port.port}"] = build.add(inputs, make, origins)
    return backends


def _backend_places(document: Document | None) -> Mapping[str, str]:
    return {"": document.place("spec")} if document else {}


def _outbound(
    reaches: tuple[str, ...] | None, facts: Index, routed: Mapping[str, list[_Host]], backends: Mapping[str, str]
) -> dict[str, str]:
    """What a workload that may call these hosts needs: their routes, and every backend those may choose."""
    parts: dict[str, str] = {}
    for host in _reached(reaches, routed):
        for item in routed[host]:
            parts[item.key] = item.digest
            parts.update((need, backends[need]) for need in item.needs if need in backends)
    for service in _reached(reaches, facts.services):
        keys = (f"backend/{service}:{port.port}" for port in facts.services[service].ports)
        parts.update((key, backends[key]) for key in keys)
    return parts


def _ingress(workload: str, facts: Index, build: _Build, backends: Mapping[str, str]) -> dict[str, str]:
    """What a gateway needs: the routes that hold at its ports, and the backends those may choose. A gateway that does not
    say what it calls itself calls nothing: it has no application."""
    parts: dict[str, str] = {}
    for wanted in facts.ingress(workload):
        needs = tuple(sorted({f"backend/{name}" for name in wanted.backends()}))
        inputs = (wanted.key, needs, _digest(wanted.document), facts.mesh_digest)
        origins = _origins(facts, wanted.document, rule_places(wanted))
        parts[wanted.key] = build.add(inputs, partial(host_routes, wanted, facts), origins)
        parts.update((need, backends[need]) for need in needs if need in backends)
    return parts


def _reached(reaches: tuple[str, ...] | None, hosts: Mapping[str, object]) -> Iterable[str]:
    return hosts if reaches is None else [name for name in reaches if name in hosts]


def declared(workload: Workload) -> tuple[str, ...] | None:
    """Full names of the hosts a workload says it calls; None where it did not say."""
    if workload.reaches is None:
        return None
    return tuple(dict.fromkeys(qualify(name, workload.namespace) for name in workload.reaches))


def _listeners(workload: Workload, facts: Index, build: _Build) -> str:
    document = facts.authentication.get(workload.key)
    gateways = facts.gateways.get(workload.key, ())
    inputs = (
        "listeners", workload, _digest(document), tuple((g.key, g.digest) for g in gateways), facts.mesh_digest,
        facts.egress_hosts,
    )  # fmt: skip
    rules = {"": document.place("spec.mtls")} if document else {}
    rules |= {f"{g.metadata.namespace}/{g.metadata.name}": g.place("spec.listeners") for g in gateways}
    made = _origins(facts, document, rules)
    origins = Origins(documents=(*(gateway.key for gateway in gateways), *made.documents), rules=rules)
    return build.add(inputs, partial(listeners_part, workload, document, facts), origins)


def _authorization(workload: Workload, facts: Index, build: _Build) -> str:
    documents = facts.authorization.get(workload.key, ())
    inputs = ("authorization", facts.mesh.trust_domain, tuple((d.key, d.digest) for d in documents))
    rules = {f"{d.metadata.namespace}/{d.metadata.name}": d.place("spec") for d in documents}
    origins = Origins(documents=tuple(d.key for d in documents), rules=rules)
    return build.add(inputs, partial(authorization_part, documents, facts), origins)


def parts_of(manifest: Manifest, parts: Mapping[str, bytes]) -> dict[str, bytes]:
    """The bytes one manifest names, by digest. Raises KeyError for one that is missing."""
    return {digest: parts[digest] for digest in manifest.parts.values()}
