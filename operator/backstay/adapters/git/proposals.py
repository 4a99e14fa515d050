"""Pull requests as files: fetched into a mirror of their own, so that nothing a stranger proposes lies beside what is
applied, or can fill the disk that the followed branch needs.

All limits of the source hold here as well: no checkout, sizes looked at before contents, a quota, time limits.
"""

from collections.abc import Iterable, Mapping
from typing import Final, Literal, Protocol, TypeAlias

from backstay.adapters.git.source import GitSource
from backstay.core.ports import Proposal, PullRequest, Revision, SourceRefused, Tree

Forges: TypeAlias = Literal["github", "gitea", "gitlab"]
_REFS: Final[Mapping[Forges, str]] = {
    "github": "refs/pull/{}/head",
    "gitea": "refs/pull/{}/head",
    "gitlab": "refs/merge-requests/{}/head",
}
MIRROR_BYTES: Final = 256 * 1024 * 1024
"""Disk for all open proposals together with the history they left: a quarter of what the followed branch may take."""


class Opened(Protocol):
    """A source that may have to read credentials before it can be used."""

    async def opened(self) -> GitSource: ...

    async def resolve(self) -> Revision: ...

    async def close(self) -> None: ...


class GitProposals:
    """Proposals on a git remote; `source` follows the same branch, in a mirror that nobody else uses."""

    def __init__(self, source: Opened, forge: Forges) -> None:
        self._opened = source
        self._ref = _REFS[forge]

    def __repr__(self) -> str:
        return f"<GitProposals {self._ref} {self._opened!r}>"

    async def branch(self) -> str:
        tip = await self._opened.resolve()
        return (await self._opened.opened()).branch_of(tip)

    async def fetch(self, request: PullRequest) -> Proposal:
        tip = await self._opened.resolve()
        source = await self._opened.opened()
        sha = await source.bring(self._ref.format(request.number), request.head)
        head = await source.read(sha)
        parted = await source.parting(tip.sha, sha)
        if not parted:
            note = f"no common history with {tip.ref} within reach: compared with {tip.ref} as it is"
            return Proposal(base=await source.read(tip.sha), head=head, notes=(note,))
        moved = (
            () if parted == tip.sha else (f"{tip.ref} has moved on: compared with {parted[:12]}, where the two parted",)
        )
        return Proposal(base=await _base(source, parted), head=head, notes=moved)

    async def keep_only(self, heads: Iterable[str]) -> None:
        await (await self._opened.opened()).forget(heads)

    async def close(self) -> None:
        await self._opened.close()


async def _base(source: GitSource, sha: str) -> Tree:
    """A folder that was not there yet held no documents."""
    try:
        return await source.read(sha)
    except SourceRefused as refused:
        if refused.reason != "InvalidPath":
            raise
        return Tree(revision=await source.revision(sha), files={})
