"""Where the forge of a repository is, from what its spec says and what it leaves out."""

import base64
from pathlib import Path
from typing import Any

import msgspec
import pytest

from backstay.adapters.forge import ForgeRefused, ForgeUnavailable, Place
from backstay.adapters.kubernetes.client import ApiClient, ApiError
from backstay.app.forges import forge_of, place_of, reviews_of
from backstay.control.api import no_traffic
from backstay.core.resources import MeshRepositorySpec, repository_spec
from backstay.core.tenancy import Repository
from backstay.reconciler.pulls import Reviews
from backstay.settings import KubernetesSettings


def spec(url: str, provider: str, /, **forge: str) -> MeshRepositorySpec:
    return repository_spec({"url": url, "forge": {"provider": provider, "secretRef": {"name": "forge"}, **forge}})


@pytest.mark.parametrize(
    ("url", "provider", "api", "project"),
    [
        ("https://github.com/shop/mesh.git", "github", "https://api.github.com", "shop/mesh"),
        ("git@github.com:shop/mesh.git", "github", "https://api.github.com", "shop/mesh"),
        ("https://git.example:8443/shop/mesh", "github", "https://git.example:8443/api/v3", "shop/mesh"),
        ("ssh://git@git.example:2222/a/b/mesh.git", "gitlab", "https://git.example/api/v4", "a/b/mesh"),
        ("https://git.example/shop/mesh.git", "gitea", "https://git.example/api/v1", "shop/mesh"),
    ],
)
def test_what_is_left_out_follows_from_the_address_of_the_repository(
    url: str, provider: str, api: str, project: str
) -> None:
    found = spec(url, provider)
    assert found.forge is not None
    assert place_of(found, found.forge) == Place(kind=found.forge.provider, api=api, repository=project)


def test_what_is_said_counts() -> None:
    found = spec("https://mirror.example/x.git", "gitea", url="https://git.example/forge/api/v1", project="shop/mesh")
    assert found.forge is not None
    assert place_of(found, found.forge) == Place(
        kind="gitea", api="https://git.example/forge/api/v1", repository="shop/mesh"
    )


class Shelf(ApiClient):
    def __init__(self, **data: bytes) -> None:
        self.data = data

    async def get(self, path: str, **query: str) -> dict[str, Any]:
        if not path.endswith("/namespaces/shop/secrets/forge"):
            raise ApiError(404, "NotFound", "not there")
        data = {name.replace("_", "."): base64.b64encode(value).decode() for name, value in self.data.items()}
        return {"metadata": {"name": "forge"}, "data": data}


def repository(found: MeshRepositorySpec) -> Repository:
    return Repository(namespace="shop", name="shop", uid="u", created_at="", generation=1, spec=found)


async def test_the_token_is_the_secrets_and_so_is_the_authority(tmp_path: Path) -> None:
    found = repository(spec("https://git.example/shop/mesh.git", "gitea"))
    settings = KubernetesSettings(pod="a", run_dir=tmp_path)
    forge = await forge_of(Shelf(token=b"t0ken\n", ca_crt=b"PEM"), found, settings)
    assert repr(forge) == "<Forge gitea shop/mesh>"
    assert (tmp_path / "shop" / "shop" / "forge" / "ca.crt").read_text() == "PEM\n"


async def test_a_secret_without_a_token_and_one_that_is_not_there_are_named(tmp_path: Path) -> None:
    found = repository(spec("https://git.example/shop/mesh.git", "gitea"))
    settings = KubernetesSettings(pod="a", run_dir=tmp_path)
    with pytest.raises(ForgeRefused, match="Secret shop/forge has no key `token`"):
        await forge_of(Shelf(other=b"x"), found, settings)
    assert found.spec.forge is not None
    elsewhere = msgspec.structs.replace(found.spec.forge.secret_ref, name="later")
    moved = msgspec.structs.replace(found.spec, forge=msgspec.structs.replace(found.spec.forge, secret_ref=elsewhere))
    with pytest.raises(ForgeUnavailable, match=r"Secret shop/later, which spec[.]forge names, cannot be read"):
        await forge_of(Shelf(token=b"x"), repository(moved), settings)


def test_only_a_repository_that_asks_for_it_has_its_pull_requests_answered(tmp_path: Path) -> None:
    settings = KubernetesSettings(pod="one", cache_dir=tmp_path, run_dir=tmp_path)

    def found(**more: Any) -> Reviews | None:
        forge = {"provider": "gitlab", "secretRef": {"name": "forge"}}
        wanted = repository_spec({"url": "https://git.example/a/mesh.git", "forge": forge, **more})
        repository = Repository(namespace="shop", name="mesh", uid="1", created_at="", generation=1, spec=wanted)
        return reviews_of(Shelf(), repository, settings, no_traffic)

    assert found() is None
    reviews = found(reviews=True, interval="45s")
    assert reviews is not None
    assert reviews.interval == 45.0
    assert repr(reviews.desk) == "<Desk backstay/shop/mesh/review>"
    assert "refs/merge-requests/{}/head" in repr(reviews.proposals)
