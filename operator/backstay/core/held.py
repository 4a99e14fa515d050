"""What of a commit may be tried: held documents stay at the content that works, documents that wait stay out.

A held set is released whole as soon as one of its documents says something else than what failed (a fix, a revert), or
when a person says retry. Everything else of the commit keeps flowing.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from backstay.core.rollout.model import HeldSet
from backstay.core.snapshot import Document, DocumentKey, Snapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class Effective:
    """The snapshot to compile, and what was done to the commit to get it."""

    snapshot: Snapshot
    held: tuple[HeldSet, ...]
    released: tuple[HeldSet, ...]
    waiting: tuple[DocumentKey, ...]


def is_released(held: HeldSet, desired: Mapping[DocumentKey, Document]) -> bool:
    """True once any of its documents no longer says what failed."""
    return any(_digest(desired.get(key)) != digest for key, digest in held.documents.items())


def _digest(document: Document | None) -> str:
    return document.digest if document else ""


def effective(
    desired: Snapshot,
    held: Iterable[HeldSet],
    kept: Mapping[DocumentKey, Document],
    waiting: Iterable[DocumentKey] = (),
) -> Effective:
    """The desired snapshot with held and waiting documents at their kept content.

    `kept` is what works now: the stable snapshot's documents, overlaid by what a rollback by hand restores. A document
    that is not in it is left out.
    """
    held = tuple(held)
    released = tuple(item for item in held if is_released(item, desired.documents))
    staying = tuple(item for item in held if item not in released)
    waits = tuple(sorted(waiting))
    documents = dict(desired.documents)
    for key in {key for item in staying for key in item.documents} | set(waits):
        if key in kept:
            documents[key] = kept[key]
        else:
            documents.pop(key, None)
    snapshot = Snapshot(revision=desired.revision, documents=documents)
    return Effective(snapshot=snapshot, held=staying, released=released, waiting=waits)


def changed_documents(old: Mapping[DocumentKey, Document], new: Mapping[DocumentKey, Document]) -> set[DocumentKey]:
    """Keys whose content differs, is new, or is gone."""
    return {key for key in old.keys() | new.keys() if _digest(old.get(key)) != _digest(new.get(key))}
