"""Who gains and who loses access: what the proxies of two compiled meshes take in, compared workload by workload.

A workload is looked into only if its policies or its listeners differ. Callers are a dimension like any other: identities
of the registry, those that policies name, any other of each namespace that is named, and plaintext. At the ports of a gateway
nobody has an identity.
"""

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, TypeAlias

import msgspec

from backstay.config.addresses import common_blocks
from backstay.config.authorize import (
    AuthorizationTable,
    namespace_of,
    operation_reads_requests,
    reads_requests,
)
from backstay.config.gateways import NOTED
from backstay.config.model import Authorization, InboundPort, Jwt, Match, Operation, Policy, PolicyRule, Source
from backstay.core.evaluate import ANONYMOUS, Asked, Received, World, refused_by_mode
from backstay.core.review.questions import (
    ADDRESS,
    AUTHORITY,
    METHOD,
    PATH,
    REMOTE,
    SOURCE,
    TOKEN,
    address_dimension,
    claim_dimension,
    claim_dimensions,
    header_dimension,
    host_dimension,
    method_dimension,
    path_dimension,
    sample,
    token_dimension,
    value_dimensions,
)
from backstay.core.review.routes import box_words, value_of
from backstay.core.review.space import (
    Box,
    Decisions,
    Dimension,
    Entry,
    Question,
    TooManyPieces,
    Unknowable,
    differences,
)

Verdict: TypeAlias = Literal["allowed", "denied", "no-token", "plaintext-refused", "handshake-refused"]
_Takes: TypeAlias = Callable[[bytes | None], bool]
Direction: TypeAlias = Literal["gains", "loses", "refused otherwise"]

_KNOWN_OPERATION: Final = frozenset(
    ("methods", "paths", "headers", "ports", "hosts", "not_methods", "not_paths", "not_ports", "not_hosts")
)
_IDENTITY: Final = ("principals", "namespaces", "not_principals", "not_namespaces")
"""What of a source is about who the caller's proxy is; the rest is about where and for whom it asks."""
_KNOWN_SOURCE: Final = frozenset(
    (
        *_IDENTITY, "ip_blocks", "not_ip_blocks", "remote_ip_blocks", "not_remote_ip_blocks", "request_principals",
        "not_request_principals", "claims",
    )
)  # fmt: skip
_KNOWN_RULE: Final = frozenset(("sources", "operations"))


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessClass:
    """Requests to one port of some workloads that are let in, or kept out, otherwise than before."""

    servers: tuple[str, ...]
    ports: tuple[int, ...]
    """The applications' own; OTHER_PORTS is every one that nobody names."""
    direction: Direction
    boxes: tuple[Box, ...]
    """Empty where nothing could be proven."""
    dimensions: Mapping[str, Dimension]
    before: Received
    """What one of these requests met."""
    after: Received
    sources: tuple[str, ...]
    """Identities of workloads that are concerned; others are in the words."""
    doubt: str = ""
    trusted_hops: int = 0
    from_outside: bool = False
    """At a port of a gateway."""

    def holds(self, server: str, port: int, source: str, question: Asked) -> bool:
        """Whether a request of this caller is one of these."""
        if server not in self.servers or port not in self.ports:
            return False
        return not self.boxes or any(
            all(self._lies_in(name, mask, source, question) for name, mask in box.items()) for box in self.boxes
        )

    def _lies_in(self, name: str, mask: int, source: str, question: Asked) -> bool:
        dimension = self.dimensions[name]
        return dimension.holds(mask, value_of(dimension, question, self.trusted_hops, source))

    def samples(self) -> Iterator[tuple[str, Asked]]:
        """(caller, request) out of every box."""
        for box in self.boxes:
            yield from _samples(self.dimensions, box)

    def words(self) -> list[str]:
        """Which requests of whom, one text a box."""
        callers = OUTSIDE if self.from_outside else ""
        return [_words(box, self.dimensions, callers) for box in self.boxes]


OUTSIDE: Final = "callers from outside"


def _samples(dimensions: Mapping[str, Dimension], box: Box) -> Iterator[tuple[str, Asked]]:
    question = sample({name: item for name, item in dimensions.items() if name != SOURCE}, box, b"")
    source = dimensions[SOURCE].one_of(box.get(SOURCE, dimensions[SOURCE].all))
    if question is not None:
        yield (source or b"").decode(), question


