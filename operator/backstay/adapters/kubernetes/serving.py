"""The injection webhook's own certificate, renewed while the port is open, and the caBundle by which the API server
recognizes it."""

import asyncio
import base64
import logging
import ssl
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final, Protocol

from cryptography import x509

from backstay.adapters.kubernetes.client import ApiClient, ApiError
from backstay.redact import clean

CONFIGURATIONS: Final = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations"
CONFIGURATION: Final = "backstay-injector"
LOOK_EVERY: Final = 30.0
"""Seconds between looks at the configuration: a caBundle that an upgrade took away stops new pods until it is back."""

_log: Final = logging.getLogger("backstay.injection")


class ServingAuthority(Protocol):
    """The mesh's CA, as far as the webhook needs it."""

    def server_certificate(self, hosts: Iterable[str] = ()) -> tuple[bytes, bytes]: ...

    def trust_bundle(self) -> Mapping[str, str]: ...


class ServingCertificate:
    """`context` is the listener's for good; each handshake gets the newest certificate."""

    def __init__(
        self, authority: ServingAuthority, hosts: Iterable[str], *, wall: Callable[[], float] = time.time
    ) -> None:
        self._authority = authority
        self._hosts = tuple(hosts)
        self._wall = wall
        self._roots = ""
        self.renew_at = 0.0
        """Unix seconds: half life of the present certificate."""
        self._current = self._make()
        self.context = self._make()
        self.context.sni_callback = self._take_newest

    def refresh(self) -> bool:
        """Renew at half life and when the CA's roots have changed; says whether it did."""
        if self._wall() < self.renew_at and self._roots == roots_of(self._authority):
            return False
        self._current = self._make()
        _log.info("injection.certificate-renewed renew_at=%d", self.renew_at)
        return True

    def _take_newest(
        self, connection: ssl.SSLObject | ssl.SSLSocket, _name: str | None, _context: ssl.SSLContext
    ) -> None:
        connection.context = self._current

    def _make(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_3  # every supported API server speaks it
        self._roots = roots_of(self._authority)
        key, chain = self._authority.server_certificate(self._hosts)
        now = self._wall()
        ends = x509.load_pem_x509_certificates(chain)[0].not_valid_after_utc.timestamp()
        self.renew_at = now + (ends - now) / 2
        with tempfile.TemporaryDirectory(prefix="backstay-") as folder:  # 0700; the ssl module reads only files
            path = Path(folder, "serving.pem")
            path.touch(0o600)
            path.write_bytes(key + chain)
            context.load_cert_chain(path)
        return context


def roots_of(authority: ServingAuthority) -> str:
    return "".join(authority.trust_bundle().values())


class CaBundle:
    """Keeps the caBundle of our MutatingWebhookConfiguration right. For the leader; `run` it in a task."""

    def __init__(self, client: ApiClient, bundle: Callable[[], str], *, name: str = CONFIGURATION) -> None:
        self.fault = ""
        """Why new pods may not be injected; empty while the caBundle is right."""
        self._client = client
        self._bundle = bundle
        self._path = f"{CONFIGURATIONS}/{name}"
        self._wake = asyncio.Event()

    def wake(self) -> None:
        """The CA's roots may have changed: look now."""
        self._wake.set()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await self.look()
            try:
                async with asyncio.timeout(LOOK_EVERY):
                    await self._wake.wait()
            except TimeoutError:
                pass
            self._wake.clear()

    async def look(self) -> bool:
        """Says whether something was put right; what cannot be done now is a fault and tried again."""
        try:
            changed = await self._ensure()
        except ApiError as error:
            fault = clean(f"the webhook's caBundle cannot be kept right: {error}")
            if fault != self.fault:
                _log.warning("injection.ca-bundle-unsure error=%s", fault)
            self.fault = fault
            return False
        self.fault = ""
        return changed

    async def _ensure(self) -> bool:
        patch = bundle_patch(await self._client.get(self._path), self._bundle())
        if patch:
            await self._client.patch(self._path, patch, kind="json")
            _log.info("injection.ca-bundle-written webhooks=%d", len(patch) // 2)
        return bool(patch)


def bundle_patch(configuration: Mapping[str, Any], bundle: str) -> list[Mapping[str, Any]]:
    """What makes every webhook of the configuration trust these roots; empty where all do. Each step names the webhook it
    is about, so that one inserted meanwhile is not hit by its index."""
    wanted = base64.b64encode(bundle.encode()).decode()
    patch: list[Mapping[str, Any]] = []
    for index, webhook in enumerate(configuration.get("webhooks") or ()):
        if (webhook.get("clientConfig") or {}).get("caBundle") != wanted:
            path = f"/webhooks/{index}"
            patch.append({"op": "test", "path": f"{path}/name", "value": webhook["name"]})
            patch.append({"op": "add", "path": f"{path}/clientConfig/caBundle", "value": wanted})
    return patch
