"""In-memory doubles of the ports, for tests of what stands on them. Each passes its port's suite beside this file."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from backstay.core.ports import Event, Fenced, Revision, SourceRefused, SourceUnavailable, StateUnavailable, Tree

BETWEEN_LIMIT = 100


@dataclass
class FakeDisk:
    """What outlives a store: give the same disk to two stores to play a restart or a second operator."""

    epoch: int = 0
    owner: "FakeStore | None" = None
    state: bytes | None = None
    blobs: dict[str, bytes] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)
    failing: str = ""
    """Not empty: every access raises StateUnavailable with it."""


class FakeStore:
    """StateStore in memory."""

    def __init__(self, disk: FakeDisk | None = None) -> None:
        self.disk = disk or FakeDisk()

    async def claim(self) -> int:
        self._available()
        if self.disk.owner not in (None, self):
            raise StateUnavailable("in use by another operator")
        self.disk.owner = self
        self.disk.epoch += 1
        return self.disk.epoch

    async def load(self) -> bytes | None:
        self._available()
        return self.disk.state

    async def save(
        self, epoch: int, state: bytes, blobs: Mapping[str, bytes] = {}, events: Sequence[Event] = ()
    ) -> None:
        self._may_write(epoch)
        self.disk.state = state
        self.disk.blobs = {**blobs, **self.disk.blobs}
        for event in events:
            self.disk.events.append(replace(event, number=len(self.disk.events) + 1))

    async def blobs(self, digests: Iterable[str]) -> Mapping[str, bytes]:
        self._available()
        return {digest: self.disk.blobs[digest] for digest in digests if digest in self.disk.blobs}

    async def prune(self, epoch: int, keep: Iterable[str]) -> int:
        self._may_write(epoch)
        stale = set(self.disk.blobs) - set(keep)
        for digest in stale:
            del self.disk.blobs[digest]
        return len(stale)

    async def events(self, *, after: int = 0, since: float = 0.0, limit: int = 1000) -> Sequence[Event]:
        self._available()
        return tuple(event for event in self.disk.events if event.number > after and event.at >= since)[:limit]

    async def close(self) -> None:
        if self.disk.owner is self:
            self.disk.owner = None

    def _available(self) -> None:
        if self.disk.failing:
            raise StateUnavailable(self.disk.failing)

    def _may_write(self, epoch: int) -> None:
        self._available()
        if epoch != self.disk.epoch:
            raise Fenced(f"epoch {epoch} is not the newest ({self.disk.epoch})")
        if self.disk.owner is not self:
            raise StateUnavailable("not claimed by this operator")


@dataclass(frozen=True)
class FakeCommit:
    sha: str
    parent: str
    files: Mapping[str, bytes]
    subject: str


class FakeRepo:
    """SourceRepo in memory; `commit` and `force` play the people who push."""

    def __init__(self, ref: str = "main") -> None:
        self.ref = ref
        self.commits: dict[str, FakeCommit] = {}
        self.head = ""
        self.failing: SourceUnavailable | SourceRefused | None = None
        """What resolve raises, while set."""

    def commit(self, files: Mapping[str, bytes], subject: str = "change") -> str:
        """All files of the new commit, on top of the head."""
        sha = f"{len(self.commits) + 1:040x}"
        self.commits[sha] = FakeCommit(sha, self.head, dict(files), subject)
        self.head = sha
        return sha

    def force(self, onto: str) -> None:
        """Move the branch back to a commit; what was above stays readable."""
        self.head = onto

    async def resolve(self) -> Revision:
        if self.failing is not None:
            raise self.failing
        if not self.head:
            raise SourceRefused("RefNotFound", f"no commits yet, expected {self.ref}")
        return self._revision(self.head)

    async def read(self, sha: str) -> Tree:
        if sha not in self.commits:
            raise SourceRefused("RefNotFound", f"no commit {sha!r}")
        yaml = {path: data for path, data in self.commits[sha].files.items() if path.endswith((".yaml", ".yml"))}
        return Tree(revision=self._revision(sha), files=yaml)

    async def between(self, old: str, new: str) -> Sequence[Revision]:
        if not await self.is_ancestor(old, new):
            return (self._revision(new),)
        line = self._line(new)
        return tuple(self._revision(sha) for sha in reversed(line[: line.index(old)][:BETWEEN_LIMIT]))

    async def is_ancestor(self, old: str, new: str) -> bool:
        return old in self._line(new)

    def _line(self, sha: str) -> list[str]:
        line: list[str] = []
        while sha in self.commits:
            line.append(sha)
            sha = self.commits[sha].parent
        return line

    def _revision(self, sha: str) -> Revision:
        return Revision(sha=sha, ref=self.ref, author="author", subject=self.commits[sha].subject)
