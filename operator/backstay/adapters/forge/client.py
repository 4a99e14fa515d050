"""Talks to a forge: with time limits, retries with back-off, and one clear sentence when it says no.

What a forge answers is a stranger's: sizes are bounded, only the fields that are needed are read. The token goes into one
header and nowhere else.
"""

import asyncio
import hashlib
import hmac
import random
import ssl
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Final, Literal, Self, TypeAlias, TypeVar

import aiohttp
import msgspec

from backstay import redact
from backstay.adapters.forge import requests
from backstay.adapters.forge.requests import PAGE, Call, Kind, Place, State
from backstay.core.ports import ForgeRefused, ForgeUnavailable, PullRequest

__all__ = ["Forge", "ForgeRefused", "ForgeUnavailable", "Kind", "Place", "State"]

TIMEOUT: Final = 20.0  # seconds per request; forges cut their own requests off after ten
ATTEMPTS: Final = 5  # with the back-off below half a minute in all: a restart, or a secondary rate limit
BACKOFF: Final = 1.0  # seconds, doubled each time
MOST_WAIT: Final = 60.0  # seconds that a Retry-After is obeyed; a longer one is an answer: not now
MOST_ANSWER: Final = 8 * 1024 * 1024  # bytes; a hundred comments of 64 KiB
MOST_PAGES: Final = 20  # of comments: a pull request with two thousand has other troubles
_Item = TypeVar("_Item")
_LATER: Final = frozenset((408, 425, 429, 500, 502, 503, 504))


class _Comment(msgspec.Struct):
    id: int
    body: str | None = ""


class _Commit(msgspec.Struct):
    sha: str = ""
    ref: str = ""


class _Request(msgspec.Struct):
    """A pull request of GitHub and Gitea (`number`, `head`, `base`), or a merge request of GitLab (the rest)."""

    number: int = 0
    iid: int = 0
    head: _Commit = msgspec.field(default_factory=_Commit)
    base: _Commit = msgspec.field(default_factory=_Commit)
    sha: str | None = ""
    target_branch: str = ""

    @property
    def told(self) -> PullRequest:
        return PullRequest(
            number=self.number or self.iid,
            head=self.head.sha or self.sha or "",
            base=self.base.ref or self.target_branch,
        )


_comments: Final = msgspec.json.Decoder(list[_Comment])
_requests: Final = msgspec.json.Decoder(list[_Request])


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
        ca_file: Path | None = None,
    ) -> None:
        """`ca_file` is trusted for https besides what this machine trusts."""
        self._place = place
        self._ca_file = ca_file
        self._headers = requests.headers(place.kind, token)
        self._key = hashlib.sha256(b"backstay-comment" + token.encode()).digest()
        self._attempts = attempts
        self._backoff = backoff
        self._timeout = aiohttp.ClientTimeout(total=timeout)
        self._draw = draw
        self._session: aiohttp.ClientSession | None = None

    def __repr__(self) -> str:
        return f"<Forge {self._place.kind} {self._place.repository}>"

    async def __aenter__(self) -> Self:
        connector = aiohttp.TCPConnector(ssl=_trusting(self._ca_file)) if self._ca_file is not None else None
        self._session = aiohttp.ClientSession(
            timeout=self._timeout, headers=self._headers, trust_env=True, connector=connector
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()

    def marker(self, context: str, request: int) -> str:
        """A hidden first line that only who has the token can write: nobody can put a comment of their own there first,
        have us edit it, and edit it once more."""
        about = f"{context} {self._place.repository} {request}"
        return f"<!-- {context} {hmac.new(self._key, about.encode(), hashlib.sha256).hexdigest()[:32]} -->"

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
            comments = _decoded(_comments, data, "list of comments")
            fresh = [item.id for item in comments if (item.body or "").startswith(marker) and item.id not in found]
            found += fresh
            if len(comments) < PAGE:
                break
        return found

    async def open_requests(self) -> list[PullRequest]:
        """The first page of open pull requests, lately changed first. Raises ForgeRefused, ForgeUnavailable."""
        data = await self._call(requests.list_requests(self._place))
        return [item.told for item in _decoded(_requests, data, "list of pull requests")]

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
        forge, repository = self._place.kind, self._place.repository
        if status == 401:
            return f"{forge} does not know the token (401)"
        need = _need(call)
        if status in (403, 404):
            scope = _SCOPES[forge][need]
            return f"the token may not {_DOING[need]} of {repository} on {forge} ({status}); it needs {scope}"
        told = redact.clean(data.decode("utf-8", "replace"), limit=200)
        return f"{forge} refused to {_DOING[need]} of {repository} with {status}: {told}"


_Need: TypeAlias = Literal["comment", "status", "list"]
_DOING: Final[Mapping[_Need, str]] = {
    "comment": "write comments of pull requests",
    "status": "write a commit status",
    "list": "list the pull requests",
}
_SCOPES: Final[Mapping[Kind, Mapping[_Need, str]]] = {
    "github": {
        "comment": "`pull-requests: write`",
        "status": "`statuses: write`",
        "list": "`pull-requests: read`",
    },
    "gitea": {
        "comment": "the scope `write:issue`",
        "status": "the scope `write:repository`",
        "list": "the scope `read:repository`",
    },
    "gitlab": {
        "comment": "the scope `api` and the role Reporter",
        "status": "the scope `api` and the role Developer",
        "list": "the scope `read_api`",
    },
}


def _need(call: Call) -> _Need:
    if "/statuses/" in call.url:
        return "status"
    return "list" if call.url.partition("?")[0].endswith(("/pulls", "/merge_requests")) else "comment"


def _trusting(ca_file: Path) -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.load_verify_locations(ca_file)
    return context


def _is_later(status: int, headers: Mapping[str, str]) -> bool:
    """Whether trying again may help: overload, or a rate limit (GitHub's is a 403)."""
    limited = status == 403 and (headers.get("X-RateLimit-Remaining") == "0" or "Retry-After" in headers)
    return status in _LATER or limited


def _decoded(decoder: msgspec.json.Decoder[_Item], data: bytes, what: str) -> _Item:
    try:
        return decoder.decode(data)
    except msgspec.DecodeError as error:
        raise ForgeUnavailable(f"what answers there is no forge: its {what} cannot be read") from error
