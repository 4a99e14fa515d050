"""One revision's documents as values, and where each of them stands in git.

`documents.parse` makes documents from files, `validate` decides whether they may become a snapshot. A snapshot is what
is compiled. Held documents are replaced in it by their stable content (core/held.py), so a snapshot need not equal any
commit.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from backstay.core.intents import MeshSpec, Metadata, Spec

DocumentKey: TypeAlias = str
"""`Kind/namespace/name`"""
Position: TypeAlias = tuple[int, int]
"""Line and column, both from 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """One intent with its place. Two documents with equal `digest` say the same, wherever they stand."""

    kind: str
    metadata: Metadata
    spec: Spec
    file: str
    line: int
    positions: Mapping[str, Position] = field(repr=False, compare=False)
    """Path (`spec.rules[0].name`) -> position of the value; the key's own position under `path~`."""
    raw: Mapping[str, Any] = field(repr=False, compare=False)
    """The document as plain JSON values, defaults not filled in."""
    digest: str
    """SHA-256 of the canonical JSON of `raw`: comments, order of keys and place do not change it."""

    @property
    def key(self) -> DocumentKey:
        return f"{self.kind}/{self.metadata.namespace}/{self.metadata.name}"

    def place(self, path: str = "") -> str:
        """`file:line` of a path inside, or of the nearest parent that has a position."""
        while path and path not in self.positions:
            path = path[: max(path.rfind("."), path.rfind("["), 0)]
        return f"{self.file}:{self.positions[path][0] if path else self.line}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    revision: str
    """`main@sha1:<sha>`"""
    documents: Mapping[DocumentKey, Document]

    @property
    def mesh(self) -> MeshSpec:
        """The Mesh document's spec, or the defaults where there is none."""
        for document in self.documents.values():
            if isinstance(document.spec, MeshSpec):
                return document.spec
        return MeshSpec()
