"""One small asynchronous client of the API server: plain JSON over aiohttp, credentials by the `kubernetes` package.

It gets, writes, lists in pages and watches, and maps every failure to `ApiError`. It keeps nothing, retries nothing but a
token that has just expired, and decides nothing: when to ask again is the caller's business.
"""

import asyncio
import json
import os
import socket
import ssl
import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import aiohttp
import msgspec
from kubernetes.client import Configuration
from kubernetes.config import ConfigException, load_incluster_config, load_kube_config
from kubernetes.config.incluster_config import SERVICE_HOST_ENV_NAME, SERVICE_TOKEN_FILENAME

from backstay.redact import clean

REQUEST_TIMEOUT: Final = 15.0
"""Seconds for one answer. A busy API server sheds load well before (priority and fairness queues wait 15 s at most)."""
CONNECT_TIMEOUT: Final = 5.0
"""Seconds to connect: inside a cluster more means the server is gone, and the lease has no time to wait for it."""
WATCH_SECONDS: Final = 290
"""Seconds after which the server is asked to end a watch: below its own 5 to 10 minutes, so that the end is orderly."""
TOKEN_CARE: Final = 30.0
"""Seconds a token is used before its file is looked at again. The kubelet writes it a fifth of its life before its end."""
PAGE: Final = 500
"""Objects per page of a list, as client-go's reflectors ask."""

PatchKind = Literal["merge", "apply", "json"]
_PATCH_TYPES: Final[Mapping[str, str]] = {
    "merge": "application/merge-patch+json",
    "apply": "application/apply-patch+yaml",  # JSON is YAML
    "json": "application/json-patch+json",
}


class ApiError(Exception):
    """The API server refused a request, or could not be reached (`status` 0, reason `Unreachable`)."""

    def __init__(self, status: int, reason: str, message: str, *, retry_after: float = 0.0) -> None:
        super().__init__(f"{message} [{reason}]")
        self.status = status
        self.reason = reason
        self.message = message
        self.retry_after = retry_after
        """Seconds the server asked us to wait; 0: it did not say."""

    @property
    def is_missing(self) -> bool:
        return self.status == 404

    @property
    def is_conflict(self) -> bool:
        """Somebody else wrote first (409), or the object exists already (409 AlreadyExists)."""
        return self.status == 409

    @property
    def may_pass(self) -> bool:
        """Worth asking again: not reached, too busy, or broken in the server."""
        return self.status in {0, 429} or self.status >= 500


class Expired(ApiError):
    """The resource version of a watch or of a list's next page is too old: list again (410)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    items: Sequence[dict[str, Any]]
    resource_version: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    kind: Literal["ADDED", "MODIFIED", "DELETED", "BOOKMARK"]
    object: dict[str, Any]

    @property
    def resource_version(self) -> str:
        return str(self.object["metadata"]["resourceVersion"])


class Credentials:
    """Where the API server is and who we are to it, as the `kubernetes` package finds out and renews."""

    def __init__(self, configuration: Configuration) -> None:
        self._configuration = configuration
        self._headers: dict[str, str] = {}
        self._good_until = 0.0

    @classmethod
    def find(cls, kubeconfig: Path | None = None, context: str = "") -> "Credentials":
        """A named kubeconfig, else $KUBECONFIG, else the pod's own account, else ~/.kube/config. Raises ApiError."""
        configuration = Configuration()
        try:
            if kubeconfig is None and not os.environ.get("KUBECONFIG") and _is_in_cluster():
                load_incluster_config(client_configuration=configuration)  # type: ignore[no-untyped-call] # half typed
            else:
                load_kube_config(  # type: ignore[no-untyped-call] # half typed
                    config_file=str(kubeconfig) if kubeconfig else None,
                    context=context or None,
                    client_configuration=configuration,
                    persist_config=False,
                )
        except (ConfigException, OSError) as error:
            raise ApiError(0, "NoCredentials", clean(f"no way to the API server: {error}")) from error
        return cls(configuration)

    @property
    def server(self) -> str:
        return str(self._configuration.host).rstrip("/")

    @property
    def proxy(self) -> str | None:
        return self._configuration.proxy or None

    @property
    def server_name(self) -> str | None:
        return self._configuration.tls_server_name or None

    @property
    def ca_file(self) -> str | None:
        return self._configuration.ssl_ca_cert or None

    @property
    def certificate_files(self) -> tuple[str, str] | None:
        found = self._configuration.cert_file, self._configuration.key_file
        return (str(found[0]), str(found[1])) if all(found) else None

    @property
    def verifies(self) -> bool:
        return bool(self._configuration.verify_ssl)

    def tls(self) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=self.ca_file)
        if not self.verifies:  # the kubeconfig says insecure-skip-tls-verify: its author's decision
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        if self.certificate_files:
            context.load_cert_chain(*self.certificate_files)
        return context

    async def headers(self) -> Mapping[str, str]:
        """Authorization, looked at again now and then: tokens are rotated on disk, and plug-ins are programs."""
        if time.monotonic() >= self._good_until:
            self._headers = await asyncio.to_thread(self._read)
            self._good_until = time.monotonic() + TOKEN_CARE
        return self._headers

    def forget(self) -> None:
        """The server did not accept the token: read it again next time."""
        self._good_until = 0.0

    def _read(self) -> dict[str, str]:
        try:
            value = self._configuration.get_api_key_with_prefix("BearerToken", alias="authorization")
        except (ConfigException, OSError) as error:
            raise ApiError(0, "NoCredentials", clean(f"the token cannot be read: {error}")) from error
        return {"Authorization": value} if value else {}


