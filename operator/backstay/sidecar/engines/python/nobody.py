"""The client of a copy: what an exchange tells it reaches nobody. It is a `Downstream` as far as an exchange knows one."""

from typing import TYPE_CHECKING

from backstay.sidecar.engines.python.downstream import Downstream
from backstay.sidecar.engines.python.listeners import Listener, Refused
from backstay.sidecar.engines.python.peers import UNKNOWN

if TYPE_CHECKING:
    from backstay.sidecar.engines.python.flow import Exchange
    from backstay.sidecar.engines.python.framing import Fields
    from backstay.sidecar.engines.python.runtime import Lane, Runtime
    from backstay.sidecar.engines.python.server import Server


class Nowhere(Listener):
    """Where copies come from: no port. They are no sample of anybody's requests."""

    def asker(self, downstream: Downstream) -> None:
        return None

    def decide(self, runtime: "Runtime", exchange: "Exchange") -> "Lane | Refused":
        raise AssertionError("a copy goes where the rule of its request sends it")


class Nobody(Downstream):
    """One for all copies: it has no connection and keeps nothing. What else a `Downstream` has is not there to be asked."""

    __slots__ = ()

    def __init__(self, server: "Server") -> None:
        # Not Downstream's own: that makes a parser.
        self.server = server
        self.listener = Nowhere(server)
        self.address = self.identity = self.namespace = ""
        self.secure = self.leaving = False
        self.full_since = 0.0
        self.peer = UNKNOWN

    def write(self, data: bytes) -> None:
        """Bytes of the answer; they go nowhere."""

    def answer(
        self, exchange: "Exchange", status: int, reason: str, fields: "Fields | None" = None, body: bytes | None = None
    ) -> None:
        """The copy failed; it was counted."""

    def exchange_ended(self, exchange: "Exchange") -> None:
        """The answer was read."""

    def update_reading(self) -> None:
        """There is nothing to read."""

    def abort(self) -> None:
        """There is nothing to close."""
