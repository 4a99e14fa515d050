"""What an operator asks of a commit besides that it is right in itself: whose documents they are, whose trust domain, and how
much of what there was is gone. Pure, for the operator and for its reviews alike.
"""

from collections.abc import Container, Mapping
from dataclasses import dataclass

from backstay.core.problems import Problem
from backstay.core.snapshot import Document, DocumentKey, Snapshot
from backstay.core.tenancy import Scope, removes_too_much
from backstay.core.validate import Validated


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    trust_domain: str
    """The CA's."""
    scope: Scope | None = None
    """What documents may be about; None: anything."""
    prune_percent: int = 100
    """Share of the documents that one commit may remove."""


def refusals(
    result: Validated, before: Mapping[DocumentKey, Document] | None, rules: Rules, inherited: Container[str] = ()
) -> tuple[Problem, ...]:
    """Why the commit is refused; `before` is what it would replace, `inherited` names the files of others."""
    own = [document for document in result.documents if document.file not in inherited]
    found = rules.scope.outside(own) if rules.scope is not None else ()
    if result.snapshot is None:
        return found
    removal = removes_too_much(before, result.snapshot.documents, rules.prune_percent) if before is not None else None
    return (*found, *foreign_trust_domain(result.snapshot, rules.trust_domain), *([removal] if removal else []))


def foreign_trust_domain(snapshot: Snapshot, wanted: str) -> tuple[Problem, ...]:
    """The CA has one trust domain; another one would take away every proxy's identity."""
    said = snapshot.mesh.trust_domain
    if said == wanted:
        return ()
    mesh = next(document for document in snapshot.documents.values() if document.kind == "Mesh")
    line, column = mesh.positions.get("spec.trustDomain", (mesh.line, 1))
    return (
        Problem(
            file=mesh.file,
            line=line,
            column=column,
            path="spec.trustDomain",
            message=f"{said!r} is not the trust domain of this mesh's CA, expected {wanted!r}",
            reason="TrustDomainMismatch",
            document=mesh.key,
        ),
    )
