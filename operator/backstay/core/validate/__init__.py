"""Whether the documents of a commit may become a snapshot: shape, then everything that takes more than one document."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from backstay.core.documents import Cache, Limits, parse
from backstay.core.problems import Problem, Severity
from backstay.core.registry import Registry
from backstay.core.snapshot import Document, Snapshot
from backstay.core.validate.rules import check
from backstay.core.yamltree import DEFAULT_LIMITS

__all__ = ["Cache", "Validated", "validate"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Validated:
    snapshot: Snapshot | None
    """None if there is any ERROR: an invalid commit changes nothing."""
    documents: tuple[Document, ...]
    """All that could be read, in the order of files; also of an invalid commit."""
    problems: tuple[Problem, ...]
    """Sorted by place."""

    @property
    def errors(self) -> tuple[Problem, ...]:
        return tuple(problem for problem in self.problems if problem.severity is Severity.ERROR)

    @property
    def waiting(self) -> frozenset[str]:
        """Keys of the documents that name something the registry does not have yet."""
        return frozenset(problem.document for problem in self.problems if problem.severity is Severity.WAITING)


def validate(
    files: Mapping[str, bytes],
    *,
    revision: str,
    registry: Registry | None = None,
    default_namespace: str = "default",
    refused: Sequence[tuple[str, str, str]] = (),
    limits: Limits = DEFAULT_LIMITS,
    cache: Cache | None = None,
) -> Validated:
    """Judge a whole commit. Without a registry (offline, CI) nothing is said about services and workloads.

    `refused` are (path, reason, message) of what the source would not read. With a `cache`, files that were read before
    are not read again.
    """
    parsed = parse(files, default_namespace=default_namespace, limits=limits, valid_cache=cache)
    unread = [Problem(file=path, reason=reason, message=message) for path, reason, message in refused]
    is_complete = not parsed.problems and not unread
    sound = cache.sound if cache is not None else None
    across = check(parsed.documents, registry, is_complete=is_complete, sound=sound)
    problems = tuple(sorted((*unread, *parsed.problems, *across)))
    is_valid = all(problem.severity is not Severity.ERROR for problem in problems)
    snapshot = Snapshot(revision=revision, documents={d.key: d for d in parsed.documents}) if is_valid else None
    return Validated(snapshot=snapshot, documents=parsed.documents, problems=problems)
