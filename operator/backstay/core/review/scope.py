"""All that applies to one workload: what its proxy accepts and from whom, what it may reach, and the lines that say so."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, TypeAlias

from backstay.config.model import Rule
from backstay.core.evaluate import ANONYMOUS, World
from backstay.core.review.access import access_dimensions, decisions, gateway_ports
from backstay.core.review.names import one_of
from backstay.core.review.questions import SOURCE
from backstay.core.review.routes import box_words
from backstay.core.review.space import TooManyPieces, Unknowable, decided
from backstay.core.review.words import connection_text

Extent: TypeAlias = Literal["everything", "some", "nothing", "unknown"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """What one workload, or plaintext, may ask of a port."""

    name: str
    port: int
    extent: Extent
    requests: tuple[str, ...] = ()
    """What it may, in words, where that is some."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    name: str
    action: str
    place: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    workload: str
    identity: str
    mtls: tuple[tuple[int, str], ...]
    mtls_place: str
    policies: tuple[Policy, ...]
    reaches: tuple[tuple[str, str], ...]
    """(`host:port`, place of the Route that is about it, if one is)"""
    callers: tuple[Caller, ...]
    outside: tuple[tuple[str, str], ...] = ()
    """How a gateway takes callers from outside, and where it sends them, in words; each with its place."""


def scope_of(world: World, workload: str) -> Scope:
    """Raises UnknownWorkload."""
    listeners = world.listeners(workload)
    received = world.takes_place(workload)
    policies = tuple(
        Policy(name=item.name, action=item.action, place=document.place() if document is not None else "")
        for item in world.policies(workload).authorization.policies
        for document in (world.policy(item.name),)
    )
    keys = sorted(key for key in world.manifest(workload).parts if key.startswith("routes/"))
    return Scope(
        workload=workload,
        identity=listeners.identity,
        mtls=tuple((item.port, item.mtls) for item in listeners.inbound),
        mtls_place=received,
        policies=policies,
        reaches=tuple((key.removeprefix("routes/"), world.route_place(workload, key)) for key in keys),
        callers=tuple(caller for item in listeners.inbound for caller in _callers(world, workload, item.port)),
        outside=tuple(_outside(world, workload)),
    )


def _outside(world: World, workload: str) -> Iterator[tuple[str, str]]:
    listeners = world.listeners(workload).gateway
    for listener in listeners:
        known = {host.encode() for item in listeners if item.port == listener.port for host in item.hosts}
        entrance = world.entrance(workload, listener.port, one_of(listener.hosts[0].encode(), known))
        told = f"port {listener.port} for {', '.join(listener.hosts)}: {connection_text(entrance)}"
        redirect = f", sent to https at port {listener.redirect_port}" if listener.redirect_port else ""
        yield told + redirect, world.listener_place(listener)
    for port in sorted(gateway_ports(world, workload)):
        for table in world.gateway_hosts(workload, port).tables:
            services = dict.fromkeys(name for rule in table.routes.rules for name in _sent_to(world, workload, rule))
            text = f"port {port}, {table.routes.host} to {', '.join(services) or 'nobody'}"
            yield text, world.route_place(workload, table.key)


def _sent_to(world: World, workload: str, rule: Rule) -> Iterator[str]:
    return (item.service for item in world.destinations(workload, rule))


def _callers(world: World, workload: str, port: int) -> list[Caller]:
    domain = world.snapshot.mesh.trust_domain
    names = {item.identity(domain): item.key for item in world.registry.workloads.values() if item.key != workload}
    try:
        found = _extents(world, workload, port)
    except (TooManyPieces, Unknowable):
        return [Caller(name=name, port=port, extent="unknown") for name in (*sorted(names.values()), "plaintext")]
    asked = [*sorted((name, identity) for identity, name in names.items()), ("plaintext", ANONYMOUS)]
    return [Caller(name=name, port=port, extent=found[i][0], requests=found[i][1]) for name, i in asked]


def _extents(world: World, workload: str, port: int) -> dict[str, tuple[Extent, tuple[str, ...]]]:
    """Identity -> how much it may, and what. Raises TooManyPieces, Unknowable."""
    table = world.policies(workload).authorization
    jwt = world.listeners(workload).jwt
    dimensions = access_dimensions(world, table, jwt)
    pieces = list(decided(decisions(table, world.inbound(workload, port), dimensions, jwt), dimensions))
    source = dimensions[SOURCE]
    domain = world.snapshot.mesh.trust_domain
    identities = {ANONYMOUS, *(item.identity(domain) for item in world.registry.workloads.values())}
    extents: dict[str, tuple[Extent, tuple[str, ...]]] = {}
    for identity in identities:
        own = [
            (box, verdict) for box, verdict in pieces if source.holds(box.get(SOURCE, source.all), identity.encode())
        ]
        allowed = [box for box, verdict in own if verdict == "allowed"]
        if len(allowed) in (0, len(own)):
            extents[identity] = ("everything" if allowed else "nothing", ())
            continue
        told = (box_words({n: m for n, m in box.items() if n != SOURCE}, dimensions) for box in allowed)
        extents[identity] = ("some", tuple(dict.fromkeys(text or "everything else" for text in told)))
    return extents
