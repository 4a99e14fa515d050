"""One control port for several meshes: each reconciler hears and speaks to the proxies of its own namespaces.

A share looks like a Fleet of its own. Which workloads are whose is decided elsewhere (core/tenancy.py) and told here.
"""

from collections.abc import Callable, Mapping, Sequence

from backstay.config.wire import Live
from backstay.control.server import ControlServer
from backstay.core.ports import Assignment, FleetEvent, TlsMaterial


def namespace_of(workload: str) -> str:
    return workload.partition("/")[0]


class Share:
    """The Fleet of one mesh: the port of `core.ports`, limited to some namespaces."""

    def __init__(
        self,
        server: ControlServer,
        namespaces: frozenset[str],
        wake: Callable[[], None],
        revoked: Callable[[], list[str]],
    ) -> None:
        """`revoked` are the identities that any share has revoked: proxies hear of one list."""
        self._server = server
        self._all_revoked = revoked
        self.revoked: tuple[str, ...] = ()
        self.namespaces = namespaces
        self.wake = wake

    def __repr__(self) -> str:
        return f"<Share {sorted(self.namespaces)}>"

    def owns(self, workload: str) -> bool:
        return namespace_of(workload) in self.namespaces

    def drain(self) -> Sequence[FleetEvent]:
        return self._server.drain(self.owns)

    def assign(self, proxy: str, assignment: Assignment, parts: Mapping[str, bytes]) -> None:
        self._server.assign(proxy, assignment, parts)

    def publish(self, live: Live) -> None:
        """Trust, revocations and keys only: endpoints are the whole cluster's, and one publisher's (see app/kubernetes.py)."""
        if live.trust is not None or live.revoked is not None or live.key_sets:
            if live.revoked is not None:
                self.revoked = tuple(live.revoked)
            revoked = None if live.revoked is None else self._all_revoked()
            self._server.publish(Live(epoch=live.epoch, trust=live.trust, revoked=revoked, key_sets=live.key_sets))

    def secrets(self, by_workload: Mapping[str, Mapping[str, TlsMaterial]]) -> None:
        self._server.secrets_among(self.owns, by_workload)

    def acknowledge(self, proxy: str, sequence: int) -> None:
        self._server.acknowledge(proxy, sequence)


class SharedFleet:
    """Hands one server's proxies to the shares, and wakes only those that something has happened to."""

    def __init__(self, server: ControlServer, *, unclaimed: Callable[[], None]) -> None:
        """`unclaimed` is called when something waits that is in nobody's share."""
        self._server = server
        self._shares: list[Share] = []
        self._claimed: frozenset[str] = frozenset()
        """Namespaces of all shares."""
        self._unclaimed = unclaimed

    def share(self, namespaces: frozenset[str], wake: Callable[[], None]) -> Share:
        """A fleet of these namespaces' proxies, which are made to connect anew."""
        share = Share(self._server, namespaces, wake, self._revoked)
        self._shares.append(share)
        self._claim()
        self._server.recall(share.owns)
        return share

    def _revoked(self) -> list[str]:
        return sorted({identity for share in self._shares for identity in share.revoked})

    def end(self, share: Share) -> None:
        """Nobody listens for this share any more; its proxies keep what they have."""
        if share in self._shares:
            self._shares.remove(share)
            self._claim()

    def _claim(self) -> None:
        self._claimed = frozenset().union(*(share.namespaces for share in self._shares))

    def is_claimed(self, workload: str) -> bool:
        return namespace_of(workload) in self._claimed

    def drain_unclaimed(self) -> Sequence[FleetEvent]:
        """What was heard of workloads that are in nobody's share."""
        return self._server.drain(lambda workload: not self.is_claimed(workload))

    def woken(self) -> None:
        """Something waits: tell those it is for."""
        namespaces = {namespace_of(workload) for workload in self._server.waiting()}
        for share in self._shares:
            if share.namespaces & namespaces:
                share.wake()
        if namespaces - self._claimed:
            self._unclaimed()
