"""`check` says what is wrong and what to do about it."""

import json
from dataclasses import replace
from pathlib import Path

from backstay.cli import check
from backstay.cli.exits import Exit
from backstay.cli.session import Session
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
    assert [fact["name"] for fact in facts] == ["python", "git", "tls", "packages", "state folder", "disk"]


def test_check_without_an_operator_fails_with_what_to_do(tmp_path: Path) -> None:
    ran = backstay("check", state_dir=tmp_path)
    assert ran.code == Exit.NO
    assert "× operator: no operator is running" in ran.out
    assert "start one with `backstay up" in ran.out


def test_a_state_folder_that_others_can_read_is_a_warning(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    facts = {fact.name: fact for fact in check.machine_facts(tmp_path)}
    assert (facts["state folder"].level, facts["state folder"].hint) == ("warn", f"chmod 700 {tmp_path}")
