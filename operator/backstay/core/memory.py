"""Documents and snapshots as blobs: what the operator keeps so that it needs neither git nor luck after a restart.

A document's blob holds its content and its place; a snapshot's blob lists the blobs of its documents. Both are
content-addressed, so ten kept snapshots that differ in one document cost one document more.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from backstay.config.model import digest_of
from backstay.core.intents import KINDS, Metadata
from backstay.core.snapshot import Document, DocumentKey, Snapshot


class _Stored(msgspec.Struct, frozen=True, kw_only=True):
    kind: str
    metadata: Metadata
    file: str
    line: int
    digest: str
    raw: dict[str, Any]
    positions: dict[str, tuple[int, int]]


class _StoredSnapshot(msgspec.Struct, frozen=True, kw_only=True):
    revision: str
    documents: dict[DocumentKey, str]


def remember_document(document: Document) -> tuple[str, bytes]:
    """Blob digest and bytes."""
    stored = _Stored(
        kind=document.kind,
        metadata=document.metadata,
        file=document.file,
        line=document.line,
        digest=document.digest,
        raw=dict(document.raw),
        positions=dict(document.positions),
    )
    data = msgspec.json.encode(stored, order="sorted")
    return digest_of(data), data


def recall_document(data: bytes) -> Document:
    """Raises msgspec.ValidationError for a document this version does not understand."""
    stored = msgspec.json.decode(data, type=_Stored)
    return Document(
        kind=stored.kind,
        metadata=stored.metadata,
        spec=msgspec.convert(stored.raw.get("spec", {}), KINDS[stored.kind]),
        file=stored.file,
        line=stored.line,
        positions=stored.positions,
        raw=stored.raw,
        digest=stored.digest,
    )


class Blobs:
    """Blobs of documents that were remembered before, by the document itself: a commit leaves most of them as they
    were, and encoding a thousand of them takes a tenth of a second."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[Document, str, bytes]] = {}

    def of(self, document: Document) -> tuple[str, bytes]:
        known = self._known.get(id(document))
        if known is None or known[0] is not document:
            known = self._known[id(document)] = (document, *remember_document(document))
        return known[1], known[2]

    def keep_only(self, snapshots: Iterable[Snapshot]) -> None:
        """Forget documents that are in none of these."""
        kept = {id(document) for snapshot in snapshots for document in snapshot.documents.values()}
        self._known = {key: value for key, value in self._known.items() if key in kept}


def remember(snapshot: Snapshot, known: Blobs | None = None) -> tuple[str, dict[str, bytes]]:
    """Blob digest of the snapshot, and all blobs it needs, its own included."""
    known = known or Blobs()
    blobs, documents = {}, {}
    for key, document in sorted(snapshot.documents.items()):
        documents[key], data = known.of(document)
        blobs[documents[key]] = data
    own = msgspec.json.encode(_StoredSnapshot(revision=snapshot.revision, documents=documents), order="sorted")
    blobs[digest_of(own)] = own
    return digest_of(own), blobs


def document_blobs(data: bytes) -> list[str]:
    """The document blobs a snapshot blob names."""
    return list(msgspec.json.decode(data, type=_StoredSnapshot).documents.values())


def recall(digest: str, blobs: Mapping[str, bytes]) -> Snapshot:
    """Raises KeyError for a blob that is missing."""
    stored = msgspec.json.decode(blobs[digest], type=_StoredSnapshot)
    documents = {key: recall_document(blobs[blob]) for key, blob in stored.documents.items()}
    return Snapshot(revision=stored.revision, documents=documents)