def _words(box: Box, dimensions: Mapping[str, Dimension], callers: str) -> str:
    callers = callers or callers_text(dimensions[SOURCE], box.get(SOURCE, dimensions[SOURCE].all))
    asked = box_words({name: mask for name, mask in box.items() if name != SOURCE}, dimensions) or "any request"
    return f"{callers}: {asked}"


_OTHER: Final = "other"
"""Stands for names that no document and no workload has."""


def callers_text(dimension: Dimension, mask: int) -> str:
    """`shop/sa-webapp, any other of namespace legacy, plaintext callers`."""
    if mask == dimension.all:
        return "everybody"
    told = [_caller_text(value or b"") for place, value in enumerate(dimension.values) if mask >> place & 1]
    ordered = sorted(dict.fromkeys(told), key=lambda text: ("other" in text, text))
    return ", ".join(ordered[:8]) + (f" and {len(ordered) - 8} more" if len(ordered) > 8 else "")


def _caller_text(value: bytes) -> str:
    if not value:
        return "plaintext callers"
    text = value.decode()
    namespace, account = namespace_of(text), text.rpartition("/")[2]
    domain = text.removeprefix("spiffe://").partition("/")[0]
    if namespace == _OTHER or namespace.endswith(f"-{_OTHER}"):
        begun = namespace.removesuffix(_OTHER).removesuffix("-")
        return f"others of {domain}" + (f" in namespaces {begun}..." if begun else "")
    if account == _OTHER or account.endswith(f"-{_OTHER}"):
        begun = account.removesuffix(_OTHER).removesuffix("-")
        return f"others of namespace {namespace}" + (f" named {begun}..." if begun else "")
    return f"{namespace}/{account}"


# --- who is compared --------------------------------------------------------------------------------------------------


def access_classes(before: World, after: World) -> list[AccessClass]:
    """Every class of requests that a server's proxy would take in otherwise; what widens access comes first."""
    found: dict[Hashable, AccessClass] = {}
    memo: dict[Hashable, list[AccessClass]] = {}
    for key in sorted(before.compiled.manifests.keys() & after.compiled.manifests.keys()):
        for item in _of_workload(before, after, key, memo):
            change = (item.direction, item.before.reason, item.after.reason, item.doubt)
            same = (item.servers, tuple(item.words()), _frozen(item.boxes), change)
            known = found.get(same, item)
            found[same] = replace(known, ports=tuple(sorted({*known.ports, *item.ports})))
    return _ordered(_with_equal_ports(found.values()))


def _frozen(boxes: Iterable[Box]) -> Hashable:
    return tuple(tuple(sorted(box.items())) for box in boxes)


def _with_equal_ports(classes: Iterable[AccessClass]) -> Iterator[AccessClass]:
    """Workloads of which the same is said, together."""
    found: dict[Hashable, AccessClass] = {}
    for item in classes:
        change = (item.direction, item.before.reason, item.after.reason, item.doubt)
        same = (item.ports, tuple(item.words()), _frozen(item.boxes), change)
        known = found.get(same, item)
        found[same] = replace(known, servers=tuple(sorted({*known.servers, *item.servers})))
    yield from found.values()


def _ordered(classes: Iterable[AccessClass]) -> list[AccessClass]:
    """What widens access first."""
    order = {"gains": 0, "loses": 1, "refused otherwise": 2}
    return sorted(classes, key=lambda item: order[item.direction])


def _of_workload(
    before: World, after: World, key: str, memo: dict[Hashable, list[AccessClass]]
) -> Iterator[AccessClass]:
    old, new = before.manifest(key).parts, after.manifest(key).parts
    if old["authorization"] == new["authorization"] and old["listeners"] == new["listeners"]:
        return
    for doubt in _other_changes(before, after, key):
        any_port = InboundPort(port=OTHER_PORTS)
        yield _unproven(before, after, key, (any_port, any_port), doubt)
    outside = gateway_ports(before, key) & gateway_ports(after, key)
    for port in _ports(before, after, key):
        sides = before.inbound(key, port), after.inbound(key, port)
        tokens = tuple((world.listeners(key).jwt, world.listeners(key).trusted_hops) for world in (before, after))
        same = (old["authorization"], new["authorization"], sides, tokens, port in outside)
        if same not in memo:
            memo[same] = list(_compare(before, after, key, sides, from_outside=port in outside))
        for item in memo[same]:
            yield replace(item, servers=(key,))


