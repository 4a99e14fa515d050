"""Which requests a caller's proxy would send elsewhere, or otherwise: two compiled meshes compared host by host.

Callers that may reach the same hosts from the same namespace are compared once. A host is looked into only if its rules, or
a backend they name, differ; what it does with a request is compared as a value, so other names, another order of rules that
do not meet, or one rule written as two make no difference. Requests from outside are compared in `gateways`.
"""

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, TypeAlias

import msgspec

from backstay.config.addresses import remote_address
from backstay.config.authorize import takes_claim
from backstay.config.claims import principal_of
from backstay.config.match import (
    DEFAULT_PORT,
    HostTable,
    RouteTable,
    canonical,
    host_of,
    is_from,
    is_let_out,
    joined,
    parameters,
)
from backstay.config.model import ClaimMatch, Match, Rule
from backstay.core.compile import declared
from backstay.core.evaluate import Asked, Destination, Entrance, Sent, World, needs_prefix
from backstay.core.review.names import most_specific, one_of
from backstay.core.review.questions import (
    ADDRESS,
    AUTHORITY,
    HELD,
    METHOD,
    PATH,
    REMOTE,
    SOURCE,
    TOKEN,
    authority_dimension,
    header_dimension,
    is_host,
    method_dimension,
    path_dimension,
    query_dimension,
    sample,
    value_dimensions,
)
from backstay.core.review.space import (
    Box,
    Decisions,
    Difference,
    Dimension,
    Entry,
    TooManyPieces,
    Unknowable,
    decided,
    described,
    differences,
)

Effect: TypeAlias = Hashable
"""What a request meets, without names and places: equal effects are the same to everybody."""
LetIn: TypeAlias = tuple[bool, bool]

_KNOWN: Final = frozenset(("path", "method", "headers", "query", "authority", "sources"))
"""Fields of a match that have a dimension here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteClass:
    """Requests to one host whose outcome changes in one way."""

    callers: tuple[str, ...]
    """Workloads; at a gateway its own."""
    host: str
    """`host:port`; at a gateway in words."""
    authorities: tuple[bytes, ...]
    """Spellings that requests use for it."""
    boxes: tuple[Box, ...]
    """Empty where nothing could be proven: any request to the host may be meant."""
    dimensions: Mapping[str, Dimension]
    before: Sent | Entrance
    after: Sent | Entrance
    """Of one kind: where requests go, or how a gateway takes their connections."""
    outside: tuple[HostTable, HostTable] | None = None
    """Set for requests to hosts that neither config knows."""
    let_out: tuple[str, ...] = ()
    """Of those, hosts that either config lets out by name."""
    port: int = 0
    """At a gateway the port where requests come in from outside; 0: requests that workloads make."""
    known: frozenset[bytes] = frozenset()
    """All spellings either config knows, where a pattern is among `authorities`: others may be narrower."""
    let_in: LetIn = (True, True)
    """Whether a gateway's policies let these requests in, before and after."""
    trusted_hops: int = 0
    doubt: str = ""
    """Why the class is not exact; empty where it is."""

    def holds(self, caller: str, question: Asked, port: int = 0) -> bool:
        """Whether a request is one of these; at a gateway (`port`) as its rules see it."""
        if caller not in self.callers or port != self.port or not self._is_named(question.authority):
            return False
        return not self.boxes or any(
            all(self._lies_in(name, mask, question) for name, mask in box.items()) for box in self.boxes
        )

    def _lies_in(self, name: str, mask: int, question: Asked) -> bool:
        dimension = self.dimensions[name]
        return dimension.holds(mask, value_of(dimension, question, self.trusted_hops))

    def _is_named(self, authority: bytes) -> bool:
        if self.outside is not None:
            unknown = all(hosts.find(authority) is None for hosts in self.outside)
            return unknown and not is_let_out(self.let_out, authority)
        name = host_of(authority) if self.port else canonical(authority)
        return name in self.authorities or (bool(self.known) and most_specific(name, self.known) in self.authorities)

    def samples(self) -> Iterator[Asked]:
        """One request of every box."""
        for box in self.boxes:
            found = sample(self.dimensions, box, sampled_authority(self.authorities, self.known, self.port))
            if found is not None:
                yield found

    def words(self) -> list[str]:
        """Which requests, one text a box; a box without words is every request."""
        return [box_words(box, self.dimensions) for box in self.boxes]


