"""What rules and policies ask of requests, as dimensions of the space: one function per property of a request.

Whether a value is taken is asked of the very tables that the data plane uses, with a rule that asks one thing only.
"""

import re
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from ipaddress import IPv4Address, IPv6Address
from typing import Any, Final

from backstay.config.addresses import in_blocks, range_of
from backstay.config.authorize import Around, AuthorizationTable, fits, takes_claim
from backstay.config.match import Headers, RouteTable, host_of
from backstay.config.model import (
    AuthorityMatch,
    Authorization,
    ClaimMatch,
    HostRoutes,
    Match,
    Operation,
    PathMatch,
    Policy,
    PolicyRule,
    Rule,
    ValueMatch,
)
from backstay.config.target import clean_target, is_seen
from backstay.core.evaluate import Asked
from backstay.core.review.patterns import examples
from backstay.core.review.space import Dimension, Question, Value, spread

METHOD: Final = "method"
PATH: Final = "path"
AUTHORITY: Final = "authority"
SOURCE: Final = "source"
ADDRESS: Final = "address"
REMOTE: Final = "remote address"
TOKEN: Final = "token"  # noqa: S105 - a name of a dimension
_CLAIM: Final = "claim "
_HEADER: Final = "header "
_QUERY: Final = "query "
_QUERY_TEXT: Final = re.compile(rb"[^&#\\\x00-\x20\x7f-\xff%]*(?:%[0-9A-Fa-f]{2}[^&#\\\x00-\x20\x7f-\xff%]*)*")
_HOST_TEXT: Final = re.compile(rb"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
_HEADER_TEXT: Final = re.compile(rb"[\x21-\x7e\x80-\xff]?[\t\x20-\x7e\x80-\xff]*")


def header_dimension(name: str) -> str:
    return _HEADER + name.lower()


def query_dimension(name: str) -> str:
    return _QUERY + name


# --- asked of config ---------------------------------------------------------------------------------------------------


def _table(match: Match) -> RouteTable:
    return RouteTable(HostRoutes(host="any", port=80, rules=(Rule(name="any", matches=(match,)),)))


def _takes(match: Match, place: Callable[[Value], Asked]) -> Callable[[Value], bool]:
    table = _table(match)

    def takes(value: Value) -> bool:
        question = place(value)
        found = table.pick(question.method, question.path, question.query, question.fields, question.authority)
        return found is not None

    return takes


def _allows(operation: Operation, place: Callable[[Value], Asked]) -> Callable[[Value], bool]:
    policy = Policy(name="any", action="allow", rules=(PolicyRule(operations=(operation,)),))
    table = AuthorizationTable(Authorization(policies=(policy,)))

    def takes(value: Value) -> bool:
        question = place(value)
        about = Around(authority=question.authority)
        return table.decide("", "", question.method, question.path, question.fields, 0, about).allowed

    return takes


def _at(value: Value, *, method: bytes = b"GET", path: bytes = b"/", query: bytes = b"", fields: Headers = ()) -> Asked:
    return Asked(method, b"any", path, query, tuple(fields))


def _path_at(value: Value) -> Asked:
    return _at(value, path=value or b"/")


def _method_at(value: Value) -> Asked:
    return _at(value, method=value or b"GET")


def _header_at(name: bytes) -> Callable[[Value], Asked]:
    return lambda value: _at(value, fields=() if value is None else ((name, value),))


def _query_at(name: bytes) -> Callable[[Value], Asked]:
    return lambda value: _at(value, query=b"" if value is None else name + b"=" + value)


def _authority_at(value: Value) -> Asked:
    return Asked(b"GET", value or b"", b"/", b"", ())


# --- dimensions -------------------------------------------------------------------------------------------------------


def method_dimension(methods: Iterable[str]) -> Dimension:
    named = list(dict.fromkeys(methods))
    questions: dict[Hashable, Question] = {
        name: Question(name=name, negated=f"not {name}", takes=_takes(Match(method=name), _method_at)) for name in named
    }
    known = {name.encode() for name in named}
    other = next(
        name
        for name in (b"GET", b"POST", b"PUT", b"DELETE", b"PATCH", b"HEAD", b"OTHER", b"OTHERX")
        if name not in known
    )
    return Dimension(METHOD, (other, *sorted(known), b"OPTIONS"), questions)


def path_dimension(matches: Iterable[PathMatch], patterns: Iterable[str]) -> Dimension:
    """`matches` of routes, `patterns` of policies; both may ask about the same requests."""
    questions: dict[Hashable, Question] = {}
    exact, starts = [b"/"], [b"/"]
    ends: list[bytes] = []
    texts: list[bytes] = []
    is_exact = True
    for match in dict.fromkeys(matches):
        questions[match] = _path_question(match)
        value = match.value.encode()
        if match.kind == "regex":
            texts += examples(match.value)
            is_exact = False
        elif match.kind == "exact":
            exact.append(value)
        else:
            exact.append(value.rstrip(b"/") or b"/")
            starts.append(value.rstrip(b"/") + b"/")
    for pattern in dict.fromkeys(patterns):
        questions["pattern", pattern] = _pattern_question(pattern)
        _file(pattern.encode(), exact, starts, ends)
    starts = [start for start in starts if start.startswith(b"/")]
    values = [*spread(exact, starts, ends, _is_path), *(text for text in texts if _is_path(text)), b"*"]
    return Dimension(PATH, values, questions, is_exact=is_exact)


def _file(pattern: bytes, exact: list[bytes], starts: list[bytes], ends: list[bytes]) -> None:
    """Add a pattern of a policy to those of its kind."""
    if pattern.endswith(b"*"):
        starts.append(pattern[:-1])
    elif pattern.startswith(b"*"):
        ends.append(pattern[1:])
    else:
        exact.append(pattern)


def _is_path(value: bytes) -> bool:
    return value.startswith(b"/") and b"?" not in value and clean_target(value, b"GET") == value


def _path_question(match: PathMatch) -> Question:
    value = match.value
    name = {"exact": f"at {value}", "prefix": f"under {value}", "regex": f"with a path like {value}"}[match.kind]
    return Question(name=name, negated=f"not {name}", takes=_takes(Match(path=match), _path_at))


def _pattern_question(pattern: str) -> Question:
    name = f"at {pattern}"
    if pattern.endswith("*"):
        name = f"starting with {pattern[:-1]}" if pattern != "*" else "anywhere"
    elif pattern.startswith("*"):
        name = f"ending in {pattern[1:]}"
    return Question(name=name, negated=f"not {name}", takes=_allows(Operation(paths=(pattern,)), _path_at))


def authority_dimension(
    matches: Iterable[AuthorityMatch], patterns: Iterable[str], names: Iterable[bytes], belongs: Callable[[bytes], bool]
) -> Dimension:
    """Hosts among those that some rules are about (`names`, patterns among them): what matches of routes and patterns of
    policies tell apart. `belongs`: whether a host is one of these at all."""
    questions: dict[Hashable, Question] = {}
    own = list(dict.fromkeys(names))
    exact = [name for name in own if not name.startswith(b"*")]
    ends = [name[1:] for name in own if name.startswith(b"*")]
    starts: list[bytes] = []
    texts: list[bytes] = []
    for match in dict.fromkeys(matches):
        takes = _takes(Match(authority=match), _authority_at)
        told = f"for host {match.value}" + ("..." if match.kind == "prefix" else "")
        questions[match] = Question(name=told, negated=f"not {told}", takes=takes)
        if match.kind == "regex":
            texts += examples(match.value)
        else:
            (exact if match.kind == "exact" else starts).append(match.value.lower().encode())
    _ask_hosts(patterns, questions, exact, starts, ends)
    values = [*spread(exact, starts, ends, belongs), *(text for text in texts if belongs(text))]
    return Dimension(AUTHORITY, values, questions, is_exact=not texts or not any(n.startswith(b"*") for n in own))


def host_dimension(patterns: Iterable[str]) -> Dimension:
    """Hosts that policies name, of whatever service."""
    questions: dict[Hashable, Question] = {}
    exact: list[bytes] = []
    starts: list[bytes] = []
    ends: list[bytes] = []
    _ask_hosts(patterns, questions, exact, starts, ends)
    return Dimension(AUTHORITY, spread(exact, starts, ends, is_host), questions)


def _ask_hosts(
    patterns: Iterable[str],
    questions: dict[Hashable, Question],
    exact: list[bytes],
    starts: list[bytes],
    ends: list[bytes],
) -> None:
    for pattern in dict.fromkeys(item.lower() for item in patterns):
        takes = _allows(Operation(hosts=(pattern,)), _authority_at)
        questions["host", pattern] = Question(
            name=f"for host {pattern}", negated=f"not for host {pattern}", takes=takes
        )
        _file(pattern.encode(), exact, starts, ends)


def is_host(value: bytes) -> bool:
    return _HOST_TEXT.fullmatch(value) is not None and host_of(value) == value


def address_dimension(name: str, blocks: Iterable[str], verb: str) -> Dimension:
    """Addresses, cut where any block begins or ends: one of each piece stands for all of it."""
    questions: dict[Hashable, Question] = {}
    edges = {32: {0}, 128: {0}}
    for block in dict.fromkeys(blocks):
        bits, first, last = range_of(block)
        edges[bits] |= {first, last + 1}
        questions[block] = Question(name=f"{verb} {block}", negated=f"not {verb} {block}", takes=_in_block(block))
    kinds = {32: IPv4Address, 128: IPv6Address}
    values = [
        str(kinds[bits](number)).encode() for bits, numbers in edges.items() for number in sorted(numbers)
        if number < 1 << bits
    ]  # fmt: skip
    return Dimension(name, values, questions)


def _in_block(block: str) -> Callable[[Value], bool]:
    return lambda value: in_blocks((value or b"").decode("latin-1"), (block,))


def token_dimension(patterns: Iterable[str], issuers: Iterable[str]) -> Dimension:
    """Principals of tokens that any of these issuers may have given, and requests that have none."""
    no_token = Question(name="without a token", negated="with a token", takes=lambda value: value is None)
    questions: dict[Hashable, Question] = {NO_TOKEN: no_token}
    known = tuple(f"{issuer}/".encode() for issuer in issuers)
    exact: list[bytes] = []
    starts = list(known)
    ends: list[bytes] = []
    for pattern in dict.fromkeys(patterns):
        told = "any token" if pattern == "*" else f"a token of {pattern}"
        questions["token", pattern] = Question(name=f"with {told}", negated=f"without {told}", takes=_fits(pattern))
        _file(pattern.encode(), exact, starts, ends)
    return Dimension(TOKEN, [None, *spread(exact, starts, ends, lambda value: value.startswith(known))], questions)


def _fits(pattern: str) -> Callable[[Value], bool]:
    return lambda value: fits(pattern, (value or b"").decode("utf-8", "replace"))


NO_TOKEN: Final = "no token"  # noqa: S105 - a name of a question
HELD: Final = b"1"
"""The value of a request whose token meets a condition on claims; None is that of all others."""


def claim_dimensions(claims: Iterable[ClaimMatch]) -> Iterator[Dimension]:
    """Each condition is a dimension of its own, held or not: a claim may have several values at once."""
    known = list(dict.fromkeys(claims))
    names = [claim.name for claim in known]
    for claim in known:
        told = claim_text(claim)
        question = Question(name=f"with {told}", negated=f"without {told}", takes=lambda value: value is not None)
        alone = names.count(claim.name) == 1
        yield Dimension(claim_dimension(claim), (None, HELD), {claim: question}, is_exact=alone)


def claim_dimension(claim: ClaimMatch) -> str:
    return _CLAIM + claim_text(claim)


def claim_text(claim: ClaimMatch) -> str:
    values = f": {' or '.join(claim.values)}" if claim.values else ""
    others = f" but not {' or '.join(claim.not_values)}" if claim.not_values else ""
    return f"claim {claim.name}{values}{others}"


def claims_sample(wanted: Mapping[ClaimMatch, bool], principal: str) -> dict[str, Any]:
    """Claims of a token that meets some conditions and not others, as far as there can be one."""
    issuer, _, subject = principal.rpartition("/")
    claims: dict[str, Any] = {"iss": issuer, "sub": subject}
    for claim, holds in wanted.items():
        pattern = next(iter(claim.values), "other") if holds else next(iter(claim.not_values), "")
        if pattern and (holds or takes_claim(claim, claims)):
            claims.setdefault(claim.name, []).append(pattern.replace("*", "other"))
    return claims


def value_dimensions(
    headers: Iterable[ValueMatch], query: Iterable[ValueMatch], policy_headers: Iterable[ValueMatch] = ()
) -> Iterator[Dimension]:
    """One dimension for each header and each parameter that anything asks about."""
    by_name: dict[tuple[bool, str], dict[Hashable, ValueMatch]] = {}
    for match in (*headers, *policy_headers):
        by_name.setdefault((True, match.name.lower()), {})[match] = match
    for match in query:
        by_name.setdefault((False, match.name), {})[match] = match
    for (is_header, name), matches in by_name.items():
        yield _value_dimension(name, list(matches.values()), is_header=is_header)


def _value_dimension(name: str, matches: list[ValueMatch], *, is_header: bool) -> Dimension:
    questions: dict[Hashable, Question] = {}
    exact, starts, texts = [], [], []
    place = _header_at(name.encode()) if is_header else _query_at(name.encode())
    for match in matches:
        asked = Match(headers=(match,)) if is_header else Match(query=(match,))
        questions[match] = _value_question(match, _takes(asked, place), is_header=is_header)
        value = match.value.encode()
        if match.kind == "exact":
            exact.append(value)
        elif match.kind == "prefix":
            starts.append(value)
        elif match.kind == "regex":
            texts += examples(match.value)
    possible = _is_header_value if is_header else _is_query_value
    can_be = is_seen(name.encode()) if is_header else _is_query_name(name)
    values: list[Value] = [None]
    if can_be:
        values += spread(exact, starts, (), possible)
        values += [text for text in texts if possible(text)]
    is_exact = all(match.kind != "regex" for match in matches)
    dimension = header_dimension(name) if is_header else query_dimension(name)
    return Dimension(dimension, values, questions, is_exact=is_exact)


def _is_header_value(value: bytes) -> bool:
    return value == value.strip(b" \t") and _HEADER_TEXT.fullmatch(value) is not None


def _is_query_value(value: bytes) -> bool:
    return _QUERY_TEXT.fullmatch(value) is not None


def _is_query_name(name: str) -> bool:
    return "=" not in name and bool(name) and _is_query_value(name.encode())


def _value_question(match: ValueMatch, takes: Callable[[Value], bool], *, is_header: bool) -> Question:
    thing = match.name if is_header else f"parameter {match.name}"
    told = {
        "exact": f"{thing}: {match.value}" if is_header else f"{thing}={match.value}",
        "prefix": f"{thing} starting with {match.value}",
        "regex": f"{thing} like {match.value}",
        "present": thing,
    }
    if match.kind == "absent":
        return Question(name=f"without {thing}", negated=f"with {thing}", takes=takes)
    return Question(name=f"with {told[match.kind]}", negated=f"without {told[match.kind]}", takes=takes)


# --- requests out of boxes --------------------------------------------------------------------------------------------


def sample(dimensions: Mapping[str, Dimension], box: Mapping[str, int], authority: bytes) -> Asked | None:
    """One request of a box; None if no request can be in it (`*` is a path for OPTIONS only)."""
    chosen = {name: dimension.one_of(box.get(name, dimension.all)) for name, dimension in dimensions.items()}
    path = chosen.get(PATH) or b"/"
    method = chosen.get(METHOD) or b"GET"
    if path == b"*":
        methods = dimensions.get(METHOD)
        if methods is not None and not methods.holds(box.get(METHOD, methods.all), b"OPTIONS"):
            return None
        method = b"OPTIONS"
    fields = tuple(
        (name.removeprefix(_HEADER).encode(), value)
        for name, value in chosen.items()
        if name.startswith(_HEADER) and value is not None
    )
    query = b"&".join(
        name.removeprefix(_QUERY).encode() + (b"=" + value if value else b"")
        for name, value in chosen.items()
        if name.startswith(_QUERY) and value is not None
    )
    claims, is_possible = _sampled_claims(dimensions, box)
    if not is_possible:
        return None
    # A host is chosen without its port: that is the one asked for.
    colon, port = authority.partition(b":")[1:]
    host = chosen.get(AUTHORITY)
    return Asked(
        method, host + colon + port if host else authority, path, query, fields,
        address=(chosen.get(ADDRESS) or b"").decode(), remote=(chosen.get(REMOTE) or b"").decode(), claims=claims,
    )  # fmt: skip


def _sampled_claims(dimensions: Mapping[str, Dimension], box: Mapping[str, int]) -> tuple[dict[str, Any] | None, bool]:
    """Claims of one token of a box (None: of a request without), and whether there can be one."""
    conditions: dict[ClaimMatch, bool] = {}
    for name, dimension in dimensions.items():
        if name.startswith(_CLAIM) and name in box and box[name] != dimension.all:
            (claim,) = (key for key in dimension.questions if isinstance(key, ClaimMatch))
            conditions[claim] = dimension.one_of(box[name]) is not None
    principal = _token_of(dimensions, box, needed=any(conditions.values()))
    if not principal:
        return None, not any(conditions.values())
    claims = claims_sample(conditions, principal)
    return claims, all(takes_claim(claim, claims) == holds for claim, holds in conditions.items())


def _token_of(dimensions: Mapping[str, Dimension], box: Mapping[str, int], *, needed: bool) -> str | None:
    """Principal of a token of the box; None where it is to be a request without one."""
    tokens = dimensions.get(TOKEN)
    if tokens is None:
        return None
    mask = box.get(TOKEN, tokens.all)
    values = [value for place, value in enumerate(tokens.values) if mask >> place & 1]
    if not needed and None in values:
        return None
    return next((value.decode() for value in values if value is not None), None)
