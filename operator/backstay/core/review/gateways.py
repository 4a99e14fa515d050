"""What callers from outside meet: the ports of gateways of two compiled meshes compared name by name.

Three things are said apart, so that each is said once: how a connection is taken (`Entrance`), where a request goes
(`Sent`), and what the gateway's own policies refuse (`access`). A request that both refuse is in no class of routes. Whoever
newly gets requests from outside, or no longer does, is an `Exposure`.
"""

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from backstay.config.gateways import NOTED
from backstay.config.match import RouteTable
from backstay.config.model import Authorization, GatewayListener, Jwt
from backstay.core.evaluate import ANONYMOUS, Destination, Entrance, Reach, Sent, World
from backstay.core.review.access import (
    Verdict,
    access_dimensions,
    as_seen_outside,
    decisions,
    gateway_ports,
    hosts_asked,
    joint_dimensions,
)
from backstay.core.review.names import most_specific, one_of
from backstay.core.review.questions import AUTHORITY, SOURCE, authority_dimension, is_host, sample
from backstay.core.review.routes import (
    Effect,
    LetIn,
    RouteClass,
    backends_of,
    check_known,
    effect,
    last_rule,
    matches_of,
    merged,
    no_route,
    rule_decisions,
    sampled_authority,
    vagueness,
)
from backstay.core.review.space import Box, Decisions, Dimension, TooManyPieces, Unknowable, decided, differences

_EVERY_HOST: Final = b"*"
_Sides: TypeAlias = tuple["_Face", "_Face"]


def gateway_classes(before: World, after: World) -> list[RouteClass]:
    """Every class of requests from outside that a gateway would treat otherwise; its policies are compared in `access`."""
    return merged(_all_classes(before, after))


def _all_classes(before: World, after: World) -> Iterator[RouteClass]:
    for workload in sorted(before.compiled.manifests.keys() & after.compiled.manifests.keys()):
        for port in sorted(gateway_ports(before, workload) | gateway_ports(after, workload)):
            place = _Port(before=before, after=after, workload=workload, port=port)
            yield from place.entrances()
            yield from place.requests()


