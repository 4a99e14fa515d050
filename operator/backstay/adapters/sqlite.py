"""The durable memory of one mesh in one SQLite file: the embedded default of the StateStore port.

The file is made complete and renamed into place, so a file that is there is either whole or damaged, never half made; a
damaged one is named and left alone. Being the one operator is a kernel lock on a file beside it, which a kill -9
releases by itself; the epoch in the database fences off an operator that lost the lock without noticing.

Rule: nothing in here repairs, truncates or replaces a file it cannot read.
"""

import asyncio
import contextlib
import fcntl
import hashlib
import os
import sqlite3
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, TypeVar

from backstay.core.ports import Event, Fenced, StateUnavailable

SCHEMA_VERSION: Final = 1
APPLICATION_ID: Final = 0x42535459  # "BSTY": tells our files from those of other programs (SQLite's application_id)
EVENTS_KEPT: Final = 100_000  # about 20 MiB of sentences; at ten events a commit that is ten thousand commits
EVENTS_KEPT_SECONDS: Final = 30 * 24 * 3600.0  # a month: what an incident review looks back on
EVENTS_ALWAYS_KEPT: Final = 1_000  # whatever the clock says: one that jumped ahead must not empty the timeline
RETENTION_EVERY: Final = 200  # saves between two looks at the retention; a scan of 100,000 rows costs milliseconds
BUSY_TIMEOUT: Final = 5.0  # seconds to wait for another program's transaction, SQLite's own habit in Python

_TABLES: Final = """
CREATE TABLE epoch (only INTEGER PRIMARY KEY CHECK (only = 1), number INTEGER NOT NULL);
CREATE TABLE state (
  only INTEGER PRIMARY KEY CHECK (only = 1), epoch INTEGER NOT NULL, digest BLOB NOT NULL, body BLOB NOT NULL
);
CREATE TABLE blobs (digest TEXT PRIMARY KEY, body BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE events (
  number INTEGER PRIMARY KEY AUTOINCREMENT, at REAL NOT NULL, kind TEXT NOT NULL, reason TEXT NOT NULL,
  message TEXT NOT NULL, revision TEXT NOT NULL, subject TEXT NOT NULL, warning INTEGER NOT NULL
);
CREATE INDEX events_at ON events (at);
INSERT INTO epoch VALUES (1, 0);
"""
_Result = TypeVar("_Result")


