"""Virtual hosts of a gateway's port: which listener a name belongs to, and which routes it has there. Pure.

Rule: the most specific listener for a name decides whether it is sent to https; the most specific routes decide all else. What
a request says of the port in its Host counts for nothing here.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Final, TypeVar

from backstay.config.match import RouteTable, covers, patterns_of
from backstay.config.model import GatewayListener
from backstay.sidecar.engines.envoy.api import Json, whole
from backstay.sidecar.engines.envoy.routes import Shop, no_route, virtual_host

HTTPS_PORT: Final = 443
_Kind = TypeVar("_Kind")
_WITH_PORT: Final = r".*:[0-9]+"


def hosts(port: int, entries: Sequence[GatewayListener], tables: Sequence[RouteTable], shop: Shop) -> list[Json]:
    """One for each name that any listener or route speaks of; every other name is unknown."""
    by_host = {table.routes.host: table for table in tables}
    names = dict.fromkeys((*by_host, *(host for entry in entries for host in entry.hosts)))
    found = [_host(name, port, entries, by_host, shop) for name in names]
    return found if "*" in names else [*found, _unknown("*", port, shop)]


def served(entries: Sequence[GatewayListener], tables: Sequence[RouteTable]) -> Iterator[tuple[str, RouteTable]]:
    """Names that a listener serves and that have routes."""
    by_host = {table.routes.host: table for table in tables}
    listeners = {host: entry for entry in entries for host in entry.hosts}
    for name in dict.fromkeys((*by_host, *listeners)):
        table = _most_specific(name, by_host)
        if table is not None and _most_specific(name, listeners) is not None:
            yield name, table


def _host(name: str, port: int, entries: Sequence[GatewayListener], by_host: dict[str, RouteTable], shop: Shop) -> Json:
    listener = _most_specific(name, {host: entry for entry in entries for host in entry.hosts})
    table = _most_specific(name, by_host)
    if listener is None or (table is None and not listener.redirect_port):
        return _unknown(name, port, shop)
    if listener.redirect_port:
        return _named(name, to_https(port, listener.redirect_port, shop))
    assert table is not None  # noqa: S101 - looked at above
    return _named(name, virtual_host(table.routes, [name], shop)["routes"])


def _most_specific(name: str, known: dict[str, _Kind]) -> _Kind | None:
    """What is said of a name, or of the narrowest pattern that takes all of it."""
    if name in known:
        return known[name]
    around: Iterable[str] = (pattern.decode() for pattern in patterns_of(name.removeprefix("*.").encode()))
    return next((known[pattern] for pattern in around if pattern in known and covers(pattern, name)), None)


def _named(name: str, routes: list[Json]) -> Json:
    """A name may be asked for with any port, and end in a dot."""
    return {"name": f"gateway/{name}", "domains": _domains(name), "routes": routes}


def _domains(name: str) -> list[str]:
    return ["*"] if name == "*" else [name, f"{name}."]


def _unknown(name: str, port: int, shop: Shop) -> Json:
    return _named(name, [no_route(f"gateway/:{port}#", shop)])


def to_https(port: int, target: int, shop: Shop) -> list[Json]:
    """At the listener's own port for callers who see ports, else at the one that needs no saying."""
    name = shop.name(f"gateway/*:{port}#https")
    said = {"scheme_redirect": "https", "response_code": "MOVED_PERMANENTLY"}
    sees_ports = {"prefix": "/", "headers": [{"name": ":authority", "string_match": whole(_WITH_PORT)}]}
    return [
        {"name": name, "match": sees_ports, "redirect": said | {"port_redirect": target}},
        {"name": name, "match": {"prefix": "/"}, "redirect": said},
    ]
