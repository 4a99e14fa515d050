"""Secrets that people name in their objects and documents. Each is read by its name: there is leave for no more."""

import base64
import binascii
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from backstay.adapters.kubernetes.client import ApiClient, ApiError
from backstay.core.ports import TlsMaterial, TlsSecretsUnavailable
from backstay.redact import clean

OURS = "app.kubernetes.io/managed-by"
EVERY: Final = 10.0
"""Seconds after which a certificate is read again: a renewal has hours, a person who makes a Secret has seconds."""
EACH: Final = 5.0
"""Seconds for each certificate between two looks, so that many of them ask the API server no more than five do."""
MAX_BYTES: Final = 256 * 1024  # of a chain with its key; four certificates with RSA keys have 8 KiB
_log: Final = logging.getLogger("backstay.secrets")


async def read_secret(client: ApiClient, namespace: str, name: str) -> dict[str, bytes]:
    """Its data. Raises ApiError; also for the operator's own Secrets, which nobody may send anywhere by naming them."""
    found = await client.get(f"/api/v1/namespaces/{namespace}/secrets/{name}")
    if (found["metadata"].get("labels") or {}).get(OURS) == "backstay":
        raise ApiError(403, "Forbidden", f"Secret {namespace}/{name} is the operator's own")
    try:
        return {key: base64.b64decode(value, validate=True) for key, value in (found.get("data") or {}).items()}
    except binascii.Error as error:
        raise ApiError(0, "BadAnswer", f"Secret {namespace}/{name} holds what is not base64") from error


@dataclass(frozen=True, slots=True)
class _Seen:
    at: float
    material: TlsMaterial | None
    lacking: str = ""


class TlsSecretsOfCluster:
    """Implements ports.TlsSecrets by Secrets of type kubernetes.io/tls. Read in turn; in between what was read last holds."""

    def __init__(
        self,
        client: ApiClient,
        belong_together: Callable[[str, str], bool],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """`belong_together` (of adapters.secrets) says whether a certificate and a key are a pair."""
        self._client = client
        self._belong_together = belong_together
        self._monotonic = monotonic
        self._seen: dict[str, _Seen] = {}

    def __repr__(self) -> str:
        return f"<TlsSecretsOfCluster known={sorted(self._seen)}>"

    async def read(self, names: Iterable[str]) -> Mapping[str, TlsMaterial]:
        asked = sorted(names)
        self._seen = {name: seen for name, seen in self._seen.items() if name in asked}
        for name in asked:
            known = self._seen.get(name)
            if known is None or self._monotonic() - known.at >= max(EVERY, EACH * len(asked)):
                self._seen[name] = await self._look(name, known)
        return {name: seen.material for name, seen in self._seen.items() if seen.material is not None}

    def lacking(self, name: str) -> str:
        seen = self._seen.get(name)
        return seen.lacking if seen is not None else f"Secret {name} has not been read yet"

    async def _look(self, name: str, known: _Seen | None) -> _Seen:
        """What is there now; what was there before, while nobody answers. Raises TlsSecretsUnavailable where there is no
        before."""
        namespace, _, own = name.partition("/")
        try:
            return self._made(name, await read_secret(self._client, namespace, own))
        except ApiError as error:
            if error.is_missing:
                return _Seen(self._monotonic(), None, f"Secret {name} does not exist")
            if error.status == 403:
                return _Seen(self._monotonic(), None, _forbidden(name, namespace))
            if known is None:
                raise TlsSecretsUnavailable(clean(f"Secret {name} cannot be read now: {error}")) from error
            _log.warning("secrets.unread name=%s error=%s", name, clean(str(error)))
            return _Seen(self._monotonic(), known.material, known.lacking)

    def _made(self, name: str, found: Mapping[str, bytes]) -> _Seen:
        now, pair = self._monotonic(), [found.get(key, b"") for key in ("tls.crt", "tls.key")]
        if not all(pair):
            return _Seen(now, None, f"Secret {name} has no tls.crt with a tls.key")
        if sum(map(len, pair)) > MAX_BYTES or not all(each.isascii() for each in pair):
            return _Seen(now, None, f"Secret {name} holds no PEM that anybody could show")
        certificate, key = (each.decode("ascii") for each in pair)
        if not self._belong_together(certificate, key):
            return _Seen(now, None, f"the key in Secret {name} does not belong to its certificate")
        return _Seen(now, TlsMaterial(certificate=certificate, key=key))


def _forbidden(name: str, namespace: str) -> str:
    return (
        f"Secret {name} may not be read by the operator; grant it by a Role and a RoleBinding in namespace {namespace}, as "
        "bootstrap/examples/gateway-secret.yaml does"
    )
