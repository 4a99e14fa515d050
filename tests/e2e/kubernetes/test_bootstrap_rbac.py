"""The operator's ServiceAccount against a real authorizer: everything it does is allowed, nothing else is."""

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest

from backstay.adapters.kubernetes.client import ApiClient, ApiError
from cluster.reach import Reach
from support.bootstrap import as_json, kustomized, moved, of_kinds, with_token
from support.permissions import NEEDED, NEVER, Permission

ROLES = ("ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding", "ServiceAccount")


@pytest.fixture
def system(api: Reach, namespace: str) -> Iterator[str]:
    """A namespace that has the operator's account and roles."""
    roles = as_json(moved(of_kinds(kustomized(api), *ROLES), namespace))
    api.kubectl("apply", "-f", "-", stdin=roles)
    yield namespace
    api.kubectl("delete", "--wait=false", "-f", "-", stdin=roles)


@pytest.fixture
async def admin(api: Reach) -> AsyncIterator[ApiClient]:
    client = ApiClient.connect(api.kubeconfig)
    yield client
    await client.close()


async def is_allowed(admin: ApiClient, system: str, wanted: Permission) -> bool:
    resource, _, subresource = wanted.resource.partition("/")
    place = {"cluster": "", "own": system, "foreign": "default"}[wanted.scope]
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SubjectAccessReview",
        "spec": {
            "user": f"system:serviceaccount:{system}:backstay-operator",
            "groups": ["system:serviceaccounts", f"system:serviceaccounts:{system}", "system:authenticated"],
            "resourceAttributes": {
                "namespace": place,
                "verb": wanted.verb,
                "group": wanted.group,
                "resource": resource,
                "subresource": subresource,
                "name": wanted.name,
            },
        },
    }
    answer = await admin.create("/apis/authorization.k8s.io/v1/subjectaccessreviews", review)
    return bool(answer["status"]["allowed"])


async def answers(admin: ApiClient, system: str, wanted: frozenset[Permission]) -> dict[Permission, bool]:
    """The authorizer reads roles from a cache that follows the API by some milliseconds: the fixture's last binding
    may be younger than that."""
    ordered = sorted(wanted, key=repr)
    found = await asyncio.gather(*(is_allowed(admin, system, each) for each in ordered))
    return dict(zip(ordered, found, strict=True))


async def until_bound(admin: ApiClient, system: str) -> None:
    own = Permission(verb="create", resource="secrets", scope="own")
    everywhere = Permission(verb="list", resource="pods")
    async with asyncio.timeout(30):
        while not (await is_allowed(admin, system, own) and await is_allowed(admin, system, everywhere)):
            await asyncio.sleep(0.05)


async def test_everything_the_operator_does_is_allowed(admin: ApiClient, system: str) -> None:
    await until_bound(admin, system)
    assert [each for each, allowed in (await answers(admin, system, NEEDED)).items() if not allowed] == []


async def test_nothing_else_is(admin: ApiClient, system: str) -> None:
    await until_bound(admin, system)
    assert [each for each, allowed in (await answers(admin, system, NEVER)).items() if allowed] == []


async def test_the_roots_can_be_applied_everywhere_and_no_other_config_map(
    api: Reach, admin: ApiClient, system: str
) -> None:
    """Server-side apply tells the authorizer the name of what it makes, create does not: the Role depends on that."""
    await until_bound(admin, system)
    token = await admin.create(
        f"/api/v1/namespaces/{system}/serviceaccounts/backstay-operator/token",
        {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"expirationSeconds": 600}},
    )
    api.kubectl("create", "namespace", f"{system}-b")
    operator = with_token(api, token["status"]["token"])
    try:
        for name, allowed in (("backstay-roots", True), ("another", False)):
            body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"a": "b"}}
            path = f"/api/v1/namespaces/{system}-b/configmaps/{name}"
            if allowed:
                assert (await operator.patch(path, body, kind="apply"))["data"] == {"a": "b"}
                continue
            with pytest.raises(ApiError) as refused:
                await operator.patch(path, body, kind="apply")
            assert (refused.value.status, refused.value.reason) == (403, "Forbidden")
    finally:
        await operator.close()
        api.kubectl("delete", "namespace", f"{system}-b", "--wait=false")
