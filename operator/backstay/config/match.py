"""Which rule takes a request: the routes of a config compiled into tables of bytes.

`HostTable` finds the routes of an authority (every spelling of a mesh name included), `RouteTable.pick` the first rule
that matches. Both are built once per config and only read afterwards; tables of routes that did not change are taken over
from the config before. The data plane asks them for every request; the operator's evaluator asks the same tables, so that
what a review says is what a proxy does. Nothing here knows backends.
"""

from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple, TypeAlias

from backstay.config.model import AuthorityMatch, HostRoutes, Match, PathMatch, ValueMatch
from backstay.config.regex import compile_pattern

Headers: TypeAlias = Sequence[tuple[bytes, bytes]]
Wanted: TypeAlias = tuple[bytes, str, Any]
"""(name, kind, value): bytes, or the compiled pattern of kind `regex`."""

DEFAULT_PORT: Final = 80
"""What an authority without a port means under `http:` (RFC 9110, 4.2.1)."""

CLUSTER_SUFFIXES: Final = (".svc", ".svc.cluster.local")
"""Spellings of a service's name that Kubernetes' resolver accepts after `<service>.<namespace>`."""


class _Alternative(NamedTuple):
    """One match of one rule; None or an empty tuple takes anything."""

    rule: int
    method: bytes | None
    exact: bytes | None
    prefix: bytes | None
    """Always ends in `/`, so that a prefix is compared per path element."""
    headers: tuple[Wanted, ...]
    query: tuple[Wanted, ...]
    special: "_Special | None"


class _Special(NamedTuple):
    """What few matches ask; kept apart so that the others pay for one look."""

    path: Callable[[bytes], object] | None
    """A pattern's test of the whole path."""
    authority: Callable[[bytes], object] | None

    def takes(self, path: bytes, authority: bytes) -> bool:
        return (self.path is None or bool(self.path(path))) and (
            self.authority is None or bool(self.authority(host_of(authority)))
        )


class RouteTable:
    """The rules of one host in list order, as one workload sees them."""

    __slots__ = ("_alternatives", "_takes_all", "aliases", "depends", "key", "names", "routes", "wild")

    def __init__(self, routes: HostRoutes, namespace: str = "", workload: str = "") -> None:
        """`workload` is `<namespace>/<name>` of whose requests these are; matches about other sources are left out."""
        self.routes = routes
        self.depends = any(match.sources for rule in routes.rules for match in rule.matches)
        """Whether another workload would see other rules."""
        self.key = routes.key
        own = (routes.host.encode(),) if routes.gateway else tuple(_authorities(routes.host, routes.port))
        self.names: tuple[bytes, ...] = () if routes.host.startswith("*") else own
        """Authorities that spell the host as its document does."""
        self.wild = own if routes.host.startswith("*") else ()
        """`*.example.com:80`: those of a pattern."""
        self.aliases = () if routes.gateway else tuple(
            authority for name in aliases(routes.host, namespace) for authority in _authorities(name, routes.port)
        )  # fmt: skip
        """All others that mean it, as seen from `namespace`."""
        self._alternatives = tuple(_alternatives(routes, workload))
        self._takes_all = self._first_that_takes_all()

    def _first_that_takes_all(self) -> int | None:
        first = self._alternatives[0] if self._alternatives else None
        unconditional = first is not None and not any(first[1:])
        return first.rule if first is not None and unconditional else None

    def pick(self, method: bytes, path: bytes, query: bytes, headers: Headers, authority: bytes = b"") -> int | None:
        """Index of the first rule that takes the request. `query` is what follows `?`, as sent and without it."""
        if self._takes_all is not None:
            return self._takes_all
        found = self._first(self._alternatives, method, path, query, headers, authority)
        return None if found is None else found.rule

    def matched_prefix(
        self, rule: int, method: bytes, path: bytes, query: bytes, headers: Headers, authority: bytes = b""
    ) -> bytes:
        """The path prefix by which `rule` took the request, without a slash at its end; empty where none was asked for."""
        own = [alternative for alternative in self._alternatives if alternative.rule == rule]
        found = self._first(own, method, path, query, headers, authority)
        return found.prefix[:-1] if found is not None and found.prefix is not None else b""

    @staticmethod
    def _first(
        alternatives: Iterable[_Alternative],
        method: bytes, path: bytes, query: bytes, headers: Headers, authority: bytes,
    ) -> _Alternative | None:  # fmt: skip
        values: Mapping[bytes, bytes] | None = None
        for alternative in alternatives:
            _, wanted_method, exact, prefix, wanted_headers, wanted_query, special = alternative
            if exact is not None and path != exact:
                continue
            if prefix is not None and not path.startswith(prefix) and path != prefix[:-1]:
                continue
            if wanted_method is not None and method != wanted_method:
                continue
            if wanted_headers:
                if values is None:
                    values = joined(headers)
                if not hold(wanted_headers, values):
                    continue
            if wanted_query and not hold(wanted_query, parameters(query)):
                continue
            if special is not None and not special.takes(path, authority):
                continue
            return alternative
        return None