def sampled_authority(authorities: Sequence[bytes], known: frozenset[bytes], port: int) -> bytes:
    """A host that a class is about, with the gateway's port as callers name it."""
    name = one_of(authorities[0], known) if authorities else b"unknown.invalid"
    return b"%b:%d" % (name, port) if port else name


def value_of(dimension: Dimension, question: Asked, trusted_hops: int = 0, source: str = "") -> bytes | None:
    """Where a request of a caller lies along one dimension."""
    name = dimension.name
    if name in _PLAIN_VALUES:
        return _PLAIN_VALUES[name](question)
    if name == SOURCE:
        return source.encode()
    if name == REMOTE:
        known = question.remote or remote_address(question.fields, question.address, trusted_hops)
        return known.encode()
    claims = [key for key in dimension.questions if isinstance(key, ClaimMatch)]
    if claims:
        return HELD if takes_claim(claims[0], question.claims) else None
    kind, _, key = name.partition(" ")
    values = joined(question.fields) if kind == "header" else parameters(question.query)
    return values.get(key.encode())


_PLAIN_VALUES: Final[Mapping[str, Callable[[Asked], bytes | None]]] = {
    METHOD: lambda question: question.method,
    PATH: lambda question: question.path,
    AUTHORITY: lambda question: host_of(question.authority),
    ADDRESS: lambda question: question.address.encode(),
    TOKEN: lambda question: principal_of(question.claims).encode() or None,
}


def box_words(box: Box, dimensions: Mapping[str, Dimension]) -> str:
    """`POST under /analyse with x-version: v2`."""
    order = sorted(box, key=lambda name: (name != METHOD, name != PATH, name))
    told = [described(dimensions[name], box[name]) for name in order]
    return " ".join(text for text in told if text)


# --- who is compared --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Group:
    """Workloads whose proxies send alike, in both worlds."""

    first: str
    callers: tuple[str, ...]


def groups(before: World, after: World) -> Iterator[_Group]:
    """Workloads with the same hosts in reach and the same namespace; those with matches of their own stand alone. A gateway
    that did not say what it calls itself calls nothing."""
    found: dict[Hashable, list[str]] = {}
    for key in sorted(before.compiled.manifests.keys() & after.compiled.manifests.keys()):
        workload = after.registry.workloads[key]
        egress = tuple(world.listeners(key).egress for world in (before, after))
        found.setdefault((declared(workload), workload.is_gateway, workload.namespace, egress), []).append(key)
    for keys in found.values():
        yield _Group(first=keys[0], callers=tuple(keys))


def route_classes(before: World, after: World) -> list[RouteClass]:
    """Every class of requests that a caller's proxy would treat otherwise."""
    memo: dict[Hashable, list[RouteClass]] = {}
    return merged(item for group in groups(before, after) for item in _of_group(before, after, group, memo))


def merged(made: Iterable[RouteClass]) -> list[RouteClass]:
    """Callers of which the same is said, together."""
    found: dict[Hashable, RouteClass] = {}
    for item in made:
        change = (effect(item.before), effect(item.after), item.doubt)
        key = (item.host, item.port, item.authorities, _boxes_key(item.boxes), change)
        known = found.get(key, item)
        found[key] = replace(known, callers=tuple(sorted({*known.callers, *item.callers})))
    return list(found.values())


def _boxes_key(boxes: Iterable[Box]) -> Hashable:
    return tuple(tuple(sorted(box.items())) for box in boxes)


