"""Talks to a forge: with time limits, retries with back-off, and one clear sentence when it says no.

What a forge answers is a stranger's: sizes are bounded, only the fields that are needed are read. The token goes into one
header and nowhere else.
"""

import asyncio
import random
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Final, Self

import aiohttp
import msgspec

from backstay import redact
from backstay.adapters.forge import requests
from backstay.adapters.forge.requests import PAGE, Call, Kind, Place, State

__all__ = ["Forge", "ForgeRefused", "ForgeUnavailable", "Kind", "Place", "State"]

TIMEOUT: Final = 20.0  # seconds per request; forges cut their own requests off after ten
ATTEMPTS: Final = 5  # with the back-off below half a minute in all: a restart, or a secondary rate limit
BACKOFF: Final = 1.0  # seconds, doubled each time
MOST_WAIT: Final = 60.0  # seconds that a Retry-After is obeyed; a longer one is an answer: not now
MOST_ANSWER: Final = 8 * 1024 * 1024  # bytes; a hundred comments of 64 KiB
MOST_PAGES: Final = 20  # of comments: a pull request with two thousand has other troubles
_LATER: Final = frozenset((408, 425, 429, 500, 502, 503, 504))


class ForgeUnavailable(Exception):
    """The forge did not answer, or only with failures; trying later may help."""


class ForgeRefused(Exception):
    """The forge answered no: a token without the right, a place that is not there."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class _Comment(msgspec.Struct):
    id: int
    body: str | None = ""


_comments: Final = msgspec.json.Decoder(list[_Comment])


class Forge:
    """One repository on one forge. Use as an async context manager."""

    def __init__(
        self,
        place: Place,
        token: str,
        *,
        attempts: int = ATTEMPTS,
        backoff: float = BACKOFF,
        timeout: float = TIMEOUT,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._place = place
        self._headers = requests.headers(place.kind, token)
        self._attempts = attempts
        self._backoff = backoff
        self._timeout = aiohttp.ClientTimeout(total=timeout)
        self._draw = draw
        self._session: aiohttp.ClientSession | None = None

    def __repr__(self) -> str:
        return f"<Forge {self._place.kind} {self._place.repository}>"

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(timeout=self._timeout, headers=self._headers, trust_env=True)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()

    async def comment(self, request: int, marker: str, text: str) -> None:
        """Make the one comment that begins with `marker` say `text`, or write it.

        Somebody else may have written a comment with our marker: one that may not be edited is passed over. Raises
        ForgeRefused, ForgeUnavailable.
        """
        for comment in await self._own(request, marker):
            try:
                await self._call(requests.edit_comment(self._place, request, comment, text))
                return
            except ForgeRefused as refused:
                if refused.status not in (403, 404):
                    raise
        await self._call(requests.create_comment(self._place, request, text))

    async def _own(self, request: int, marker: str) -> list[int]:
        found: list[int] = []
        for page in range(1, MOST_PAGES + 1):
            data = await self._call(requests.list_comments(self._place, request, page))
            comments = _decoded(data)
            fresh = [item.id for item in comments if (item.body or "").startswith(marker) and item.id not in found]
            found += fresh
            if len(comments) < PAGE:
                break
        return found

    async def status(self, sha: str, state: State, context: str, description: str) -> None:
        """Say how it stands with a commit. Raises ForgeRefused, ForgeUnavailable."""
        await self._call(requests.set_status(self._place, sha, state, context, redact.clean(description)))

    # --- one call --------------------------------------------------------------------------------------------------

    async def _call(self, call: Call) -> bytes:
        said = ""
        for attempt in range(self._attempts):
            wait = self._backoff * 2 ** (attempt - 1) * (0.5 + self._draw() / 2) if attempt else 0.0
            if wait:
                await asyncio.sleep(wait)
            try:
                status, headers, data = await self._once(call)
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                said = redact.clean(str(error) or type(error).__name__, limit=200)
                continue
            if status < 300:
                return data
            later = _is_later(status, headers)
            if not later:
                raise ForgeRefused(self._why(status, call, data), status)
            said = f"it answered {status}"
            await self._obey(headers)
        raise ForgeUnavailable(f"{self._place.kind} cannot be reached: {said}; tried {self._attempts} times")

    async def _once(self, call: Call) -> tuple[int, Mapping[str, str], bytes]:
        if self._session is None:
            raise RuntimeError("use Forge as a context manager")
        body = None if call.body is None else msgspec.json.encode(call.body)
        kind = {"Content-Type": "application/json"} if body else {}
        async with self._session.request(
            call.method, call.url, data=body, headers=kind, allow_redirects=False
        ) as response:
            data = await response.content.read(MOST_ANSWER + 1)
            while len(data) <= MOST_ANSWER and (more := await response.content.read(MOST_ANSWER + 1 - len(data))):
                data += more
            if len(data) > MOST_ANSWER:
                raise aiohttp.ClientPayloadError("the answer is too large")
            return response.status, response.headers, data

    async def _obey(self, headers: Mapping[str, str]) -> None:
        """Wait as long as the forge asks, if that is soon. Raises ForgeUnavailable for longer."""
        asked = headers.get("Retry-After", "")
        seconds = float(asked) if asked.isdigit() else 0.0
        if seconds > MOST_WAIT:
            raise ForgeUnavailable(f"{self._place.kind} limits our requests for another {seconds:g} s")
        if seconds:
            await asyncio.sleep(seconds)

    def _why(self, status: int, call: Call, data: bytes) -> str:
        what = "a commit status" if "/statuses/" in call.url else "comments of pull requests"
        forge, repository = self._place.kind, self._place.repository
        if status == 401:
            return f"{forge} does not know the token (401)"
        if status in (403, 404):
            scope = _SCOPES[forge]["status" if "/statuses/" in call.url else "comment"]
            return f"the token may not write {what} of {repository} on {forge} ({status}); it needs {scope}"
        told = redact.clean(data.decode("utf-8", "replace"), limit=200)
        return f"{forge} refused {what} of {repository} with {status}: {told}"


_SCOPES: Final[Mapping[str, Mapping[str, str]]] = {
    "github": {"comment": "`pull-requests: write`", "status": "`statuses: write`"},
    "gitea": {"comment": "the scope `write:issue`", "status": "the scope `write:repository`"},
    "gitlab": {"comment": "the scope `api` and the role Reporter", "status": "the scope `api` and the role Developer"},
}


def _is_later(status: int, headers: Mapping[str, str]) -> bool:
    """Whether trying again may help: overload, or a rate limit (GitHub's is a 403)."""
    limited = status == 403 and (headers.get("X-RateLimit-Remaining") == "0" or "Retry-After" in headers)
    return status in _LATER or limited


def _decoded(data: bytes) -> list[_Comment]:
    try:
        return _comments.decode(data)
    except msgspec.DecodeError as error:
        raise ForgeUnavailable("what answers there is no forge: its list of comments cannot be read") from error
