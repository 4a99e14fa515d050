"""What the command line talks to: JSON over HTTP on a unix socket in the state folder, readable by its owner only.

Everything shown comes from one MeshView (core/status.py); everything asked goes to the facade, which the reconciler
implements. The API decides nothing: an order is answered by what was done, or by 409 and the reason why not. File
permissions are the authentication: whoever may write to the socket may also write to the state itself.
"""

import asyncio
import contextlib
import logging
import os
import socket
import stat
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, Protocol, TypeAlias

import msgspec
from aiohttp import web

from backstay.config.model import Manifest, config_digest
from backstay.control.metrics import StreamCount, render
from backstay.core import memory as snapshots
from backstay.core import status
from backstay.core.events import event_object
from backstay.core.ports import Event, StateUnavailable
from backstay.core.review.traffic import Traffic
from backstay.core.snapshot import Snapshot
from backstay.core.view import MeshView
from backstay.redact import clean

_log: Final = logging.getLogger("backstay.api")

SOCKET_NAME: Final = "operator.sock"
MAX_SOCKET_PATH: Final = 103
"""sun_path holds 108 bytes on Linux and 104 on macOS, a final zero included."""
MAX_BODY_BYTES: Final = 64 * 1024  # an order is a few hundred bytes
ROLLOUT_DEFAULTS: Final = "rolloutDefaults"  # a key beside the registry's own, which readers of only that skip
EVENTS_PAGE: Final = 1000
OBSERVE_AFTER: Final = 0.5
"""Seconds from a look to its being noted: transition times are shown in whole seconds."""
KEEPALIVE: Final = 15.0
"""Seconds between empty lines of a followed stream: a gone reader is noticed although nothing happens."""

Verb: TypeAlias = Literal[
    "pause",
    "resume",
    "promote",
    "promote-full",
    "abort",
    "retry",
    "rollback",
    "reconcile",
    "suspend",
    "unsuspend",
    "revoke",
    "unrevoke",
]