def _of_group(
    before: World, after: World, group: _Group, memo: dict[Hashable, list[RouteClass]]
) -> Iterator[RouteClass]:
    for pair in _pairs(before, after, group.first):
        if _depends(pair):
            for caller in group.callers:
                yield from _compare(before, after, pair, caller, (caller,))
            continue
        key = _memo_key(before, after, group.first, pair)
        if key not in memo:
            memo[key] = _compare(before, after, pair, group.first, group.callers)
        for made in memo[key]:
            yield replace(made, callers=group.callers)


@dataclass(frozen=True, slots=True)
class _Pair:
    """Spellings of a host that mean one set of rules before and one after."""

    old: RouteTable | None
    new: RouteTable | None
    authorities: tuple[bytes, ...]
    known: frozenset[bytes] = frozenset()
    """All spellings, where a pattern is among `authorities`."""
    outside: tuple[HostTable, HostTable] | None = None
    """For hosts that neither config knows."""
    let_out: tuple[str, ...] = ()
    """But for these."""

    @property
    def shown(self) -> str:
        table = self.new or self.old
        if table is None:
            return self.authorities[0].decode() if self.authorities else ""
        return f"{table.routes.host}:{table.routes.port}"


def _depends(pair: _Pair) -> bool:
    return any(table is not None and table.depends for table in (pair.old, pair.new))


def _memo_key(before: World, after: World, caller: str, pair: _Pair) -> Hashable:
    sides: list[tuple[str, ...]] = []
    for world, table in ((before, pair.old), (after, pair.new)):
        parts = world.manifest(caller).parts
        if table is None:
            listeners = world.listeners(caller)
            sides.append((listeners.egress, *listeners.egress_hosts))
        else:
            needed = sorted(backends_of(table))
            sides.append((parts[table.key], *(parts.get(f"backend/{key}", "") for key in needed)))
    return (pair.authorities, pair.known, *sides)


def backends_of(table: RouteTable) -> set[str]:
    rules = table.routes.rules
    named = {item.backend for rule in rules for item in rule.backends}
    return named | {item.backend for rule in rules for item in rule.mirrors}


def _pairs(before: World, after: World, caller: str) -> Iterator[_Pair]:
    """What has to be compared for a caller: changed hosts by who answers to which spelling, and hosts nobody knows."""
    old, new = before.manifest(caller).parts, after.manifest(caller).parts
    egress = [world.listeners(caller).egress for world in (before, after)]
    changed = {key for key in old.keys() | new.keys() if old.get(key) != new.get(key) and "/" in key}
    moved = {key.removeprefix("backend/") for key in changed if key.startswith("backend/")}
    hosts = {key for key in changed if key.startswith("routes/")}
    if moved:
        hosts |= _named_by(before, old, moved) | _named_by(after, new, moved)
    for pair in _pairs_among(before, after, caller, hosts):
        wild = any(name.startswith(b"*") for name in pair.authorities)
        yield replace(pair, known=_known(before, after, caller)) if wild else pair
    if egress[0] != egress[1]:
        let_out = (host for world in (before, after) for host in world.listeners(caller).egress_hosts)
        yield _Pair(None, None, (), outside=(before.hosts(caller), after.hosts(caller)), let_out=tuple(let_out))
    elif egress[0] == "registry_only":
        yield from _let_out(before, after, caller)


def _let_out(before: World, after: World, caller: str) -> Iterator[_Pair]:
    """Hosts outside of the mesh that only one config lets out, and that neither has routes for."""
    hosts = [set(world.listeners(caller).egress_hosts) for world in (before, after)]
    if hosts[0] == hosts[1]:
        return
    known = _known(before, after, caller) | {name for host in hosts[0] | hosts[1] for name in _let_out_names(host)}
    for host in sorted(hosts[0] ^ hosts[1]):
        names = _let_out_names(host)
        example = one_of(names[0], known)
        if all(world.hosts(caller).find(example) is None for world in (before, after)):
            yield _Pair(None, None, names, known=known)


def _let_out_names(host: str) -> tuple[bytes, ...]:
    name, _, port = host.rpartition(":")
    return (host.encode(), name.encode()) if port == str(DEFAULT_PORT) else (host.encode(),)


