"""Views of a small mesh in the moments that matter, and an operator that only knows how to show them."""

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec

from backstay.config.model import config_digest
from backstay.control.api import Action, ActionResult, ApiServer
from backstay.core.compile import Compiled, compile_mesh
from backstay.core.ports import Event
from backstay.core.problems import Problem
from backstay.core.rollout.model import (
    BadCause,
    Cause,
    Evidence,
    HeldSet,
    MeshState,
    Phase,
    ProxyView,
    RevisionRecord,
    Rollout,
    Settings,
    Stage,
    Verdict,
    WorkloadRollout,
    WorkloadState,
)
from backstay.core.view import MeshView, ProxyStatus
from support import meshes

NOW = 1_700_000_000.0
OLD, NEW, BAD = "a" * 40, "b" * 40, "c" * 40
ROUTE = """\
apiVersion: backstay.dev/v1alpha1
kind: Route
metadata: {{name: b, namespace: shop}}
spec:
  hosts: [b]
  rules:
  - name: main
    backendRefs: [{{name: b, port: 80}}]
    timeouts: {{request: {timeout}}}
"""
SENTENCE = (
    "shop/a, 1 of 2 proxies on the new revision: 41 of 118 requests failed (35 %), 3 of 1,204 on the others (0.2 %)."
)


def named(sha: str) -> str:
    return f"main@sha1:{sha}"


REGISTRY = meshes.registry(("a", "b"), replicas=2)
STABLE = meshes.snapshot(ROUTE.format(timeout="5s"), revision=named(OLD), file="b.yaml")
WANTED = meshes.snapshot(ROUTE.format(timeout="1s"), revision=named(NEW), file="b.yaml")
STABLE_CONFIGS: Compiled = compile_mesh(STABLE, REGISTRY)
WANTED_CONFIGS: Compiled = compile_mesh(WANTED, REGISTRY)


def revision(sha: str, **fields: Any) -> RevisionRecord:
    return RevisionRecord(
        sha=sha, revision=named(sha), author="Ann", subject="Tune b", committed_at=NOW - 60, seen_at=NOW - 50, **fields
    )


def live() -> MeshView:
    """One route is live everywhere; nothing is going on."""
    state = MeshState(
        mesh="shop",
        epoch=3,
        workloads={key: WorkloadState(stable=digest) for key, digest in STABLE_CONFIGS.digests.items()},
        desired_revision=named(OLD),
        attempted_revision=named(OLD),
        active_revision=named(OLD),
        revisions=(revision(OLD, outcome="live"),),
    )
    return MeshView(
        mesh="shop",
        now=NOW,
        state=state,
        url="https://git.example/mesh.git",
        observed_generation=1,
        desired=STABLE,
        effective=STABLE,
        stable=STABLE,
        registry=REGISTRY,
        proxies={instance.id: _proxy(instance.id, instance.workload) for instance in REGISTRY.instances.values()},
        stable_manifests=STABLE_CONFIGS.manifests,
        document_workloads={"Route/shop/b": ("shop/a",)},
        origins={digest: tuple(found.rules.values()) for digest, found in STABLE_CONFIGS.origins.items()},
        version="0.1.0",
        epoch=3,
        started_at=NOW - 3600,
    )


def _proxy(name: str, workload: str, **fields: Any) -> ProxyStatus:
    return ProxyStatus(
        view=ProxyView(id=name, workload=workload, connected=True, stable=STABLE_CONFIGS.digests[workload], **fields),
        engine="python",
        version="0.1.0",
        since=NOW - 600,
        last_report=NOW - 1,
        certificate_expires=NOW + 80_000,
    )


def rollout(phase: Phase = Phase.SHIFTING, **fields: Any) -> Rollout:
    """Workload a tries the new timeout of b: one of its two proxies, as a whole."""
    evidence = Evidence(
        candidate_total=118,
        candidate_bad=41,
        stable_total=1204,
        stable_bad=3,
        verdict=Verdict.FAIL if phase in (Phase.FAILED, Phase.ROLLING_BACK) else Verdict.INCONCLUSIVE,
        sentence=SENTENCE if phase in (Phase.FAILED, Phase.ROLLING_BACK) else "",
        causes=(BadCause(reason="timeout", route="routes/b.shop:80#main", count=41, origin="b.yaml:7"),),
    )
    digest = WANTED_CONFIGS.digests["shop/a"]
    made = Rollout(
        id="r2",
        cause=Cause(kind="commit", revision=named(NEW), commits=(NEW,), author="Ann", subject="Tune b"),
        settings=Settings(),
        phase=phase,
        stages=(Stage(name="move", configs={"shop/a": digest}),),
        workloads={"shop/a": WorkloadRollout(seats={"a-0": 1.0}, share=0.5, evidence=evidence)},
        documents=("Route/shop/b",),
        started_at=NOW - 20,
        elapsed=20.0,
        wave_elapsed=5.0,
    )
    return msgspec.structs.replace(made, **fields)


