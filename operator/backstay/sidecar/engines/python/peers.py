"""Who is at the other end, in the words of metrics: workload, service and version of callers and of endpoints.

Callers are known by their certificate and by the address that live data has for it; nothing a request says counts, so that
nobody can invent label values. A `Peer` is made once and compared by identity: counters use it as a key for every request.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Final

from backstay.config.wire import Endpoint
from backstay.sidecar.engines.python.pool import Pool

MAX_PEERS: Final = 1024
"""Different ends that metrics name; more are `unknown`. Histograms of a thousand take 5 MB and 100 ms of a scrape."""


class Peer:
    """One end of requests; empty is unknown."""

    __slots__ = ("app", "namespace", "principal", "service", "version", "workload")

    def __init__(
        self,
        workload: str = "",
        namespace: str = "",
        principal: str = "",
        app: str = "",
        version: str = "",
        service: str = "",
    ) -> None:
        self.workload = workload
        self.namespace = namespace
        self.principal = principal
        """SPIFFE ID that was verified; empty: plaintext."""
        self.app = app
        self.version = version
        self.service = service
        """Name of the service, without its namespace."""

    def __repr__(self) -> str:
        return f"Peer({self.namespace}/{self.workload} {self.principal or 'plaintext'} {self.version})"


UNKNOWN: Final = Peer()

Known = Mapping[str, Sequence[Endpoint]]
"""`service.namespace:port` -> its endpoints."""


class Peers:
    """All ends of one engine."""

    def __init__(self, known: Callable[[], Known]) -> None:
        self._known = known
        self._at: dict[str, list[tuple[str, Endpoint]]] | None = None
        self._made: dict[tuple[str, ...], Peer] = {}

    def forget_places(self) -> None:
        """Endpoints have changed: look at them again when somebody asks."""
        self._at = None

    def caller(self, identity: str, address: str) -> Peer:
        """Who has connected."""
        for service, endpoint in self._places().get(address, ()):
            if not identity or endpoint.identity == identity:
                return self._of_endpoint(service, endpoint, identity)
        return self._intern(*_account(identity), identity) if identity else UNKNOWN

    def of_pool(self, pool: Pool) -> Peer:
        """Who is behind a pool; remembered there."""
        key, found = pool.key, None
        for service, endpoint in self._places().get(key.address, ()):
            if endpoint.id == key.id and endpoint.port == key.port:
                found = self._of_endpoint(service, endpoint, key.identity)
                break
        if found is None:
            found = self._intern(*_account(key.identity), key.identity) if key.identity else UNKNOWN
        pool.peer = found
        return found

    def service_at(self, address: str, port: int) -> str:
        """A service (`name.namespace`) with an endpoint here; empty if there is none."""
        found = (service for service, endpoint in self._places().get(address, ()) if endpoint.port == port)
        return next(found, "").rpartition(":")[0]

    def labels_at(self, address: str) -> Mapping[str, str]:
        """Labels of what runs at an address; none if nothing is known of it."""
        return next((endpoint.labels for _, endpoint in self._places().get(address, ())), {})

    def _places(self) -> dict[str, list[tuple[str, Endpoint]]]:
        if self._at is None:
            self._at = {}
            for service, endpoints in self._known().items():
                for endpoint in endpoints:
                    self._at.setdefault(endpoint.address, []).append((service, endpoint))
        return self._at

    def _of_endpoint(self, service: str, endpoint: Endpoint, principal: str) -> Peer:
        namespace, _, workload = endpoint.workload.partition("/")
        if not workload:
            workload, namespace = _account(endpoint.identity)
        name, _, rest = service.partition(".")
        labels = endpoint.labels
        return self._intern(
            workload,
            namespace or rest.partition(":")[0],
            principal,
            labels.get("app", ""),
            labels.get("version", ""),
            name,
        )

    def _intern(self, *values: str) -> Peer:
        found = self._made.get(values)
        if found is None:
            if len(self._made) >= MAX_PEERS:
                return UNKNOWN
            found = self._made[values] = Peer(*values)
        return found


def _account(identity: str) -> tuple[str, str]:
    """(account, namespace) of `spiffe://<trust domain>/ns/<namespace>/sa/<account>`: a workload is mostly called like its
    account."""
    parts = identity.split("/")
    return (parts[6], parts[4]) if len(parts) == 7 else ("", "")
