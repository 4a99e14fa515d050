"""The mutating webhook: AdmissionReview in, AdmissionReview out. What becomes of a pod is decided by core/inject.py.

It serves on every replica, leader or not, and has no side effects.
"""

import asyncio
import base64
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any, Final, Protocol

import msgspec
from aiohttp import web

from backstay.adapters.kubernetes.client import ApiError
from backstay.adapters.kubernetes.serving import ServingCertificate
from backstay.core.inject import InjectionSettings, Outcome, Surroundings, Verdict, decide
from backstay.redact import clean
from backstay.tasks import spawn, stop

PATH: Final = "/inject"
PORT: Final = 15017
MAX_BODY: Final = 8 * 1024 * 1024  # the API server takes objects of 3 MiB; a review holds one or two
RENEW_LOOK: Final = 60.0  # seconds; certificates live for a day
HANDSHAKE_WITHIN: Final = 10.0  # seconds; the API server gives up after ten as well

_log: Final = logging.getLogger("backstay.injection")


class NamespaceLike(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def labels(self) -> Any: ...
    @property
    def annotations(self) -> Any: ...


Namespaces = Callable[[str], Awaitable[NamespaceLike | None]]
"""KubernetesPlatform.namespace: raises ApiError."""


class _Request(msgspec.Struct, rename="camel", kw_only=True):
    uid: str
    namespace: str = ""
    operation: str = ""
    object: dict[str, Any] | None = None


class _Review(msgspec.Struct, rename="camel", kw_only=True):
    request: _Request
    api_version: str = "admission.k8s.io/v1"


class InjectionServer:
    """`start`, then `close`. Its port answers HTTPS with `serving`'s certificate, whichever is newest."""

    def __init__(
        self,
        settings: InjectionSettings,
        serving: ServingCertificate,
        namespaces: Namespaces,
        *,
        host: str = "0.0.0.0",  # noqa: S104 - the API server comes from outside the pod
        port: int = PORT,
    ) -> None:
        self.port = port
        """0: a free one; known after start."""
        self.outcomes: Counter[tuple[str, str]] = Counter()
        """Pods by verdict and reason, for metrics."""
        self.slowest = 0.0
        """Seconds of the slowest answer so far."""
        self._settings = settings
        self._serving = serving
        self._namespaces = namespaces
        self._host = host
        self._runner: web.AppRunner | None = None
        self._listener: asyncio.Server | None = None
        self._keeper: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<InjectionServer {self._host}:{self.port} outcomes={dict(self.outcomes)}>"

    async def start(self) -> None:
        """Raises OSError that names host and port."""
        application = web.Application(client_max_size=MAX_BODY)
        application.router.add_post(PATH, self._answer)
        self._runner = web.AppRunner(application, access_log=None, shutdown_timeout=5.0)
        await self._runner.setup()
        assert self._runner.server is not None  # noqa: S101 - set up one line above
        try:
            self._listener = await asyncio.get_running_loop().create_server(
                self._runner.server,
                self._host,
                self.port,
                ssl=self._serving.context,
                ssl_handshake_timeout=HANDSHAKE_WITHIN,
            )
        except OSError as error:
            await self._runner.cleanup()
            text = f"injection port {self._host}:{self.port}: {error.strerror or error}"
            raise OSError(error.errno, text) from error
        self.port = self._listener.sockets[0].getsockname()[1]
        self._keeper = spawn(self._keep_certificate(), name="injection-certificate")

    async def close(self) -> None:
        await stop(self._keeper)
        if self._listener is not None:
            self._listener.close()
        if self._runner is not None:
            await self._runner.cleanup()

    async def _keep_certificate(self) -> None:
        while True:
            self._serving.refresh()
            await asyncio.sleep(RENEW_LOOK)

    async def _answer(self, http: web.Request) -> web.Response:
        began = time.perf_counter()
        try:
            review = msgspec.json.decode(await http.read(), type=_Review)
        except msgspec.DecodeError as error:
            self.outcomes["refuse", "ReviewUnreadable"] += 1
            return web.Response(status=400, text=clean(f"not an AdmissionReview: {error}"))
        outcome = await self._judge(review.request)
        self.outcomes[outcome.verdict.value, outcome.reason] += 1
        if outcome.verdict is Verdict.REFUSE:
            _log.warning("injection.refused message=%s", clean(outcome.message))
        answer = response(review.request.uid, outcome, review.api_version)
        self.slowest = max(self.slowest, time.perf_counter() - began)
        return web.Response(body=answer, content_type="application/json")

    async def _judge(self, asked: _Request) -> Outcome:
        if asked.operation != "CREATE" or asked.object is None:
            return Outcome(verdict=Verdict.SKIP, reason="NotAPodCreation")
        try:
            namespace = await self._namespaces(asked.namespace)
        except ApiError as error:
            return _unknown(f"namespace {asked.namespace!r} cannot be looked up now: {error}")
        if namespace is None:
            return _unknown(f"namespace {asked.namespace!r} does not exist")
        around = Surroundings(name=namespace.name, labels=namespace.labels, annotations=namespace.annotations)
        return decide(asked.object, around, self._settings)


def _unknown(message: str) -> Outcome:
    return Outcome(verdict=Verdict.REFUSE, reason="NamespaceUnknown", message=f"{message} [NamespaceUnknown]")


def response(uid: str, outcome: Outcome, api_version: str = "admission.k8s.io/v1") -> bytes:
    """The AdmissionReview that says what was decided."""
    answer: dict[str, Any] = {"uid": uid, "allowed": outcome.verdict is not Verdict.REFUSE}
    match outcome.verdict:
        case Verdict.INJECT:
            patch = msgspec.json.encode(outcome.patch)
            answer |= {"patchType": "JSONPatch", "patch": base64.b64encode(patch).decode()}
        case Verdict.REFUSE:
            answer["status"] = {"code": 422, "reason": "Invalid", "message": clean(f"backstay: {outcome.message}")}
        case Verdict.SKIP if outcome.message:
            answer["warnings"] = [clean(f"backstay: {outcome.message}", limit=256)]
    return msgspec.json.encode({"apiVersion": api_version, "kind": "AdmissionReview", "response": answer})
