"""Without an operator its state file answers, and is only read."""

import asyncio
import time
from pathlib import Path

import msgspec
import pytest

from backstay.adapters.sqlite import SqliteStore
from backstay.cli.exits import Exit
from backstay.core import memory
from backstay.core.ports import Event
from backstay.settings import STATE_FILE
from support import views
from support.commands import backstay


@pytest.fixture
def left_behind(tmp_path: Path) -> Path:
    """The state folder of an operator that has ended."""

    async def write() -> None:
        digest, blobs = memory.remember(views.STABLE)
        state = msgspec.structs.replace(views.held().state, stable_documents=digest, desired_documents=digest)
        store = SqliteStore(tmp_path / STATE_FILE)
        epoch = await store.claim()
        now = time.time()
        events = [Event(at=now - 5, kind="operator", reason="Started", message="operator started")]
        await store.save(epoch, msgspec.json.encode(state), blobs, events)
        await store.close()

    asyncio.run(write())
    return tmp_path


def test_status_answers_from_the_state_file_and_says_so(left_behind: Path) -> None:
    ran = backstay("status", state_dir=left_behind)
    assert ran.code == Exit.OK
    assert "answering from its state file" in ran.err
    assert ran.out.splitlines()[1] == (
        "Ready      False  OperatorFault: no operator is running; this is what it knew when it stopped"
    )
    assert "held       bbbbbbbb: Route/shop/b" in ran.out


def test_history_intents_and_timeline_answer_from_the_state_file(left_behind: Path) -> None:
    assert "r2" in backstay("history", state_dir=left_behind).out
    assert "Route" in backstay("get", "intents", state_dir=left_behind).out
    assert "operator started" in backstay("timeline", state_dir=left_behind).out


def test_what_only_an_operator_knows_is_refused_with_what_to_do(left_behind: Path) -> None:
    ran = backstay("get", "proxies", state_dir=left_behind)
    assert (ran.code, ran.out) == (Exit.TROUBLE, "")
    assert ran.err == (
        f"error: no operator is running for the state folder {left_behind}\n"
        "hint: start one with `backstay up REPOSITORY --workloads FILE`, or name its folder with --state-dir\n"
    )


def test_looking_changes_nothing(left_behind: Path) -> None:
    before = (left_behind / STATE_FILE).read_bytes()
    backstay("status", state_dir=left_behind)
    assert (left_behind / STATE_FILE).read_bytes() == before


def test_a_damaged_state_file_is_named(left_behind: Path) -> None:
    (left_behind / STATE_FILE).write_bytes(b"not a database")
    ran = backstay("status", state_dir=left_behind)
    assert ran.code == Exit.TROUBLE
    assert "the file is not a database; nothing was overwritten" in ran.err
