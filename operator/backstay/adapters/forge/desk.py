"""The forge as reviews see it: a ReviewDesk that makes a client, and with it reads the token, anew for each call."""

from collections.abc import Awaitable, Callable, Sequence

from backstay.adapters.forge.client import Forge
from backstay.core.ports import PullRequest


class Desk:
    """ReviewDesk on a forge."""

    def __init__(self, forge: Callable[[], Awaitable[Forge]], context: str) -> None:
        """`forge` may raise ForgeUnavailable and ForgeRefused; `context` names the status, one for each mesh."""
        self._forge = forge
        self._context = context

    def __repr__(self) -> str:
        return f"<Desk {self._context}>"

    async def open_requests(self) -> Sequence[PullRequest]:
        async with await self._forge() as forge:
            return await forge.open_requests()

    async def comment(self, request: int, text: str) -> None:
        async with await self._forge() as forge:
            marker = forge.marker(self._context, request)
            await forge.comment(request, marker, f"{marker}\n{text}")

    async def status(self, sha: str, *, good: bool, description: str) -> None:
        async with await self._forge() as forge:
            await forge.status(sha, "success" if good else "failure", self._context, description)