OTHER_PORTS: Final = 0
"""Stands for the ports of an application that no document and no service names."""


def _ports(before: World, after: World, key: str) -> list[int]:
    named = {item.port for world in (before, after) for item in world.listeners(key).inbound}
    return [OTHER_PORTS, *sorted(named | (gateway_ports(before, key) & gateway_ports(after, key)))]


def gateway_ports(world: World, key: str) -> set[int]:
    """Where a workload listens for callers from outside. A port that opens or closes is told of by `gateways`."""
    return {item.port for item in world.listeners(key).gateway}


def _other_changes(before: World, after: World, key: str) -> Iterator[str]:
    """What changed of listeners that has no dimension here: said, if not proven."""
    known: dict[str, Any] = {"inbound": (), "egress": "allow_any", "access_log": "off", "other_ports": "permissive"}
    known |= {"log_percent": 100.0, "tracing": None, "engine": ""}  # what is told of requests, and who does it
    known |= {"gateway": (), "egress_hosts": ()}  # compared in `gateways` and `routes`
    if not any(_asks_remote(world.policies(key).authorization) for world in (before, after)):
        known["trusted_hops"] = 0
    if _issuers(before.listeners(key).jwt) == _issuers(after.listeners(key).jwt):
        known["jwt"] = None  # what else of it decides is compared
    old, new = (msgspec.structs.replace(world.listeners(key), **known) for world in (before, after))
    for name in old.__struct_fields__:
        if getattr(old, name) != getattr(new, name):
            yield f"{name.replace('_', ' ')} of its listeners changed; who gets in by that is not computed"


def _asks_remote(table: Authorization) -> bool:
    sources = (source for policy in table.policies for rule in policy.rules for source in rule.sources)
    return any(source.remote_ip_blocks or source.not_remote_ip_blocks for source in sources)


def _issuers(jwt: Jwt | None) -> tuple[object, ...]:
    """Whose tokens are believed: who signs them cannot be compared by what they claim. Where none was read before, all that
    changes is what requests with a token may do, and what those without one may not."""
    return (
        ()
        if jwt is None
        else tuple((p.issuer, p.audiences, p.jwks, p.jwks_uri, p.places, p.claim_headers) for p in jwt.providers)
    )


# --- one port ---------------------------------------------------------------------------------------------------------


def _compare(
    before: World, after: World, key: str, ports: tuple[InboundPort, InboundPort], *, from_outside: bool
) -> Iterator[AccessClass]:
    tables = before.policies(key).authorization, after.policies(key).authorization
    required = [_required(world.listeners(key).jwt) for world in (before, after)]
    if tables[0] == tables[1] and ports[0] == ports[1] and required[0] == required[1]:
        return
    try:
        rules = before.listeners(key).jwt, after.listeners(key).jwt
        if from_outside:
            tables = as_seen_outside(before, key, tables[0]), as_seen_outside(after, key, tables[1])
        dimensions = _dimensions(before, after, tables, rules)
        if from_outside:
            dimensions[SOURCE] = _nobody(dimensions[SOURCE])
        lists = [decisions(table, port, dimensions, jwt) for table, port, jwt in zip(tables, ports, rules, strict=True)]
        found = differences(lists[0], lists[1], dimensions)
    except TooManyPieces:
        yield _unproven(
            before, after, key, ports, "its rules cross each other in too many ways to be compared one by one"
        )
        return
    except Unknowable as unknown:
        yield _unproven(before, after, key, ports, str(unknown))
        return
    by_change: dict[tuple[Verdict, Verdict], list[Box]] = {}
    for item in found:
        if any(_samples(dimensions, item.box)):
            by_change.setdefault((item.before, item.after), []).append(item.box)
    for (old, new), boxes in by_change.items():
        made = _class(before, after, key, ports[1], dimensions, tuple(boxes), _direction(old, new))
        yield replace(made, from_outside=from_outside)


def as_seen_outside(world: World, key: str, table: Authorization) -> Authorization:
    """Policies as a gateway asks them of callers from outside. It notes the address itself, so that without trusted proxies in
    front the address that began a request is the connection's. Raises Unknowable."""
    rules = [rule for policy in table.policies for rule in policy.rules]
    asked = {
        item.name.lower().encode() for rule in rules for operation in rule.operations for item in operation.headers
    }
    if asked & NOTED:
        raise Unknowable("policies by headers that a gateway sets itself cannot be compared")
    if world.listeners(key).trusted_hops:
        return table
    return msgspec.structs.replace(
        table,
        policies=tuple(
            msgspec.structs.replace(policy, rules=tuple(map(_by_connection, policy.rules))) for policy in table.policies
        ),
    )


