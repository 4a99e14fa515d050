"""What the sample's services share: where to listen, how to call each other, how to pass traces on.

A service knows nothing of the mesh. It calls `http://sa-logic/...` through the proxy that HTTP_PROXY names (aiohttp's
`trust_env`) and copies the trace headers of the request it answers, as any service under any mesh has to.
"""

import os
from collections.abc import AsyncIterator
from typing import Final

import aiohttp
from aiohttp import web

TRACE_HEADERS: Final = (
    "traceparent", "tracestate", "b3", "x-b3-traceid", "x-b3-spanid", "x-b3-parentspanid", "x-b3-sampled", "x-b3-flags",
    "x-request-id", "x-version", "user-agent",
)  # fmt: skip
"""W3C and B3 trace context, the request id, and what the mesh repository's routes match on."""
CLIENT: Final = web.AppKey("client", aiohttp.ClientSession)
CALL_TIMEOUT: Final = aiohttp.ClientTimeout(total=60)
"""Longer than any timeout of the mesh: a late answer is the mesh's to end, not ours."""
NAMES_KEPT_S: Final = 3600
"""A Service keeps its address while it exists, and a cluster's name server may be away for longer than a request waits."""


async def client(app: web.Application) -> AsyncIterator[None]:
    """Gives the application a client that honours HTTP_PROXY; add to `app.cleanup_ctx`."""
    connector = aiohttp.TCPConnector(ttl_dns_cache=NAMES_KEPT_S)
    async with aiohttp.ClientSession(trust_env=True, connector=connector, timeout=CALL_TIMEOUT) as session:
        app[CLIENT] = session
        yield


def passed_on(request: web.Request) -> dict[str, str]:
    """The headers that a call made for this request carries along."""
    return {name: request.headers[name] for name in TRACE_HEADERS if name in request.headers}


async def sentence_of(request: web.Request) -> str:
    """The sentence of a `{"sentence": ...}` body; answers 400 to anything else."""
    try:
        body = await request.json()
    except ValueError:
        raise web.HTTPBadRequest(text="the body is not JSON") from None
    sentence = body.get("sentence") if isinstance(body, dict) else None
    if not isinstance(sentence, str):
        raise web.HTTPBadRequest(text='expected {"sentence": "..."}')
    return sentence


async def healthy(_: web.Request) -> web.Response:
    return web.Response(text="ok")


def run(app: web.Application) -> None:
    """Serve at HOST:PORT until SIGTERM."""
    app.router.add_get("/healthz", healthy)
    host, port = os.environ.get("HOST", "127.0.0.1"), int(os.environ.get("PORT", "8080"))
    web.run_app(app, host=host, port=port, print=None, access_log=None, shutdown_timeout=3, handle_signals=True)
