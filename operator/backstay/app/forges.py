"""The forge that a MeshRepository names: where it is, and a client with the token that lies in a Secret now."""

import re
from typing import Final
from urllib.parse import urlsplit

from backstay.adapters.forge import Desk, Forge, ForgeRefused, ForgeUnavailable, Kind, Place
from backstay.adapters.git import MIRROR_BYTES, GitProposals, Limits
from backstay.adapters.kubernetes.client import ApiClient, ApiError
from backstay.adapters.kubernetes.secrets import read_secret
from backstay.adapters.workbench import ProcessBench
from backstay.app.tenants import SecretSource, written
from backstay.core.durations import seconds
from backstay.core.resources import MeshRepositorySpec, RepositoryForge
from backstay.core.tenancy import Repository
from backstay.reconciler.pulls import Reviews, TrafficOf
from backstay.redact import clean
from backstay.settings import KubernetesSettings

_SHORT: Final = re.compile(r"[^@/]+@([^:/]+):(.+)")  # user@host:path
_APIS: Final[dict[Kind, str]] = {"github": "api/v3", "gitlab": "api/v4", "gitea": "api/v1"}
"""Where an installation of one's own has its API."""


def place_of(spec: MeshRepositorySpec, forge: RepositoryForge) -> Place:
    """What the spec says, and where it does not, what `spec.url` implies."""
    host, path = _host_and_path(spec.url)
    hosted = "https://api.github.com" if forge.provider == "github" and host == "github.com" else ""
    return Place(
        kind=forge.provider,
        api=forge.url or hosted or f"https://{host}/{_APIS[forge.provider]}",
        repository=forge.project or path.strip("/").removesuffix(".git"),
    )


def _host_and_path(url: str) -> tuple[str, str]:
    """The port of ssh says nothing of the API's."""
    if short := _SHORT.fullmatch(url):
        return short[1], short[2]
    parts = urlsplit(url)
    host = parts.hostname or ""
    return (f"{host}:{parts.port}" if parts.scheme == "https" and parts.port else host), parts.path


async def forge_of(client: ApiClient, repository: Repository, settings: KubernetesSettings) -> Forge:
    """A client with the token as it is now: who renews the Secret need tell nobody. Raises ForgeUnavailable, ForgeRefused."""
    forge = repository.spec.forge
    if forge is None:
        raise ForgeUnavailable(f"MeshRepository {repository.key} names no forge")
    name = f"Secret {repository.namespace}/{forge.secret_ref.name}"
    try:
        secret = await read_secret(client, repository.namespace, forge.secret_ref.name)
        token = secret.get("token", b"").decode("ascii").strip()
        ca = secret.get("ca.crt", b"").decode("ascii")
    except ApiError as error:
        raise ForgeUnavailable(clean(f"{name}, which spec.forge names, cannot be read: {error}")) from error
    except UnicodeDecodeError as error:
        raise ForgeRefused(f"{name} holds bytes that are no text", 0) from error
    if not token:
        raise ForgeRefused(f"{name} has no key `token`", 0)
    ca_file = written(settings.run_dir / repository.key / "forge" / "ca.crt", ca)
    return Forge(place_of(repository.spec, forge), token, ca_file=ca_file)


def reviews_of(
    client: ApiClient, repository: Repository, settings: KubernetesSettings, traffic: TrafficOf
) -> Reviews | None:
    """What answering the pull requests of a repository takes; None where it does not ask for that, or names no forge."""
    forge = repository.spec.forge
    if forge is None or not repository.spec.reviews:
        return None
    source = SecretSource(client, repository, settings, folder="proposals", limits=Limits(mirror_bytes=MIRROR_BYTES))
    return Reviews(
        desk=Desk(lambda: forge_of(client, repository, settings), f"backstay/{repository.key}/review"),
        proposals=GitProposals(source, forge.provider),
        bench=ProcessBench(),
        interval=seconds(repository.spec.interval),
        traffic=traffic,
    )
