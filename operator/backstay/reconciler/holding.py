"""Which documents a failed rollout holds: all of each commit that had a part in it, one set per commit."""

from collections.abc import Callable, Iterable, Mapping, Sequence

from backstay.core.held import changed_documents
from backstay.core.rollout.model import HeldSet, Rollout, Verdict
from backstay.core.snapshot import Document, DocumentKey


def blamed(rollout: Rollout, document_workloads: Mapping[DocumentKey, Iterable[str]]) -> set[DocumentKey]:
    """The rollout's documents that had a part in a failing workload; all of them where no workload stands out."""
    failing = {key for key, item in rollout.workloads.items() if item.evidence.verdict is Verdict.FAIL}
    if not failing:
        return set(rollout.documents)
    found = {key for key in rollout.documents if failing & set(document_workloads.get(key, ()))}
    return found or set(rollout.documents)


def by_commit(
    guilty: set[DocumentKey],
    commits: Sequence[tuple[str, Mapping[DocumentKey, Document]]],
    before: Mapping[DocumentKey, Document],
) -> dict[str, set[DocumentKey]]:
    """Commit -> all documents it changed, for each commit that changed a guilty one.

    `commits` holds each commit's documents, oldest first; `before` the documents of the commit before the first.
    """
    found: dict[str, set[DocumentKey]] = {}
    previous = before
    for sha, documents in commits:
        touched = changed_documents(previous, documents)
        if touched & guilty:
            found[sha] = touched
        previous = documents
    return found


def held_sets(
    per_commit: Mapping[str, set[DocumentKey]],
    desired: Mapping[DocumentKey, Document],
    stable: Mapping[DocumentKey, Document],
    make: Callable[[str, dict[DocumentKey, str]], HeldSet],
) -> list[HeldSet]:
    """One set per commit; documents that say the same as stable need no holding."""
    differing = changed_documents(stable, desired)
    sets = []
    for sha, documents in per_commit.items():
        failed = {key: desired[key].digest if key in desired else "" for key in sorted(documents & differing)}
        if failed:
            sets.append(make(sha, failed))
    return sets
