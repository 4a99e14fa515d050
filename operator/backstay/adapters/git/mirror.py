"""Our own bare copy of the mesh repository: fetched into, read from, never checked out.

There is no work tree, so nothing of the repository runs, is smudged or lands on disk by its own name. Our refs under
`refs/backstay/` keep every history that was ever desired reachable, also after a force-push upstream.
"""

import contextlib
import fcntl
import logging
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from backstay import redact
from backstay.adapters.git import tree
from backstay.adapters.git.command import Finished, GitCommand
from backstay.adapters.git.failures import shown
from backstay.adapters.git.tree import Limits
from backstay.core.ports import Revision, SourceRefused, SourceUnavailable, Tree

BETWEEN_LIMIT: Final = 100  # commits, as the port says
PACKS_BEFORE_REPACK: Final = 64  # one pack a fetch; git's own gc.autoPackLimit is 50
LOCK_WAIT: Final = 10.0  # seconds for another process that uses the same mirror
LOCK_POLL: Final = 0.05

_INCOMING: Final = "refs/backstay/incoming"
_TIP: Final = "refs/backstay/tip"
_KEPT: Final = "refs/backstay/kept/"
_LOG_FORMAT: Final = "--format=%H%x00%an%x00%ct%x00%s%x00"
_FIELDS: Final = 4  # in _LOG_FORMAT
_SHOWN: Final = 200  # characters of an author or subject that status and timeline show
_log: Final = logging.getLogger("backstay.git")