def _known(before: World, after: World, caller: str) -> frozenset[bytes]:
    tables = (table for world in (before, after) for table in world.hosts(caller).tables)
    return frozenset(name for table in tables for name in _spellings(table))


def _pairs_among(before: World, after: World, caller: str, hosts: set[str]) -> Iterator[_Pair]:
    old, new = before.manifest(caller).parts, after.manifest(caller).parts
    come_or_gone = {key for key in hosts if key not in old or key not in new}
    tables = (before.hosts(caller), after.hosts(caller)) if come_or_gone else None
    for key in sorted(hosts - come_or_gone):
        was, now = before.table(caller, key), after.table(caller, key)
        names = _spellings(now) if now is not None else ()
        yield _Pair(was, now, tuple(name for name in names if _still(tables, name, key)))
    if tables is not None:
        yield from _respelled(tables, come_or_gone)


def _spellings(table: RouteTable) -> tuple[bytes, ...]:
    return tuple(dict.fromkeys((*table.names, *table.aliases, *table.wild)))


def _named_by(world: World, parts: Mapping[str, str], backends: set[str]) -> set[str]:
    """Routes that send to one of these backends."""
    return {
        key
        for key, digest in parts.items()
        if key.startswith("routes/") and not backends.isdisjoint(world.sends_to(digest))
    }


def _still(tables: tuple[HostTable, HostTable] | None, name: bytes, key: str) -> bool:
    """Whether a spelling means this host before and after."""
    if tables is None or name.startswith(b"*"):
        return True
    return all((found := side.find(name)) is not None and found.key == key for side in tables)


def _respelled(tables: tuple[HostTable, HostTable], keys: Iterable[str]) -> Iterator[_Pair]:
    """Spellings of hosts that came or went, by what they meant and mean. A pattern is looked up by a name below it."""
    found: dict[tuple[RouteTable | None, RouteTable | None], list[bytes]] = {}
    for key in sorted(keys):
        for side in tables:
            table = side.of_key(key)
            for name in _spellings(table) if table is not None else ():
                meant, means = (each.find(one_of(name)) for each in tables)
                names = found.setdefault((meant, means), [])
                if name not in names:
                    names.append(name)
    for (meant, means), names in found.items():
        yield _Pair(meant, means, tuple(names))


# --- one host ---------------------------------------------------------------------------------------------------------


def _compare(before: World, after: World, pair: _Pair, caller: str, callers: tuple[str, ...]) -> list[RouteClass]:
    sides = ((before, pair.old), (after, pair.new))
    sents: dict[Effect, dict[int, Sent]] = {}
    doubt = ""
    try:
        dimensions = _dimensions(caller, pair)
        lists = [
            rule_decisions(world, table, caller, dimensions, sents, side, _elsewhere(world, table, caller, pair))
            for side, (world, table) in enumerate(sides)
        ]
        found = differences(lists[0], lists[1], dimensions)
    except TooManyPieces:
        doubt = "its rules cross each other in too many ways to be compared one by one"
    except Unknowable as unknown:
        doubt = str(unknown)
    if doubt:
        return [_unproven(before, after, pair, caller, callers, doubt)]
    return list(_classes(found, dimensions, sents, pair, callers))


def _classes(
    found: Sequence[Difference[Effect]],
    dimensions: Mapping[str, Dimension],
    sents: Mapping[Effect, Mapping[int, Sent]],
    pair: _Pair,
    callers: tuple[str, ...],
) -> Iterator[RouteClass]:
    by_change: dict[tuple[Effect, Effect], list[Box]] = {}
    authority = sampled_authority(pair.authorities, pair.known, 0)
    for difference in found:
        if sample(dimensions, difference.box, authority) is not None:
            by_change.setdefault((difference.before, difference.after), []).append(difference.box)
    for (old, new), boxes in by_change.items():
        yield RouteClass(
            callers=callers,
            host=pair.shown,
            authorities=pair.authorities,
            boxes=tuple(boxes),
            dimensions=dimensions,
            before=sents[old][0],
            after=sents[new][1],
            outside=pair.outside,
            let_out=pair.let_out,
            known=pair.known,
            doubt=vagueness(dimensions),
        )


