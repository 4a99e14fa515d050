"""SqliteStore on bad days: killed while it writes, damaged, locked, full, foreign, newer."""

import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from backstay.adapters import sqlite
from backstay.adapters.sqlite import SqliteStore
from backstay.core.ports import Event, StateUnavailable

WRITER = """
import asyncio, sys
from pathlib import Path
from backstay.adapters.sqlite import SqliteStore
from backstay.core.ports import Event

async def main():
    store = SqliteStore(Path(sys.argv[1]))
    epoch = await store.claim()
    start = int((await store.load() or b"0").split()[0])
    for number in range(start + 1, start + 100_000):
        body = b"%d " % number + bytes(number % 251 for _ in range(50_000))
        events = [Event(at=float(number), kind="rollout", reason="R", message=str(number))]
        await store.save(epoch, body, {f"d{number}": b"%d" % number}, events)
        print(number, flush=True)

asyncio.run(main())
"""
FULL = """
import asyncio, resource, signal, sys
from pathlib import Path
from backstay.adapters.sqlite import SqliteStore
from backstay.core.ports import StateUnavailable

async def main():
    store = SqliteStore(Path(sys.argv[1]))
    epoch = await store.claim()
    await store.save(epoch, b"small", {"d": b"old"})
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (256 * 1024, 256 * 1024))
    try:
        await store.save(epoch, b"x" * 1024 * 1024, {"e": b"new"})
    except StateUnavailable as error:
        print(error)
    else:
        print("was written")
    assert await store.load() == b"small"
    assert await store.blobs(["d", "e"]) == {"d": b"old"}
    await store.save(epoch, b"small again")
    await store.close()

asyncio.run(main())
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "state.db"


@pytest.fixture
async def store(path: Path) -> AsyncIterator[SqliteStore]:
    opened = SqliteStore(path, busy_timeout=0.05)
    yield opened
    await opened.close()


def bytes_below(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.iterdir() if not file.name.endswith(".lock")}


async def problem_of(path: Path) -> str:
    """What an operator that starts on this file says; it must leave every byte as it was."""
    before = bytes_below(path.parent)
    starting = SqliteStore(path, busy_timeout=0.05)
    try:
        with pytest.raises(StateUnavailable) as unavailable:
            await starting.claim()
    finally:
        await starting.close()
    assert bytes_below(path.parent) == before
    return str(unavailable.value)


async def made(path: Path, state: bytes = b"state") -> None:
    store = SqliteStore(path)
    await store.save(await store.claim(), state, {"d": b"blob"})
    await store.close()


async def test_a_kill_in_the_middle_of_saves_loses_nothing_that_was_told_saved(path: Path) -> None:
    drawn = random.Random(7)
    for round_number in range(8):
        writer = subprocess.Popen((sys.executable, "-c", WRITER, str(path)), stdout=subprocess.PIPE, env=_environment())
        assert writer.stdout is not None
        first = writer.stdout.readline()
        time.sleep(drawn.uniform(0, 0.05))
        writer.send_signal(signal.SIGKILL)
        told = int((first + writer.stdout.read()).split()[-1])
        writer.wait()
        writer.stdout.close()
        store = SqliteStore(path)
        assert await store.claim() == 2 * round_number + 2  # the lock went with its process
        state = await store.load()
        assert state is not None
        saved = int(state.split()[0])
        assert told <= saved <= told + 1
        assert state == b"%d " % saved + bytes(saved % 251 for _ in range(50_000))
        assert await store.blobs([f"d{saved}", f"d{saved + 1}"]) == {f"d{saved}": b"%d" % saved}
        assert [event.message for event in await store.events(after=saved - 1)] == [str(saved)]
        await store.close()


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}


async def test_the_holder_of_a_state_is_named_by_its_pid(path: Path, store: SqliteStore) -> None:
    writer = subprocess.Popen((sys.executable, "-c", WRITER, str(path)), stdout=subprocess.PIPE, env=_environment())
    assert writer.stdout is not None
    writer.stdout.readline()
    with pytest.raises(StateUnavailable) as unavailable:
        await store.claim()
    assert str(unavailable.value) == (
        f"{path}: in use by another operator (pid {writer.pid}); "
        "stop that one first, or give this one a state of its own"
    )
    writer.kill()
    writer.wait()
    writer.stdout.close()
    assert await store.claim() == 2


@pytest.mark.parametrize(
    ("content", "found"),
    [(b"", "the file is empty"), (b"garbage" * 1000, "the file is not a database")],
)
async def test_a_file_that_is_no_database_is_left_alone(path: Path, content: bytes, found: str) -> None:
    path.parent.mkdir()
    path.write_bytes(content)
    assert await problem_of(path) == (
        f"{path}: {found}; nothing was overwritten: restore a copy, or move the file away to start from an empty state"
    )


async def test_a_database_with_damaged_pages_is_left_alone(path: Path) -> None:
    await made(path, os.urandom(100_000))
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(os.urandom(4 * 4096))
    assert "nothing was overwritten" in await problem_of(path)


async def test_a_cut_off_database_is_left_alone(path: Path) -> None:
    await made(path, os.urandom(100_000))
    os.truncate(path, 8192)
    assert "nothing was overwritten" in await problem_of(path)


async def test_a_state_that_does_not_match_its_checksum_is_not_believed(path: Path, store: SqliteStore) -> None:
    await made(path)
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE state SET body = ?", (b"stat3",))
    connection.close()
    with pytest.raises(StateUnavailable, match="the saved state does not match its checksum; nothing was overwritten"):
        await store.load()


async def test_another_programs_database_is_left_alone(path: Path) -> None:
    path.parent.mkdir()
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE browser_history (url)")
    connection.close()
    assert await problem_of(path) == f"{path}: is a database of another program, expected Backstay's state"


async def test_a_newer_schema_is_left_alone(path: Path) -> None:
    await made(path)
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    assert await problem_of(path) == (
        f"{path}: written by a newer Backstay (schema 99, this one knows up to 1); upgrade this one"
    )


async def test_a_log_without_its_database_is_not_thrown_away(path: Path) -> None:
    path.parent.mkdir()
    path.with_name("state.db-wal").write_bytes(b"last words")
    assert "is gone, but state.db-wal is still there" in await problem_of(path)


async def test_a_file_that_another_program_keeps_locked_is_said(path: Path, store: SqliteStore) -> None:
    epoch = await store.claim()
    await store.save(epoch, b"before")
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StateUnavailable, match="another program keeps the file locked"):
        await store.save(epoch, b"after")
    other.execute("ROLLBACK")
    other.close()
    assert await store.load() == b"before"
    await store.save(epoch, b"after")
    assert await store.load() == b"after"


def test_a_full_disk_leaves_the_old_state_and_is_recovered_from(path: Path) -> None:
    done = subprocess.run(
        (sys.executable, "-c", FULL, str(path)), capture_output=True, text=True, timeout=60, check=False,
        env=_environment(),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{path}: ")
    assert "was written" not in done.stdout


async def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    store = SqliteStore(tmp_path / "file" / "state.db")
    with pytest.raises(StateUnavailable, match=r"file/state\.db: "):
        await store.claim()
    await store.close()


async def test_a_look_at_the_state_needs_no_claim_and_changes_nothing(path: Path, store: SqliteStore) -> None:
    epoch = await store.claim()
    await store.save(epoch, b"state", {"d": b"blob"}, [Event(at=1.0, kind="order", reason="R", message="m")])
    looking = SqliteStore.open_readonly(path)
    assert await looking.load() == b"state"
    await store.save(epoch, b"newer")
    assert await looking.load() == b"newer"
    assert await looking.blobs(["d"]) == {"d": b"blob"}
    assert len(await looking.events()) == 1
    for writing in (looking.claim(), looking.save(epoch, b"x"), looking.prune(epoch, [])):
        with pytest.raises(StateUnavailable, match="opened read-only, nothing can be written"):
            await writing
    await looking.close()


async def test_a_look_works_on_a_copy_in_a_folder_that_cannot_be_written(path: Path, tmp_path: Path) -> None:
    await made(path)
    shutil.copytree(path.parent, tmp_path / "copy")
    (tmp_path / "copy").chmod(0o555)
    looking = SqliteStore.open_readonly(tmp_path / "copy/state.db")
    assert await looking.load() == b"state"
    await looking.close()
    (tmp_path / "copy").chmod(0o755)


async def test_a_look_at_nothing_says_so_and_makes_nothing(path: Path) -> None:
    looking = SqliteStore.open_readonly(path)
    with pytest.raises(StateUnavailable, match="no state here yet; it is made when the operator first starts"):
        await looking.load()
    await looking.close()
    assert not path.parent.exists()


async def test_old_events_are_forgotten_but_never_the_newest(
    path: Path, store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "EVENTS_KEPT", 6)
    monkeypatch.setattr(sqlite, "EVENTS_ALWAYS_KEPT", 2)
    epoch = await store.claim()
    ages = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, sqlite.EVENTS_KEPT_SECONDS + 4.5]
    await store.save(epoch, b"s", events=[Event(at=at, kind="k", reason="R", message=str(at)) for at in ages])
    await store.prune(epoch, [])
    assert [event.number for event in await store.events()] == [6, 7, 8]
    await store.save(epoch, b"s", events=[Event(at=10 * ages[-1], kind="k", reason="R", message="the clock jumped")])
    await store.prune(epoch, [])
    assert [event.number for event in await store.events()] == [8, 9]


async def test_a_closed_store_says_so(store: SqliteStore) -> None:
    await store.claim()
    await store.close()
    await store.close()
    with pytest.raises(StateUnavailable, match="the state store is closed"):
        await store.load()


async def test_the_state_is_for_its_owner_only(path: Path) -> None:
    await made(path)
    assert path.stat().st_mode & 0o777 == 0o600
