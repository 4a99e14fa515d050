"""Whose namespaces are whose, and what a repository's documents may be about. Pure decisions of values.

A repository owns namespaces: its own, or those it lists and that granted it. A namespace has one owner; of two who want
it the older one keeps it. A repository that is refused anything owns nothing, so that half of what somebody wished never
takes effect unnoticed.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from backstay.core.problems import Problem
from backstay.core.resources import MeshRepositorySpec
from backstay.core.snapshot import Document, DocumentKey

GRANT: Final = "backstay.dev/repository"
"""Annotation of a Namespace: the one foreign repository (`namespace/name`) that may own it."""
CLASS: Final = "backstay.dev/operator-class"
"""Label of MeshRepositories and Namespaces: which of several operators in one cluster serves them."""
GUARDED_FROM: Final = 4
"""Documents below which a removal of half is an ordinary change: one of two."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Repository:
    """A MeshRepository as it is in the API."""

    namespace: str
    name: str
    uid: str
    created_at: str
    """RFC 3339, so that it sorts."""
    generation: int
    spec: MeshRepositorySpec

    @property
    def key(self) -> str:
        return f"{self.namespace}/{self.name}"

    @property
    def wanted(self) -> tuple[str, ...]:
        """Namespaces it asks for."""
        return tuple(dict.fromkeys(self.spec.allow.namespaces)) or (self.namespace,)


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """Why a repository owns nothing."""

    reason: str
    """CamelCase, for Stalled."""
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Claims:
    owners: Mapping[str, str]
    """Namespace -> key of its repository."""
    refused: Mapping[str, Refusal]
    """Key of a repository -> why it owns nothing."""

    def of(self, repository: str) -> frozenset[str]:
        return frozenset(namespace for namespace, owner in self.owners.items() if owner == repository)


def claims(repositories: Iterable[Repository], grants: Mapping[str, str]) -> Claims:
    """Who owns what. `grants` are the GRANT annotations by namespace."""
    owners: dict[str, str] = {}
    refused: dict[str, Refusal] = {}
    for repository in sorted(repositories, key=lambda item: (item.created_at, item.uid)):
        refusal = _refusal(repository, owners, grants)
        if refusal is not None:
            refused[repository.key] = refusal
        else:
            owners.update(dict.fromkeys(repository.wanted, repository.key))
    return Claims(owners=owners, refused=refused)


def _refusal(repository: Repository, owners: Mapping[str, str], grants: Mapping[str, str]) -> Refusal | None:
    for namespace in repository.wanted:
        if namespace != repository.namespace and grants.get(namespace) != repository.key:
            return Refusal(
                reason="NamespaceNotGranted",
                message=f"namespace {namespace} does not grant itself to this repository; whoever runs the cluster can: "
                f"kubectl annotate namespace {namespace} {GRANT}={repository.key}",
            )
        if namespace in owners:
            return Refusal(
                reason="NamespaceClaimed",
                message=f"namespace {namespace} follows MeshRepository {owners[namespace]} already, which is older; "
                "a namespace has one repository",
            )
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """What documents of a repository may be about."""

    namespaces: frozenset[str]
    kinds: frozenset[str] = frozenset()
    """Empty: every kind."""

    def outside(self, documents: Iterable[Document]) -> tuple[Problem, ...]:
        """A problem for every document that is none of this repository's business."""
        return tuple(problem for document in documents for problem in self._judge(document))

    def _judge(self, document: Document) -> Iterable[Problem]:
        if document.metadata.namespace not in self.namespaces:
            allowed = ", ".join(sorted(self.namespaces))
            found = f"{document.metadata.namespace!r} is not a namespace of this repository, expected one of {allowed}"
            yield _problem(document, "metadata.namespace", found, "NamespaceNotAllowed")
        if self.kinds and document.kind not in self.kinds:
            found = (
                f"{document.kind!r} is not a kind this repository may hold, expected {', '.join(sorted(self.kinds))}"
            )
            yield _problem(document, "kind", found, "KindNotAllowed")


def removes_too_much(
    old: Mapping[DocumentKey, Document], new: Mapping[DocumentKey, Document], percent: int
) -> Problem | None:
    """A commit that removes more than this share of the documents is a mistake until somebody says otherwise."""
    gone = sorted(set(old) - set(new))
    if len(old) < GUARDED_FROM or len(gone) * 100 <= percent * len(old):
        return None
    return Problem(
        file=old[gone[0]].file,
        path="",
        message=f"{len(gone)} of {len(old)} documents are gone, {gone[0]} among them, expected at most {percent} % at "
        "once; spec.pruneGuard.maxPercent of the MeshRepository allows more",
        reason="PruneGuard",
        document=gone[0],
    )


def _problem(document: Document, path: str, message: str, reason: str) -> Problem:
    line, column = document.positions.get(path, (document.line, 1))
    return Problem(
        file=document.file, line=line, column=column, path=path, message=message, reason=reason, document=document.key
    )
