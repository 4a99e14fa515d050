"""The Engine port: what the agent needs of whatever does the traffic.

The agent owns identity, storage, leases and reports; an engine owns sockets and decisions. `engines/python` is bundled,
`engines/envoy` drives Envoy through files. Everything an engine is given is complete and checked for integrity; what an
engine cannot serve it refuses by ContentRefused, and then keeps serving what it served before.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol, runtime_checkable

from backstay.config.model import Config
from backstay.config.wire import Endpoint, PeerRow, PlaintextRow, RefusalExpected, Row, Sample


class ContentRefused(Exception):
    """This config cannot be served: the document author's fault, never the machine's. `reason` is CamelCase."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, slots=True, kw_only=True)
class ExplicitListener:
    """A port on which the application finds one host without any proxy setting."""

    listen: int
    host: str
    port: int


APP_SOURCES: Final = {4: "127.0.0.6", 6: "::6"}
"""Where a proxy asks its application from, by IP version, when connections are redirected: what comes from there is left
alone. Istio's addresses, so that applications see the caller they know."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Redirected:
    """Ports that connections are redirected to (iptables REDIRECT): the kernel knows what they were meant for."""

    outbound: int = 15001
    inbound: int = 15006


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Where this sidecar stands: given by the platform at start, never by a config."""

    host: str
    """Address the sidecar binds for mesh traffic (its instance's own)."""
    inbound: Mapping[int, int]
    """Application port -> port the sidecar listens on for it at `host`."""
    app_host: str = "127.0.0.1"
    """Where the application listens on its own ports."""
    app_ports: Mapping[int, int] = field(default_factory=dict)
    """Application port -> the port it really has at `app_host`, where that differs (systems with one loopback address
    only: macOS). What is not named here is where it says it is."""
    outbound: int = 15001
    """HTTP proxy port for the application (bound on `app_host`)."""
    explicit: tuple[ExplicitListener, ...] = ()
    zone: str = ""
    """Where this proxy runs, for backends that prefer their callers' own zone."""
    gateway_host: str = ""
    """Where a gateway's ports are opened; empty: at `host`. A pod's gateway listens at all of its addresses."""
    redirected: "Redirected | None" = None
    """Where the kernel takes connections of and to the application; None: it does not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IdentityFiles:
    """The current SVID on disk (0600). The same paths are rewritten atomically at renewal; then `identity` is called."""

    certificate: Path
    key: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """Increments since the previous call of collect."""

    rows: Sequence[Row]
    peers: Sequence[PeerRow]
    serving: Mapping[str, float]
    open_requests: int
    samples: Sequence[Sample] = ()
    plaintext: Sequence[PlaintextRow] = ()
    missing_keys: Sequence[str] = ()
    """Addresses of key sets without the key that a token named."""


class Engine(Protocol):
    @property
    def name(self) -> str: ...

    @property
    def capabilities(self) -> tuple[str, ...]:
        """`split`: it serves two configs at once."""

    async def start(self, address: Address) -> None:
        """Bind all listeners; requests wait or get 503 until the first `apply`. Raises OSError (port in use: named)."""

    def apply(
        self, stable: Config, candidate: Config | None, share: float, expect_refused: Sequence[RefusalExpected] = ()
    ) -> None:
        """Serve these from now on, as one atomic swap; requests under way keep what they started with. A change of share alone
        is cheap. Open connections that the new rules refuse are closed. Raises ContentRefused and changes nothing."""

    def endpoints(self, changed: Mapping[str, Sequence[Endpoint]], *, full: bool) -> None:
        """Live endpoints by `service.namespace:port`."""

    def place(self, zone: str) -> None:
        """Where this proxy runs, if that was not known at `start`."""

    def addresses(self, services: Mapping[str, Sequence[str]]) -> None:
        """All virtual addresses, by `service.namespace`: what redirected connections were meant for."""

    def trust(self, bundles: Mapping[str, str], revoked: Sequence[str]) -> None:
        """Trust domain -> PEM roots; peers whose identity is revoked are cut off at once."""

    def identity(self, files: IdentityFiles) -> None:
        """Use this certificate and key for new handshakes."""

    def key_sets(self, known: Mapping[str, str]) -> None:
        """Public keys of who issues tokens (JWKS as text), by the address they were fetched from. The whole truth; a token
        whose issuer's keys are not here is not believed."""

    def secrets(self, files: Mapping[str, Path]) -> None:
        """Certificates that a gateway shows, by name (`<namespace>/<name>`): PEM, key and chain in one file. The whole truth;
        new handshakes go by it at once."""

    def sample(self, most: int) -> None:
        """Tell of at most so many requests at each `collect`; an engine that cannot, tells of none."""

    def collect(self) -> Observed:
        """Counters since the previous call."""

    async def drain(self, timeout: float) -> None:
        """Accept nothing new, finish what is open (at most `timeout` seconds), then close everything."""


@runtime_checkable
class Confirming(Protocol):
    """An engine that hands on what it is given, and hears later whether it is served."""

    async def settled(self) -> None:
        """Wait until what was given last is in force. Raises ContentRefused if it was refused; then what was served before is
        served on."""


@runtime_checkable
class Mortal(Protocol):
    """An engine whose traffic is another process's, which is started again whenever it dies."""

    @property
    def deaths(self) -> int:
        """How often that process has died so far."""


def deaths(engine: Engine) -> int:
    return engine.deaths if isinstance(engine, Mortal) else 0


async def settled(engine: Engine) -> None:
    """Wait until an engine serves what `apply` gave it; at once for one that swaps by itself. Raises ContentRefused."""
    if isinstance(engine, Confirming):
        await engine.settled()