def _is_in_cluster() -> bool:
    return bool(os.environ.get(SERVICE_HOST_ENV_NAME)) and Path(SERVICE_TOKEN_FILENAME).is_file()


class ApiClient:
    """Requests to one API server over one pool of connections. Every method raises ApiError."""

    def __init__(self, credentials: Credentials) -> None:
        self.credentials = credentials
        self.requests: Counter[tuple[str, int]] = Counter()
        """How many requests by verb and status (0: no answer), for metrics."""
        self._session: aiohttp.ClientSession | None = None

    @classmethod
    def connect(cls, kubeconfig: Path | None = None, context: str = "") -> "ApiClient":
        """Finds credentials; the first connection is made by the first request."""
        return cls(Credentials.find(kubeconfig, context))

    def __repr__(self) -> str:
        return f"<ApiClient {self.credentials.server} requests={self.requests.total()}>"

    async def get(self, path: str, **query: str) -> dict[str, Any]:
        return await self._ask("GET", path, query)

    async def create(self, path: str, body: Mapping[str, Any], **query: str) -> dict[str, Any]:
        return await self._ask("POST", path, query, body)

    async def replace(self, path: str, body: Mapping[str, Any], **query: str) -> dict[str, Any]:
        return await self._ask("PUT", path, query, body)

    async def delete(self, path: str, body: Mapping[str, Any] | None = None, **query: str) -> dict[str, Any]:
        """`body` is DeleteOptions: preconditions, propagation."""
        return await self._ask("DELETE", path, query, body)

    async def patch(
        self,
        path: str,
        body: Mapping[str, Any] | Sequence[Mapping[str, Any]],
        *,
        kind: PatchKind = "merge",
        field_manager: str = "backstay",
    ) -> dict[str, Any]:
        """`apply` is server-side apply and takes fields over from others (force)."""
        query = {"fieldManager": field_manager} | ({"force": "true"} if kind == "apply" else {})
        return await self._ask("PATCH", path, query, body, content_type=_PATCH_TYPES[kind])

    async def list(self, path: str, *, labels: str = "", fields: str = "", page: int = PAGE) -> Listing:
        """All objects, page by page, consistent as of one resource version."""
        query = _selected(labels, fields) | {"limit": str(page)}
        items: list[dict[str, Any]] = []
        while True:
            answer = await self._ask("GET", path, query, verb="LIST")
            items += answer.get("items") or ()
            metadata = answer.get("metadata") or {}
            if not metadata.get("continue"):
                return Listing(items=items, resource_version=str(metadata.get("resourceVersion", "")))
            query["continue"] = metadata["continue"]

    async def watch(
        self, path: str, *, resource_version: str, labels: str = "", fields: str = "", seconds: int = WATCH_SECONDS
    ) -> AsyncGenerator[Change, None]:
        """Changes after `resource_version` until the server ends the watch, which is ordinary: go on from the last one.

        Raises Expired on 410 (list again), ApiError when the connection breaks.
        """
        query = _selected(labels, fields) | {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": resource_version,
            "timeoutSeconds": str(seconds),
        }
        limits = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT, sock_read=seconds + REQUEST_TIMEOUT)
        try:
            async with await self._send("GET", path, query, timeout=limits) as response:
                self.requests["WATCH", response.status] += 1
                if response.status != 200:
                    raise _refusal(response, await response.read(), path)
                async for line in _lines(response):
                    yield _change(line, path)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            self.requests["WATCH", 0] += 1
            raise self._unreachable(error) from error

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def _ask(
        self,
        method: str,
        path: str,
        query: Mapping[str, str],
        body: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
        *,
        content_type: str = "application/json",
        verb: str = "",
    ) -> dict[str, Any]:
        limits = aiohttp.ClientTimeout(total=REQUEST_TIMEOUT, sock_connect=CONNECT_TIMEOUT)
        packed = None if body is None else msgspec.json.encode(body)
        try:
            async with await self._send(
                method, path, query, timeout=limits, body=packed, content_type=content_type
            ) as response:
                text = await response.read()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            self.requests[verb or method, 0] += 1
            raise self._unreachable(error) from error
        self.requests[verb or method, response.status] += 1
        if response.status >= 400:
            raise _refusal(response, text, path)
        return _object(text, path)

    async def _send(
        self,
        method: str,
        path: str,
        query: Mapping[str, str],
        *,
        timeout: aiohttp.ClientTimeout,
        body: bytes | None = None,
        content_type: str = "application/json",
    ) -> aiohttp.ClientResponse:
        """One request, twice if the token had expired: the kubelet may have written a new one a moment ago."""
        for is_last in (False, True):
            headers = {"Accept": "application/json", **await self.credentials.headers()}
            if body is not None:
                headers["Content-Type"] = content_type
            response = await self._pool().request(
                method,
                f"{self.credentials.server}{path}",
                params=query,
                data=body,
                headers=headers,
                timeout=timeout,
                proxy=self.credentials.proxy,
                server_hostname=self.credentials.server_name,
                allow_redirects=False,
            )
            if response.status != 401 or is_last:
                return response
            await response.read()
            self.credentials.forget()
        raise AssertionError("the loop above returns")

    def _pool(self) -> aiohttp.ClientSession:
        if self._session is None:
            # Watches hold their connections for minutes, so the pool has no limit; callers are few and bounded.
            connector = aiohttp.TCPConnector(ssl=self.credentials.tls(), limit=0, socket_factory=_lively_socket)
            self._session = aiohttp.ClientSession(connector=connector, auto_decompress=True)
        return self._session

    def _unreachable(self, error: Exception) -> ApiError:
        text = str(error) or type(error).__name__
        return ApiError(0, "Unreachable", clean(f"{self.credentials.server} did not answer: {text}"))


