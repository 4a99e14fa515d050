"""The mesh repository as the loop sees it: which commit is desired, what it holds, what came before.

Asking costs one `ls-remote`; only a commit that is not here yet is fetched. For a folder of this machine even that is
left out while its ref files have not moved, so the loop may ask five times a second. All blocking work runs in threads
of this source's own, and ends with it.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self, TypeVar

from backstay.adapters.git import address as addresses
from backstay.adapters.git import folder as folders
from backstay.adapters.git import semver
from backstay.adapters.git.address import Credentials, RefSpec
from backstay.adapters.git.command import GitCommand, version_warning
from backstay.adapters.git.folder import FolderWatch
from backstay.adapters.git.mirror import Mirror
from backstay.adapters.git.tree import Limits
from backstay.core.ports import Revision, SourceRefused, SourceUnavailable, Tree

TIMEOUT: Final = 60.0  # seconds for one git; Flux's spec.timeout default as well
DEPTH: Final = 200  # commits of the first fetch: twice what between() may return; later fetches leave no gap
ASK_ANYWAY: Final = 30.0  # seconds after which a folder is asked even if nothing seems to have moved
REFUSED_FOR: Final = (
    600.0  # seconds a commit that was over a limit is not fetched again, as long as the ref stays on it
)
_SHA256_HEX: Final = 64
_SUGGESTED: Final = 8  # branches named when the wanted one is not there
_Result = TypeVar("_Result")
_log: Final = logging.getLogger("backstay.git")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Advertised:
    """What the remote says it has."""

    sha: str
    """Of the commit, as far as the remote tells (annotated tags are told peeled)."""
    wanted: str
    """Full ref name, or a commit id, to fetch."""
    ref: str
    """For people."""


class GitSource:
    """SourceRepo on a git remote or folder. Raises SourceRefused at once for an address, ref or path that is wrong."""

    def __init__(
        self,
        url: str,
        *,
        mirror: Path,
        ref: RefSpec | None = None,
        path: str = "",
        credentials: Credentials | None = None,
        limits: Limits | None = None,
        allow_file: bool = False,
        timeout: float = TIMEOUT,
        depth: int = DEPTH,
    ) -> None:
        limits = limits or Limits()
        self._address = addresses.parse_address(url, allow_file=allow_file)
        self._ref = ref or RefSpec()
        self._range = _parse_range(self._ref.semver)
        self._path = addresses.check_path(path)
        self._credentials = credentials or Credentials()
        self._git = GitCommand(
            mirror.absolute() / "home",
            self._address,
            self._credentials,
            timeout=timeout,
            output_limit=max(limits.listing_bytes, 2 * limits.total_bytes),
        )
        self._mirror = Mirror(mirror.absolute(), self._git, limits, depth=depth)
        self._watch: FolderWatch | None = None
        self._watched_until = 0.0
        self._last: Revision | None = None
        self._refused: tuple[str, float, SourceRefused] | None = None
        self._prepared = False
        self._resolving = asyncio.Lock()
        self._threads = ThreadPoolExecutor(max_workers=3, thread_name_prefix="git")
        self.warning: str | None = None
        """Something an administrator should know about this machine's git; set after the first resolve."""

    def __repr__(self) -> str:
        return f"<GitSource {self._address.url} {self._ref} at {self._last.sha[:12] if self._last else 'nothing yet'}>"

    @property
    def is_local(self) -> bool:
        """A folder of this machine: resolve() costs microseconds while nothing has changed there."""
        return self._address.folder is not None

    async def resolve(self) -> Revision:
        async with self._resolving:
            return await self._run(self._resolve)

    async def read(self, sha: str) -> Tree:
        _must_be_id(sha)
        if not await self._run(lambda: self._mirror.has(sha)):
            await self._bring_back(sha)
        return await self._run(lambda: self._mirror.read(sha, self._path, str(self._ref)))

    async def between(self, old: str, new: str) -> Sequence[Revision]:
        _must_be_id(new)
        if not addresses.is_object_id(old):
            return await self._run(lambda: (self._mirror.revision(new, str(self._ref)),))
        return await self._run(lambda: self._mirror.between(old, new, str(self._ref)))

    async def is_ancestor(self, old: str, new: str) -> bool:
        if not (addresses.is_object_id(old) and addresses.is_object_id(new)):
            return False
        return await self._run(lambda: self._mirror.is_ancestor(old, new))

    async def opened(self) -> Self:
        """Itself: a source that has its credentials is open."""
        return self

    async def bring(self, ref: str, sha: str) -> str:
        """Fetch a ref that is not the followed one, unless its commit is here, and keep it; the commit, newer if the ref
        moved on."""
        _must_be_id(sha)
        async with self._resolving:
            return await self._run(lambda: self._fetch(_Advertised(sha=sha, wanted=ref, ref=ref), self._mirror.keep))

    def branch_of(self, revision: Revision) -> str:
        """The branch that is followed, `revision` being its tip; empty for tags and single commits."""
        return "" if self._ref.tag or self._ref.semver or self._ref.commit else revision.ref

    async def revision(self, sha: str) -> Revision:
        """A commit that is here."""
        return await self._run(lambda: self._mirror.revision(sha, str(self._ref)))

    async def parting(self, one: str, other: str) -> str:
        """The commit where two histories parted; empty where they have none in common, as far as they are here."""
        return await self._run(lambda: self._mirror.parting(one, other))

    async def forget(self, kept: Iterable[str]) -> None:
        """Let go of every commit that was brought or kept, but for these."""
        wanted = frozenset(kept)
        async with self._resolving:
            await self._run(lambda: self._forget(wanted))

    async def close(self) -> None:
        """End what is running; nothing can be asked afterwards."""
        self._git.kill()
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _run(self, work: Callable[[], _Result]) -> _Result:
        try:
            future = self._threads.submit(work)
        except RuntimeError as error:
            raise SourceUnavailable("GitOperationFailed", "the source is closed") from error
        return await asyncio.wrap_future(future)

    async def _bring_back(self, sha: str) -> None:
        """Fetch a commit by its id that the mirror lost (it is only a copy and may have been deleted)."""
        async with self._resolving:
            await self._run(
                lambda: self._fetch(_Advertised(sha=sha, wanted=sha, ref=str(self._ref)), self._mirror.keep)
            )

    # What follows runs in a thread.

    def _resolve(self) -> Revision:
        signature = self._look_at_folder()
        if self._last is not None and signature is not None and not self._must_ask(signature):
            return self._last
        self._prepare()
        advertised = self._ask()
        if self._last is None or self._last.sha != advertised.sha or not self._mirror.has(advertised.sha):
            self._last = self._taken(advertised)
        if self._watch is not None and signature is not None:
            self._watch.remember(signature)
            self._watched_until = time.monotonic() + ASK_ANYWAY
        return self._last

    def _look_at_folder(self) -> folders.Signature | None:
        """The state of a folder's refs, made before git reads them, so that no change in between is missed."""
        if self._address.folder is None:
            return None
        if self._watch is None:
            self._watch = FolderWatch(self._checked_folder(self._address.folder), self._ref)
        return self._watch.signature()

    def _must_ask(self, signature: folders.Signature) -> bool:
        assert self._watch is not None  # noqa: S101 - a signature is only made by a watch
        return self._watch.has_changed(signature) or time.monotonic() > self._watched_until

    def _checked_folder(self, root: Path) -> folders.Folder:
        try:
            found = folders.locate(root)
        except SourceRefused as refused:
            if self._last is None:
                raise
            # It has been read before, so its name is right: a disk that is not mounted, a folder that is being replaced.
            raise SourceUnavailable("GitOperationFailed", f"{refused}; waiting for it to come back") from refused
        folders.check_owner(found)
        return found

    def _prepare(self) -> None:
        if self._address.folder is not None:
            found = self._checked_folder(self._address.folder)
            self._git.prepare(trusted=(found.root, found.git_dir))
        elif not self._prepared:
            self._git.prepare()
        if not self._prepared:
            self.warning = version_warning(self._git.version())
            if self.warning:
                _log.warning("git.old %s", self.warning)
            self._prepared = True

    def _ask(self) -> _Advertised:
        if self._ref.commit:
            return _Advertised(sha=self._ref.commit, wanted=self._ref.commit, ref=self._ref.commit)
        found = self._advertised(*self._ref.patterns)
        if self._range is not None:
            return self._newest_tag(found)
        name = self._ref.patterns[0]
        if name not in found:
            raise self._not_there(name)
        sha = found.get(f"{name}^{{}}", found[name])
        return _Advertised(sha=sha, wanted=name, ref=self._branch_of_head(found) if name == "HEAD" else str(self._ref))

    def _advertised(self, *patterns: str) -> Mapping[str, str]:
        finished = self._git.run(
            "ls-remote", "--quiet", "--symref", "--end-of-options", self._url, *patterns, remote=True
        )
        return parse_advertised(finished.must_be_fine(doing=f"asking {self._address.url}").out)

    @property
    def _url(self) -> str:
        folder = self._address.folder
        return self._address.url if folder is None else str(folders.locate(folder).git_dir)

    def _newest_tag(self, found: Mapping[str, str]) -> _Advertised:
        assert self._range is not None  # noqa: S101 - only called with one
        tags = [name.removeprefix("refs/tags/") for name in found if not name.endswith("^{}")]
        tag = self._range.newest(tags)
        if tag is None:
            raise SourceRefused("RefNotFound", f"none of {len(tags)} tags is in the range {self._range.text!r}")
        addresses.check_ref(tag)
        name = f"refs/tags/{tag}"
        return _Advertised(sha=found.get(f"{name}^{{}}", found[name]), wanted=name, ref=str(self._ref))

    def _branch_of_head(self, found: Mapping[str, str]) -> str:
        return found.get("ref: HEAD", "HEAD").removeprefix("refs/heads/")

    def _not_there(self, name: str) -> SourceRefused:
        """RefNotFound that says what there is instead."""
        branches = [ref.removeprefix("refs/heads/") for ref in self._advertised("refs/heads/*")]
        if not branches:
            return SourceRefused("RefNotFound", f"{self._address.url} has no commits yet, expected {self._ref}")
        shown = ", ".join(sorted(branches)[:_SUGGESTED]) + (", ..." if len(branches) > _SUGGESTED else "")
        kind = "tag" if name.startswith("refs/tags/") else "branch"
        return SourceRefused(
            "RefNotFound", f"{self._address.url} has no {kind} {str(self._ref)!r}; its branches: {shown}"
        )

    def _taken(self, advertised: _Advertised) -> Revision:
        if self._refused is not None and self._refused[0] == advertised.sha and time.monotonic() < self._refused[1]:
            raise self._refused[2]
        started = time.monotonic()
        try:
            sha = self._fetch(advertised, self._mirror.keep_as_tip)
        except SourceRefused as error:
            if error.reason != "RefNotFound":  # what is not there yet may come at any moment, and costs nothing to ask
                self._refused = (advertised.sha, time.monotonic() + REFUSED_FOR, error)
            raise
        self._refused = None
        _log.info("git.fetched url=%s sha=%s seconds=%.3f", self._address.url, sha, time.monotonic() - started)
        return self._mirror.revision(sha, advertised.ref)

    def _forget(self, wanted: frozenset[str]) -> None:
        with self._mirror.writing() as lock:
            self._mirror.keep_only(wanted, lock)

    def _fetch(self, advertised: _Advertised, keep: Callable[[str, int], None]) -> str:
        """Bring a commit over unless it is here, and keep it reachable; returns its id, newer if the ref moved on."""
        self._prepare()
        object_format = "sha256" if len(advertised.sha) == _SHA256_HEX else "sha1"
        with self._mirror.writing() as lock:
            self._mirror.prepare(object_format, lock)
            sha = advertised.sha
            if not self._mirror.has(sha):
                sha = self._mirror.fetch(self._url, advertised.wanted, lock)
            keep(sha, lock)
            self._mirror.tidy(lock)
        return sha


def parse_advertised(output: bytes) -> Mapping[str, str]:
    """Ref -> id of `git ls-remote --symref`; the branch HEAD names under `ref: HEAD`. Other lines are no refs."""
    found: dict[str, str] = {}
    for line in output.decode("utf-8", "replace").splitlines():
        left, _, name = line.partition("\t")
        if left.startswith("ref: "):
            found[f"ref: {name}"] = left.removeprefix("ref: ")
        elif addresses.is_object_id(left):
            found[name] = left
    return found


def _parse_range(text: str) -> semver.Range | None:
    try:
        return semver.Range(text) if text else None
    except ValueError as error:
        raise SourceRefused("RefNotFound", str(error)) from error


def _must_be_id(sha: str) -> None:
    if not addresses.is_object_id(sha):
        raise SourceRefused("RefNotFound", f"{sha[:80]!r} is not a whole commit id (40 or 64 hex digits)")
