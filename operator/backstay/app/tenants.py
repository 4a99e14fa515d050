"""What one MeshRepository's loop gets to see of the cluster that all share: its platform, its git, its term."""

import hashlib
import logging
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from backstay.adapters.git import Credentials, GitSource, Limits, RefSpec
from backstay.adapters.kubernetes.client import ApiClient, ApiError
from backstay.adapters.kubernetes.lease import Elector
from backstay.adapters.kubernetes.platform import KubernetesPlatform
from backstay.adapters.kubernetes.secrets import read_secret
from backstay.control.sharing import namespace_of
from backstay.core.durations import seconds
from backstay.core.ports import Revision, SourceRefused, SourceUnavailable, Tree
from backstay.core.registry import Registry
from backstay.core.tenancy import Repository
from backstay.redact import clean
from backstay.settings import KubernetesSettings

_log: Final = logging.getLogger("backstay.app")
_FILES: Final = {"ca.crt": "ca_file", "identity": "ssh_identity", "known_hosts": "ssh_known_hosts"}
"""Keys of a Secret that git and ssh want as files."""


class Term:
    """The tenure of one mesh's state: the whole operator's."""

    def __init__(self, elector: Elector) -> None:
        self._elector = elector

    async def claim(self) -> int:
        return await self._elector.claim()

    async def release(self) -> None:
        """The Lease is the operator's, not the mesh's."""


class OwnNamespaces:
    """Platform: every service of the cluster, and the workloads of some namespaces."""

    def __init__(self, platform: KubernetesPlatform, namespaces: frozenset[str]) -> None:
        self._platform = platform
        self._namespaces = namespaces
        self._seen: Registry | None = None
        self._own = Registry()

    async def registry(self) -> Registry:
        whole = await self._platform.registry()
        if whole is not self._seen:
            self._seen = whole
            fresh = limited(whole, lambda workload: namespace_of(workload) in self._namespaces)
            self._own = self._own if fresh == self._own else fresh
        return self._own

    async def changes(self) -> AsyncIterator[None]:
        async for _ in self._platform.changes():
            before = self._own
            if await self.registry() is not before:
                yield None


def limited(registry: Registry, owns: Callable[[str], bool]) -> Registry:
    """All services, but only these workloads with their instances."""
    return Registry(
        services=registry.services,
        workloads={key: item for key, item in registry.workloads.items() if owns(key)},
        instances={key: item for key, item in registry.instances.items() if owns(item.workload)},
        updates={key: item for key, item in registry.updates.items() if owns(key)},
    )


class SecretSource:
    """SourceRepo whose credentials are in a Secret, read when git is first asked and again when they are refused."""

    def __init__(
        self,
        client: ApiClient,
        repository: Repository,
        settings: KubernetesSettings,
        *,
        folder: str = "mirrors",
        limits: Limits | None = None,
    ) -> None:
        """`folder` below the cache has the mirror; two sources of one repository need two."""
        self._client = client
        self._repository = repository
        self._settings = settings
        self._folder = folder
        self._limits = limits
        self._source: GitSource | None = None

    def __repr__(self) -> str:
        return f"<SecretSource {self._repository.key} {self._source}>"

    async def resolve(self) -> Revision:
        source = await self.opened()
        try:
            return await source.resolve()
        except SourceUnavailable as error:
            if error.reason == "AuthenticationFailed" and self._repository.spec.secret_ref is not None:
                await self.close()  # the Secret may have been renewed: it is read again at the next look
            raise

    async def read(self, sha: str) -> Tree:
        return await (await self.opened()).read(sha)

    async def between(self, old: str, new: str) -> Sequence[Revision]:
        return await (await self.opened()).between(old, new)

    async def is_ancestor(self, old: str, new: str) -> bool:
        return await (await self.opened()).is_ancestor(old, new)

    async def close(self) -> None:
        source, self._source = self._source, None
        if source is not None:
            await source.close()

    async def opened(self) -> GitSource:
        """The source, with the credentials as they were when it was last opened. Raises SourceUnavailable, SourceRefused."""
        if self._source is None:
            self._source = self._made(await self._secret())
        return self._source

    def _made(self, secret: Mapping[str, bytes]) -> GitSource:
        spec, ref = self._repository.spec, self._repository.spec.ref
        # A repository that moves elsewhere must not find the former one's commits in its mirror.
        place = hashlib.sha256(spec.url.encode()).hexdigest()[:12]
        return GitSource(
            spec.url,
            mirror=self._settings.cache_dir / self._folder / self._repository.key / f"{place}.git",
            ref=RefSpec(branch=ref.branch, tag=ref.tag, semver=ref.semver, commit=ref.commit),
            path=spec.path,
            credentials=_credentials(secret, self._settings.run_dir / self._repository.key / self._folder),
            limits=self._limits,
            timeout=seconds(spec.timeout),
        )

    async def _secret(self) -> Mapping[str, bytes]:
        reference, namespace = self._repository.spec.secret_ref, self._repository.namespace
        if reference is None:
            return {}
        try:
            return await read_secret(self._client, namespace, reference.name)
        except ApiError as error:
            raise _unreadable(error, namespace, reference.name) from error


def _credentials(secret: Mapping[str, bytes], folder: Path) -> Credentials:
    """Keys as Flux has them. Raises SourceRefused where they are no text."""
    try:
        text = {key: value.decode() for key, value in secret.items()}
    except UnicodeDecodeError as error:
        raise SourceRefused("URLInvalid", "the Secret of the repository holds bytes that are no text") from error
    files: dict[str, Path | None] = {field: written(folder / key, text.get(key)) for key, field in _FILES.items()}
    return Credentials(
        username=text.get("username", "").strip(),
        password=text.get("password", "").strip("\r\n"),
        bearer=text.get("bearerToken", "").strip(),
        ca_file=files["ca_file"],
        ssh_identity=files["ssh_identity"],
        ssh_known_hosts=files["ssh_known_hosts"],
    )


def written(path: Path, text: str | None) -> Path | None:
    """A file of its owner's alone; ssh refuses a key that others may read."""
    if not text:
        path.unlink(missing_ok=True)
        return None
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.touch(mode=0o600)
    path.write_text(text if text.endswith("\n") else text + "\n", encoding="utf-8")
    return path


def _unreadable(error: ApiError, namespace: str, name: str) -> SourceUnavailable:
    place = f"Secret {namespace}/{name}"
    if error.is_missing:
        return SourceUnavailable("AuthenticationFailed", f"{place}, which secretRef names, does not exist")
    if error.status == 403:
        return SourceUnavailable(
            "AuthenticationFailed",
            f"{place} may not be read by the operator; grant it by a Role and a RoleBinding in namespace {namespace}, as "
            "bootstrap/examples/repository-secret.yaml does",
        )
    return SourceUnavailable("GitOperationFailed", clean(f"{place} cannot be read now: {error}"))
