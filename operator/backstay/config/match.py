"""Which rule takes a request: the routes of a config compiled into tables of bytes.

`HostTable` finds the routes of an authority (every spelling of a mesh name included), `RouteTable.pick` the first rule
that matches. Both are built once per config and only read afterwards; tables of routes that did not change are taken over
from the config before. The data plane asks them for every request; the operator's evaluator asks the same tables, so that
what a review says is what a proxy does. Nothing here knows backends.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple, TypeAlias

from backstay.config.model import HostRoutes, Match, PathMatch, ValueMatch

Headers: TypeAlias = Sequence[tuple[bytes, bytes]]

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
    headers: tuple[tuple[bytes, str, bytes], ...]
    query: tuple[tuple[bytes, str, bytes], ...]


class RouteTable:
    """The rules of one host in list order."""

    __slots__ = ("_alternatives", "_takes_all", "aliases", "key", "names", "routes")

    def __init__(self, routes: HostRoutes, namespace: str = "") -> None:
        self.routes = routes
        self.key = routes.key
        self.names = tuple(_authorities(routes.host, routes.port))
        """Authorities that spell the host as its document does."""
        self.aliases = tuple(
            authority for name in aliases(routes.host, namespace) for authority in _authorities(name, routes.port)
        )
        """All others that mean it, as seen from `namespace`."""
        self._alternatives = tuple(_alternatives(routes))
        self._takes_all = self._first_that_takes_all()

    def _first_that_takes_all(self) -> int | None:
        first = self._alternatives[0] if self._alternatives else None
        unconditional = first is not None and not any(first[1:])
        return first.rule if first is not None and unconditional else None

    def pick(self, method: bytes, path: bytes, query: bytes, headers: Headers) -> int | None:
        """Index of the first rule that takes the request. `query` is what follows `?`, as sent and without it."""
        if self._takes_all is not None:
            return self._takes_all
        values: Mapping[bytes, bytes] | None = None
        for rule, wanted_method, exact, prefix, wanted_headers, wanted_query in self._alternatives:
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
            return rule
        return None


class HostTable:
    """All routes of one config by authority, as seen from one namespace."""

    __slots__ = ("_by_authority", "_by_key", "namespace", "tables")

    def __init__(self, namespace: str, routes: Iterable[HostRoutes], former: "Sequence[HostTable]" = ()) -> None:
        """`former` are tables of configs that may share routes with this one: equal routes keep their table."""
        self.namespace = namespace
        usable = [hosts for hosts in former if hosts.namespace == namespace]
        tables = (_found(host, usable) or RouteTable(host, namespace) for host in routes)
        self._by_key = {table.key: table for table in tables}
        self.tables = tuple(self._by_key[key] for key in sorted(self._by_key))
        same = next((hosts for hosts in usable if hosts._by_key.keys() == self._by_key.keys()), None)
        self._by_authority = _by_authority(self.tables) if same is None else self._renamed(same)

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
        return self._by_authority.get(authority) or self._by_authority.get(canonical(authority))

    def __len__(self) -> int:
        return len(self.tables)


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


def hold(wanted: Iterable[tuple[bytes, str, bytes]], values: Mapping[bytes, bytes]) -> bool:
    """True if every (name, kind, value) holds for these values."""
    return all(_holds(kind, value, values.get(name)) for name, kind, value in wanted)


def _holds(kind: str, wanted: bytes, found: bytes | None) -> bool:
    if kind == "absent":
        return found is None
    if found is None:
        return False
    if kind == "present":
        return True
    return found.startswith(wanted) if kind == "prefix" else found == wanted


def compile_values(matches: Iterable[ValueMatch], *, lower: bool) -> tuple[tuple[bytes, str, bytes], ...]:
    """(name, kind, value) as bytes; header names are lower case, names of parameters are taken as they are."""
    return tuple(
        ((match.name.lower() if lower else match.name).encode(), match.kind, match.value.encode()) for match in matches
    )


def _alternatives(routes: HostRoutes) -> Iterator[_Alternative]:
    for index, rule in enumerate(routes.rules):
        for match in rule.matches or (Match(),):
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
    )


def _path(path: PathMatch | None) -> tuple[bytes | None, bytes | None]:
    if path is None:
        return None, None
    if path.kind == "exact":
        return path.value.encode(), None
    prefix = path.value.rstrip("/").encode() + b"/"
    return None, None if prefix == b"/" else prefix
