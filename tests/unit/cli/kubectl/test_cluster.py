"""Which mesh is meant, and who answers for it."""

from collections.abc import Sequence
from typing import Any

import pytest

from backstay.adapters.kubernetes.client import ApiError
from backstay.cli.exits import Exit, Failed
from backstay.cli.kubectl.cluster import choose, failed, leader

SHOP = {"metadata": {"namespace": "shop", "name": "shop"}, "status": {"namespaces": ["shop"]}}
STAGE = {"metadata": {"namespace": "shop", "name": "stage"}}
PLATFORM = {"metadata": {"namespace": "platform", "name": "mesh"}, "status": {"namespaces": ["platform", "pay"]}}


@pytest.mark.parametrize(
    ("namespace", "name", "chosen"),
    [("shop", "shop", SHOP), ("shop", "stage", STAGE), ("pay", "", PLATFORM), ("default", "mesh", PLATFORM)],
    ids=["by name", "by another name", "in charge of the namespace", "name anywhere"],
)
def test_the_mesh_that_is_meant(namespace: str, name: str, chosen: dict[str, Any]) -> None:
    assert choose([SHOP, STAGE, PLATFORM], namespace, name) is chosen


def test_the_only_mesh_of_a_cluster_is_meant_wherever_one_is() -> None:
    assert choose([PLATFORM], "default", "") is PLATFORM


@pytest.mark.parametrize(
    ("there", "namespace", "name", "message", "code"),
    [
        ([], "shop", "", "there is no MeshRepository", Exit.NO),
        ([SHOP], "shop", "other", "no MeshRepository 'other'", Exit.NO),
        ([STAGE, SHOP], "shop", "", "which MeshRepository? shop/shop, shop/stage", Exit.TROUBLE),
        ([SHOP, PLATFORM], "default", "", "which MeshRepository? platform/mesh, shop/shop", Exit.TROUBLE),
    ],
    ids=["none", "none of that name", "two in the namespace", "two elsewhere"],
)
def test_when_no_one_mesh_is_meant(
    there: Sequence[dict[str, Any]], namespace: str, name: str, message: str, code: Exit
) -> None:
    with pytest.raises(Failed) as said:
        choose(there, namespace, name)
    assert (said.value.message, said.value.code) == (message, code)


def test_the_leader_is_a_pod_whatever_else_its_identity_says() -> None:
    assert leader({"spec": {"holderIdentity": "backstay-operator-5d9-x2z_8c1f"}}) == "backstay-operator-5d9-x2z"
    assert leader({"spec": {"holderIdentity": "backstay-operator-5d9-x2z"}}) == "backstay-operator-5d9-x2z"


@pytest.mark.parametrize(
    "lease", [{}, {"spec": {}}, {"spec": {"holderIdentity": ""}}, {"spec": {"holderIdentity": None}}]
)
def test_without_a_leader_it_says_so(lease: dict[str, Any]) -> None:
    with pytest.raises(Failed, match="no operator leads at the moment"):
        leader(lease)


def test_a_refusal_says_what_to_do() -> None:
    refused = failed(ApiError(403, "Forbidden", "leases is forbidden"))
    assert (refused.message, refused.hint) == (
        "leases is forbidden",
        "you lack a permission; docs/kubernetes.md says which role gives it",
    )