class SqliteStore:
    """StateStore on one file. All SQL runs in one thread of its own, so the loop never waits for a disk."""

    def __init__(self, path: Path, *, busy_timeout: float = BUSY_TIMEOUT, read_only: bool = False) -> None:
        self._path = path
        self._busy_timeout = busy_timeout
        self._read_only = read_only
        self._lock = _OwnerLock(path.with_name(path.name + ".lock"))
        self._connection: sqlite3.Connection | None = None
        self._saves = 0
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"sqlite-{path.name}")

    @classmethod
    def open_readonly(cls, path: Path) -> "SqliteStore":
        """For a look at the state while no operator runs (or beside one); writing raises StateUnavailable."""
        return cls(path, read_only=True)

    def __repr__(self) -> str:
        standing = "read-only" if self._read_only else "owned" if self._lock.held else "not claimed"
        return f"<SqliteStore {self._path} {standing}>"

    async def claim(self) -> int:
        return await self._run(self._claim)

    async def load(self) -> bytes | None:
        return await self._run(self._load)

    async def save(
        self, epoch: int, state: bytes, blobs: Mapping[str, bytes] = {}, events: Sequence[Event] = ()
    ) -> None:
        await self._run(lambda: self._save(epoch, state, blobs, events))

    async def blobs(self, digests: Iterable[str]) -> Mapping[str, bytes]:
        wanted = tuple(digests)
        return await self._run(lambda: self._blobs(wanted))

    async def prune(self, epoch: int, keep: Iterable[str]) -> int:
        kept = frozenset(keep)
        return await self._run(lambda: self._prune(epoch, kept))

    async def events(self, *, after: int = 0, since: float = 0.0, limit: int = 1000) -> Sequence[Event]:
        return await self._run(lambda: self._events(after, since, limit))

    async def close(self) -> None:
        """Let go of the file and of being the operator. Closing twice is fine."""
        with contextlib.suppress(RuntimeError):  # the executor was shut down by an earlier close
            await asyncio.get_running_loop().run_in_executor(self._thread, self._close)
        self._thread.shutdown(wait=False)

    async def _run(self, work: Callable[[], _Result]) -> _Result:
        try:
            future = self._thread.submit(self._mapped, work)
        except RuntimeError as error:
            raise StateUnavailable(f"{self._path}: the state store is closed") from error
        # A write that has begun is finished even if the caller is cancelled: all or nothing holds anyway.
        return await asyncio.wrap_future(future)

    def _mapped(self, work: Callable[[], _Result]) -> _Result:
        try:
            return work()
        except sqlite3.Error as error:
            raise StateUnavailable(_explain(self._path, error)) from error
        except OSError as error:
            raise StateUnavailable(f"{self._path}: {error.strerror or error}") from error

    # What follows runs in the store's own thread.

    def _claim(self) -> int:
        self._must_write()
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._lock.acquire(self._path)
        try:
            if not self._path.exists():
                _create(self._path)
            with self._transaction() as connection:
                connection.execute("UPDATE epoch SET number = number + 1")
                return _epoch(connection)
        except BaseException:
            self._lock.release()
            raise

    def _load(self) -> bytes | None:
        if not self._path.exists() and not self._read_only:
            _refuse_orphaned_log(self._path)
            return None
        row = self._open().execute("SELECT digest, body FROM state").fetchone()
        if row is None:
            return None
        digest, body = row
        if hashlib.sha256(body).digest() != digest:
            raise StateUnavailable(_damaged(self._path, "the saved state does not match its checksum"))
        return bytes(body)

    def _save(self, epoch: int, state: bytes, blobs: Mapping[str, bytes], events: Sequence[Event]) -> None:
        packed = [(digest, zlib.compress(body)) for digest, body in blobs.items()]
        self._saves += 1
        with self._transaction() as connection:
            self._must_own(connection, epoch)
            row = (epoch, hashlib.sha256(state).digest(), state)
            connection.execute("INSERT OR REPLACE INTO state VALUES (1, ?, ?, ?)", row)
            connection.executemany("INSERT OR IGNORE INTO blobs VALUES (?, ?)", packed)
            connection.executemany(
                "INSERT INTO events (at, kind, reason, message, revision, subject, warning) "
                "VALUES (?, ?, ?, ?, ?, ?, ?)",
                ((e.at, e.kind, e.reason, e.message, e.revision, e.subject, int(e.warning)) for e in events),
            )
            if self._saves % RETENTION_EVERY == 1:
                _forget_old_events(connection)

    def _blobs(self, wanted: Sequence[str]) -> Mapping[str, bytes]:
        found: dict[str, bytes] = {}
        connection = self._open()
        for digest in wanted:
            row = connection.execute("SELECT body FROM blobs WHERE digest = ?", (digest,)).fetchone()
            if row is not None:
                found[digest] = _unpack(self._path, digest, row[0])
        return found

    def _prune(self, epoch: int, keep: frozenset[str]) -> int:
        with self._transaction() as connection:
            self._must_own(connection, epoch)
            stale = [(digest,) for (digest,) in connection.execute("SELECT digest FROM blobs") if digest not in keep]
            connection.executemany("DELETE FROM blobs WHERE digest = ?", stale)
            _forget_old_events(connection)
        return len(stale)

    def _events(self, after: int, since: float, limit: int) -> Sequence[Event]:
        rows = self._open().execute(
            "SELECT number, at, kind, reason, message, revision, subject, warning FROM events "
            "WHERE number > ? AND at >= ? ORDER BY number LIMIT ?",
            (after, since, limit),
        )
        return tuple(
            Event(
                number=number, at=at, kind=kind, reason=reason, message=message,
                revision=revision, subject=subject, warning=bool(warning),
            )
            for number, at, kind, reason, message, revision, subject, warning in rows
        )  # fmt: skip

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        self._lock.release()

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        self._must_write()
        connection = self._open()
        connection.execute("BEGIN IMMEDIATE")
        try:
            yield connection
            connection.execute("COMMIT")
        except BaseException:
            # A full disk may have rolled back already; what counts is that none of it stays.
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise

    def _must_write(self) -> None:
        if self._read_only:
            raise StateUnavailable(f"{self._path}: opened read-only, nothing can be written")

    def _must_own(self, connection: sqlite3.Connection, epoch: int) -> None:
        newest = _epoch(connection)
        if epoch != newest:
            raise Fenced(f"{self._path}: epoch {epoch} is not the newest ({newest}): another operator has taken over")
        if not self._lock.held:
            raise StateUnavailable(f"{self._path}: not claimed by this operator")

    def _open(self) -> sqlite3.Connection:
        if self._connection is None:
            self._connection = _connect(self._path, self._busy_timeout, self._read_only)
        return self._connection


