"""A gateway's listeners: which one serves a name, where it sends callers that should use TLS, what it notes of a caller.

The data plane asks for each request from outside, the evaluator asks the same. Nothing here knows routes.
"""

from collections.abc import Sequence
from typing import Final

from backstay.config.match import Headers, patterns_of
from backstay.config.model import GatewayListener, HostRoutes, Redirect, Rule

HTTPS_PORT: Final = 443
NOTED: Final = frozenset((b"x-forwarded-for", b"x-forwarded-proto"))
"""What a gateway itself says of a request, in lower case."""


class ListenerTable:
    """The listeners of one port by host."""

    __slots__ = ("_by_host", "listeners", "protocol")

    def __init__(self, listeners: Sequence[GatewayListener]) -> None:
        """At least one; those of one port speak one protocol."""
        self.listeners = tuple(listeners)
        self.protocol = listeners[0].protocol
        self._by_host = {host.encode(): listener for listener in listeners for host in listener.hosts}

    def find(self, host: bytes) -> GatewayListener | None:
        """The most specific listener for a name."""
        exact = self._by_host.get(host)
        if exact is not None:
            return exact
        return next((self._by_host[pattern] for pattern in patterns_of(host) if pattern in self._by_host), None)


def https_port(listener: GatewayListener, authority: bytes) -> int:
    """The listener's own port for callers who see ports, else the one that needs no saying: what is in front of a gateway
    maps it."""
    return listener.redirect_port if b":" in authority.rpartition(b"]")[2] else HTTPS_PORT


def to_https(port: int, target: int) -> HostRoutes:
    """Whatever comes in at `port` is sent to the same place under https at `target`."""
    rule = Rule(name="https", redirect=Redirect(status=301, scheme="https", port=target))
    return HostRoutes(host="*", port=port, rules=(rule,), gateway=True)


def forwarded(fields: Headers, address: str, *, secure: bool) -> list[tuple[bytes, bytes]]:
    """The fields with who asked and how, as a gateway saw it: the caller's own word on the scheme counts for nothing, the
    addresses it names stay in front (the last one is what this gateway knows)."""
    chain = [value.strip(b" \t") for name, value in fields if name.lower() == b"x-forwarded-for"]
    kept = [field for field in fields if field[0].lower() not in NOTED]
    kept.append((b"X-Forwarded-For", b", ".join((*chain, address.encode()))))
    kept.append((b"X-Forwarded-Proto", b"https" if secure else b"http"))
    return kept
