"""sa-frontend: the page people see, and the door to the services behind it.

GET / and /static/*; POST /sentiment goes to sa-webapp, /feedback to sa-feedback (an ingress gateway does that in a
cluster; on one machine the page has only us).
"""

import os
from pathlib import Path

import aiohttp
import service
from aiohttp import web

STATIC = Path(__file__).parent / "static"
BEHIND = {
    "/sentiment": os.environ.get("SA_WEBAPP_URL", "http://sa-webapp"),
    "/feedback": os.environ.get("SA_FEEDBACK_URL", "http://sa-feedback"),
}


async def page(_: web.Request) -> web.FileResponse:
    return web.FileResponse(STATIC / "index.html")


async def behind(request: web.Request) -> web.Response:
    call = request.app[service.CLIENT].request(
        request.method,
        f"{BEHIND[request.path]}{request.path}",
        data=await request.read(),
        headers={"Content-Type": request.content_type, **service.passed_on(request)},
    )
    try:
        async with call as answer:
            body, status, kind = await answer.read(), answer.status, answer.content_type
    except (aiohttp.ClientError, TimeoutError) as error:
        raise web.HTTPBadGateway(text=f"{request.path}: {type(error).__name__}") from error
    return web.Response(status=status, body=body, content_type=kind)


def main() -> None:
    app = web.Application()
    app.cleanup_ctx.append(service.client)
    app.router.add_get("/", page)
    app.router.add_static("/static", STATIC)
    for path in BEHIND:
        app.router.add_route("*", path, behind)
    service.run(app)


if __name__ == "__main__":
    main()
