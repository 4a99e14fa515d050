"""All MeshRepositories of the cluster: who owns what, which loops run, and what becomes of what nobody wishes any more.

`saw` and `wake` may be called at any time; `run` brings the loops to what was seen, one after the other.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

import msgspec

from backstay.adapters.kubernetes.client import ApiError
from backstay.adapters.kubernetes.objects import OWNER, Projection, remove_owned
from backstay.adapters.kubernetes.state import forget, remembered
from backstay.app.mesh import Mesh, Surroundings, bare_status, owner_of, refusal_status
from backstay.core.resources import MESH_REPOSITORY, repository_spec
from backstay.core.snapshot import Document
from backstay.core.tenancy import CLASS, GRANT, Claims, Refusal, Repository, claims
from backstay.redact import clean
from backstay.tasks import spawn, stop

_log: Final = logging.getLogger("backstay.app")
FORGET_AFTER: Final = 3600.0
"""Seconds the state of a repository that is gone is kept: its kind may have been deleted by mistake, with all of them."""
SWEEP_EVERY: Final = 600.0
FAILURES_LOOKED_AT_EVERY: Final = 1.0
SHARED_KINDS: Final = frozenset({"Mesh", "Guardrail"})
"""What a repository in the operator's own namespace says for all."""


def repository_of(found: Mapping[str, Any]) -> Repository:
    """Raises msgspec.ValidationError for a spec that this version does not understand."""
    metadata = found["metadata"]
    return Repository(
        namespace=metadata["namespace"],
        name=metadata["name"],
        uid=metadata["uid"],
        created_at=metadata["creationTimestamp"],
        generation=int(metadata.get("generation") or 1),
        spec=repository_spec(found.get("spec") or {}),
    )


