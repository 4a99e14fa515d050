"""The operator's plain HTTP doors: health and metrics, and forges that knock. A standby passes knocks on to the leader."""

import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Protocol

import aiohttp
from aiohttp import web

from backstay.control.metrics import OperatorReading, Reading, render_all
from backstay.control.webhook import MAX_BODY, Knock, webhook_app
from backstay.redact import clean

_log: Final = logging.getLogger("backstay.app")
ROUTE: Final = r"/hooks/{mesh:[a-z0-9][a-z0-9-]{0,62}/[a-z0-9][a-z0-9.-]{0,62}}"
PASS_ON_WITHIN: Final = 5.0
"""Seconds to pass a knock on: GitHub waits ten for its answer."""
PASSED_ON: Final = "X-Backstay-Passed-On"
_HEADERS_KEPT: Final = ("content-type", "user-agent", "authorization")


class House(Protocol):
    """What the doors ask."""

    def ailments(self) -> Sequence[str]:
        """Why this process should be restarted; empty while it is alive."""

    def unready(self) -> Sequence[str]:
        """Why nobody should be sent here yet."""

    def readings(self) -> Sequence[Reading | OperatorReading]: ...

    def webhook_secrets(self, mesh: str) -> Sequence[bytes]: ...

    def knocked(self, knock: Knock) -> None: ...

    def leader_hooks(self) -> str | None:
        """None: here. Else `host:port` of the leader's door, "" where nobody leads."""


class Doors:
    """`open` both, `close` both."""

    def __init__(self, house: House, *, host: str, metrics_port: int, hooks_port: int) -> None:
        self._house = house
        self._host = host
        self.metrics_port = metrics_port
        """0: a free one; known after `open`."""
        self.hooks_port = hooks_port
        self._runners: list[web.AppRunner] = []

    async def open(self) -> None:
        """Raises OSError that names the port."""
        self.metrics_port = await self._serve(self._diagnostics(), self.metrics_port)
        self.hooks_port = await self._serve(self._hooks(), self.hooks_port)

    async def close(self) -> None:
        for runner in self._runners:
            await runner.cleanup()
        self._runners.clear()

    async def _serve(self, application: web.Application, port: int) -> int:
        runner = web.AppRunner(application, access_log=None, shutdown_timeout=1.0)
        await runner.setup()
        self._runners.append(runner)
        site = web.TCPSite(runner, self._host, port)
        try:
            await site.start()
        except OSError as error:
            raise OSError(error.errno, f"port {self._host}:{port}: {error.strerror or error}") from error
        return int(runner.addresses[0][1])

    def _diagnostics(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/healthz", _answering(self._house.ailments))
        app.router.add_get("/readyz", _answering(self._house.unready))
        app.router.add_get("/metrics", self._metrics)
        return app

    async def _metrics(self, request: web.Request) -> web.Response:
        body, content_type = render_all(self._house.readings())
        return web.Response(body=body, headers={"Content-Type": content_type})

    def _hooks(self) -> web.Application:
        own = webhook_app(self._house.webhook_secrets, self._house.knocked, route=ROUTE)
        own.middlewares.append(self._pass_on)
        return own

    @web.middleware
    async def _pass_on(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        leader = self._house.leader_hooks()
        if leader is None or PASSED_ON in request.headers:
            return await handler(request)
        if not leader or (request.content_length or 0) > MAX_BODY:
            return web.json_response({"outcome": "no_leader"}, status=503, headers={"Retry-After": "5"})
        return await _forwarded(request, leader)


async def _forwarded(request: web.Request, leader: str) -> web.Response:
    """The knock as it came: its signature covers the body, and the leader checks it."""
    body = await request.content.read(MAX_BODY + 1)
    headers = {key: value for key, value in request.headers.items() if key.lower() in _HEADERS_KEPT}
    headers |= {key: value for key, value in request.headers.items() if key.lower().startswith("x-")}
    headers[PASSED_ON] = "1"
    limits = aiohttp.ClientTimeout(total=PASS_ON_WITHIN)
    try:
        async with (
            aiohttp.ClientSession(timeout=limits) as session,
            session.post(f"http://{leader}{request.path}", data=body, headers=headers) as answer,
        ):
            return web.Response(status=answer.status, body=await answer.read(), content_type=answer.content_type)
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        _log.warning("webhook.not-passed-on leader=%s error=%s", leader, clean(str(error) or "timeout"))
        return web.json_response({"outcome": "no_leader"}, status=503, headers={"Retry-After": "5"})


def _answering(reasons: Callable[[], Sequence[str]]) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def answer(request: web.Request) -> web.Response:
        found = reasons()
        return web.Response(status=503 if found else 200, text="\n".join(found) or "ok")

    return answer
