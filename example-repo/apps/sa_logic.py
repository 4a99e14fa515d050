"""sa-logic: says how positive a sentence is, from -1 to 1.

POST /analyse/sentiment {"sentence": "..."} -> {"sentence": "...", "polarity": 0.5}, of the first sentence. VERSION
names this build in the `x-version` response header. FAIL_RANDOMLY=true is the buggy build of the series: of 101
requests, 33 fail at once and 32 fail after STALL_SECONDS.
"""

import asyncio
import os
import random
import re

import service
from aiohttp import web
from textblob import TextBlob

VERSION = os.environ.get("VERSION", "v1")
FAIL_RANDOMLY = os.environ.get("FAIL_RANDOMLY", "false") == "true"
STALL_SECONDS = float(os.environ.get("STALL_SECONDS", "30"))
SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


def polarity(text: str) -> float:
    """Polarity of the first sentence. TextBlob's own splitter would need a corpus; its sentiment lexicon does not."""
    first = SENTENCE_END.split(text.strip(), maxsplit=1)[0]
    return float(TextBlob(first).sentiment.polarity)


async def fail_sometimes() -> None:
    draw = random.randint(1, 101)
    if draw < 34:
        raise web.HTTPInternalServerError(text="out of luck", headers={"x-version": VERSION})
    if draw < 66:
        await asyncio.sleep(STALL_SECONDS)
        raise web.HTTPInternalServerError(text="out of patience", headers={"x-version": VERSION})


async def analyse(request: web.Request) -> web.Response:
    sentence = await service.sentence_of(request)
    if FAIL_RANDOMLY:
        await fail_sometimes()
    answer = {"sentence": sentence, "polarity": polarity(sentence)}
    return web.json_response(answer, headers={"x-version": VERSION})


def main() -> None:
    polarity("warm up")  # reads the lexicon (70 ms) before the port opens instead of in the first request
    app = web.Application()
    app.router.add_post("/analyse/sentiment", analyse)
    service.run(app)


if __name__ == "__main__":
    main()