class Meshes:
    """For the leader. Raises Fenced out of `run` when its term is over."""

    def __init__(self, around: Surroundings, grants: Callable[[], Mapping[str, str]]) -> None:
        """`grants` are the annotations of namespaces, now."""
        self.running: dict[str, Mesh] = {}
        self.claims = Claims(owners={}, refused={})
        self._around = around
        self._grants = grants
        self._found: dict[str, Mapping[str, Any]] = {}
        self._refusals: dict[str, tuple[Projection, asyncio.Task[None]]] = {}
        self._gone_since: dict[str, float] = {}
        self._wake = asyncio.Event()

    def __repr__(self) -> str:
        return f"<Meshes running={sorted(self.running)} refused={sorted(self.claims.refused)}>"

    # --- what is seen -------------------------------------------------------------------------------------------------

    def saw(self, kind: str, found: Mapping[str, Any], deleted: bool) -> None:
        """An event of one of our three kinds."""
        metadata = found["metadata"]
        key = f"{metadata['namespace']}/{metadata['name']}"
        if kind != MESH_REPOSITORY.name:
            key = str((metadata.get("labels") or {}).get(OWNER, "")).replace(".", "/", 1)
        elif deleted or (metadata.get("labels") or {}).get(CLASS, "") != self._around.settings.operator_class:
            self._found.pop(key, None)
            self._wake.set()
            return
        elif self._is_news(key, found):
            self._found[key] = found
            self._wake.set()
        else:
            self._found[key] = found
        if key in self.running:
            self.running[key].saw(kind, found, deleted)

    def _is_news(self, key: str, found: Mapping[str, Any]) -> bool:
        """Another spec, or another object of the same name; the operator's own status is no news."""
        before = self._found.get(key)
        return before is None or any(
            before["metadata"].get(field) != found["metadata"].get(field) for field in ("uid", "generation")
        )

    def wake(self) -> None:
        """A grant may have changed."""
        self._wake.set()

    # --- what the platform's repository says for all ------------------------------------------------------------------

    def inherited(self, repository: str) -> Mapping[str, bytes]:
        """Documents of the repositories in the operator's own namespace that count in every other one as well."""
        found: dict[str, bytes] = {}
        for key, mesh in self.running.items():
            if key != repository and mesh.repository.namespace == self._around.settings.namespace:
                stable = mesh.reconciler.view().stable if mesh.reconciler is not None else None
                found |= shared_documents(key, stable.documents.values() if stable is not None else ())
        return found

    def _hand_down(self) -> None:
        """Have every repository read its documents again when what it inherits has changed."""
        for key, mesh in self.running.items():
            if mesh.reconciler is not None and mesh.inherits != self.inherited(key):
                mesh.reconciler.reread()

    # --- bringing it about --------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Look at what there is. Raises ApiError; a kind that is missing is no error, its objects come with it."""
        try:
            listed = await self._around.client.list(MESH_REPOSITORY.path())
        except ApiError as error:
            if not error.is_missing:
                raise
            _log.warning("meshes.kind-missing kind=%s", MESH_REPOSITORY.name)
            return
        for item in listed.items:
            self.saw(MESH_REPOSITORY.name, item, False)

    async def run(self) -> None:
        """Until cancelled. Raises Fenced."""
        sweep_at = time.monotonic() + SWEEP_EVERY
        self._wake.set()
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(FAILURES_LOOKED_AT_EVERY):
                    await self._wake.wait()
            self._raise_failure()
            self._hand_down()
            if self._wake.is_set():
                self._wake.clear()
                await self._bring_about()
            if time.monotonic() >= sweep_at:
                sweep_at = time.monotonic() + SWEEP_EVERY
                await self.sweep()

    async def close(self) -> None:
        for key in list(self.running):
            await self._end(key)
        await stop(*(task for _, task in self._refusals.values()))

    def _raise_failure(self) -> None:
        for mesh in self.running.values():
            failure = mesh.failed()
            if failure is not None:
                raise failure

    async def _bring_about(self) -> None:
        repositories = self._understood()
        self.claims = claims(repositories.values(), self._grants())
        for key, mesh in list(self.running.items()):
            wanted = repositories.get(key)
            if wanted is None or mesh.repository != wanted or mesh.namespaces != self.claims.of(key):
                await self._end(key)
                if key not in self._found:
                    await self._clear_away(mesh)
        for key, repository in repositories.items():
            refusal = self.claims.refused.get(key)
            if refusal is not None:
                self._show_refusal(repository, refusal)
            elif key not in self.running:
                await self._begin(repository)
        for key in [key for key in self._refusals if key not in self.claims.refused and key in self.running]:
            await self._withdraw_refusal(key)

    def _understood(self) -> dict[str, Repository]:
        found: dict[str, Repository] = {}
        for key, item in self._found.items():
            try:
                found[key] = repository_of(item)
            except (msgspec.ValidationError, ValueError) as error:
                self._show_unreadable(key, item, str(error))
        return found

    async def _begin(self, repository: Repository) -> None:
        await self._withdraw_refusal(repository.key)
        self._gone_since.pop(repository.key, None)
        found, namespaces = self._found[repository.key], self.claims.of(repository.key)
        mesh = Mesh(self._around, repository, namespaces, found, lambda: self.inherited(repository.key))
        self.running[repository.key] = mesh
        mesh.start()
        _log.info("mesh.began repository=%s namespaces=%s", repository.key, ",".join(sorted(mesh.namespaces)))

    async def _end(self, key: str) -> None:
        mesh = self.running.pop(key)
        await mesh.stop()
        _log.info("mesh.ended repository=%s", key)

    async def _clear_away(self, mesh: Mesh) -> None:
        """Its projections; its state stays for a while, and its proxies keep what they have."""
        try:
            await remove_owned(self._around.client, mesh.projection.owner)
        except ApiError as error:
            _log.warning("mesh.not-cleared repository=%s error=%s", mesh.repository.key, clean(str(error)))

    # --- what is not run ----------------------------------------------------------------------------------------------

    def _show_refusal(self, repository: Repository, refusal: Refusal) -> None:
        wish = refusal_status(repository, self._found[repository.key], refusal)
        self._refusing(repository.key, repository).show({wish.key: wish})

    def _show_unreadable(self, key: str, item: Mapping[str, Any], error: str) -> None:
        """A spec that the schema of another version let through."""
        metadata = item["metadata"]
        repository = Repository(
            namespace=metadata["namespace"],
            name=metadata["name"],
            uid=metadata["uid"],
            created_at=metadata["creationTimestamp"],
            generation=int(metadata.get("generation") or 1),
            spec=repository_spec({"url": str((item.get("spec") or {}).get("url", "unknown"))}),
        )
        message = clean(f"spec: {error}, expected what this operator's schema says [SpecInvalid]")
        conditions = [("Ready", "False", "SpecInvalid", message), ("Stalled", "True", "SpecInvalid", message)]
        wish = bare_status(repository, item, conditions)
        self._refusing(key, repository).show({wish.key: wish})

    def _refusing(self, key: str, repository: Repository) -> Projection:
        if key not in self._refusals:
            projection = Projection(self._around.client, owner_of(repository))
            self._refusals[key] = projection, spawn(projection.run(), name=f"refusal {key}")
        return self._refusals[key][0]

    async def _withdraw_refusal(self, key: str) -> None:
        if key in self._refusals:
            _, task = self._refusals.pop(key)
            await stop(task)

    async def sweep(self, *, now: float | None = None) -> list[str]:
        """Forget the state of repositories that have been gone for long; returns which."""
        now = time.monotonic() if now is None else now
        client, namespace = self._around.client, self._around.settings.namespace
        try:
            await client.list(MESH_REPOSITORY.path(), page=1)  # without its kind nothing is gone for good
            kept = await remembered(client, namespace)
            lost = [key for key in kept if key not in self._found]
            self._gone_since = {key: self._gone_since.get(key, now) for key in lost}
            due = [key for key, since in self._gone_since.items() if now - since >= FORGET_AFTER]
            for key in due:
                await forget(client, namespace, key)
                _log.info("mesh.forgotten repository=%s", key)
        except ApiError as error:
            _log.info("meshes.not-swept error=%s", clean(str(error)))
            return []
        return due


def shared_documents(repository: str, documents: Iterable[Document]) -> dict[str, bytes]:
    """Path -> text of those documents that are about the whole cluster."""
    found = {}
    for document in documents:
        if document.kind in SHARED_KINDS:
            metadata = {**document.raw.get("metadata", {}), "namespace": document.metadata.namespace}
            # JSON is YAML; the path is what problems name.
            found[f"{repository}/{document.file}#{document.key}"] = msgspec.json.encode(
                {**document.raw, "metadata": metadata}, order="sorted"
            )
    return found


def grants_of(annotations: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """Namespace -> the foreign repository it grants itself to."""
    return {name: found[GRANT] for name, found in annotations.items() if GRANT in found}


__all__ = ["Meshes", "grants_of", "repository_of"]