class Action(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a person asks. `rollback` needs args.to (a revision) and may name args.path; `retry` may name args.document
    or args.commit; `revoke` and `unrevoke` need args.who (a proxy, or a SPIFFE ID)."""

    verb: Verb
    actor: str
    reason: str = ""
    args: dict[str, str] = {}


class ActionResult(msgspec.Struct, frozen=True, kw_only=True):
    """What became of it. Not done is no error of the API: the message says why."""

    done: bool
    reason: str
    """CamelCase: Paused, Promoted, NothingToPause, UnknownRevision, ..."""
    message: str


class OperatorFacade(Protocol):
    """The reconciler as the API sees it."""

    def view(self) -> MeshView:
        """The mesh as of the last tick."""

    async def act(self, action: Action) -> ActionResult:
        """Carry out an order, durable on return."""

    async def events(self, *, after: int = 0, since: float = 0.0, limit: int = EVENTS_PAGE) -> Sequence[Event]:
        """Events with a greater number and not before `since`, oldest first."""

    async def wait_for_event(self, after: int) -> None:
        """Return once an event with a greater number exists (or may exist: it is asked for again)."""

    async def blobs(self, digests: Iterable[str]) -> Mapping[str, bytes]:
        """Part bytes by digest, those that exist."""


TrafficOf: TypeAlias = Callable[[Iterable[str]], Traffic]
"""What is known of requests to and from these workloads."""


def no_traffic(workloads: Iterable[str]) -> Traffic:
    """Where no proxy is listened to."""
    return Traffic(since=0.0, until=0.0)


class StatusBoard:
    """Keeps the memory of transition times. `observe` is called soon after every look that changed something, so that
    lastTransitionTime is when it happened and not when somebody looked."""

    def __init__(self, memory: status.Memory | None = None) -> None:
        """`memory` is what another operator has kept before."""
        self._memory: status.Memory = memory or {}
        self._view: MeshView | None = None
        self._objects: status.Objects | None = None

    def observe(self, view: MeshView) -> status.Objects:
        if self._objects is None or view is not self._view:
            self._objects, self._memory = status.objects(view, self._memory, self._objects)
            self._view = view
        return self._objects


@dataclass(frozen=True, slots=True, kw_only=True)
class _Context:
    facade: OperatorFacade
    board: StatusBoard
    streams: Callable[[], Sequence[StreamCount]]
    traffic: TrafficOf

    def objects(self) -> status.Objects:
        return self.board.observe(self.facade.view())


_CONTEXT: Final = web.AppKey("context", _Context)
_Handler: TypeAlias = Callable[[web.Request], Awaitable[web.StreamResponse]]
_encoder: Final = msgspec.json.Encoder()


class Refused(Exception):
    """A request that cannot be answered; becomes a Kubernetes-shaped Status."""

    def __init__(self, code: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.code, self.reason, self.message = code, reason, message


def application(
    facade: OperatorFacade,
    board: StatusBoard | None = None,
    streams: Callable[[], Sequence[StreamCount]] = tuple,
    traffic: TrafficOf = no_traffic,
) -> web.Application:
    """`streams` counts what the control port sends, for the metrics; `traffic` is what it has heard of requests."""
    app = web.Application(middlewares=[_answer_errors], client_max_size=MAX_BODY_BYTES)
    app[_CONTEXT] = _Context(facade=facade, board=board or StatusBoard(), streams=streams, traffic=traffic)
    app.router.add_get("/v1/meshrepository", _meshrepository)
    for path, kind, pick in _LISTS:
        app.router.add_get(path, _lister(kind, pick))
    app.router.add_get("/v1/events", _events)
    app.router.add_get("/v1/config/{namespace}/{workload}", _config)
    app.router.add_get("/v1/snapshot", _snapshot)
    app.router.add_get("/v1/registry", _registry)
    app.router.add_get("/v1/traffic", _traffic)
    app.router.add_get("/v1/version", _version)
    app.router.add_get("/metrics", _metrics)
    app.router.add_post("/v1/actions", _actions)
    return app


_LISTS: Final[tuple[tuple[str, str, Callable[[status.Objects], list[status.Json]]], ...]] = (
    ("/v1/meshrollouts", "MeshRollout", lambda shown: shown.rollouts),
    ("/v1/meshintents", "MeshIntent", lambda shown: shown.intents),
    ("/v1/workloads", "MeshWorkload", lambda shown: shown.workloads),
    ("/v1/proxies", "MeshProxy", lambda shown: shown.proxies),
    ("/v1/revisions", "MeshRevision", lambda shown: shown.revisions),
)


@web.middleware
async def _answer_errors(request: web.Request, handler: _Handler) -> web.StreamResponse:
    """One table from failure to answer; nothing below writes an error by itself."""
    try:
        return await handler(request)
    except Refused as refused:
        return _failure(refused.code, refused.reason, refused.message)
    except web.HTTPException as error:
        return _failure(error.status, error.reason.replace(" ", ""), f"{request.method} {request.path}: {error.reason}")
    except StateUnavailable as error:
        return _failure(503, "StateUnavailable", str(error))
    except (ConnectionError, asyncio.CancelledError):
        raise
    except Exception:
        _log.exception("api.failed method=%s path=%s", request.method, request.path)
        return _failure(500, "InternalError", "the operator failed to answer; its log says more")


def _failure(code: int, reason: str, message: str) -> web.Response:
    body = {
        "apiVersion": "v1",
        "kind": "Status",
        "status": "Failure",
        "reason": reason,
        "message": clean(message),
        "code": code,
    }
    return _json(body, code=code)


def _json(body: object, *, code: int = 200) -> web.Response:
    return web.Response(body=_encoder.encode(body), status=code, content_type="application/json")


async def _meshrepository(request: web.Request) -> web.StreamResponse:
    return _json(request.app[_CONTEXT].objects().repository)


def _lister(kind: str, pick: Callable[[status.Objects], list[status.Json]]) -> _Handler:
    async def answer(request: web.Request) -> web.StreamResponse:
        return _json(status.list_of(kind, pick(request.app[_CONTEXT].objects())))

    return answer


async def _version(request: web.Request) -> web.StreamResponse:
    view = request.app[_CONTEXT].facade.view()
    started = status.timestamp(view.started_at)
    return _json(
        {"version": view.version, "epoch": view.epoch, "mesh": view.mesh, "startedAt": started, "pid": os.getpid()}
    )


async def _metrics(request: web.Request) -> web.StreamResponse:
    context = request.app[_CONTEXT]
    body, content_type = render(context.facade.view(), context.streams())
    return web.Response(body=body, headers={"Content-Type": content_type})


async def _actions(request: web.Request) -> web.StreamResponse:
    try:
        action = msgspec.json.decode(await request.read(), type=Action)
    except msgspec.DecodeError as error:
        raise Refused(400, "BadRequest", f"not an action: {error}") from error
    if not action.actor:
        raise Refused(400, "BadRequest", "not an action: actor is empty, expected who asks")
    result = await request.app[_CONTEXT].facade.act(action)
    done = {"done": result.done, "reason": result.reason, "message": clean(result.message)}
    return _json(done, code=200 if result.done else 409)


# --- events -----------------------------------------------------------------------------------------------------------


async def _events(request: web.Request) -> web.StreamResponse:
    """NDJSON, oldest first. With `follow` it goes on until the reader leaves; an empty line is a sign of life."""
    after, since = int(_number(request, "after")), _number(request, "since")
    follow = request.query.get("follow", "") in ("1", "true")
    facade = request.app[_CONTEXT].facade
    response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
    first = await facade.events(after=after, since=since, limit=EVENTS_PAGE)
    await response.prepare(request)
    after = await _write_events(response, first, after)
    page: Sequence[Event] = first
    while page or follow:
        if not page:
            await _sign_of_life(response, facade, after)
        page = await facade.events(after=after, since=since, limit=EVENTS_PAGE)
        after = await _write_events(response, page, after)
    await response.write_eof()
    return response


async def _write_events(response: web.StreamResponse, events: Sequence[Event], after: int) -> int:
    if events:
        await response.write(b"".join(_encoder.encode(event_object(event)) + b"\n" for event in events))
    return max((event.number for event in events), default=after)


async def _sign_of_life(response: web.StreamResponse, facade: OperatorFacade, after: int) -> None:
    try:
        async with asyncio.timeout(KEEPALIVE):
            await facade.wait_for_event(after)
    except TimeoutError:
        await response.write(b"\n")


def _number(request: web.Request, name: str) -> float:
    text = request.query.get(name, "0")
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise Refused(400, "BadRequest", f"{name}={text!r} is not a number from 0")
    return value


# --- configs, snapshots, registry -------------------------------------------------------------------------------------


async def _config(request: web.Request) -> web.StreamResponse:
    key = f"{request.match_info['namespace']}/{request.match_info['workload']}"
    which = _choice(request, ("stable", "candidate"))
    context = request.app[_CONTEXT]
    view = context.facade.view()
    manifests = view.stable_manifests if which == "stable" else view.candidate_manifests
    if key not in manifests:
        raise Refused(404, "NotFound", f"workload {key!r} has no {which} config")
    parts = await context.facade.blobs(manifests[key].parts.values())
    return _json(config_object(view, manifests[key], which, parts))


def config_object(view: MeshView, manifest: Manifest, which: str, parts: Mapping[str, bytes]) -> dict[str, Any]:
    """A config for people: each part with its digest and the lines it was made from."""
    return {
        "workload": manifest.workload,
        "which": which,
        "digest": config_digest(manifest),
        "parts": [
            {
                "key": key,
                "digest": digest,
                "origins": list(view.origins.get(digest, ())),
                "content": msgspec.Raw(parts[digest]) if digest in parts else None,
            }
            for key, digest in sorted(manifest.parts.items())
        ],
    }


async def _snapshot(request: web.Request) -> web.StreamResponse:
    """Documents as `backstay plan` needs them; core/memory.py's own form, so nothing gets lost on the way."""
    view = request.app[_CONTEXT].facade.view()
    which = _choice(request, ("stable", "effective", "desired"))
    chosen: dict[str, Snapshot | None] = {"stable": view.stable, "effective": view.effective, "desired": view.desired}
    snapshot = chosen[which]
    if snapshot is None:
        raise Refused(404, "NotFound", f"there is no {which} snapshot yet")
    digest, blobs = snapshots.remember(snapshot)
    return _json({"digest": digest, "blobs": {name: msgspec.Raw(data) for name, data in blobs.items()}})


async def _registry(request: web.Request) -> web.StreamResponse:
    """What exists, and beside it what else reviews and plans need that no repository says."""
    view = request.app[_CONTEXT].facade.view()
    found = msgspec.to_builtins(view.registry)
    return _json({**found, ROLLOUT_DEFAULTS: dict(view.rollout_defaults)} if view.rollout_defaults else found)


async def _traffic(request: web.Request) -> web.StreamResponse:
    """Sampled requests and plaintext callers of this mesh's workloads."""
    context = request.app[_CONTEXT]
    return _json(context.traffic(context.facade.view().registry.workloads))


def _choice(request: web.Request, choices: Sequence[str]) -> str:
    which = request.query.get("which", choices[0])
    if which not in choices:
        raise Refused(400, "BadRequest", f"which={which!r}, expected one of {', '.join(choices)}")
    return which


# --- the socket -------------------------------------------------------------------------------------------------------


class ApiServer:
    """The API on `<state>/operator.sock`."""

    def __init__(
        self,
        facade: OperatorFacade,
        state_dir: Path,
        streams: Callable[[], Sequence[StreamCount]] = tuple,
        board: StatusBoard | None = None,
        traffic: TrafficOf = no_traffic,
    ) -> None:
        self.path: Final = state_dir / SOCKET_NAME
        self.board: Final = board or StatusBoard()
        self._facade: Final = facade
        self._observing: asyncio.TimerHandle | None = None
        app = application(facade, self.board, streams, traffic)
        self._runner: Final = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)

    def observe_soon(self, _: MeshView) -> None:
        """Take note of the newest view's transitions once the present hurry is over.

        What a thousand documents say takes a third of a second to put together. While acks arrive there is a new view for
        each few of them, and the next ack would wait for it. Whoever asks is shown the newest view all the same."""
        if self._observing is None:
            self._observing = asyncio.get_running_loop().call_later(OBSERVE_AFTER, self._observe)

    def _observe(self) -> None:
        self._observing = None
        self.board.observe(self._facade.view())

    async def start(self) -> None:
        """Bind the socket. Raises OSError: a path too long, or another operator answers on it."""
        await self._runner.setup()
        await web.SockSite(self._runner, bind_private(self.path)).start()

    async def close(self) -> None:
        if self._observing is not None:
            self._observing.cancel()
        await self._runner.cleanup()
        with contextlib.suppress(FileNotFoundError):
            self.path.unlink()

    def __repr__(self) -> str:
        return f"ApiServer(path={str(self.path)!r})"


def bind_private(path: Path) -> socket.socket:
    """A listening unix socket that only its owner may open, from its first moment on (hence the umask)."""
    if len(os.fsencode(path)) > MAX_SOCKET_PATH:
        raise OSError(f"{path}: a unix socket's path may have {MAX_SOCKET_PATH} bytes; choose a shorter state folder")
    _remove_dead(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        listener.bind(os.fspath(path))
        listener.listen(64)
    except BaseException:
        listener.close()
        raise
    finally:
        os.umask(before)
    listener.setblocking(False)
    return listener


def _remove_dead(path: Path) -> None:
    """A socket left by a killed operator is removed; one that answers is somebody's, anything else is not ours."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise FileExistsError(f"{path} exists and is no socket; move it away")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(os.fspath(path))
        except (ConnectionRefusedError, FileNotFoundError):
            path.unlink(missing_ok=True)
            return
    raise OSError(f"{path}: another operator is answering on this socket; stop it first")