def vagueness(dimensions: Mapping[str, Dimension]) -> str:
    """Why a comparison is not exact; empty where it is."""
    vague = sorted(name for name, dimension in dimensions.items() if not dimension.is_exact)
    return f"patterns in {', '.join(vague)} were compared by examples" if vague else ""


def _unproven(
    before: World, after: World, pair: _Pair, caller: str, callers: tuple[str, ...], doubt: str
) -> RouteClass:
    return RouteClass(
        callers=callers,
        host=pair.shown,
        authorities=pair.authorities,
        boxes=(),
        dimensions={},
        before=_first(before, pair.old, caller),
        after=_first(after, pair.new, caller),
        outside=pair.outside,
        let_out=pair.let_out,
        known=pair.known,
        doubt=doubt,
    )


def _first(world: World, table: RouteTable | None, caller: str) -> Sent:
    """Something to show for a host as a whole: what its last rule does, which most often is the general one."""
    return world.unknown_host(caller) if table is None else last_rule(world, table, caller)


def last_rule(world: World, table: RouteTable, caller: str) -> Sent:
    return world.by_rule(caller, table, len(table.routes.rules) - 1)


def matches_of(table: RouteTable | None, caller: str) -> Iterator[tuple[int, Match]]:
    """(rule, alternative) that a caller's proxy compares with, in order."""
    for index, rule in enumerate(table.routes.rules) if table is not None else ():
        for match in rule.matches or (Match(),):
            if is_from(match.sources, caller):
                yield index, match


def _dimensions(caller: str, pair: _Pair) -> dict[str, Dimension]:
    matches = [match for table in (pair.old, pair.new) for _, match in matches_of(table, caller)]
    for match in matches:
        check_known(match)
    found = [
        method_dimension(match.method for match in matches if match.method),
        path_dimension((match.path for match in matches if match.path is not None), ()),
        *value_dimensions(
            (item for match in matches for item in match.headers), (item for match in matches for item in match.query)
        ),
    ]
    authorities = [match.authority for match in matches if match.authority is not None]
    if authorities:
        names = [name.partition(b":")[0] for name in pair.authorities]
        found.append(authority_dimension(authorities, (), names, _belongs(pair)))
    return {dimension.name: dimension for dimension in found}


def _belongs(pair: _Pair) -> Callable[[bytes], bool]:
    """Whether requests for a host (without its port) are among those of a pair."""
    ports = {name.partition(b":")[2] for name in pair.authorities}
    known = pair.known or frozenset(pair.authorities)

    def belongs(host: bytes) -> bool:
        spelled = (host + (b":" + port if port else b"") for port in ports)
        return is_host(host) and any(most_specific(name, known) in pair.authorities for name in spelled)

    return belongs


def check_known(match: Match) -> None:
    plain = Match()
    for name in match.__struct_fields__:
        if name not in _KNOWN and getattr(match, name) != getattr(plain, name):
            raise Unknowable(f"matches by {name.replace('_', ' ')} cannot be compared yet")


def _elsewhere(world: World, table: RouteTable | None, caller: str, pair: _Pair) -> Sent:
    """What becomes of requests that no rule takes."""
    if table is None:
        authority = one_of(pair.authorities[0], pair.known) if pair.authorities else b""
        return world.unknown_host(caller, authority)
    return no_route(world, table, caller)


def no_route(world: World, table: RouteTable, caller: str) -> Sent:
    place = world.route_place(caller, table.key)
    return Sent(kind="no-route", host=f"{table.routes.host}:{table.routes.port}", place=place)


