"""One moment of the mesh as a value for status, API and CLI."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from backstay import __version__
from backstay.config.model import Manifest
from backstay.core.problems import Problem
from backstay.core.registry import Registry
from backstay.core.rollout import plan
from backstay.core.rollout.model import ProxyView
from backstay.core.view import MeshView, SourceCondition
from backstay.reconciler.book import FleetBook
from backstay.reconciler.conductor import Conductor
from backstay.reconciler.keeper import Keeper


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What the view needs and nobody else keeps."""

    mesh: str
    url: str
    ref: str
    path: str
    interval: float
    started_at: float
    generation: int = 1
    rollout_defaults: Mapping[str, object] = field(default_factory=dict)


def show(
    facts: Facts,
    keeper: Keeper,
    conductor: Conductor,
    *,
    now: float,
    source: SourceCondition,
    problems: tuple[Problem, ...],
    fault: str,
    observed_generation: int,
    handled_reconcile: str,
    registry: Registry,
    book: FleetBook,
    views: Mapping[str, ProxyView],
) -> MeshView:
    state, made = keeper.state, conductor.plan
    tried = plan.candidates(state.rollout) if state.rollout else {}
    return MeshView(
        mesh=facts.mesh,
        now=now,
        state=state,
        url=facts.url,
        ref=facts.ref,
        path=facts.path,
        interval=facts.interval,
        generation=facts.generation,
        observed_generation=observed_generation,
        handled_reconcile=handled_reconcile,
        source=source,
        problems=problems,
        fault=fault,
        desired=keeper.snapshot(state.desired_documents),
        effective=made.effective.snapshot if made else None,
        stable=keeper.snapshot(state.stable_documents),
        held_dependency=str(made.conflict[0]) if made and made.conflict else "",
        waiting=made.waiting if made else {},
        rollout_defaults=facts.rollout_defaults,
        registry=registry,
        proxies=book.statuses(registry, views),
        stable_manifests=conductor.base(),
        candidate_manifests=_known(keeper, tried),
        document_workloads=conductor.provenance.workloads,
        origins=conductor.provenance.places,
        version=__version__,
        epoch=keeper.epoch,
        started_at=facts.started_at,
    )


def _known(keeper: Keeper, configs: Mapping[str, str]) -> dict[str, Manifest]:
    return {key: keeper.manifests[digest] for key, digest in configs.items() if digest in keeper.manifests}
