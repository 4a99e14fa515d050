"""status, get, describe, history, timeline: data on stdout, talk on stderr, and an answer without an operator too."""

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from backstay.adapters.sqlite import SqliteStore
from backstay.cli.exits import Exit
from backstay.core import memory
from backstay.core.ports import Event
from backstay.settings import STATE_FILE
from support import views
from support.commands import backstay


def table(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines()]


def test_status_says_what_is_live_and_why(state_dir: Path, operator: views.ShowingOperator) -> None:
    operator.shown = views.held()
    ran = backstay("status", state_dir=state_dir)
    partly = f"main@sha1:bbbbbbbb is partly live: 1 document of bbbbbbbb held. {views.SENTENCE}"
    assert ran.code == Exit.OK
    assert ran.out.splitlines() == [
        "mesh       shop  https://git.example/mesh.git main",
        f"Ready      False  RevisionHeld: {partly}",
        f"Stalled    True  RevisionHeld: {partly}",
        "Validated  True  Valid: main@sha1:bbbbbbbb is valid",
        f"RolledBack True  VerdictFail: bbbbbbbb (Route/shop/b): {views.SENTENCE}",
        "desired    main@sha1:bbbbbbbb",
        "active     main@sha1:bbbbbbbb",
        "proxies    4: 4 synced",
        "intents    1: 1 held",
        "held       bbbbbbbb: Route/shop/b",
        f"           {views.SENTENCE}",
    ]


def test_status_shows_problems_with_their_place(state_dir: Path, operator: views.ShowingOperator) -> None:
    operator.shown = views.invalid()
    ran = backstay("status", state_dir=state_dir)
    assert ran.out.splitlines()[-1] == f"error      {views.PROBLEM}"


@pytest.mark.parametrize(("form", "load"), [("json", json.loads), ("yaml", yaml.safe_load)])
def test_status_as_data_is_the_crd(state_dir: Path, form: str, load: Any) -> None:
    found = load(backstay("status", "-o", form, state_dir=state_dir).out)
    assert (found["kind"], found["metadata"]["name"]) == ("MeshRepository", "shop")


def test_get_intents(state_dir: Path) -> None:
    assert table(backstay("get", "intents", state_dir=state_dir).out) == [
        ["NAMESPACE", "KIND", "NAME", "STATE", "PROXIES", "PROVEN", "PLACE"],
        ["shop", "Route", "b", "rolling-out", "1/2", "Unknown", "b.yaml:1"],
    ]


def test_get_proxies_wide(state_dir: Path) -> None:
    lines = table(backstay("get", "proxies", "-o", "wide", state_dir=state_dir).out)
    candidate = views.WANTED_CONFIGS.digests["shop/a"][:12]
    assert lines[1][:7] == [
        "a-0",
        "shop/a",
        "splitting",
        views.STABLE_CONFIGS.digests["shop/a"][:12],
        candidate,
        "100",
        "%",
    ]


@pytest.mark.parametrize("kind", ["intents", "workloads", "proxies", "revisions", "rollouts"])
@pytest.mark.parametrize("form", ["table", "wide", "json", "yaml"])
def test_every_kind_has_every_form(state_dir: Path, kind: str, form: str) -> None:
    ran = backstay("get", kind, "-o", form, state_dir=state_dir)
    assert (ran.code, ran.err) == (Exit.OK, "")
    assert ran.out.strip()


def test_get_one_by_name(state_dir: Path) -> None:
    for name in ("a", "shop/a"):
        found = json.loads(backstay("get", "workload", name, "-o", "json", state_dir=state_dir).out)
        assert [item["metadata"]["name"] for item in found["items"]] == ["a"]


def test_get_a_revision_by_the_start_of_its_sha(state_dir: Path) -> None:
    found = json.loads(backstay("get", "revisions", "bbbb", "-o", "json", state_dir=state_dir).out)
    assert [item["metadata"]["name"] for item in found["items"]] == [views.NEW]


def test_get_what_is_not_there(state_dir: Path) -> None:
    ran = backstay("get", "intents", "zzz", state_dir=state_dir)
    assert (ran.code, ran.out) == (Exit.NO, "")
    assert ran.err == "error: no 'zzz' among intents\nhint: `backstay get intents` lists them\n"


def test_get_without_headers(state_dir: Path) -> None:
    assert table(backstay("get", "revisions", "--no-headers", state_dir=state_dir).out)[0][:2] == [
        "bbbbbbbb",
        "rolling-out",
    ]


def test_describe_shows_conditions_and_events(state_dir: Path, operator: views.ShowingOperator) -> None:
    now = time.time()
    operator.told = [
        Event(number=1, at=now, kind="rollout", reason="WaveStarted", message="wave 1", subject="shop/a"),
        Event(number=2, at=now, kind="rollout", reason="WaveStarted", message="wave 1", subject="shop/other"),
    ]
    out = backstay("describe", "workload", "shop/a", state_dir=state_dir).out
    assert "    Ready         True     Synced: 2 proxies (since 2023-11-14T22:13:20Z)" in out.splitlines()
    assert out.splitlines()[-2] == "events:"
    assert "WaveStarted        wave 1  (shop/a)" in out.splitlines()[-1]


def test_describe_wants_a_name_that_is_clear(state_dir: Path) -> None:
    ran = backstay("describe", "proxy", "zzz", state_dir=state_dir)
    assert (ran.code, ran.err.splitlines()[0]) == (Exit.NO, "error: no 'zzz' among proxies")


def test_history_tells_why(state_dir: Path, operator: views.ShowingOperator) -> None:
    operator.shown = views.held()
    lines = backstay("history", state_dir=state_dir).out.splitlines()
    assert lines[1].split()[:5] == ["r2", "failed", "1/4", "fail", "main@sha1:bbbbbbbb"]
    assert lines[2] == f"r2: {views.SENTENCE}"


def test_timeline_is_in_order_and_knows_hosts_as_words(state_dir: Path, operator: views.ShowingOperator) -> None:
    now = time.time()
    operator.told = [
        Event(
            number=1,
            at=now - 3,
            kind="commit",
            reason="RevisionSeen",
            message="Tune b",
            revision=views.named(views.NEW),
        ),
        Event(number=2, at=now - 2, kind="endpoints", reason="EndpointAdded", message="up", subject="sa-logic.shop"),
        Event(number=3, at=now - 1, kind="endpoints", reason="EndpointAdded", message="up", subject="sa-logic-v2.shop"),
    ]
    ran = backstay("timeline", state_dir=state_dir)
    assert [line.split()[2] for line in ran.out.splitlines()] == ["commit", "endpoints", "endpoints"]
    only = backstay("timeline", "sa-logic", state_dir=state_dir).out.splitlines()
    assert [line.rpartition("  ")[2] for line in only] == ["(sa-logic.shop)"]


def test_timeline_wants_a_duration(state_dir: Path) -> None:
    ran = backstay("timeline", "--since", "yesterday", state_dir=state_dir)
    assert ran.code == Exit.TROUBLE
    assert "'yesterday' is not a duration" in ran.err


# --- without an operator ----------------------------------------------------------------------------------------------


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