def rule_decisions(
    world: World,
    table: RouteTable | None,
    caller: str,
    dimensions: Mapping[str, Dimension],
    sents: dict[Effect, dict[int, Sent]],
    side: int,
    otherwise: Sent,
) -> Decisions[Effect]:
    """The rules of a host as boxes with their effects; `sents` remembers what to show for an effect on each side."""

    def remembered(sent: Sent) -> Effect:
        key = effect(sent)
        sents.setdefault(key, {}).setdefault(side, sent)
        return key

    if table is None:
        return Decisions(entries=(), default=remembered(otherwise))
    entries = []
    for index, match in matches_of(table, caller):
        rule = table.routes.rules[index]
        prefix = match.path.value.rstrip("/") if match.path and match.path.kind == "prefix" else ""
        sent = world.by_rule(caller, table, index, prefix if needs_prefix(rule) else "")
        box = box_of(match, dimensions)
        if all(box.values()):
            entries.append(Entry(box=box, outcome=remembered(sent)))
    return Decisions(entries=tuple(entries), default=remembered(otherwise))


def box_of(match: Match, dimensions: Mapping[str, Dimension]) -> Box:
    """A match as a box; an empty mask in it means that no real request can match."""
    box: dict[str, int] = {}

    def narrow(name: str, key: Hashable) -> None:
        dimension = dimensions[name]
        box[name] = box.get(name, dimension.all) & dimension.masks[key]

    if match.method:
        narrow(METHOD, match.method)
    if match.path is not None:
        narrow(PATH, match.path)
    if match.authority is not None:
        narrow(AUTHORITY, match.authority)
    for item in match.headers:
        narrow(header_dimension(item.name), item)
    for item in match.query:
        narrow(query_dimension(item.name), item)
    return box


def rule_samples(world: World, caller: str, key: str) -> Iterator[Asked]:
    """For each rule of a host that takes any request of this caller, one that it takes. Raises TooManyPieces, Unknowable."""
    table = world.table(caller, key)
    if table is None:
        return
    pair = _Pair(table, table, table.names)
    dimensions = _dimensions(caller, pair)
    entries = []
    for index, match in matches_of(table, caller):
        box = box_of(match, dimensions)
        if all(box.values()):
            entries.append(Entry(box=box, outcome=index))
    seen: set[int] = set()
    for box, index in decided(Decisions(entries=tuple(entries), default=-1), dimensions):
        question = sample(dimensions, box, one_of(pair.authorities[0])) if index not in seen else None
        if question is not None and index >= 0:
            seen.add(index)
            yield question


_UNTRIED: Final = Rule(name="")
_ANSWERS: Final = ("redirect", "direct", "response_headers", "cors", "rate_limit")
"""What of a rule can be met where no backend is asked."""


def effect(sent: Sent | Entrance) -> Effect:
    """What a request meets, comparable: no names of rules or subsets, no order of destinations, no places."""
    if isinstance(sent, Entrance):
        return ("entrance", sent.protocol, sent.secret, sent.min_tls)
    rule = sent.rule
    if rule is None:
        # That a gateway does not listen at all is said of its connections.
        return ("no-route" if sent.kind == "closed" else sent.kind,)
    fault = rule.fault
    if (
        fault is not None
        and not (fault.delay_ms and fault.delay_percent)
        and not (fault.abort_status and fault.abort_percent)
    ):
        fault = None
    plain = msgspec.structs.replace(rule, name="", matches=(), backends=(), mirrors=(), fault=fault)
    if sent.kind != "route":
        # The proxy answers by itself: how long it would wait for a backend, and how often, is nothing anybody meets.
        plain = msgspec.structs.replace(_UNTRIED, **{name: getattr(rule, name) for name in _ANSWERS})
    return (sent.kind, plain, _places(sent.destinations), _places(sent.mirrors), sent.prefix)


def _places(destinations: Iterable[Destination]) -> Hashable:
    shares: dict[Hashable, object] = {}
    for item in destinations:
        key = (item.backend, item.labels)
        shares[key] = shares.get(key, 0) + item.share  # type: ignore[operator]
    return frozenset(shares.items())
