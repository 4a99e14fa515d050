"""The CA's files in a Secret: `cacerts`, which people bring in the form they have from Istio, else `backstay-ca`, self-made.

Implements SharedFiles of adapters/certificates without knowing it. Where both exist, `cacerts` signs and the roots of
`backstay-ca` stay trusted, so that a mesh may change to a CA of its own: remove `backstay-ca` once every certificate has
been renewed (a day).
"""

import base64
import binascii
from collections.abc import Callable, Mapping
from typing import Any, Final, Generic, TypeVar

from backstay.adapters.kubernetes.client import ApiClient, ApiError

BROUGHT: Final = "cacerts"
SELF_MADE: Final = "backstay-ca"
ROOT_CERT: Final = "root-cert.pem"

_M = TypeVar("_M")


class SecretFiles(Generic[_M]):
    """Raises ApiError."""

    def __init__(self, client: ApiClient, namespace: str, material: Callable[..., _M]) -> None:
        """`material` is adapters.certificates.Material: adapters do not know each other, app.py knows both."""
        self._client = client
        self._path = f"/api/v1/namespaces/{namespace}/secrets"
        self._namespace = namespace
        self._material = material

    async def load(self) -> _M | None:
        brought, own = await self._read(BROUGHT), await self._read(SELF_MADE)
        if brought is None:
            return None if own is None else self._made(SELF_MADE, own, b"")
        return self._made(BROUGHT, brought, files_of(own).get(ROOT_CERT, b"") if own else b"")

    def _made(self, name: str, secret: Mapping[str, Any], trusted: bytes) -> _M:
        version = f"{name}@{secret['metadata']['resourceVersion']}"
        place = f"Secret {self._namespace}/{name}"
        return self._material(name=place, files=files_of(secret), version=version, trusted=trusted)

    async def save(self, files: Mapping[str, bytes], version: str) -> bool:
        """Of the Secret that was loaded; the version guards what somebody else has written since."""
        name, _, resource_version = version.partition("@")
        secret = _secret(name or SELF_MADE, files)
        try:
            if not version:
                await self._client.create(self._path, secret)
            else:
                secret["metadata"]["resourceVersion"] = resource_version
                await self._client.replace(f"{self._path}/{name}", secret)
        except ApiError as error:
            if error.is_conflict:
                return False
            raise
        return True

    async def _read(self, name: str) -> dict[str, Any] | None:
        try:
            return await self._client.get(f"{self._path}/{name}")
        except ApiError as error:
            if error.is_missing:
                return None
            raise


def files_of(secret: Mapping[str, Any]) -> dict[str, bytes]:
    """What cannot be decoded is left out; the CA then says which file is missing."""
    files = {}
    for name, text in (secret.get("data") or {}).items():
        try:
            files[name] = base64.b64decode(text, validate=True)
        except binascii.Error:
            continue
    return files


def _secret(name: str, files: Mapping[str, bytes]) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": name, "labels": {"app.kubernetes.io/managed-by": "backstay"}},
        "type": "Opaque",
        "data": {file: base64.b64encode(data).decode() for file, data in sorted(files.items())},
    }
