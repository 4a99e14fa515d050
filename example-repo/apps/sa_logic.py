"""sa-logic: says how positive a sentence is, from -1 to 1.

POST /analyse/sentiment {"sentence": "..."} -> {"sentence": "...", "polarity": 0.5}, of the first sentence. VERSION
names this build in the `x-version` response header. FAIL_RANDOMLY=true is the buggy build of the series: of 101
requests, 33 fail at once and 32 fail after STALL_SECONDS.
"""

import asyncio
import importlib.util
import os
import random
import re
import sys
import types
from collections.abc import Callable

import service
from aiohttp import web

VERSION = os.environ.get("VERSION", "v1")
FAIL_RANDOMLY = os.environ.get("FAIL_RANDOMLY", "false") == "true"
STALL_SECONDS = float(os.environ.get("STALL_SECONDS", "30"))
SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


def lexicon() -> Callable[[str], tuple[float, float]]:
    """TextBlob's sentiment (polarity, subjectivity), without what `import textblob` brings along.

    The package imports all of nltk, a second of processor time and 36 MB per instance; its lexicon needs none of it. So
    the package is made known by its folder only, unless somebody has imported it already.
    """
    if "textblob" not in sys.modules:
        found = importlib.util.find_spec("textblob")
        if found is None or found.submodule_search_locations is None:
            raise SystemExit("sa-logic needs the package textblob: pip install 'backstay[demo]'")
        package = types.ModuleType("textblob")
        package.__path__ = list(found.submodule_search_locations)
        sys.modules["textblob"] = package
    from textblob.en import sentiment  # noqa: PLC0415 (only now does it mean the folder)

    return sentiment  # type: ignore[no-any-return]


SENTIMENT = lexicon()


def polarity(text: str) -> float:
    """Polarity of the first sentence; split here, because TextBlob's own splitter would need a corpus."""
    return float(SENTIMENT(SENTENCE_END.split(text.strip(), maxsplit=1)[0])[0])


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