def rolling(phase: Phase = Phase.SHIFTING) -> MeshView:
    """The new commit is in its first wave."""
    base = live()
    manifest = WANTED_CONFIGS.manifests["shop/a"]
    state = msgspec.structs.replace(
        base.state,
        desired_revision=named(NEW),
        attempted_revision=named(NEW),
        rollout=rollout(phase),
        revisions=(revision(NEW), *base.state.revisions),
    )
    proxies = {**base.proxies, "a-0": _proxy("a-0", "shop/a", candidate=config_digest(manifest), share=1.0)}
    return replace(base, state=state, desired=WANTED, proxies=proxies, candidate_manifests={"shop/a": manifest})


def held() -> MeshView:
    """The new commit was rolled back; its document is held."""
    base = live()
    set_aside = HeldSet(
        commit=NEW,
        revision=named(NEW),
        rollout="r2",
        documents={"Route/shop/b": WANTED.documents["Route/shop/b"].digest},
        sentence=SENTENCE,
        since=NOW - 5,
    )
    ended = rollout(Phase.FAILED, sentence=SENTENCE, harmed=41, detected_after=1.3, restored_after=0.4)
    state = msgspec.structs.replace(
        base.state,
        desired_revision=named(NEW),
        attempted_revision=named(NEW),
        active_revision=named(NEW),
        held=(set_aside,),
        history=(ended,),
        revisions=(revision(NEW, outcome="rolled-back", sentence=SENTENCE), *base.state.revisions),
    )
    return replace(base, state=state, desired=WANTED)


PROBLEM = Problem(
    file="b.yaml",
    line=9,
    column=5,
    path="spec.rules[0].timeouts",
    message="unknown field 'timeuots'; did you mean 'timeouts'?",
    reason="UnknownField",
    document="Route/shop/b",
)


def invalid() -> MeshView:
    """The newest commit is invalid; the one before goes on serving."""
    base = live()
    state = msgspec.structs.replace(
        base.state,
        desired_revision=named(BAD),
        attempted_revision=named(BAD),
        revisions=(revision(BAD, outcome="invalid"), *base.state.revisions),
    )
    return replace(base, state=state, problems=(PROBLEM,))


# --- an operator that shows them ------------------------------------------------------------


@dataclass
class ShowingOperator:
    """An OperatorFacade without a mesh behind it: shows the views it is given and remembers what it is told."""

    shown: MeshView
    told: list[Event] = field(default_factory=list)
    answer: ActionResult = field(default_factory=lambda: ActionResult(done=True, reason="Done", message="as you wish"))
    actions: list[Action] = field(default_factory=list)
    on_look: Callable[[], None] | None = None

    def view(self) -> MeshView:
        if self.on_look is not None:
            self.on_look()
        return self.shown

    async def act(self, action: Action) -> ActionResult:
        self.actions.append(action)
        return self.answer

    async def events(self, *, after: int = 0, since: float = 0.0, limit: int = 1000) -> Sequence[Event]:
        return [event for event in self.told if event.number > after and event.at >= since][:limit]

    async def wait_for_event(self, after: int) -> None:
        while not await self.events(after=after):
            await asyncio.sleep(0.01)

    async def blobs(self, digests: Iterable[str]) -> Mapping[str, bytes]:
        parts = {**STABLE_CONFIGS.parts, **WANTED_CONFIGS.parts}
        return {digest: parts[digest] for digest in digests if digest in parts}


@contextlib.contextmanager
def served(operator: ShowingOperator, state_dir: Path) -> Iterator[ShowingOperator]:
    """The real API on a real socket, in a thread of its own, for commands that block."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    server = ApiServer(operator, state_dir)
    try:
        asyncio.run_coroutine_threadsafe(server.start(), loop).result(10)
        yield operator
    finally:
        asyncio.run_coroutine_threadsafe(server.close(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()
