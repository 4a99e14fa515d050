"""What every StateStore promises, on the real one and on the fake."""

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from backstay.adapters.sqlite import SqliteStore
from backstay.core.ports import Event, Fenced, StateStore, StateUnavailable
from ports.fakes import FakeDisk, FakeStore


@dataclass
class Disk:
    """Opens stores on one place that outlives them."""

    open: Callable[[], StateStore]
    forget_owner: Callable[[], Awaitable[None]]
    """Lets a second operator in while the first still believes it is the one."""


@pytest.fixture(params=["fake", "sqlite"])
async def disk(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Disk]:
    opened: list[StateStore] = []
    memory, path = FakeDisk(), tmp_path / "state.db"

    def open_store() -> StateStore:
        opened.append(FakeStore(memory) if request.param == "fake" else SqliteStore(path))
        return opened[-1]

    async def forget_owner() -> None:
        memory.owner = None
        path.with_name("state.db.lock").unlink(missing_ok=True)

    yield Disk(open=open_store, forget_owner=forget_owner)
    for store in opened:
        await store.close()


def event(reason: str, at: float = 1.0) -> Event:
    return Event(
        at=at, kind="rollout", reason=reason, message="said", revision="main@sha1:1", subject="a", warning=True
    )


async def test_a_new_store_has_no_state(disk: Disk) -> None:
    assert await disk.open().load() is None


async def test_what_was_saved_is_there_after_a_restart(disk: Disk) -> None:
    first = disk.open()
    await first.save(await first.claim(), b"state", {"d1": b"one", "d2": b""}, [event("WaveStarted")])
    await first.close()
    second = disk.open()
    assert await second.load() == b"state"
    assert await second.blobs(["d1", "d2", "d3"]) == {"d1": b"one", "d2": b""}
    [kept] = await second.events()
    assert (kept.number, kept.reason, kept.message, kept.revision, kept.subject, kept.warning) == (
        1, "WaveStarted", "said", "main@sha1:1", "a", True,
    )  # fmt: skip


async def test_the_epoch_grows_with_every_claim(disk: Disk) -> None:
    epochs = []
    for _ in range(3):
        store = disk.open()
        epochs.append(await store.claim())
        await store.close()
    assert epochs == [1, 2, 3]


async def test_a_second_operator_is_refused_while_the_first_lives(disk: Disk) -> None:
    await disk.open().claim()
    with pytest.raises(StateUnavailable, match="in use by another operator"):
        await disk.open().claim()


async def test_an_operator_that_was_replaced_can_write_nothing(disk: Disk) -> None:
    old, new = disk.open(), disk.open()
    stale = await old.claim()
    await old.save(stale, b"old", {"d": b"kept"})
    await disk.forget_owner()
    await new.save(await new.claim(), b"new")
    with pytest.raises(Fenced):
        await old.save(stale, b"overwritten", {"e": b"x"}, [event("Late")])
    with pytest.raises(Fenced):
        await old.prune(stale, [])
    assert await new.load() == b"new"
    assert await new.blobs(["d", "e"]) == {"d": b"kept"}
    assert await new.events() == ()


async def test_saving_without_a_claim_is_refused(disk: Disk) -> None:
    owner = disk.open()
    epoch = await owner.claim()
    await owner.save(epoch, b"mine")
    with pytest.raises(StateUnavailable):
        await disk.open().save(epoch, b"theirs")
    assert await owner.load() == b"mine"


async def test_a_blob_keeps_its_first_content(disk: Disk) -> None:
    store = disk.open()
    epoch = await store.claim()
    await store.save(epoch, b"1", {"d": b"content"})
    await store.save(epoch, b"2", {"d": b"content"})
    assert await store.blobs(["d"]) == {"d": b"content"}


async def test_prune_forgets_all_that_is_not_kept(disk: Disk) -> None:
    store = disk.open()
    epoch = await store.claim()
    await store.save(epoch, b"s", {"a": b"1", "b": b"2", "c": b"3"})
    assert await store.prune(epoch, ["b", "unknown"]) == 2
    assert await store.blobs(["a", "b", "c"]) == {"b": b"2"}
    assert await store.load() == b"s"


async def test_events_are_read_in_order_from_where_one_left_off(disk: Disk) -> None:
    store = disk.open()
    epoch = await store.claim()
    await store.save(epoch, b"s", events=[event("A", 10.0), event("B", 20.0)])
    await store.save(epoch, b"s", events=[event("C", 30.0)])
    assert [e.reason for e in await store.events()] == ["A", "B", "C"]
    assert [e.reason for e in await store.events(after=1)] == ["B", "C"]
    assert [e.reason for e in await store.events(since=20.0)] == ["B", "C"]
    assert [e.reason for e in await store.events(limit=2)] == ["A", "B"]
    assert [e.number for e in await store.events()] == [1, 2, 3]
