"""Whose namespaces are whose, and what a repository's documents may be about."""

import pytest

from backstay.core.documents import parse
from backstay.core.problems import Problem
from backstay.core.resources import Allow, MeshRepositorySpec
from backstay.core.snapshot import Document
from backstay.core.tenancy import Claims, Refusal, Repository, Scope, claims, removes_too_much
from backstay.core.yamltree import DEFAULT_LIMITS


def repository(namespace: str, *wanted: str, name: str = "mesh", created: str = "2026-01-01T00:00:00Z") -> Repository:
    spec = MeshRepositorySpec(url="https://git.example/mesh.git", allow=Allow(namespaces=wanted))
    return Repository(
        namespace=namespace, name=name, uid=f"{namespace}-{name}", created_at=created, generation=1, spec=spec
    )


def documents(*places: tuple[str, str]) -> list[Document]:
    """Routes of (namespace, name)."""
    text = "---\n".join(
        f"apiVersion: backstay.dev/v1alpha1\nkind: Route\nmetadata:\n  name: {name}\n  namespace: {namespace}\n"
        f"spec:\n  hosts: [{name}]\n  rules: [{{backendRefs: [{{name: {name}}}]}}]\n"
        for namespace, name in places
    )
    return list(parse({"a.yaml": text.encode()}, default_namespace="shop", limits=DEFAULT_LIMITS).documents)


def test_a_repository_owns_its_own_namespace_unless_it_says_otherwise() -> None:
    assert claims([repository("shop")], {}) == Claims(owners={"shop": "shop/mesh"}, refused={})
    assert claims([repository("shop", "bank")], {"bank": "shop/mesh"}) == Claims(
        owners={"bank": "shop/mesh"}, refused={}
    )


def test_a_foreign_namespace_must_have_granted_itself_to_exactly_this_one() -> None:
    for grants in ({}, {"bank": "shop/other"}, {"bank": ""}):
        found = claims([repository("shop", "shop", "bank")], grants)
        assert found == Claims(
            owners={},
            refused={
                "shop/mesh": Refusal(
                    reason="NamespaceNotGranted",
                    message="namespace bank does not grant itself to this repository; whoever runs the cluster can: "
                    "kubectl annotate namespace bank backstay.dev/repository=shop/mesh",
                )
            },
        )


def test_the_older_one_keeps_a_namespace_however_they_are_listed() -> None:
    old, new = repository("shop"), repository("shop", name="newer", created="2026-01-02T00:00:00Z")
    for listed in ([old, new], [new, old]):
        found = claims(listed, {})
        assert found.owners == {"shop": "shop/mesh"}
        assert found.refused["shop/newer"] == Refusal(
            reason="NamespaceClaimed",
            message="namespace shop follows MeshRepository shop/mesh already, which is older; a namespace has one repository",
        )


def test_made_in_the_same_second_the_uid_decides_every_time_alike() -> None:
    one, two = repository("shop", name="a"), repository("shop", name="b")
    assert claims([one, two], {}) == claims([two, one], {})


def test_who_is_refused_one_namespace_gets_none() -> None:
    first = repository("bank")
    second = repository("shop", "shop", "bank", created="2026-01-02T00:00:00Z")
    found = claims([first, second], {"bank": "shop/mesh"})
    assert (found.owners, list(found.refused)) == ({"bank": "bank/mesh"}, ["shop/mesh"])
    assert found.of("bank/mesh") == frozenset({"bank"})
    assert found.of("shop/mesh") == frozenset()


def test_a_refused_one_does_not_stand_in_the_way_of_others() -> None:
    greedy = repository("shop", "shop", "bank")
    modest = repository("shop", name="modest", created="2026-01-02T00:00:00Z")
    assert claims([greedy, modest], {}).owners == {"shop": "shop/modest"}


def test_documents_elsewhere_are_named_with_their_line() -> None:
    own, foreign = documents(("shop", "a"), ("bank", "b"))
    assert Scope(namespaces=frozenset({"shop"})).outside([own, foreign]) == (
        Problem(
            file="a.yaml",
            line=14,
            column=14,
            path="metadata.namespace",
            message="'bank' is not a namespace of this repository, expected one of shop",
            reason="NamespaceNotAllowed",
            document="Route/bank/b",
        ),
    )


def test_kinds_that_are_not_listed_are_refused() -> None:
    scope = Scope(namespaces=frozenset({"shop"}), kinds=frozenset({"Backend", "Mesh"}))
    [problem] = scope.outside(documents(("shop", "a")))
    assert (problem.reason, problem.message, problem.line) == (
        "KindNotAllowed", "'Route' is not a kind this repository may hold, expected Backend, Mesh", 2,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("kept", "percent", "refused"), [(5, 50, False), (4, 50, True), (0, 100, False), (9, 0, True), (10, 0, False)]
)
def test_a_commit_may_remove_only_so_much(kept: int, percent: int, refused: bool) -> None:
    old = {document.key: document for document in documents(*(("shop", f"r{n}") for n in range(10)))}
    new = dict(list(old.items())[:kept])
    problem = removes_too_much(old, new, percent)
    assert (problem is not None) == refused
    if problem is not None:
        assert problem.reason == "PruneGuard"
        assert f"{10 - kept} of 10 documents are gone" in problem.message


def test_of_a_few_documents_all_may_go() -> None:
    old = {document.key: document for document in documents(("shop", "a"), ("shop", "b"), ("shop", "c"))}
    assert removes_too_much(old, {}, 50) is None
