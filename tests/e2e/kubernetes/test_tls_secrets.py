"""Certificates of gateways in a real API server: by the leave that bootstrap/examples gives, renewed while we run."""

import asyncio
from pathlib import Path

import yaml

from backstay.adapters.certificates import LocalCA
from backstay.adapters.kubernetes.client import ApiClient
from backstay.adapters.kubernetes.secrets import EVERY, TlsSecretsOfCluster
from backstay.adapters.secrets import belong_together
from cluster.reach import Reach
from support.bootstrap import BOOTSTRAP, with_token


def pair(folder: Path) -> dict[str, str]:
    LocalCA.open(folder, "test.mesh")
    return {"tls.crt": (folder / "ca-cert.pem").read_text(), "tls.key": (folder / "ca-key.pem").read_text()}


async def operator_of(api: Reach, admin: ApiClient, namespace: str) -> ApiClient:
    """The operator's account, with no rights at all."""
    api.kubectl("create", "serviceaccount", "-n", namespace, "backstay-operator")
    token = await admin.create(
        f"/api/v1/namespaces/{namespace}/serviceaccounts/backstay-operator/token",
        {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"expirationSeconds": 600}},
    )
    return with_token(api, token["status"]["token"])


def grant(api: Reach, namespace: str) -> None:
    text = (BOOTSTRAP / "examples" / "gateway-secret.yaml").read_text()
    text = text.replace("namespace: shop", f"namespace: {namespace}")
    text = text.replace("namespace: backstay-system", f"namespace: {namespace}")
    assert [item["kind"] for item in yaml.safe_load_all(text)] == ["Role", "RoleBinding"]
    api.kubectl("apply", "-f", "-", stdin=text)


async def test_a_certificate_is_read_by_leave_alone_and_renewals_are_taken_up(
    api: Reach, namespace: str, tmp_path: Path
) -> None:
    first, second = pair(tmp_path / "first"), pair(tmp_path / "second")
    admin, now = ApiClient.connect(api.kubeconfig), 0.0
    name, path = f"{namespace}/shop-tls", f"/api/v1/namespaces/{namespace}/secrets"
    operator = await operator_of(api, admin, namespace)
    secrets = TlsSecretsOfCluster(operator, belong_together, lambda: now)
    try:
        assert await secrets.read([name]) == {}
        assert "grant it by a Role and a RoleBinding" in secrets.lacking(name)

        grant(api, namespace)
        async with asyncio.timeout(30):  # the authorizer follows the API by some milliseconds
            while secrets.lacking(name) != f"Secret {name} does not exist":
                await asyncio.sleep(0.05)
                now += EVERY
                assert await secrets.read([name]) == {}

        secret = {"metadata": {"name": "shop-tls"}, "type": "kubernetes.io/tls", "stringData": first}
        await admin.create(path, secret)
        now += EVERY
        assert (await secrets.read([name]))[name].certificate == first["tls.crt"]
        await admin.patch(f"{path}/shop-tls", {"stringData": second})
        now += EVERY
        assert (await secrets.read([name]))[name].key == second["tls.key"]

        await admin.create(path, {**secret, "metadata": {"name": "another"}})
        assert list(await secrets.read([f"{namespace}/another"])) == [], "leave for one is no leave for others"
    finally:
        await operator.close()
        await admin.close()
