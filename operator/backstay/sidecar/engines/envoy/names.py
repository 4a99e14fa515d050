"""Names that travel through Envoy's statistics and come back in reports. Pure.

A config's digest is too long and too many come and go, so that Envoy is told a *slot*: a small number that stands for a
digest while it is served and some time after. Statistics of Envoy live as long as the process; with slots they are as many
as there are routes, not as there were commits.
"""

from dataclasses import dataclass, field
from typing import Final

SLOTS: Final = 8
"""Digests whose requests may still be under way. A request of one that is eight configs old counts for a newer one."""
SEPARATOR: Final = "|"
ANY_SLOT: Final = "-"
"""Of whole connections: their listener does not change with the config, so they count for what is served now."""


@dataclass(slots=True)
class Slots:
    """Which slot stands for which digest."""

    _digests: dict[int, str] = field(default_factory=dict)
    _next: int = 0
    current: str = ""

    def peek(self, digest: str) -> int:
        """The slot that a config has or would get."""
        return next((slot for slot, known in self._digests.items() if known == digest), self._next)

    def take(self, digest: str) -> int:
        """The slot of a config that is served from now on."""
        self.current = digest
        slot = self.peek(digest)
        if slot == self._next and self._digests.get(slot) != digest:
            self._digests[slot] = digest
            self._next = (slot + 1) % SLOTS
        return slot

    def digest_of(self, slot: str) -> str:
        """The digest that a name from the statistics is about; what is served now for whole connections."""
        return self._digests.get(int(slot), "") if slot.isdecimal() else self.current


def route_name(slot: int | str, route: str, reason: str = "") -> str:
    """`reason`: why everything that comes this way is refused."""
    return SEPARATOR.join((str(slot), route, reason) if reason else (str(slot), route))


def split_route_name(name: str) -> tuple[str, str, str]:
    """(slot, row's route, reason)."""
    slot, _, rest = name.partition(SEPARATOR)
    route, _, reason = rest.partition(SEPARATOR)
    return slot, route, reason


def cluster_name(backend: str, subset: str) -> str:
    """`<service>:<port>/<subset>`, as rows name backends."""
    return f"{backend}/{subset}"


def app_cluster(port: int) -> str:
    """The application itself, at one of its ports."""
    return f"app:{port}"


OUTSIDE: Final = "outside"
"""The cluster of hosts that the mesh does not know."""
INNER: Final = "inner"
"""The listener, and the cluster that leads to it, where tunnels of the application end."""