class Mirror:
    """A bare repository in `folder`. Blocks; every method is one or a few runs of git."""

    def __init__(self, folder: Path, git: GitCommand, limits: Limits, *, depth: int) -> None:
        self._folder = folder
        self._git_dir = folder / "repository.git"
        self._git = git
        self._limits = limits
        self._depth = depth
        self._contents: Mapping[str, bytes] = {}
        """Files of the tree that was read last, by object id: of the next one only what is new is asked of git."""
        self._format = ""
        """Object format as far as it was looked at already."""

    @contextlib.contextmanager
    def writing(self) -> Iterator[int]:
        """Be the only writer. The lock's descriptor goes to git's processes, so one that outlives a killed operator
        still keeps the next one out until it has ended."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(self._folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            _lock(descriptor, self._folder)
            yield descriptor
        finally:
            os.close(descriptor)

    def prepare(self, object_format: str, lock: int) -> None:
        """Make the mirror, or make what is there usable. A mirror is a copy: one that is broken is replaced."""
        if self._git_dir.exists() and self._format != object_format and self._object_format() != object_format:
            _log.warning("git.mirror.replaced path=%s reason=unreadable or of another object format", self._git_dir)
            shutil.rmtree(self._git_dir)
        if not self._git_dir.exists():
            draft = self._folder / "repository.new"
            shutil.rmtree(draft, ignore_errors=True)
            options = ("--quiet", "--bare", "--template=", f"--object-format={object_format}")
            self._must("init", *options, str(draft), lock=lock)
            draft.rename(self._git_dir)
        self._format = object_format
        self._remove_leftovers()

    def has(self, sha: str) -> bool:
        """Whether a commit is here with all it needs: what a fetch left that was cut off is reached by no ref."""
        if not self._git_dir.exists():
            return False
        found = self._run("for-each-ref", "--count=1", f"--contains={sha}", "--format=%(refname)", "refs/backstay/")
        return found.status == 0 and bool(found.out)

    def fetch(self, url: str, wanted: str, lock: int) -> str:
        """Bring one ref or commit id over, with its history, and return its commit id. One that fails leaves nothing."""
        with self._undone_on_failure():
            finished = self._git.run(
                "fetch", "--quiet", "--force", "--no-tags", "--no-write-fetch-head", "--no-recurse-submodules",
                "--no-auto-maintenance", "--no-show-forced-updates", "--update-shallow", *self._depth_options(),
                "--end-of-options", url, f"+{wanted}:{_INCOMING}",
                git_dir=self._git_dir, remote=True, watch=self._within_quota, keep_open=(lock,),
            )  # fmt: skip
            finished.must_be_fine(doing=f"fetching {wanted} from {url}")
            self._within_quota()  # once more: a fast one ends between two looks
            return self._commit_of(_INCOMING)

    @contextlib.contextmanager
    def _undone_on_failure(self) -> Iterator[None]:
        """Take away what a refused fetch brought: a pack that stayed would count against the quota for ever."""
        packs, shallow = self._git_dir / "objects" / "pack", self._git_dir / "shallow"
        before = frozenset(packs.iterdir())
        boundary = shallow.read_bytes() if shallow.exists() else None
        try:
            yield
        except BaseException:
            self._remove_leftovers()
            for path in frozenset(packs.iterdir()) - before:
                path.unlink(missing_ok=True)
            if boundary is None:
                shallow.unlink(missing_ok=True)
            else:
                shallow.write_bytes(boundary)
            self._git_dir.joinpath(_INCOMING).unlink(missing_ok=True)
            raise

    def keep_as_tip(self, sha: str, lock: int) -> None:
        """Make this commit the tip. A tip it does not descend from (force-push) stays reachable by a ref of its own."""
        tip = self._tip()
        if tip == sha:
            return
        if tip and not self.is_ancestor(tip, sha):
            self.keep(tip, lock)
        self._must("update-ref", _TIP, sha, lock=lock)

    def keep(self, sha: str, lock: int) -> None:
        self._must("update-ref", f"{_KEPT}{sha}", sha, lock=lock)

    def keep_only(self, shas: frozenset[str], lock: int) -> None:
        """Forget what was kept, but for these; of a mirror that is half full also the objects, at once."""
        folder = self._git_dir / _KEPT
        gone = sorted(path.name for path in folder.iterdir() if path.name not in shas) if folder.exists() else []
        for sha in gone:
            self._must("update-ref", "-d", f"{_KEPT}{sha}", lock=lock)
        if gone and _bytes_below(self._git_dir / "objects") > self._limits.mirror_bytes / 2:
            self._must("update-ref", "-d", _INCOMING, lock=lock)  # what came last may be among what is gone
            self._repack(lock)

    def parting(self, one: str, other: str) -> str:
        found = self._run("merge-base", "--end-of-options", one, other)
        return found.out.decode("ascii", "replace").strip() if found.status == 0 else ""

    def tidy(self, lock: int) -> None:
        """Join the packs when there are many. Nothing that a ref of ours reaches is ever dropped."""
        packs = sum(1 for path in (self._git_dir / "objects" / "pack").glob("*.pack"))
        if packs <= PACKS_BEFORE_REPACK:
            return
        self._repack(lock)

    def _repack(self, lock: int) -> None:
        done = self._run("repack", "-a", "-d", "-q", lock=lock)
        if done.status != 0:
            _log.warning("git.repack.failed error=%s", shown(done.err))

    def revision(self, sha: str, ref: str) -> Revision:
        found = self._log("--max-count=1", sha, ref=ref)
        if not found:
            raise SourceUnavailable("GitOperationFailed", f"commit {sha[:12]} is not in the mirror")
        return found[0]

    def between(self, old: str, new: str, ref: str) -> Sequence[Revision]:
        if not self.is_ancestor(old, new):
            return (self.revision(new, ref),)
        return self._log(f"--max-count={BETWEEN_LIMIT}", "--topo-order", "--reverse", f"{old}..{new}", ref=ref)

    def is_ancestor(self, old: str, new: str) -> bool:
        status = self._run("merge-base", "--is-ancestor", old, new).status
        return status == 0  # 1: it is not; 128: one of them is unknown

    def read(self, sha: str, path: str, ref: str) -> Tree:
        """The YAML files of a commit below `path`, sizes looked at before any content is."""
        revision = self.revision(sha, ref)
        wanted, refused = tree.sort_out(tree.parse_listing(self._listing(sha, path)), self._limits)
        known = self._contents
        sizes = {object_id: len(data) for object_id, data in known.items()}
        sizes |= self._sizes(object_id for object_id in wanted.values() if object_id not in known)
        small, big = tree.within_size(wanted, sizes, self._limits)
        fresh = self._read(object_id for object_id in small.values() if object_id not in known)
        contents = {object_id: (fresh if object_id in fresh else known)[object_id] for object_id in small.values()}
        self._contents = contents
        files = {name: contents[object_id] for name, object_id in small.items()}
        return Tree(revision=revision, files=files, refused=(*refused, *big))

    def _listing(self, sha: str, path: str) -> bytes:
        finished = self._run("ls-tree", "-r", "-z", "--full-tree", f"{sha}:{path}" if path else sha)
        if finished.status != 0 and path and self.has(sha):
            raise SourceRefused("InvalidPath", f"commit {sha[:12]} has no folder {path!r}")
        return finished.must_be_fine(doing=f"listing commit {sha[:12]}").out

    def _sizes(self, object_ids: Iterable[str]) -> dict[str, int]:
        names = _lines(object_ids)
        if not names:
            return {}
        done = self._must("cat-file", "--batch-check=%(objectname) %(objecttype) %(objectsize)", stdin=names)
        try:
            return dict(tree.parse_sizes(done.out))
        except ValueError as error:
            raise SourceUnavailable("GitOperationFailed", f"the mirror is damaged: {error}") from error

    def _read(self, object_ids: Iterable[str]) -> dict[str, bytes]:
        names = _lines(object_ids)
        if not names:
            return {}
        done = self._must("cat-file", "--batch", stdin=names)
        try:
            return dict(tree.parse_contents(done.out))
        except ValueError as error:
            raise SourceUnavailable("GitOperationFailed", f"the mirror is damaged: {error}") from error

    def _log(self, *arguments: str, ref: str) -> Sequence[Revision]:
        finished = self._run("log", _LOG_FORMAT, "--no-patch", "--no-color", *arguments, "--")
        finished.must_be_fine(doing="reading history")
        fields = finished.out.decode("utf-8", "replace").split("\0")[:-1]
        records = zip(*(fields[index::_FIELDS] for index in range(_FIELDS)), strict=True)
        return tuple(
            Revision(sha=sha.strip(), ref=ref, author=_shown(author), committed_at=float(at), subject=_shown(subject))
            for sha, author, at, subject in records
        )

    def _depth_options(self) -> tuple[str, ...]:
        """Only the first fetch is shallow: later ones go on from there, so history since then has no gaps."""
        return () if self._depth <= 0 or self._tip() else (f"--depth={self._depth}",)

    def _commit_of(self, name: str) -> str:
        sha = self._peeled(name)
        if not sha:
            raise SourceRefused("RefNotFound", f"{name}: is not a commit")
        return sha

    def _tip(self) -> str:
        """Commit id of the tip, empty before the first fetch. Read as a file: nobody packs refs in here, and each git
        that is not started is a few milliseconds less between a push and its rollout."""
        try:
            return (self._git_dir / _TIP).read_text(encoding="ascii").strip()
        except FileNotFoundError:
            return ""

    def _peeled(self, name: str) -> str:
        """Commit id of a ref of ours, empty if there is none."""
        return self._run("rev-parse", "--quiet", "--verify", f"{name}^{{commit}}").out.decode("ascii").strip()

    def _object_format(self) -> str:
        return self._run("rev-parse", "--show-object-format").out.decode("ascii", "replace").strip()

    def _within_quota(self) -> None:
        used = _bytes_below(self._git_dir / "objects")
        if used > self._limits.mirror_bytes:
            raise SourceRefused("LimitExceeded", f"the mirror would grow over {self._limits.mirror_bytes} bytes")

    def _remove_leftovers(self) -> None:
        """Locks and half-received packs of a git that was killed. Safe: we hold the lock all our gits inherit."""
        for pattern in ("*.lock", "refs/backstay/**/*.lock", "objects/pack/tmp_*", "objects/tmp_*", "objects/*/tmp_*"):
            for path in self._git_dir.glob(pattern):
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink(missing_ok=True)

    def _run(self, *arguments: str, stdin: bytes = b"", lock: int | None = None) -> Finished:
        keep_open = () if lock is None else (lock,)
        return self._git.run(*arguments, git_dir=self._git_dir, stdin=stdin, keep_open=keep_open)

    def _must(self, *arguments: str, stdin: bytes = b"", lock: int | None = None) -> Finished:
        return self._run(*arguments, stdin=stdin, lock=lock).must_be_fine(doing=f"git {arguments[0]}")


def _lock(descriptor: int, folder: Path) -> None:
    deadline = time.monotonic() + LOCK_WAIT
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if time.monotonic() > deadline:
                raise SourceUnavailable("Timeout", f"{folder}: another process is using this mirror") from error
            time.sleep(LOCK_POLL)
        else:
            return


def _bytes_below(folder: Path) -> int:
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(FileNotFoundError):  # git renames its temporary packs while we look
                total += os.stat(os.path.join(parent, name)).st_size
    return total


def _lines(object_ids: Iterable[str]) -> bytes:
    return "".join(f"{object_id}\n" for object_id in dict.fromkeys(object_ids)).encode("ascii")


def _shown(text: str) -> str:
    return redact.clean(text, limit=_SHOWN).strip()
