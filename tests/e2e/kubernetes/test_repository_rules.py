"""What the API server refuses in a MeshRepository: the CEL rules of its definition, on a real one."""

from typing import Any

import pytest

from backstay.adapters.kubernetes.client import ApiClient, ApiError
from backstay.core.resources import MESH_REPOSITORY
from cluster.reach import Reach
from e2e.kubernetes.operators import install

FORGE = {"provider": "gitea", "secretRef": {"name": "forge"}}
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"rollout": {"shares": [5, 25]}}, "percentages that ascend, the last one 100"),
    ({"rollout": {"shares": [25, 5, 100]}}, "percentages that ascend, the last one 100"),
    ({"rollout": {"deadline": "0s"}}, "more than 0s"),
    ({"rollout": {"confirmWithin": "1s"}}, "at least 5s"),
    ({"forge": {**FORGE, "url": "http://git.example/api/v1"}}, "expected https://host/path, without a password"),
    ({"reviews": True}, "reviews needs forge: it names where the pull requests are"),
    ({"forge": {**FORGE, "url": "https://me:secret@git.example/api"}}, "expected https://host/path"),
    ({"forge": {**FORGE, "project": "../x y"}}, "spec.forge.project"),
    ({"forge": {**FORGE, "provider": "sourceforge"}}, "spec.forge.provider"),
]


async def test_rules_of_rollouts_and_forges(api: Reach, namespace: str) -> None:
    install(api)
    client = ApiClient.connect(api.kubeconfig)

    async def wish(spec: dict[str, Any]) -> dict[str, Any]:
        body = {
            "apiVersion": "backstay.dev/v1alpha1",
            "kind": "MeshRepository",
            "metadata": {"name": "shop"},
            "spec": {"url": "https://git.example/shop/mesh.git", **spec},
        }
        return await client.create(MESH_REPOSITORY.path(namespace), body, dryRun="All")

    try:
        good: dict[str, dict[str, Any]] = {
            "rollout": {"shares": [5, 25, 100], "soak": "1s", "deadline": "1m", "warmUp": "0s", "confirmWithin": "5s"},
            "forge": {**FORGE, "url": "https://git.example:3000/api/v1", "project": "shop/mesh"},
        }
        taken = (await wish(good))["spec"]
        assert (taken["rollout"], taken["forge"]) == (good["rollout"], {**good["forge"], "commitStatus": True})
        for spec, said in REFUSED:
            with pytest.raises(ApiError) as refused:
                await wish(spec)
            assert (refused.value.status, said in refused.value.message) == (422, True), refused.value.message
    finally:
        await client.close()
