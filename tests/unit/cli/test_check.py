"""`check` says what is wrong and what to do about it."""

import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from backstay.cli import check
from backstay.cli.exits import Exit
from backstay.cli.session import Session
from backstay.control.api import MAX_SOCKET_PATH
from backstay.core.view import SourceCondition
from support import views
from support.commands import backstay


def test_check_of_a_healthy_mesh(state_dir: Path, operator: views.ShowingOperator) -> None:
    operator.shown = views.live()
    facts = {fact.name: fact for fact in check.operator_facts(Session(state_dir=state_dir))}
    assert {name: fact.level for name, fact in facts.items()} == {
        "operator": "ok",
        "git remote": "ok",
        "mesh": "ok",
        "proxies": "ok",
        "reports": "warn",  # likewise
        "certificates": "fail",  # of 2023: the clock here is the real one
    }


def test_check_names_what_is_wrong_and_fails(state_dir: Path, operator: views.ShowingOperator) -> None:
    away = SourceCondition(ok=False, reason="Timeout", message="git did not answer in 60 s")
    operator.shown = replace(views.held(), source=away, version="9.9.9")
    ran = backstay("check", state_dir=state_dir)
    assert ran.code == Exit.NO
    assert "× git remote: Timeout: git did not answer in 60 s" in ran.out
    assert "‼ operator: runs 9.9.9, this command is 0.1.0" in ran.out
    assert "× mesh: RevisionHeld: " in ran.out


def test_check_before_there_is_an_operator(tmp_path: Path) -> None:
    ran = backstay("check", "--pre", "-o", "json", state_dir=tmp_path / "new")
    facts = json.loads(ran.out)["facts"]
    assert [fact["name"] for fact in facts] == [
        "python",
        "git",
        "tls",
        "packages",
        "state folder",
        "socket path",
        "disk",
        "loopback",
    ]


def test_check_without_an_operator_fails_with_what_to_do(tmp_path: Path) -> None:
    ran = backstay("check", state_dir=tmp_path)
    assert ran.code == Exit.NO
    assert "× operator: no operator is running" in ran.out
    assert "start one with `backstay up" in ran.out


def test_a_state_folder_that_others_can_read_is_a_warning(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    facts = {fact.name: fact for fact in check.machine_facts(tmp_path)}
    assert (facts["state folder"].level, facts["state folder"].hint) == ("warn", f"chmod 700 {tmp_path}")


def proxy(at: str, *, connected: bool = True) -> dict[str, Any]:
    return {"metadata": {"name": "a-0"}, "status": {"connected": connected, "lastReport": at}}


@pytest.mark.parametrize(
    ("item", "level"),
    [
        (proxy("2026-01-01T00:00:59Z"), "ok"),
        (proxy("2026-01-01T00:00:30Z"), "warn"),
        (proxy("2026-01-01T00:09:00Z"), "warn"),  # the clock went back
        (proxy("2026-01-01T00:00:30Z", connected=False), "ok"),  # away: said by `proxies`
        (proxy(""), "ok"),  # has just come
    ],
)
def test_a_proxy_that_is_silent_or_from_the_future_is_named(item: dict[str, Any], level: str) -> None:
    now = datetime(2026, 1, 1, 0, 1, tzinfo=UTC).timestamp()
    assert check._silent([item], now).level == level


@pytest.mark.parametrize(
    ("said", "level"),
    [
        ("git version 2.39.5", "ok"),
        ("git version 2.31.9", "fail"),
        ("git version 2.50.1 (Apple Git-155)", "ok"),
        ("?", "warn"),
    ],
)
def test_gits_version_is_read(said: str, level: str) -> None:
    assert check.git_fact(said).level == level


def test_a_state_folder_too_deep_for_a_socket_is_found_before_the_start(tmp_path: Path) -> None:
    facts = {fact.name: fact.level for fact in check.machine_facts(tmp_path / ("x" * 100))}
    assert facts["socket path"] == "fail"
    assert check.MAX_SOCKET_PATH == MAX_SOCKET_PATH