class _OwnerLock:
    """Who is the operator of a state file: the holder of a kernel lock, with its pid inside for the error message."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None

    @property
    def held(self) -> bool:
        return self._descriptor is not None

    def acquire(self, guarded: Path) -> None:
        if self._descriptor is not None:
            return
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip() or "unknown"
            os.close(descriptor)
            raise StateUnavailable(
                f"{guarded}: in use by another operator (pid {holder}); "
                "stop that one first, or give this one a state of its own"
            ) from error
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        self._descriptor = descriptor

    def release(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)  # closing releases; the file stays, removing it would race with the next holder
            self._descriptor = None


def _create(path: Path) -> None:
    """Make an empty store beside its place and rename it in: a crash leaves either no file or a whole one."""
    _refuse_orphaned_log(path)
    draft = path.with_name(path.name + ".new")
    draft.unlink(missing_ok=True)
    connection = sqlite3.connect(draft, isolation_level=None)
    try:
        connection.executescript(_TABLES)
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
    finally:
        connection.close()
    draft.chmod(0o600)
    _sync(draft)
    draft.replace(path)
    _sync(path.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _refuse_orphaned_log(path: Path) -> None:
    """A log without its database is what is left of a state somebody removed; a new file would discard it."""
    log = path.with_name(path.name + "-wal")
    if log.exists() and log.stat().st_size:
        raise StateUnavailable(f"{path}: is gone, but {log.name} is still there; restore the file or move both away")


def _connect(path: Path, busy_timeout: float, read_only: bool) -> sqlite3.Connection:
    if not path.exists():
        raise StateUnavailable(f"{path}: no state here yet; it is made when the operator first starts")
    _refuse_foreign(path)
    connection = sqlite3.connect(
        _uri(path, read_only), uri=True, isolation_level=None, timeout=busy_timeout, check_same_thread=False
    )
    try:
        _check(path, connection)
        if not read_only:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")  # a commit survives power loss, not only a crash
    except BaseException:
        connection.close()
        raise
    return connection


def _uri(path: Path, read_only: bool) -> str:
    base = path.absolute().as_uri()
    if not read_only:
        return f"{base}?mode=rw"
    # Without a log there is nobody writing, and a folder that cannot be written to could not be opened otherwise.
    log = path.with_name(path.name + "-wal")
    return f"{base}?mode=ro" if log.exists() or os.access(path.parent, os.W_OK) else f"{base}?immutable=1"


def _refuse_foreign(path: Path) -> None:
    """Say what is wrong with the first bytes before SQLite takes an empty file for a new database."""
    with path.open("rb") as file:
        head = file.read(16)
    if head != b"SQLite format 3\x00":
        found = "the file is empty" if not head else "the file is not a database"
        raise StateUnavailable(_damaged(path, found))


def _check(path: Path, connection: sqlite3.Connection) -> None:
    (owner,) = connection.execute("PRAGMA application_id").fetchone()
    if owner != APPLICATION_ID:
        raise StateUnavailable(f"{path}: is a database of another program, expected Backstay's state")
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version > SCHEMA_VERSION:
        raise StateUnavailable(
            f"{path}: written by a newer Backstay (schema {version}, this one knows up to {SCHEMA_VERSION}); "
            "upgrade this one"
        )
    (verdict,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    if verdict != "ok":
        raise StateUnavailable(_damaged(path, str(verdict).replace("\n", " ")))


def _damaged(path: Path, found: str) -> str:
    return (
        f"{path}: {found}; nothing was overwritten: restore a copy, or move the file away to start from an empty state"
    )


def _explain(path: Path, error: sqlite3.Error) -> str:
    text = str(error)
    if "locked" in text or "busy" in text:
        return f"{path}: another program keeps the file locked ({text}); close it and try again"
    if "full" in text:
        return f"{path}: the disk is full, the state stays as it was ({text})"
    if type(error) is sqlite3.DatabaseError or "malformed" in text:
        return _damaged(path, text)
    return f"{path}: {text}"


def _epoch(connection: sqlite3.Connection) -> int:
    (number,) = connection.execute("SELECT number FROM epoch").fetchone()
    return int(number)


def _forget_old_events(connection: sqlite3.Connection) -> None:
    newest, last = connection.execute("SELECT max(at), max(number) FROM events").fetchone()
    if newest is None:
        return
    connection.execute("DELETE FROM events WHERE number <= ?", (last - EVENTS_KEPT,))
    connection.execute(
        "DELETE FROM events WHERE at < ? AND number <= ?", (newest - EVENTS_KEPT_SECONDS, last - EVENTS_ALWAYS_KEPT)
    )


def _unpack(path: Path, digest: str, body: bytes) -> bytes:
    try:
        return zlib.decompress(body)
    except zlib.error as error:
        raise StateUnavailable(_damaged(path, f"part {digest[:12]} cannot be unpacked")) from error
