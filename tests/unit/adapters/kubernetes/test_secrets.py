"""Certificates from Secrets: whole pairs only, seldom asked for, and kept while nobody answers."""

import base64
from pathlib import Path
from typing import Any

import pytest

from backstay.adapters.certificates import LocalCA
from backstay.adapters.kubernetes.client import ApiClient, ApiError
from backstay.adapters.kubernetes.secrets import EACH, EVERY, TlsSecretsOfCluster
from backstay.adapters.secrets import belong_together
from backstay.core.ports import TlsMaterial, TlsSecretsUnavailable

GRANT = (
    "Secret shop/secret may not be read by the operator; grant it by a Role and a RoleBinding in namespace shop, as "
    "bootstrap/examples/gateway-secret.yaml does"
)


class Shelf(ApiClient):
    """An API server that has some Secrets, or some failures."""

    def __init__(self) -> None:
        self.secrets: dict[str, dict[str, bytes]] = {}
        self.failures: dict[str, ApiError] = {}
        self.asked: list[str] = []

    async def get(self, path: str, **query: str) -> dict[str, Any]:
        _, _, _, _, namespace, _, own = path.split("/")
        name = f"{namespace}/{own}"
        self.asked.append(name)
        if name in self.failures:
            raise self.failures[name]
        if name not in self.secrets:
            raise ApiError(404, "NotFound", f"{name} is not there")
        data = {key: base64.b64encode(value).decode() for key, value in self.secrets[name].items()}
        return {"metadata": {"name": own}, "data": data}


class Stand:
    """A reader with a clock of its own."""

    def __init__(self) -> None:
        self.shelf = Shelf()
        self.now = 0.0
        self.secrets = TlsSecretsOfCluster(self.shelf, belong_together, lambda: self.now)

    async def after(self, seconds: float, *names: str) -> dict[str, TlsMaterial]:
        self.now += seconds
        return dict(await self.secrets.read(names))


def pair(folder: Path) -> dict[str, bytes]:
    """A certificate with its key: a CA's own will do."""
    LocalCA.open(folder, "test.mesh")
    return {"tls.crt": (folder / "ca-cert.pem").read_bytes(), "tls.key": (folder / "ca-key.pem").read_bytes()}


def material(secret: dict[str, bytes]) -> TlsMaterial:
    return TlsMaterial(certificate=secret["tls.crt"].decode(), key=secret["tls.key"].decode())


async def test_whole_pairs_are_read_and_of_the_others_is_said_what_they_lack(tmp_path: Path) -> None:
    stand, one, other = Stand(), pair(tmp_path / "one"), pair(tmp_path / "other")
    stand.shelf.secrets = {
        "shop/web": one,
        "shop/mixed": {**one, "tls.key": other["tls.key"]},
        "shop/half": {"tls.crt": one["tls.crt"]},
        "shop/bytes": {**one, "tls.key": b"\xff"},
    }
    stand.shelf.failures = {"shop/secret": ApiError(403, "Forbidden", "no")}
    names = [*stand.shelf.secrets, "shop/secret", "shop/none"]
    assert await stand.after(0, *names) == {"shop/web": material(one)}
    assert [stand.secrets.lacking(name) for name in names] == [
        "",
        "the key in Secret shop/mixed does not belong to its certificate",
        "Secret shop/half has no tls.crt with a tls.key",
        "Secret shop/bytes holds no PEM that anybody could show",
        GRANT,
        "Secret shop/none does not exist",
    ]


async def test_a_renewed_certificate_is_taken_up_after_a_while(tmp_path: Path) -> None:
    stand, old, new = Stand(), pair(tmp_path / "old"), pair(tmp_path / "new")
    stand.shelf.secrets["shop/web"] = old
    await stand.after(0, "shop/web")
    stand.shelf.secrets["shop/web"] = new
    assert await stand.after(EVERY - 1, "shop/web") == {"shop/web": material(old)}
    assert await stand.after(1, "shop/web") == {"shop/web": material(new)}
    del stand.shelf.secrets["shop/web"]
    assert await stand.after(EVERY, "shop/web") == {}


async def test_many_certificates_are_asked_for_no_more_often_than_a_few(tmp_path: Path) -> None:
    stand, names, one = Stand(), [f"shop/web-{number}" for number in range(40)], pair(tmp_path)
    stand.shelf.secrets = dict.fromkeys(names, one)
    await stand.after(0, *names)
    stand.shelf.asked.clear()
    for _ in range(300):
        await stand.after(2, *names)
    assert len(stand.shelf.asked) / 600 <= 1 / EACH


async def test_what_was_read_holds_while_nobody_answers(tmp_path: Path) -> None:
    stand, one = Stand(), pair(tmp_path)
    stand.shelf.secrets["shop/web"] = one
    await stand.after(0, "shop/web")
    stand.shelf.failures["shop/web"] = ApiError(0, "Unreachable", "the API server does not answer")
    assert await stand.after(EVERY, "shop/web") == {"shop/web": material(one)}
    stand.shelf.failures["shop/new"] = stand.shelf.failures["shop/web"]
    with pytest.raises(TlsSecretsUnavailable, match="Secret shop/new cannot be read now"):
        await stand.after(0, "shop/new")


async def test_the_operators_own_secrets_are_shown_to_nobody(tmp_path: Path) -> None:
    class Own(Shelf):
        async def get(self, path: str, **query: str) -> dict[str, Any]:
            found = await super().get(path, **query)
            return {**found, "metadata": {"labels": {"app.kubernetes.io/managed-by": "backstay"}}}

    shelf = Own()
    shelf.secrets["backstay-system/backstay-ca"] = pair(tmp_path)
    secrets = TlsSecretsOfCluster(shelf, belong_together)
    assert await secrets.read(["backstay-system/backstay-ca"]) == {}