@dataclass(frozen=True, slots=True)
class _Face:
    """What one config has for some names at a port."""

    listener: GatewayListener | None
    table: RouteTable | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Piece:
    """Names that are one to both configs."""

    sides: _Sides
    names: tuple[bytes, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Port:
    """One port of a gateway before and after."""

    before: World
    after: World
    workload: str
    port: int

    @property
    def worlds(self) -> tuple[World, World]:
        return self.before, self.after

    def known(self) -> frozenset[bytes]:
        """Every name and pattern that either config speaks of at this port, and all others."""
        found = {_EVERY_HOST}
        for world in self.worlds:
            entries = world.entries(self.workload, self.port)
            found |= {host.encode() for item in (entries.listeners if entries else ()) for host in item.hosts}
            tables = world.gateway_hosts(self.workload, self.port).tables
            found |= {table.routes.host.encode() for table in tables}
        return frozenset(found)

    # --- connections ---

    def entrances(self) -> Iterator[RouteClass]:
        known = self.known()
        found: dict[tuple[Effect, Effect], list[tuple[bytes, Entrance, Entrance]]] = {}
        for name in sorted(known):
            old, new = (world.entrance(self.workload, self.port, one_of(name, known)) for world in self.worlds)
            if effect(old) != effect(new):
                found.setdefault((effect(old), effect(new)), []).append((name, old, new))
        for same in found.values():
            names = tuple(name for name, _, _ in same)
            yield self._class(names, known, same[0][1], same[0][2], boxes=({},))

    def _class(
        self,
        names: tuple[bytes, ...],
        known: frozenset[bytes],
        before: Sent | Entrance,
        after: Sent | Entrance,
        *,
        boxes: tuple[Box, ...],
        dimensions: Mapping[str, Dimension] | None = None,
        doubt: str = "",
        let_in: LetIn = (True, True),
    ) -> RouteClass:
        return RouteClass(
            callers=(self.workload,),
            host=f"{names_text(names, known)} at gateway port {self.port}",
            authorities=names,
            boxes=boxes,
            dimensions=dimensions or {},
            before=before,
            after=after,
            port=self.port,
            known=known,
            doubt=doubt,
            let_in=let_in,
            trusted_hops=self.after.listeners(self.workload).trusted_hops,
        )

    # --- requests ---

    def requests(self) -> Iterator[RouteClass]:
        known = self.known()
        for piece in self._pieces(known):
            if self._key(0, piece.sides[0]) != self._key(1, piece.sides[1]):
                yield from self._compared(piece, known)

    def _pieces(self, known: frozenset[bytes]) -> Iterator[_Piece]:
        found: dict[_Sides, list[bytes]] = {}
        for name in sorted(known):
            example = one_of(name, known)
            found.setdefault((self._face(0, example), self._face(1, example)), []).append(name)
        for sides, names in found.items():
            yield _Piece(sides=sides, names=tuple(names))

    def _face(self, side: int, host: bytes) -> _Face:
        world = self.worlds[side]
        entries = world.entries(self.workload, self.port)
        table = world.gateway_hosts(self.workload, self.port).find(host)
        return _Face(entries.find(host) if entries is not None else None, table)

    def _whole(self, side: int, face: _Face) -> Sent | None:
        return self.worlds[side].entering(self.workload, self.port, face.listener, face.table)

    def _key(self, side: int, face: _Face) -> Hashable:
        """Equal for what does the same with every request."""
        whole = self._whole(side, face)
        if whole is not None or face.table is None:
            return effect(whole) if whole is not None else ()
        parts = self.worlds[side].manifest(self.workload).parts
        return (parts[face.table.key], *(parts.get(f"backend/{name}", "") for name in sorted(backends_of(face.table))))

    def _compared(self, piece: _Piece, known: frozenset[bytes]) -> Iterator[RouteClass]:
        sents: dict[Effect, dict[int, Sent]] = {}
        try:
            dimensions, verdicts = self._dimensions(piece, known)
            lists = [self._decisions(side, piece.sides[side], dimensions, sents) for side in (0, 1)]
            by_change: dict[tuple[Effect, Effect, LetIn], list[Box]] = {}
            authority = sampled_authority(piece.names, known, self.port)
            for found in differences(lists[0], lists[1], dimensions):
                for box, let_in in _let_in(found.box, verdicts, dimensions):
                    if sample(dimensions, box, authority) is not None:
                        by_change.setdefault((found.before, found.after, let_in), []).append(box)
        except TooManyPieces:
            yield self._unproven(piece, known, "its rules cross each other in too many ways to be compared one by one")
            return
        except Unknowable as unknown:
            yield self._unproven(piece, known, str(unknown))
            return
        for (old, new, let_in), boxes in by_change.items():
            yield self._class(
                piece.names, known, sents[old][0], sents[new][1],
                boxes=tuple(boxes), dimensions=dimensions, doubt=vagueness(dimensions), let_in=let_in,
            )  # fmt: skip

    def _unproven(self, piece: _Piece, known: frozenset[bytes], doubt: str) -> RouteClass:
        shown = [self._shown(side, piece.sides[side]) for side in (0, 1)]
        return self._class(piece.names, known, shown[0], shown[1], boxes=(), doubt=doubt)

    def _shown(self, side: int, face: _Face) -> Sent:
        whole = self._whole(side, face)
        if whole is not None or face.table is None:
            return whole or Sent(kind="no-route")
        return last_rule(self.worlds[side], face.table, self.workload)

    def _decisions(
        self, side: int, face: _Face, dimensions: Mapping[str, Dimension], sents: dict[Effect, dict[int, Sent]]
    ) -> Decisions[Effect]:
        world, whole, table = self.worlds[side], self._whole(side, face), face.table
        if whole is not None or table is None:
            return rule_decisions(world, None, self.workload, dimensions, sents, side, whole or Sent(kind="no-route"))
        otherwise = no_route(world, table, self.workload)
        return rule_decisions(world, table, self.workload, dimensions, sents, side, otherwise)

    # --- what is asked ---

    def _dimensions(
        self, piece: _Piece, known: frozenset[bytes]
    ) -> tuple[dict[str, Dimension], Sequence[Decisions[Verdict]]]:
        """What rules ask about, and the gateway's policies where it has any. Raises Unknowable."""
        matches = [
            match
            for side, face in enumerate(piece.sides)
            if face.table is not None and self._whole(side, face) is None
            for _, match in matches_of(face.table, self.workload)
        ]
        for match in matches:
            check_known(match)
        if any(item.name.lower().encode() in NOTED for match in matches for item in match.headers):
            raise Unknowable("rules by headers that a gateway sets itself cannot be compared")
        policies = [as_seen_outside(world, self.workload, self._policies(world)) for world in self.worlds]
        tokens = [world.listeners(self.workload).jwt for world in self.worlds]
        dimensions = joint_dimensions(self.worlds, policies, tokens, matches)
        authorities = [match.authority for match in matches if match.authority is not None]
        hosts = hosts_asked(policies)
        if authorities or hosts:
            belongs = _belonging(piece.names, known)
            dimensions[AUTHORITY] = authority_dimension(authorities, hosts, piece.names, belongs)
        decides = any(item.policies for item in policies) or any(jwt is not None and jwt.required for jwt in tokens)
        return dimensions, [
            self._verdicts(world, table, dimensions, jwt)
            for world, table, jwt in zip(self.worlds, policies, tokens, strict=True)
        ] if decides else []

    def _policies(self, world: World) -> Authorization:
        return world.policies(self.workload).authorization

    def _verdicts(
        self, world: World, table: Authorization, dimensions: Mapping[str, Dimension], jwt: Jwt | None
    ) -> Decisions[Verdict]:
        if world.entries(self.workload, self.port) is None:
            return Decisions(entries=(), default="denied")
        return decisions(table, world.inbound(self.workload, self.port), dimensions, jwt)


def _let_in(
    box: Box, verdicts: Sequence[Decisions[Verdict]], dimensions: Mapping[str, Dimension]
) -> Iterator[tuple[Box, LetIn]]:
    """What of a box the policies let in before or after."""
    if not verdicts:
        yield box, (True, True)
        return
    old, new = verdicts
    for piece, before in decided(old, dimensions, box):
        for inner, after in decided(new, dimensions, piece):
            if "allowed" in (before, after):
                yield inner, (before == "allowed", after == "allowed")


def _belonging(names: Sequence[bytes], known: frozenset[bytes]) -> Callable[[bytes], bool]:
    return lambda host: is_host(host) and most_specific(host, known) in names


_MOST_NAMES: Final = 5


def names_text(names: Iterable[bytes], known: frozenset[bytes]) -> str:
    """`shop.example, *.cdn.example and any other host`."""
    told = [name.decode() for name in names if name != _EVERY_HOST]
    if len(told) > _MOST_NAMES:
        told = [*told[:_MOST_NAMES], f"{len(told) - _MOST_NAMES} more"]
    if _EVERY_HOST in names:
        told.append("any other host" if len(known) > 1 else "any host")
    return " and ".join((", ".join(told[:-1]), told[-1])) if len(told) > 1 else told[0]


# --- who is reached -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Exposure:
    """Workloads that newly get requests from outside, or no longer do. A shift among versions of a service is none."""

    direction: Literal["gains", "loses"]
    servers: tuple[str, ...]
    ports: tuple[int, ...]
    route: RouteClass


def exposures(before: World, after: World, classes: Iterable[RouteClass]) -> Iterator[Exposure]:
    for item in classes:
        if not item.port or isinstance(item.before, Entrance) or isinstance(item.after, Entrance):
            continue
        old, new = _reached(before, item, item.before), _reached(after, item, item.after)
        if item.let_in[1]:
            yield from _exposure("gains", after, item, [each for each in new if each.service not in _services(old)])
        if item.let_in[0]:
            yield from _exposure("loses", before, item, [each for each in old if each.service not in _services(new)])


def _services(destinations: Iterable[Destination]) -> set[str]:
    return {item.service for item in destinations}


def _reached(world: World, item: RouteClass, sent: Sent) -> list[Destination]:
    """Where requests of a class go; where nothing is proven, wherever a rule may send them."""
    if item.boxes:
        return [*sent.destinations, *sent.mirrors]
    found: list[Destination] = []
    for workload in item.callers:
        table = world.gateway_hosts(workload, item.port).find(one_of(item.authorities[0], item.known))
        rules = table.routes.rules if table is not None else ()
        found += [each for rule in rules for each in world.destinations(workload, rule)]
    return found


def _exposure(
    direction: Literal["gains", "loses"], world: World, item: RouteClass, reached: Iterable[Destination]
) -> Iterator[Exposure]:
    found = {
        (reach.workload, reach.port)
        for destination in reached
        for reach in world.reaches(destination)
        if any(_admits(world, gateway, destination, reach) for gateway in item.callers)
    }
    if found:
        servers, ports = ({place[number] for place in found} for number in (0, 1))
        yield Exposure(
            direction=direction,
            servers=tuple(sorted(str(name) for name in servers)),
            ports=tuple(sorted(int(port) for port in ports)),
            route=item,
        )


def _admits(world: World, gateway: str, destination: Destination, reach: Reach) -> bool:
    """Whether a server takes anything of a gateway. What exactly is its policies', of which `access` tells."""
    if not reach.meshed:
        return True
    identity = world.listeners(gateway).identity if destination.backend.tls == "mesh" else ANONYMOUS
    table, jwt = world.policies(reach.workload).authorization, world.listeners(reach.workload).jwt
    try:
        dimensions = access_dimensions(world, table, jwt)
        verdicts = decided(decisions(table, world.inbound(reach.workload, reach.port), dimensions, jwt), dimensions)
        source = dimensions[SOURCE]
        return any(
            verdict == "allowed" and source.holds(box.get(SOURCE, source.all), identity.encode())
            for box, verdict in verdicts
        )
    except (TooManyPieces, Unknowable):
        return True
