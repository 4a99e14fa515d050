"""Which requests a caller's proxy would send elsewhere, or otherwise: two compiled meshes compared host by host.

Callers that may reach the same hosts from the same namespace are compared once. A host is looked into only if its rules, or
a backend they name, differ; what it does with a request is compared as a value, so other names, another order of rules that
do not meet, or one rule written as two make no difference.
"""

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, TypeAlias

import msgspec

from backstay.config.match import HostTable, RouteTable, canonical, covers, host_of, is_from, joined, parameters
from backstay.config.model import Match, Rule
from backstay.core.compile import declared
from backstay.core.evaluate import Asked, Destination, Sent, World, needs_prefix
from backstay.core.review.questions import (
    AUTHORITY,
    METHOD,
    PATH,
    authority_dimension,
    header_dimension,
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

_KNOWN: Final = frozenset(("path", "method", "headers", "query", "authority", "sources"))
"""Fields of a match that have a dimension here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteClass:
    """Requests to one host whose outcome changes in one way."""

    callers: tuple[str, ...]
    """Workloads."""
    host: str
    """`host:port`"""
    authorities: tuple[bytes, ...]
    """Spellings that requests use for it."""
    boxes: tuple[Box, ...]
    """Empty where nothing could be proven: any request to the host may be meant."""
    dimensions: Mapping[str, Dimension]
    before: Sent
    after: Sent
    outside: tuple[HostTable, HostTable] | None = None
    """Set for requests to hosts that neither config knows."""
    at_gateway: bool = False
    doubt: str = ""
    """Why the class is not exact; empty where it is."""

    def holds(self, caller: str, question: Asked) -> bool:
        """Whether a request is one of these."""
        if caller not in self.callers or not self._is_named(question.authority):
            return False
        return not self.boxes or any(
            all(self.dimensions[name].holds(mask, value_of(name, question)) for name, mask in box.items())
            for box in self.boxes
        )

    def _is_named(self, authority: bytes) -> bool:
        if self.outside is not None:
            return all(hosts.find(authority) is None for hosts in self.outside)
        name = host_of(authority) if self.at_gateway else canonical(authority)
        if name in self.authorities:
            return True
        host, _, port = name.partition(b":")
        patterns = [pattern.partition(b":") for pattern in self.authorities if pattern.startswith(b"*")]
        return any(covers(wild.decode(), host.decode()) and port == wanted for wild, _, wanted in patterns)

    def samples(self) -> Iterator[Asked]:
        """One request of every box."""
        for box in self.boxes:
            found = sample(self.dimensions, box, below(self.authorities[0]) if self.authorities else b"unknown.invalid")
            if found is not None:
                yield found

    def words(self) -> list[str]:
        """Which requests, one text a box; a box without words is every request."""
        return [box_words(box, self.dimensions) for box in self.boxes]


def value_of(name: str, question: Asked) -> bytes | None:
    """Where a request lies along one dimension."""
    if name == METHOD:
        return question.method
    if name == PATH:
        return question.path
    if name == AUTHORITY:
        return host_of(question.authority)
    kind, _, key = name.partition(" ")
    values = joined(question.fields) if kind == "header" else parameters(question.query)
    return values.get(key.encode())


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
    """Workloads with the same hosts in reach and the same namespace; those with matches of their own stand alone."""
    found: dict[Hashable, list[str]] = {}
    for key in sorted(before.compiled.manifests.keys() & after.compiled.manifests.keys()):
        workload = after.registry.workloads[key]
        egress = tuple(world.listeners(key).egress for world in (before, after))
        found.setdefault((declared(workload), workload.namespace, egress), []).append(key)
    for keys in found.values():
        yield _Group(first=keys[0], callers=tuple(keys))


def route_classes(before: World, after: World) -> list[RouteClass]:
    """Every class of requests that a caller's proxy would treat otherwise."""
    found: dict[Hashable, RouteClass] = {}
    memo: dict[Hashable, list[RouteClass]] = {}
    made = (item for group in groups(before, after) for item in _of_group(before, after, group, memo))
    for item in made:
        change = (effect(item.before), effect(item.after), item.doubt)
        key = (item.host, item.authorities, _boxes_key(item.boxes), change)
        known = found.get(key, item)
        found[key] = replace(item, callers=tuple(sorted({*known.callers, *item.callers})))
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
    port: int = 0
    """At a gateway the port where requests from outside come in; 0: requests that the workload makes."""
    outside: tuple[HostTable, HostTable] | None = None
    """For hosts that neither config knows."""

    @property
    def shown(self) -> str:
        table = self.new or self.old
        if table is None:
            return ""
        where = "gateway " if self.port else ""
        return f"{where}{table.routes.host}:{table.routes.port}"


def _depends(pair: _Pair) -> bool:
    return any(table is not None and table.depends for table in (pair.old, pair.new))


def _memo_key(before: World, after: World, caller: str, pair: _Pair) -> Hashable:
    sides: list[tuple[str, ...]] = []
    for world, table in ((before, pair.old), (after, pair.new)):
        parts = world.manifest(caller).parts
        if table is None:
            sides.append(("" if pair.port else world.listeners(caller).egress,))
        else:
            needed = sorted(_backends(table))
            sides.append((parts[table.key], *(parts.get(f"backend/{key}", "") for key in needed)))
    return (pair.authorities, pair.port, *sides)


def _backends(table: RouteTable) -> set[str]:
    rules = table.routes.rules
    named = {item.backend for rule in rules for item in rule.backends}
    return named | {item.backend for rule in rules for item in rule.mirrors}


def _pairs(before: World, after: World, caller: str) -> Iterator[_Pair]:
    """What has to be compared for a caller: changed hosts by who answers to which spelling, and hosts nobody knows."""
    old, new = before.manifest(caller).parts, after.manifest(caller).parts
    egress = [world.listeners(caller).egress for world in (before, after)]
    changed = {key for key in old.keys() | new.keys() if old.get(key) != new.get(key) and "/" in key}
    moved = {key.removeprefix("backend/") for key in changed if key.startswith("backend/")}
    hosts = {key for key in changed if not key.startswith("backend/")}
    if moved:
        hosts |= _named_by(before, old, moved) | _named_by(after, new, moved)
    yield from _pairs_among(before, after, caller, {key for key in hosts if key.startswith("routes/")}, 0)
    for port in sorted({int(key.rpartition(":")[2]) for key in hosts if key.startswith("gateway/")}):
        own = {key for key in hosts if key.startswith("gateway/") and key.endswith(f":{port}")}
        yield from _pairs_among(before, after, caller, own, port)
    if egress[0] != egress[1]:
        yield _Pair(None, None, (), outside=(before.hosts(caller), after.hosts(caller)))


def _pairs_among(before: World, after: World, caller: str, hosts: set[str], port: int) -> Iterator[_Pair]:
    """Of the hosts in the mesh (port 0), or at one port of a gateway."""
    old, new = before.manifest(caller).parts, after.manifest(caller).parts
    come_or_gone = {key for key in hosts if key not in old or key not in new}
    tables = None
    if come_or_gone:
        tables = (_tables(before, caller, port), _tables(after, caller, port))
    for key in sorted(hosts - come_or_gone):
        was, now = before.table(caller, key), after.table(caller, key)
        names = _spellings(now) if now is not None else ()
        yield _Pair(was, now, tuple(name for name in names if _still(tables, name, key)), port)
    if tables is not None:
        for pair in _respelled(tables, come_or_gone):
            yield replace(pair, port=port)


def _tables(world: World, caller: str, port: int) -> HostTable:
    return world.gateway_hosts(caller, port) if port else world.hosts(caller)


def _spellings(table: RouteTable) -> tuple[bytes, ...]:
    return tuple(dict.fromkeys((*table.names, *table.aliases, *table.wild)))


def _named_by(world: World, parts: Mapping[str, str], backends: set[str]) -> set[str]:
    """Routes that send to one of these backends."""
    return {
        key
        for key, digest in parts.items()
        if key.startswith(("routes/", "gateway/")) and not backends.isdisjoint(world.sends_to(digest))
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
                meant, means = (each.find(below(name)) for each in tables)
                names = found.setdefault((meant, means), [])
                if name not in names:
                    names.append(name)
    for (meant, means), names in found.items():
        yield _Pair(meant, means, tuple(names))


def below(authority: bytes) -> bytes:
    """A name that a host pattern takes; any other authority as it is."""
    return b"other" + authority[1:] if authority.startswith(b"*") else authority


# --- one host ---------------------------------------------------------------------------------------------------------


def _compare(before: World, after: World, pair: _Pair, caller: str, callers: tuple[str, ...]) -> list[RouteClass]:
    sides = ((before, pair.old), (after, pair.new))
    sents: dict[Effect, dict[int, Sent]] = {}
    doubt = ""
    try:
        dimensions = _dimensions(caller, pair)
        lists = [
            _decisions(world, table, caller, dimensions, sents, side, port=pair.port)
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
    authority = below(pair.authorities[0]) if pair.authorities else b"unknown.invalid"
    for difference in found:
        if sample(dimensions, difference.box, authority) is not None:
            by_change.setdefault((difference.before, difference.after), []).append(difference.box)
    vague = sorted(name for name, dimension in dimensions.items() if not dimension.is_exact)
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
            at_gateway=pair.port > 0,
            doubt=f"patterns in {', '.join(vague)} were compared by examples" if vague else "",
        )


def _unproven(
    before: World, after: World, pair: _Pair, caller: str, callers: tuple[str, ...], doubt: str
) -> RouteClass:
    return RouteClass(
        callers=callers,
        host=pair.shown,
        authorities=pair.authorities,
        boxes=(),
        dimensions={},
        before=_first(before, pair.old, caller, pair.port),
        after=_first(after, pair.new, caller, pair.port),
        outside=pair.outside,
        at_gateway=pair.port > 0,
        doubt=doubt,
    )


def _first(world: World, table: RouteTable | None, caller: str, port: int) -> Sent:
    """Something to show for a host as a whole: what its last rule does, which most often is the general one."""
    if table is None:
        return Sent(kind="no-route") if port else world.unknown_host(caller)
    return world.by_rule(caller, table, len(table.routes.rules) - 1)


def _matches(table: RouteTable | None, caller: str) -> Iterator[tuple[int, Match]]:
    """(rule, alternative) that a caller's proxy compares with, in order."""
    for index, rule in enumerate(table.routes.rules) if table is not None else ():
        for match in rule.matches or (Match(),):
            if is_from(match.sources, caller):
                yield index, match


def _dimensions(caller: str, pair: _Pair) -> dict[str, Dimension]:
    matches = [match for table in (pair.old, pair.new) for _, match in _matches(table, caller)]
    for match in matches:
        _check_known(match)
    found = [
        method_dimension(match.method for match in matches if match.method),
        path_dimension((match.path for match in matches if match.path is not None), ()),
        *value_dimensions(
            (item for match in matches for item in match.headers), (item for match in matches for item in match.query)
        ),
    ]
    authorities = [match.authority for match in matches if match.authority is not None]
    if authorities:
        found.append(authority_dimension(authorities, (host_of(below(name)) for name in pair.authorities)))
    return {dimension.name: dimension for dimension in found}


def _check_known(match: Match) -> None:
    plain = Match()
    for name in match.__struct_fields__:
        if name not in _KNOWN and getattr(match, name) != getattr(plain, name):
            raise Unknowable(f"matches by {name.replace('_', ' ')} cannot be compared yet")


def _decisions(
    world: World,
    table: RouteTable | None,
    caller: str,
    dimensions: Mapping[str, Dimension],
    sents: dict[Effect, dict[int, Sent]],
    side: int,
    *,
    port: int,
) -> Decisions[Effect]:
    """The rules of a host as boxes with their effects; `sents` remembers what to show for an effect on each side."""

    def remembered(sent: Sent) -> Effect:
        key = effect(sent)
        sents.setdefault(key, {}).setdefault(side, sent)
        return key

    if table is None:
        return Decisions(entries=(), default=remembered(Sent(kind="no-route") if port else world.unknown_host(caller)))
    entries = []
    for index, match in _matches(table, caller):
        rule = table.routes.rules[index]
        prefix = match.path.value.rstrip("/") if match.path and match.path.kind == "prefix" else ""
        sent = world.by_rule(caller, table, index, prefix if needs_prefix(rule) else "")
        box = box_of(match, dimensions)
        if all(box.values()):
            entries.append(Entry(box=box, outcome=remembered(sent)))
    no_route = Sent(
        kind="no-route", host=f"{table.routes.host}:{table.routes.port}", place=world.route_place(caller, table.key)
    )
    return Decisions(entries=tuple(entries), default=remembered(no_route))


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
    for index, match in _matches(table, caller):
        box = box_of(match, dimensions)
        if all(box.values()):
            entries.append(Entry(box=box, outcome=index))
    seen: set[int] = set()
    for box, index in decided(Decisions(entries=tuple(entries), default=-1), dimensions):
        question = sample(dimensions, box, below(pair.authorities[0])) if index not in seen else None
        if question is not None and index >= 0:
            seen.add(index)
            yield question


_UNTRIED: Final = Rule(name="")
_ANSWERS: Final = ("redirect", "direct", "response_headers", "cors", "rate_limit")
"""What of a rule can be met where no backend is asked."""


def effect(sent: Sent) -> Effect:
    """What a request meets, comparable: no names of rules or subsets, no order of destinations, no places."""
    rule = sent.rule
    if rule is None:
        return (sent.kind,)
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