def _by_connection(rule: PolicyRule) -> PolicyRule:
    return msgspec.structs.replace(rule, sources=tuple(map(_one_address, rule.sources)))


def _one_address(source: Source) -> Source:
    if not source.remote_ip_blocks and not source.not_remote_ip_blocks:
        return source
    wanted, unwanted = (
        source.ip_blocks or source.remote_ip_blocks,
        (*source.not_ip_blocks, *source.not_remote_ip_blocks),
    )
    if source.ip_blocks and source.remote_ip_blocks:
        wanted = common_blocks(source.ip_blocks, source.remote_ip_blocks)
        if not wanted:  # no address is in both: one that is asked for and excluded at once
            wanted, unwanted = source.ip_blocks[:1], source.ip_blocks[:1]
    return msgspec.structs.replace(
        source,
        ip_blocks=wanted,
        not_ip_blocks=unwanted,
        remote_ip_blocks=(),
        not_remote_ip_blocks=(),
    )


def _nobody(dimension: Dimension) -> Dimension:
    """Callers without an identity only."""
    return Dimension(dimension.name, (b"",), dimension.questions)


def _required(jwt: Jwt | None) -> tuple[bool, tuple[str, ...], tuple[str, ...]]:
    """Which requests must bring a token, and whether tokens are read at all."""
    return (False, (), ()) if jwt is None else (True, jwt.required, jwt.not_required)


def _direction(old: Verdict, new: Verdict) -> Direction:
    if new == "allowed":
        return "gains"
    return "loses" if old == "allowed" else "refused otherwise"


def _class(
    before: World,
    after: World,
    key: str,
    port: InboundPort,
    dimensions: Mapping[str, Dimension],
    boxes: tuple[Box, ...],
    direction: Direction,
) -> AccessClass:
    source, question = next(_samples(dimensions, boxes[0]))
    vague = sorted(name for name, dimension in dimensions.items() if not dimension.is_exact)
    return AccessClass(
        servers=(key,),
        ports=(port.port,),
        direction=direction,
        boxes=boxes,
        dimensions=dimensions,
        before=before.takes(key, port.port, source, question),
        after=after.takes(key, port.port, source, question),
        sources=tuple(sorted(_identities(after, dimensions[SOURCE], boxes))),
        doubt=f"patterns in {', '.join(vague)} were compared by examples" if vague else "",
        trusted_hops=after.listeners(key).trusted_hops,
    )


def _identities(world: World, dimension: Dimension, boxes: Iterable[Box]) -> set[str]:
    """Identities of the registry's workloads that lie in any of the boxes."""
    domain = world.snapshot.mesh.trust_domain
    known = {workload.identity(domain) for workload in world.registry.workloads.values()}
    masks = [box.get(SOURCE, dimension.all) for box in boxes]
    return {identity for identity in known if any(dimension.holds(mask, identity.encode()) for mask in masks)}


def _unproven(before: World, after: World, key: str, ports: tuple[InboundPort, InboundPort], doubt: str) -> AccessClass:
    anything = Asked(b"GET", b"", b"/", b"", ())
    return AccessClass(
        servers=(key,),
        ports=(ports[1].port,),
        direction="gains",
        boxes=(),
        dimensions={},
        before=before.takes(key, ports[0].port, ANONYMOUS, anything),
        after=after.takes(key, ports[1].port, ANONYMOUS, anything),
        sources=(),
        doubt=doubt,
    )


# --- dimensions -------------------------------------------------------------------------------------------------------


def _dimensions(
    before: World,
    after: World,
    tables: Sequence[Authorization],
    rules_of_tokens: Sequence[Jwt | None] = (None, None),
    matches: Sequence[Match] = (),
) -> dict[str, Dimension]:
    """What policies ask about, and what `matches` of routes ask of the same requests."""
    rules = [rule for table in tables for policy in table.policies if policy.action != "audit" for rule in policy.rules]
    for rule in rules:
        _check_known(rule)
    operations = [operation for rule in rules for operation in rule.operations]
    headers = [item for operation in operations for item in operation.headers]
    sources = [source for rule in rules for source in rule.sources]
    methods = (method for item in operations for method in (*item.methods, *item.not_methods))
    paths = (match.path for match in matches if match.path is not None)
    found = [
        _source_dimension((before, after), [identity_part(source) for source in sources]),
        method_dimension((*(match.method for match in matches if match.method), *methods)),
        path_dimension(paths, (*_token_paths(rules_of_tokens), *_paths(operations))),
        *value_dimensions(
            (item for match in matches for item in match.headers),
            (item for match in matches for item in match.query),
            headers,
        ),
        *_around_dimensions(sources, operations),
        *_token_dimensions(sources, rules_of_tokens),
    ]
    return {dimension.name: dimension for dimension in found}