class HostTable:
    """All routes of one config by authority, as seen from one namespace."""

    __slots__ = ("_by_authority", "_by_key", "_wild", "namespace", "tables", "workload")

    def __init__(
        self, namespace: str, routes: Iterable[HostRoutes], former: "Sequence[HostTable]" = (), workload: str = ""
    ) -> None:
        """`former` are tables of configs that may share routes with this one: equal routes keep their table. `workload`
        is whose requests they are about (`<namespace>/<name>`)."""
        self.namespace = namespace
        self.workload = workload
        usable = [hosts for hosts in former if (hosts.namespace, hosts.workload) == (namespace, workload)]
        tables = (_found(host, usable) or RouteTable(host, namespace, workload) for host in routes)
        self._by_key = {table.key: table for table in tables}
        self.tables = tuple(self._by_key[key] for key in sorted(self._by_key))
        same = next((hosts for hosts in usable if hosts._by_key.keys() == self._by_key.keys()), None)
        self._by_authority = _by_authority(self.tables) if same is None else self._renamed(same)
        self._wild = {authority: table for table in self.tables for authority in table.wild}

    def _renamed(self, former: "HostTable") -> dict[bytes, RouteTable]:
        """The index of a table of the same hosts, which share all names: a tenth of making it anew."""
        index = former._by_authority.copy()
        for before, after in zip(former.tables, self.tables, strict=True):
            if after is not before:
                index |= {name: after for name in (*after.names, *after.aliases) if index[name] is before}
        return index

    def of_key(self, key: str) -> RouteTable | None:
        """The table of the part with this key."""
        return self._by_key.get(key)

    def find(self, authority: bytes) -> RouteTable | None:
        """The routes for a Host header or the authority of a target; None if the mesh does not know it."""
        found = self._by_authority.get(authority) or self._by_authority.get(canonical(authority))
        return self._of_pattern(canonical(authority)) if found is None and self._wild else found

    def _of_pattern(self, authority: bytes) -> RouteTable | None:
        """The table of the longest pattern that takes this name."""
        name, colon, port = authority.partition(b":")
        for pattern in patterns_of(name):
            found = self._wild.get(pattern + colon + port)
            if found is not None:
                return found
        return None

    def __len__(self) -> int:
        return len(self.tables)


def patterns_of(name: bytes) -> Iterator[bytes]:
    """Patterns that take a name, the most specific first: `*.b.c` and `*.c` for `a.b.c`, then `*`."""
    rest = name
    while b"." in rest:
        _, _, rest = rest.partition(b".")
        yield b"*." + rest
    yield b"*"


def is_let_out(hosts: Container[str], authority: bytes) -> bool:
    """Whether a host outside of the mesh is among these (`host:port`, `*.<name>:port`)."""
    name, colon, port = canonical(authority).partition(b":")
    text = f":{port.decode('latin-1') if colon else DEFAULT_PORT}"
    return any(known.decode("latin-1") + text in hosts for known in (name, *patterns_of(name)))


def covers(pattern: str, name: str) -> bool:
    """Whether a host pattern takes a name, or every name of another pattern."""
    if pattern in ("*", name):
        return True
    return pattern.startswith("*.") and name.endswith(pattern[1:])


def narrower(one: str, other: str) -> str | None:
    """What two host patterns have in common (as for a Gateway API listener and a route); None if that is nothing."""
    if covers(one, other):
        return other
    return one if covers(other, one) else None


def _by_authority(tables: Sequence[RouteTable]) -> dict[bytes, RouteTable]:
    index: dict[bytes, RouteTable] = {}
    # Exact names first: a name of the user's own never loses against a short spelling of another.
    for table in tables:
        for authority in table.names:
            index.setdefault(authority, table)
    for table in tables:
        for authority in table.aliases:
            index.setdefault(authority, table)
    return index


def _found(routes: HostRoutes, former: Iterable[HostTable]) -> RouteTable | None:
    key = routes.key if former else ""
    for hosts in former:
        table = hosts.of_key(key)
        if table is not None and (table.routes is routes or table.routes == routes):
            return table
    return None


