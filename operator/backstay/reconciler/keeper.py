"""The mesh's memory: the state, what its digests stand for, and how both become durable.

The loop changes `state` by replacing it; `flush` writes whatever is new in one transaction. Manifests, parts and
documents are blobs, written once.
"""

import logging
from collections.abc import Iterable, Mapping
from typing import Final

import msgspec

from backstay.config.model import Manifest, digest_of
from backstay.core import memory
from backstay.core.ports import Event, StateStore, StateUnavailable
from backstay.core.rollout.model import Digest, MeshState
from backstay.core.snapshot import Document, DocumentKey, Snapshot

_log: Final = logging.getLogger("backstay.state")
_manifest_decoder: Final[msgspec.json.Decoder[Manifest]] = msgspec.json.Decoder(Manifest)


class Keeper:
    """Holds one mesh's state and caches in memory and writes them through."""

    def __init__(self, store: StateStore, epoch: int, mesh: str) -> None:
        self._store = store
        self.epoch = epoch
        self.state = MeshState(mesh=mesh, epoch=epoch)
        self.manifests: dict[Digest, Manifest] = {}
        self.parts: dict[Digest, bytes] = {}
        self.restored: dict[tuple[str, DocumentKey], Document] = {}
        """(Commit of a held set, document) -> the content that a rollback by hand keeps instead of stable's."""
        self._snapshots: dict[str, Snapshot] = {}
        self._blobs = memory.Blobs()
        self._pending: dict[str, bytes] = {}
        self._durable: set[str] = set()
        self._events: list[Event] = []
        self._saved = b""

    async def load(self) -> None:
        """Read everything the state names. Raises StateUnavailable when it is not what it should be."""
        data = await self._store.load()
        if data is None:
            return
        try:
            state = msgspec.json.decode(data, type=MeshState)
            self.state = msgspec.structs.replace(state, epoch=self.epoch)
            await self._load_configs()
            for digest in self._snapshot_digests():
                await self._load_snapshot(digest)
            await self._load_restored()
        except (msgspec.MsgspecError, KeyError) as error:
            raise StateUnavailable(
                f"the saved state is damaged ({error!r}); nothing was changed. Move the state folder away "
                "to begin anew, or bring back a copy of it"
            ) from error

    def _snapshot_digests(self) -> list[str]:
        state = self.state
        wanted = [state.stable_documents, state.previous_documents, state.candidate_documents, state.desired_documents]
        return [digest for digest in dict.fromkeys(wanted) if digest]

    def _config_digests(self) -> list[Digest]:
        wanted = [d for item in self.state.workloads.values() for d in (item.stable, item.previous)]
        if self.state.rollout is not None:
            wanted += [d for stage in self.state.rollout.stages for d in stage.configs.values()]
        return [digest for digest in dict.fromkeys(wanted) if digest]

    async def _load_configs(self) -> None:
        configs = self._config_digests()
        found = await self._store.blobs(configs)
        self.manifests = {digest: _manifest_decoder.decode(found[digest]) for digest in configs}
        names = {part for manifest in self.manifests.values() for part in manifest.parts.values()}
        self.parts = dict(await self._store.blobs(names))
        missing = names - self.parts.keys()
        if missing:
            raise KeyError(f"part {min(missing)[:12]}")
        self._durable.update(configs, names)

    async def _load_snapshot(self, digest: str) -> Snapshot:
        own = await self._store.blobs([digest])
        documents = await self._store.blobs(memory.document_blobs(own[digest]))
        self._durable.update(own, documents)
        snapshot = self._snapshots[digest] = memory.recall(digest, {**own, **documents})
        return snapshot

    async def _load_restored(self) -> None:
        for held in self.state.held:
            found = await self._store.blobs(blob for blob in held.keep.values() if blob)
            for key, blob in held.keep.items():
                if blob:
                    self.restored[(held.commit, key)] = memory.recall_document(found[blob])

    def keep_document(self, commit: str, key: DocumentKey, document: Document | None) -> str:
        """Remember what a rollback by hand restores; returns its blob, "" for a document that is to be absent."""
        if document is None:
            self.restored.pop((commit, key), None)
            return ""
        self.restored[(commit, key)] = document
        blob, data = memory.remember_document(document)
        self._keep({blob: data})
        return blob

    async def recall(self, digest: str) -> Snapshot:
        """A kept snapshot. Raises KeyError if it was forgotten."""
        return self._snapshots[digest] if digest in self._snapshots else await self._load_snapshot(digest)

    def snapshot(self, digest: str) -> Snapshot | None:
        """A snapshot that is in memory: the stable, candidate, desired or previous one."""
        return self._snapshots.get(digest) if digest else None

    def keep_snapshot(self, snapshot: Snapshot) -> str:
        """Remember a snapshot; returns its blob digest."""
        digest, blobs = memory.remember(snapshot, self._blobs)
        self._snapshots[digest] = snapshot
        self._keep(blobs)
        return digest

    def keep_configs(self, manifests: Iterable[Manifest], parts: Mapping[Digest, bytes]) -> None:
        """Remember manifests with the parts they name."""
        for manifest in manifests:
            data = msgspec.json.encode(manifest, order="sorted")
            digest = digest_of(data)
            if digest not in self.manifests:
                self.manifests[digest] = manifest
                self._keep({digest: data})
                needed = {name: parts[name] for name in manifest.parts.values() if name not in self.parts}
                self.parts.update(needed)
                self._keep(needed)

    def _keep(self, blobs: Mapping[str, bytes]) -> None:
        self._pending.update({digest: data for digest, data in blobs.items() if digest not in self._durable})

    def note(self, event: Event) -> None:
        """Put an event on the timeline with the next flush."""
        self._events.append(event)

    def change(self, **fields: object) -> None:
        """Replace fields of the state."""
        self.state = msgspec.structs.replace(self.state, **fields)

    async def flush(self) -> list[Event]:
        """Make everything durable; returns the events that now are. Raises Fenced, StateUnavailable (nothing is lost:
        the next flush tries again)."""
        data = msgspec.json.encode(self.state)
        if data == self._saved and not self._pending and not self._events:
            return []
        events, pending = list(self._events), dict(self._pending)
        await self._store.save(self.epoch, data, pending, events)
        self._saved = data
        self._durable.update(pending)
        for digest in pending:
            self._pending.pop(digest, None)
        del self._events[: len(events)]
        return events

    async def prune(self) -> None:
        """Forget configs, parts and snapshots that nothing names any more."""
        configs = set(self._config_digests())
        self.manifests = {digest: self.manifests[digest] for digest in configs if digest in self.manifests}
        names = {part for manifest in self.manifests.values() for part in manifest.parts.values()}
        self.parts = {digest: data for digest, data in self.parts.items() if digest in names}
        shown = set(self._snapshot_digests())
        self._snapshots = {digest: item for digest, item in self._snapshots.items() if digest in shown}
        self._blobs.keep_only(self._snapshots.values())
        keep = configs | names | shown | {record.documents for record in self.state.revisions if record.documents}
        keep |= await self._documents_of(keep - configs - names)
        keep |= {blob for held in self.state.held for blob in held.keep.values() if blob}
        await self._store.prune(self.epoch, keep | self._pending.keys())
        self._durable &= keep

    async def _documents_of(self, snapshots: set[str]) -> set[str]:
        found = await self._store.blobs(snapshots)
        return {blob for data in found.values() for blob in memory.document_blobs(data)}