def joint_dimensions(
    worlds: tuple[World, World], tables: Sequence[Authorization], tokens: Sequence[Jwt | None], matches: Sequence[Match]
) -> dict[str, Dimension]:
    """What a gateway's policies and the rules of its routes ask of callers from outside, its hosts aside."""
    found = _dimensions(*worlds, tables, tokens, matches)
    found[SOURCE] = _nobody(found[SOURCE])
    found.pop(AUTHORITY, None)
    return found


def hosts_asked(tables: Iterable[Authorization]) -> list[str]:
    """Hosts that policies name."""
    operations = (o for table in tables for policy in table.policies for rule in policy.rules for o in rule.operations)
    return [host for item in operations for host in (*item.hosts, *item.not_hosts)]


def _around_dimensions(sources: list[Source], operations: list[Operation]) -> Iterator[Dimension]:
    """What few policies ask; nothing where none does, so that other comparisons do not pay for it."""
    blocks = [block for source in sources for block in (*source.ip_blocks, *source.not_ip_blocks)]
    remote = [block for source in sources for block in (*source.remote_ip_blocks, *source.not_remote_ip_blocks)]
    hosts = [host for item in operations for host in (*item.hosts, *item.not_hosts)]
    if blocks:
        yield address_dimension(ADDRESS, blocks, "from")
    if remote:
        yield address_dimension(REMOTE, remote, "begun at")
    if hosts:
        yield host_dimension(hosts)


def _paths(operations: list[Operation]) -> Iterator[str]:
    return (path for item in operations for path in (*item.paths, *item.not_paths))


def _token_paths(rules: Iterable[Jwt | None]) -> Iterator[str]:
    return (path for jwt in rules if jwt is not None for path in (*jwt.required, *jwt.not_required))


def _token_dimensions(sources: list[Source], rules: Iterable[Jwt | None]) -> Iterator[Dimension]:
    """Tokens and their claims, where anybody asks about them."""
    known = [jwt for jwt in rules if jwt is not None]
    issuers = dict.fromkeys(provider.issuer for jwt in known for provider in jwt.providers)
    tokens = [name for source in sources for name in (*source.request_principals, *source.not_request_principals)]
    claims = [claim for source in sources for claim in source.claims]
    if tokens or claims or any(jwt.required for jwt in known):
        yield token_dimension(tokens, issuers)
    yield from claim_dimensions(claims)


def identity_part(source: Source) -> Source:
    return Source(**{name: getattr(source, name) for name in _IDENTITY})


def access_dimensions(world: World, table: Authorization, jwt: Jwt | None = None) -> dict[str, Dimension]:
    """What one set of policies asks about. Raises Unknowable."""
    return _dimensions(world, world, (table, table), (jwt, jwt))


def _check_known(rule: PolicyRule) -> None:
    for struct, known in (
        (rule, _KNOWN_RULE),
        *((item, _KNOWN_SOURCE) for item in rule.sources),
        *((item, _KNOWN_OPERATION) for item in rule.operations),
    ):
        plain = type(struct)()
        for name in struct.__struct_fields__:
            if name not in known and getattr(struct, name) != getattr(plain, name):
                raise Unknowable(f"policies by {name.replace('_', ' ')} cannot be compared yet")


def _source_dimension(worlds: Iterable[World], sources: list[Source]) -> Dimension:
    questions: dict[Hashable, Question] = {
        source: Question(name="named callers", negated="other callers", takes=_takes_source(source))
        for source in dict.fromkeys(sources)
    }
    questions[ANONYMOUS] = Question(
        name="plaintext callers", negated="callers with a certificate", takes=lambda value: not value
    )
    known = [
        workload.identity(world.snapshot.mesh.trust_domain)
        for world in worlds
        for workload in world.registry.workloads.values()
    ]
    # Every identity of the registry is kept: what they are called is what a review is about.
    for identity in dict.fromkeys(known):
        questions["is", identity] = _is(identity)
    domains = dict.fromkeys(world.snapshot.mesh.trust_domain for world in worlds)
    return Dimension(SOURCE, (b"", *map(str.encode, identities(known, sources, domains))), questions)


