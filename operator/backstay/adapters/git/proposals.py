"""Pull requests as files: fetched into a mirror of their own, so that nothing a stranger proposes lies beside what is
applied, or can fill the disk that the followed branch needs.

All limits of the source hold here as well: no checkout, sizes looked at before contents, a quota, time limits.
"""

from collections.abc import Iterable, Mapping
from typing import Final, Literal, TypeAlias

from backstay.adapters.git.source import GitSource
from backstay.core.ports import Proposal, PullRequest, SourceRefused, Tree

Forges: TypeAlias = Literal["github", "gitea", "gitlab"]
_REFS: Final[Mapping[Forges, str]] = {
    "github": "refs/pull/{}/head",
    "gitea": "refs/pull/{}/head",
    "gitlab": "refs/merge-requests/{}/head",
}
MIRROR_BYTES: Final = 256 * 1024 * 1024
"""Disk for all open proposals together with the history they left: a quarter of what the followed branch may take."""


class GitProposals:
    """Proposals on a git remote; `source` follows the same branch, in a mirror that nobody else uses."""

    def __init__(self, source: GitSource, forge: Forges) -> None:
        self._source = source
        self._ref = _REFS[forge]

    def __repr__(self) -> str:
        return f"<GitProposals {self._ref} {self._source!r}>"

    async def branch(self) -> str:
        return await self._source.branch()

    async def fetch(self, request: PullRequest) -> Proposal:
        tip = await self._source.resolve()
        sha = await self._source.bring(self._ref.format(request.number), request.head)
        head = await self._source.read(sha)
        parted = await self._source.parting(tip.sha, sha)
        if not parted:
            note = f"no common history with {tip.ref} within reach: compared with {tip.ref} as it is"
            return Proposal(base=await self._source.read(tip.sha), head=head, notes=(note,))
        moved = (
            () if parted == tip.sha else (f"{tip.ref} has moved on: compared with {parted[:12]}, where the two parted",)
        )
        return Proposal(base=await self._base(parted), head=head, notes=moved)

    async def _base(self, sha: str) -> Tree:
        """A folder that was not there yet held no documents."""
        try:
            return await self._source.read(sha)
        except SourceRefused as refused:
            if refused.reason != "InvalidPath":
                raise
            return Tree(revision=await self._source.revision(sha), files={})

    async def keep_only(self, heads: Iterable[str]) -> None:
        await self._source.forget(heads)

    async def close(self) -> None:
        await self._source.close()
