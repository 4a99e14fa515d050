"""Telling proxies: assignments, live data, acknowledgements. Called only after the state behind them is durable."""

from collections.abc import Mapping

from backstay.config.wire import Endpoint, Live
from backstay.core import live
from backstay.core.compile import parts_of
from backstay.core.ports import Assignment, CertificateAuthority, Fleet
from backstay.core.registry import Registry
from backstay.core.rollout import plan
from backstay.core.rollout.evidence import Folder
from backstay.core.rollout.model import ProxyView, Rollout
from backstay.reconciler.keeper import Keeper
from backstay.reconciler.planning import expected_refusals


class Messenger:
    """Says to each proxy what is news to it."""

    def __init__(self, keeper: Keeper, fleet: Fleet, authority: CertificateAuthority, trust_domain: str) -> None:
        self._keeper = keeper
        self._fleet = fleet
        self._authority = authority
        self._trust_domain = trust_domain
        self._registry: Registry | None = None
        """The one whose endpoints were published last."""
        self._assigned: dict[str, plan.Target] = {}
        self._endpoints: dict[str, list[Endpoint]] = {}
        self._addresses: dict[str, list[str]] = {}
        self._trust: Mapping[str, str] = {}
        self._revoked: tuple[str, ...] | None = None
        """None: proxies have not been told since this operator began."""

    def forget(self, proxy: str) -> None:
        """The proxy has connected anew: it is told again."""
        self._assigned.pop(proxy, None)

    def assign(self, views: Mapping[str, ProxyView]) -> None:
        """Tell every proxy what it is to serve, if that is news."""
        state = self._keeper.state
        stable, rollout = {key: item.stable for key, item in state.workloads.items()}, state.rollout
        seated = plan.targets(rollout, stable, views) if rollout else {}
        expected = self._expected_refusals(rollout)
        parts: dict[tuple[str, str], Mapping[str, bytes]] = {}  # by pair of configs: many proxies are told the same
        for proxy, view in views.items():
            wanted = seated.get(proxy) or plan.Target(stable.get(view.workload, ""), "", 0.0)
            if wanted.stable and self._assigned.get(proxy) != wanted:
                self._assigned[proxy] = wanted
                pair = (wanted.stable, wanted.candidate)
                if pair not in parts:
                    parts[pair] = self._parts_of(*pair)
                assignment = self._assignment(wanted, expected if wanted.candidate else (), rollout)
                self._fleet.assign(proxy, assignment, parts[pair])

    def _parts_of(self, stable: str, candidate: str) -> Mapping[str, bytes]:
        keeper = self._keeper
        own = parts_of(keeper.manifests[stable], keeper.parts)
        return own | parts_of(keeper.manifests[candidate], keeper.parts) if candidate else own

    def _assignment(
        self, wanted: plan.Target, expected: tuple[tuple[str, str, str], ...], rollout: Rollout | None
    ) -> Assignment:
        manifests = self._keeper.manifests
        return Assignment(
            stable=manifests[wanted.stable],
            candidate=manifests[wanted.candidate] if wanted.candidate else None,
            share=wanted.share,
            lease_s=rollout.settings.confirm_within if rollout else 60.0,
            expect_refused=expected,
        )

    def _expected_refusals(self, rollout: Rollout | None) -> tuple[tuple[str, str, str], ...]:
        snapshot = self._keeper.snapshot(self._keeper.state.candidate_documents)
        if rollout is None or snapshot is None:
            return ()
        found = (snapshot.documents.get(key) for key in rollout.documents)
        return expected_refusals(document for document in found if document is not None)

    def publish(self, registry: Registry) -> dict[str, tuple[int, int]]:
        """Live data never waits for a rollout. Returns service port -> (endpoints before, now) of what changed."""
        trust, revoked = dict(self._authority.trust_bundle()), self._keeper.state.revoked
        if registry is self._registry and trust == self._trust and revoked == self._revoked:
            return {}
        endpoints = live.endpoints(registry, self._trust_domain)
        delta = live.changed(self._endpoints, endpoints)
        addresses = live.addresses(registry)
        moved = live.changed(self._addresses, addresses)
        counts = {key: (len(self._endpoints.get(key, ())), len(now)) for key, now in delta.items()}
        if delta or moved or trust != self._trust or revoked != self._revoked:
            told = None if revoked == self._revoked else list(revoked)
            self._fleet.publish(
                Live(epoch=self._keeper.epoch, endpoints=delta, addresses=moved, trust=trust, revoked=told)
            )
        self._revoked = revoked
        self._registry, self._endpoints, self._trust = registry, endpoints, trust
        self._addresses = addresses
        return counts

    def acknowledge(self, folder: Folder) -> None:
        for proxy, sequence in folder.ackable().items():
            self._fleet.acknowledge(proxy, sequence)
