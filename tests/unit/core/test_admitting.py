"""What an operator refuses of a commit that is right in itself."""

from backstay.core.admitting import Rules, refusals
from backstay.core.tenancy import Scope
from backstay.core.validate import Validated, validate

MESH = b"apiVersion: backstay.dev/v1alpha1\nkind: Mesh\nmetadata: {name: m}\nspec: {trustDomain: shop.example}\n"


def backend(name: str, namespace: str = "shop") -> bytes:
    place = f"metadata: {{name: {name}, namespace: {namespace}}}"
    return f"apiVersion: backstay.dev/v1alpha1\nkind: Backend\n{place}\nspec: {{service: {name}}}\n".encode()


def commit(**files: bytes) -> Validated:
    return validate(
        {f"{name}.yaml": content for name, content in files.items()}, revision="r", default_namespace="shop"
    )


def reasons(result: Validated, rules: Rules, before: Validated | None = None, *inherited: str) -> list[str]:
    documents = before.snapshot.documents if before is not None and before.snapshot is not None else None
    return [problem.reason for problem in refusals(result, documents, rules, inherited)]


def test_what_is_within_all_rules_is_not_refused() -> None:
    own = Scope(namespaces=frozenset({"shop", ""}))
    assert reasons(commit(mesh=MESH, a=backend("a")), Rules(trust_domain="shop.example", scope=own)) == []


def test_a_foreign_trust_domain_is_refused_at_its_line() -> None:
    result = commit(mesh=MESH)
    (problem,) = refusals(result, None, Rules(trust_domain="backstay.local"))
    assert str(problem) == (
        "mesh.yaml:4:21: spec.trustDomain: 'shop.example' is not the trust domain of this mesh's CA, expected "
        "'backstay.local' [TrustDomainMismatch]"
    )


def test_documents_of_others_are_not_judged_by_what_ours_may_be_about() -> None:
    rules = Rules(trust_domain="shop.example", scope=Scope(namespaces=frozenset({"shop"})))
    result = commit(mesh=MESH, other=backend("b", "pay"))
    assert reasons(result, rules, None, "mesh.yaml") == ["NamespaceNotAllowed"]
    assert reasons(result, rules, None, "mesh.yaml", "other.yaml") == []


def test_most_documents_gone_is_refused_also_beside_other_refusals() -> None:
    rules = Rules(trust_domain="x.example", prune_percent=50)
    before = commit(mesh=MESH, **{name: backend(name) for name in "abcd"})
    assert reasons(commit(mesh=MESH), rules, before) == ["TrustDomainMismatch", "PruneGuard"]
    assert reasons(commit(mesh=MESH), rules) == ["TrustDomainMismatch"]