def _is(identity: str) -> Question:
    encoded = identity.encode()
    return Question(name=identity, negated=f"not {identity}", takes=lambda value: value == encoded)


def _takes_source(source: Source) -> _Takes:
    policy = Policy(name="any", action="allow", rules=(PolicyRule(sources=(source,)),))
    table = AuthorizationTable(Authorization(policies=(policy,)))

    def takes(value: bytes | None) -> bool:
        identity = (value or b"").decode()
        return table.decide(identity, namespace_of(identity), b"GET", b"/", (), 0).allowed

    return takes


def identities(known: Iterable[str], sources: Iterable[Source], domains: Iterable[str]) -> Iterator[str]:
    """Identities that show every combination of answers to what sources ask: all of the registry, all that are named,
    and for each trust domain and namespace that is named or begun one that nobody has."""
    sources = list(sources)
    principals = {name for source in sources for name in (*source.principals, *source.not_principals)}
    yield from known
    yield from (name for name in sorted(principals) if not name.endswith("*"))
    trees = [name.removesuffix("*").removeprefix("spiffe://").split("/") for name in sorted(principals)]
    spaces = {name for source in sources for name in (*source.namespaces, *source.not_namespaces)}
    spaces |= {namespace_of(name) for name in known} | {tree[2] for tree in trees if len(tree) > 2}
    for root in sorted(_completed({*domains, *(tree[0] for tree in trees)})):
        for space in sorted(_completed(spaces)):
            named = {tree[4] for tree in trees if len(tree) > 4 and tree[0] == root and tree[2] == space}
            for account in sorted(_completed(named)):
                yield f"spiffe://{root}/ns/{space}/sa/{account}"


def _completed(names: Iterable[str]) -> set[str]:
    """Names as they are, each continued (a pattern may have ended in its middle), and one that nobody uses."""
    found = set(names) - {""}
    return found | {f"{name}-other" for name in found if not name.endswith("-")} | {"other"}


# --- policies as lists ------------------------------------------------------------------------------------------------


def decisions(
    table: Authorization, port: InboundPort, dimensions: Mapping[str, Dimension], jwt: Jwt | None = None
) -> Decisions[Verdict]:
    """What decides on one port: how connections are taken, tokens, then deny rules, then allow rules, then the rest."""
    entries = list(_mode_entries(port, dimensions[SOURCE]))
    reads_tokens = jwt is not None
    if jwt is not None and jwt.required and port.protocol != "tcp":
        entries.append(Entry(box=_tokenless(jwt, dimensions), outcome="no-token"))
    for action, verdict in (("deny", "denied"), ("allow", "allowed")):
        for policy in table.policies:
            if policy.action == action:
                for rule in policy.rules:
                    boxes = _boxes(rule, port, dimensions, unseen=action == "deny", reads_tokens=reads_tokens)
                    entries += [Entry(box=box, outcome=_verdict(verdict)) for box in boxes]
    is_open = all(policy.action != "allow" for policy in table.policies)
    return Decisions(entries=tuple(entries), default="allowed" if is_open else "denied")


def _tokenless(jwt: Jwt, dimensions: Mapping[str, Dimension]) -> Box:
    """Requests without a token for paths that must bring one."""
    wanted, unwanted = ([("pattern", path) for path in paths] for paths in (jwt.required, jwt.not_required))
    tokens = dimensions[TOKEN]
    return {PATH: _mask(dimensions[PATH], wanted, unwanted), TOKEN: _without_token(tokens)}


def _without_token(tokens: Dimension) -> int:
    return 1 << tokens.values.index(None)


def _verdict(text: str) -> Verdict:
    return "allowed" if text == "allowed" else "denied"


def _mode_entries(port: InboundPort, source: Dimension) -> Iterator[Entry[Verdict]]:
    plain = source.masks[ANONYMOUS]
    if refused_by_mode(port.mtls, ANONYMOUS):
        yield Entry(box={SOURCE: plain}, outcome="plaintext-refused")
    if refused_by_mode(port.mtls, "spiffe://any"):
        yield Entry(box={SOURCE: source.all & ~plain}, outcome="handshake-refused")


