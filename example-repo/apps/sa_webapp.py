"""sa-webapp: what browsers talk to; asks sa-logic and answers for it.

POST /sentiment {"sentence": "..."} -> {"sentence": "...", "polarity": 0.5}. SA_LOGIC_API_URL says where sa-logic is. An
error of sa-logic, or of the mesh on the way to it, is passed on with its status.
"""

import os

import aiohttp
import service
from aiohttp import web

SA_LOGIC_API_URL = os.environ.get("SA_LOGIC_API_URL", "http://sa-logic")
CORS = {
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Allow-Methods": "POST, OPTIONS",
    "Access-Control-Allow-Headers": "*",
}


async def sentiment(request: web.Request) -> web.Response:
    sentence = await service.sentence_of(request)
    call = request.app[service.CLIENT].post(
        f"{SA_LOGIC_API_URL}/analyse/sentiment", json={"sentence": sentence}, headers=service.passed_on(request)
    )
    try:
        async with call as answer:
            return await passed_back(answer)
    except (aiohttp.ClientError, TimeoutError) as error:
        raise web.HTTPBadGateway(text=f"sa-logic: {type(error).__name__}", headers=CORS) from error


async def passed_back(answer: aiohttp.ClientResponse) -> web.Response:
    headers = {**CORS, "x-version": answer.headers.get("x-version", "")}
    if answer.status != 200:
        return web.Response(status=answer.status, text=f"sa-logic: {(await answer.text())[:200]}", headers=headers)
    body = await answer.json()
    return web.json_response({"sentence": body["sentence"], "polarity": body["polarity"]}, headers=headers)


async def preflight(_: web.Request) -> web.Response:
    return web.Response(headers=CORS)


def main() -> None:
    app = web.Application()
    app.cleanup_ctx.append(service.client)
    app.router.add_post("/sentiment", sentiment)
    app.router.add_route("OPTIONS", "/sentiment", preflight)
    service.run(app)


if __name__ == "__main__":
    main()
