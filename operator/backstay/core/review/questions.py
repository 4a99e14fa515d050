"""What rules and policies ask of requests, as dimensions of the space: one function per property of a request.

Whether a value is taken is asked of the very tables that the data plane uses, with a rule that asks one thing only.
"""

import re
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from typing import Final

from backstay.config.authorize import AuthorizationTable
from backstay.config.match import Headers, RouteTable
from backstay.config.model import (
    AuthorityMatch,
    Authorization,
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
_HEADER: Final = "header "
_QUERY: Final = "query "
_QUERY_TEXT: Final = re.compile(rb"[^&#\\\x00-\x20\x7f-\xff%]*(?:%[0-9A-Fa-f]{2}[^&#\\\x00-\x20\x7f-\xff%]*)*")
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
        return table.decide("", "", question.method, question.path, question.fields, 0).allowed

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
    exact, starts, ends, texts = [b"/"], [b"/"], [], []
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
        value = pattern.encode()
        if value.endswith(b"*"):
            starts.append(value[:-1])
        elif value.startswith(b"*"):
            ends.append(value[1:])
        else:
            exact.append(value)
    starts = [start for start in starts if start.startswith(b"/")]
    values = [*spread(exact, starts, ends, _is_path), *(text for text in texts if _is_path(text)), b"*"]
    return Dimension(PATH, values, questions, is_exact=is_exact)


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


def authority_dimension(matches: Iterable[AuthorityMatch], hosts: Iterable[bytes]) -> Dimension:
    questions: dict[Hashable, Question] = {
        match: Question(
            name=f"for host {match.value}",
            negated=f"not for host {match.value}",
            takes=_takes(Match(authority=match), _authority_at),
        )
        for match in dict.fromkeys(matches)
    }
    return Dimension(AUTHORITY, dict.fromkeys(hosts), questions)


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
    return Asked(method, chosen.get(AUTHORITY) or authority, path, query, fields)