def _boxes(
    rule: PolicyRule,
    port: InboundPort,
    dimensions: Mapping[str, Dimension],
    *,
    unseen: bool,
    reads_tokens: bool,
) -> Iterator[Box]:
    """A rule as boxes. Where nobody reads requests (TCP) what cannot be seen matches if `unseen`."""
    is_tcp = port.protocol == "tcp"
    for base in _source_boxes(rule, dimensions, is_tcp=is_tcp, unseen=unseen, reads_tokens=reads_tokens):
        for operation in rule.operations or (Operation(),):
            if (operation.ports and port.port not in operation.ports) or port.port in operation.not_ports:
                continue
            if is_tcp:
                if unseen or not operation_reads_requests(operation):
                    yield base
                continue
            box = _operation_box(operation, dimensions)
            if all(box.values()):
                yield {**base, **box}


def _source_boxes(
    rule: PolicyRule, dimensions: Mapping[str, Dimension], *, is_tcp: bool, unseen: bool, reads_tokens: bool
) -> Iterator[dict[str, int]]:
    """The sources of a rule as boxes: one for all that ask only for an identity, one for each of the others."""
    if not rule.sources:
        yield {}
        return
    identities = dimensions[SOURCE].masks
    plain = 0
    for source in rule.sources:
        if is_tcp and reads_requests(source) and not unseen:
            continue
        if not reads_tokens and not is_tcp and (source.request_principals or source.claims):
            continue  # no request has a token there
        rest = _around_box(source, dimensions, is_tcp=is_tcp, reads_tokens=reads_tokens)
        mask = identities[identity_part(source)]
        if not rest:
            plain |= mask
        elif mask and all(rest.values()):
            yield {SOURCE: mask, **rest}
    if plain:
        yield {SOURCE: plain}


def _around_box(
    source: Source, dimensions: Mapping[str, Dimension], *, is_tcp: bool, reads_tokens: bool
) -> dict[str, int]:
    """What a source asks besides an identity; of a connection that nobody reads only its address is known."""
    box: dict[str, int] = {}
    if source.ip_blocks or source.not_ip_blocks:
        box[ADDRESS] = _mask(dimensions[ADDRESS], source.ip_blocks, source.not_ip_blocks)
    if is_tcp:
        return box
    if source.remote_ip_blocks or source.not_remote_ip_blocks:
        box[REMOTE] = _mask(dimensions[REMOTE], source.remote_ip_blocks, source.not_remote_ip_blocks)
    if not reads_tokens:
        return box
    if source.request_principals or source.not_request_principals:
        wanted, unwanted = (
            [("token", name) for name in names] for names in (source.request_principals, source.not_request_principals)
        )
        box[TOKEN] = _mask(dimensions[TOKEN], wanted, unwanted)
    for claim in source.claims:
        dimension = dimensions[claim_dimension(claim)]
        box[dimension.name] = dimension.masks[claim]
    return box


def _mask(dimension: Dimension, wanted: Iterable[Hashable], unwanted: Iterable[Hashable]) -> int:
    """Values that one of the wanted questions takes (all, where there is none) and none of the unwanted ones."""
    chosen = [dimension.masks[key] for key in wanted]
    mask = dimension.all if not chosen else 0
    for one in chosen:
        mask |= one
    for key in unwanted:
        mask &= ~dimension.masks[key]
    return mask


def _operation_box(operation: Operation, dimensions: Mapping[str, Dimension]) -> dict[str, int]:
    box: dict[str, int] = {}
    if operation.methods or operation.not_methods:
        box[METHOD] = _mask(dimensions[METHOD], operation.methods, operation.not_methods)
    if operation.paths or operation.not_paths:
        wanted, unwanted = ([("pattern", path) for path in paths] for paths in (operation.paths, operation.not_paths))
        box[PATH] = _mask(dimensions[PATH], wanted, unwanted)
    if operation.hosts or operation.not_hosts:
        wanted, unwanted = ([("host", h.lower()) for h in hosts] for hosts in (operation.hosts, operation.not_hosts))
        box[AUTHORITY] = _mask(dimensions[AUTHORITY], wanted, unwanted)
    for item in operation.headers:
        dimension = dimensions[header_dimension(item.name)]
        box[dimension.name] = box.get(dimension.name, dimension.all) & dimension.masks[item]
    return box