def _lively_socket(address: Any) -> socket.socket:
    """A socket that notices within half a minute that its peer is gone: a quiet watch would wait for minutes."""
    family, kind, protocol, _, _ = address
    found = socket.socket(family, kind, protocol)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (("TCP_KEEPIDLE", 15), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, option):  # macOS has other names, and no operator in production
            found.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
    return found


def _selected(labels: str, fields: str) -> dict[str, str]:
    return ({"labelSelector": labels} if labels else {}) | ({"fieldSelector": fields} if fields else {})


async def _lines(response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    """Lines of any length: aiohttp's own reader gives up at 64 KiB, a Secret or a pod may be longer."""
    rest = b""
    async for chunk in response.content.iter_any():
        *whole, rest = (rest + chunk).split(b"\n")
        for line in whole:
            if line:
                yield line


def _object(text: bytes, path: str) -> dict[str, Any]:
    try:
        found = msgspec.json.decode(text)
    except msgspec.DecodeError as error:
        raise ApiError(0, "BadAnswer", f"{path}: the answer is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise ApiError(0, "BadAnswer", f"{path}: the answer is not an object")
    return found


def _change(line: bytes, path: str) -> Change:
    told = _object(line, path)
    kind, value = told.get("type"), told.get("object") or {}
    if kind == "ERROR":
        raise _from_status(int(value.get("code") or 500), value, path)
    if kind not in {"ADDED", "MODIFIED", "DELETED", "BOOKMARK"}:
        raise ApiError(0, "BadAnswer", f"{path}: a change of kind {kind!r}")
    return Change(kind=kind, object=value)


def _refusal(response: aiohttp.ClientResponse, text: bytes, path: str) -> ApiError:
    try:
        status = json.loads(text)
    except ValueError:  # a load balancer's page, or nothing
        status = {"message": text[:200].decode("utf-8", "replace")}
    retry_after = response.headers.get("Retry-After", "")
    return _from_status(
        response.status,
        status if isinstance(status, dict) else {},
        path,
        retry_after=float(retry_after) if retry_after.isdecimal() else 0.0,
    )


def _from_status(code: int, status: Mapping[str, Any], path: str, *, retry_after: float = 0.0) -> ApiError:
    message = clean(f"{path}: {status.get('message') or f'HTTP status {code}'}")
    reason = str(status.get("reason") or "HTTPError")
    if code == 410:
        return Expired(code, reason, message)
    return ApiError(code, reason, message, retry_after=retry_after)