def aliases(host: str, namespace: str) -> Iterator[str]:
    """Other spellings of `<service>.<namespace>`; a name of any other form has none."""
    service, _, home = host.partition(".")
    if not home or "." in home:
        return
    if home == namespace:
        yield service
    for suffix in CLUSTER_SUFFIXES:
        yield host + suffix


def _authorities(name: str, port: int) -> Iterator[bytes]:
    yield f"{name.lower()}:{port}".encode()
    if port == DEFAULT_PORT:
        yield name.lower().encode()


def canonical(authority: bytes) -> bytes:
    """Lower case and without the dot that ends a fully qualified name."""
    name, colon, port = authority.lower().partition(b":")
    return name.removesuffix(b".") + colon + port


def joined(headers: Headers) -> dict[bytes, bytes]:
    """Header values by lower-case name; those of a repeated header joined by `,`: a matcher sees all of them."""
    values: dict[bytes, bytes] = {}
    for name, value in headers:
        key = name.lower()
        stripped = value.strip(b" \t")
        values[key] = values[key] + b"," + stripped if key in values else stripped
    return values


def parameters(query: bytes) -> dict[bytes, bytes]:
    """Query parameters exactly as sent, not decoded; the first of a repeated name counts (both as Envoy)."""
    values: dict[bytes, bytes] = {}
    for pair in query.split(b"&"):
        name, _, value = pair.partition(b"=")
        values.setdefault(name, value)
    return values


def host_of(authority: bytes) -> bytes:
    """The host of an authority as matchers see it: lower case, without port and without a dot at its end."""
    lower = authority.lower()
    name = lower[: lower.find(b"]") + 1] if lower.startswith(b"[") else lower.partition(b":")[0]
    return name.removesuffix(b".")


def hold(wanted: Iterable[Wanted], values: Mapping[bytes, bytes]) -> bool:
    """True if every (name, kind, value) holds for these values."""
    return all(_holds(kind, value, values.get(name)) for name, kind, value in wanted)


def _holds(kind: str, wanted: Any, found: bytes | None) -> bool:
    if kind == "absent":
        return found is None
    if found is None:
        return False
    if kind == "present":
        return True
    if kind == "regex":
        return wanted.fullmatch(found) is not None
    return found.startswith(wanted) if kind == "prefix" else bool(found == wanted)


def compile_values(matches: Iterable[ValueMatch], *, lower: bool) -> tuple[Wanted, ...]:
    """(name, kind, value) as bytes; header names are lower case, names of parameters are taken as they are."""
    return tuple(
        ((match.name.lower() if lower else match.name).encode(), match.kind, _compared_with(match)) for match in matches
    )


def _compared_with(match: ValueMatch) -> Any:
    return compile_pattern(match.value) if match.kind == "regex" else match.value.encode()


def is_from(sources: Sequence[str], workload: str) -> bool:
    """Whether a match about these sources is about the requests of this workload."""
    namespace = workload.partition("/")[0]
    return not sources or workload in sources or f"{namespace}/*" in sources


def _alternatives(routes: HostRoutes, workload: str) -> Iterator[_Alternative]:
    for index, rule in enumerate(routes.rules):
        for match in rule.matches or (Match(),):
            if is_from(match.sources, workload):
                yield _alternative(index, match)


def _alternative(rule: int, match: Match) -> _Alternative:
    exact, prefix = _path(match.path)
    return _Alternative(
        rule,
        match.method.encode() or None,
        exact,
        prefix,
        compile_values(match.headers, lower=True),
        compile_values(match.query, lower=False),
        _special(match),
    )


def _special(match: Match) -> _Special | None:
    pattern = compile_pattern(match.path.value).fullmatch if match.path and match.path.kind == "regex" else None
    authority = _authority_test(match.authority) if match.authority else None
    return None if pattern is None and authority is None else _Special(pattern, authority)


def _authority_test(match: AuthorityMatch) -> Callable[[bytes], object]:
    value = match.value.lower().encode()
    if match.kind == "regex":
        return compile_pattern(match.value).fullmatch
    return (lambda host: host.startswith(value)) if match.kind == "prefix" else (lambda host: host == value)


def _path(path: PathMatch | None) -> tuple[bytes | None, bytes | None]:
    if path is None or path.kind == "regex":
        return None, None
    if path.kind == "exact":
        return path.value.encode(), None
    prefix = path.value.rstrip("/").encode() + b"/"
    return None, None if prefix == b"/" else prefix
