"""Orders reach the operator with who and why; watching says each change once; waiting ends with the right code."""

import getpass
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from backstay.cli import wait
from backstay.cli.exits import Exit, Failed
from backstay.control.api import ActionResult
from backstay.core import status
from backstay.core.rollout.model import Phase
from backstay.core.view import MeshView
from support import views
from support.commands import backstay, git


@pytest.mark.parametrize(
    ("arguments", "verb", "args"),
    [
        (["rollout", "pause"], "pause", {}),
        (["rollout", "resume"], "resume", {}),
        (["rollout", "promote"], "promote", {}),
        (["rollout", "promote", "--full"], "promote-full", {}),
        (["rollout", "abort"], "abort", {}),
        (["rollout", "retry"], "retry", {}),
        (["rollout", "retry", "Route/shop/b"], "retry", {"document": "Route/shop/b"}),
        (["rollout", "retry", "bbbbbbb"], "retry", {"commit": "bbbbbbb"}),
        (["rollback", "--to", "aaaaaaa", "--path", "shop"], "rollback", {"to": "aaaaaaa", "path": "shop"}),
        (["reconcile"], "reconcile", {}),
        (["suspend"], "suspend", {}),
        (["resume"], "unsuspend", {}),
        (["revoke", "web-1"], "revoke", {"who": "web-1"}),
        (["revoke", "spiffe://td/ns/a/sa/b", "--undo"], "unrevoke", {"who": "spiffe://td/ns/a/sa/b"}),
    ],
)
def test_orders(
    state_dir: Path, operator: views.ShowingOperator, arguments: list[str], verb: str, args: dict[str, str]
) -> None:
    ran = backstay(*arguments, "--reason", "because", state_dir=state_dir)
    assert (ran.code, ran.out) == (Exit.OK, "as you wish\n")
    (action,) = operator.actions
    assert (action.verb, action.args, action.reason) == (verb, args, "because")
    assert action.actor.startswith(f"{getpass.getuser()}@")


def test_an_order_that_is_not_carried_out_is_a_no(state_dir: Path, operator: views.ShowingOperator) -> None:
    operator.answer = ActionResult(done=False, reason="NothingRunning", message="no rollout is running")
    ran = backstay("rollout", "abort", state_dir=state_dir)
    assert (ran.code, ran.out, ran.err) == (Exit.NO, "", "error: no rollout is running [NothingRunning]\n")


# --- status and watch ------------------------------------------------------------


def rollout_of(view: MeshView) -> dict[str, Any]:
    return status.objects(view, {})[0].rollouts[0]


def test_rollout_status_shows_cohorts(state_dir: Path) -> None:
    out = backstay("rollout", "status", state_dir=state_dir).out
    assert out.splitlines() == [
        "rollout   r2  main@sha1:bbbbbbbb  Tune b",
        "phase     shifting  wave 1/4, 5.0s in it",
        "verdict   inconclusive",
        "  shop/a                   ████████████░░░░░░░░░░░░ 50 %, 1/2 proxies, inconclusive",
        "    candidate 41/118 (34.7 %) bad   stable 3/1204 (0.249 %) bad",
        "    41 x timeout on routes/b.shop:80#main  b.yaml:7",
    ]


def test_a_failed_rollout_answers_no(state_dir: Path, operator: views.ShowingOperator) -> None:
    operator.shown = views.held()
    ran = backstay("rollout", "status", state_dir=state_dir)
    assert ran.code == Exit.NO
    assert "harm      41 requests, detected after 1.3s, restored after 0.4s" in ran.out


def test_watch_says_each_change_once(state_dir: Path, operator: views.ShowingOperator) -> None:
    preparing = views.rolling(Phase.PREPARING)  # twice: the first look is at the repository
    shown = [
        preparing,
        preparing,
        views.rolling(),
        views.rolling(),
        views.rolling(Phase.ROLLING_BACK),
        views.held(),
    ]
    remaining = iter(shown)

    def advance() -> None:
        operator.shown = next(remaining, shown[-1])

    operator.on_look = advance
    ran = backstay("rollout", "watch", state_dir=state_dir)
    assert ran.code == Exit.NO
    assert ran.out.splitlines() == [
        "r2 main@sha1:bbbbbbbb preparing wave 1/4 inconclusive",
        "r2 main@sha1:bbbbbbbb shifting wave 1/4 inconclusive",
        f"r2 main@sha1:bbbbbbbb rolling-back wave 1/4 fail: {views.SENTENCE}",
        f"r2 main@sha1:bbbbbbbb failed fail: {views.SENTENCE}",
    ]


def test_watch_waits_for_a_rollout_that_is_about_to_begin(state_dir: Path, operator: views.ShowingOperator) -> None:
    """Right after a push the newest rollout is still the last one."""
    ended = views.rollout(Phase.SUCCEEDED, id="r1")
    before = views.live()
    pushed = msgspec.structs.replace(before.state, desired_revision=views.named(views.NEW), history=(ended,))
    shown = iter([replace(before, state=pushed)] * 3)

    def advance() -> None:
        operator.shown = next(shown, views.held())

    operator.on_look = advance
    ran = backstay("rollout", "watch", state_dir=state_dir)
    assert ran.err == "waiting for a rollout to begin\n"
    assert [line.split()[0] for line in ran.out.splitlines()] == ["r2"]


def test_watch_gives_up_in_time(state_dir: Path) -> None:
    ran = backstay("rollout", "watch", "--timeout", "0s", state_dir=state_dir)
    assert (ran.code, ran.err) == (Exit.TIMEOUT, "error: rollout r2 is still shifting\n")


# --- wait ------------------------------------------------------------


@pytest.mark.parametrize(
    ("view", "sha", "code"),
    [
        (views.live(), views.OLD, Exit.OK),
        (views.held(), views.NEW, Exit.ROLLED_BACK),
        (views.invalid(), views.BAD, Exit.INVALID),
        (views.rolling(), views.NEW, Exit.TIMEOUT),
        (views.live(), "f" * 40, Exit.TIMEOUT),
    ],
)
def test_wait_ends_with_what_became_of_the_commit(
    state_dir: Path, operator: views.ShowingOperator, view: MeshView, sha: str, code: Exit
) -> None:
    operator.shown = view
    ran = backstay("wait", "--for", "live", sha[:10], "--timeout", "0s", state_dir=state_dir)
    assert ran.code == code


def test_wait_sees_the_commit_through(state_dir: Path, operator: views.ShowingOperator) -> None:
    looks = iter([views.live(), views.rolling(), views.rolling()])

    def advance() -> None:
        operator.shown = next(looks, views.held())

    operator.on_look = advance
    ran = backstay("wait", "--for", "live", views.NEW, state_dir=state_dir)
    assert ran.code == Exit.ROLLED_BACK
    assert [line.split(":")[0] for line in ran.err.splitlines()] == [
        "bbbbbbbb unseen",
        "bbbbbbbb rolling-out",
        "bbbbbbbb rolled-back",
    ]
    assert ran.out == "bbbbbbbb rolled-back\n"


def test_wait_outlives_an_operator_that_is_away() -> None:
    ran = backstay("wait", "--for", "live", views.NEW, "--timeout", "0s")
    assert ran.code == Exit.TIMEOUT
    assert "no operator is running" in ran.err


def test_names_are_resolved_by_git(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q", "-b", "main")
    git(tmp_path, "commit", "-q", "--allow-empty", "-m", "first")
    sha = git(tmp_path, "rev-parse", "HEAD")
    assert wait.resolve("HEAD", tmp_path) == wait.resolve("main", tmp_path) == sha
    assert wait.resolve(f"main@sha1:{sha}", tmp_path) == sha
    with pytest.raises(Failed, match="git knows no commit 'nope' here"):
        wait.resolve("nope", tmp_path)


@pytest.mark.parametrize("named", ["HEAD", "main", "nowhere"])
def test_a_rollback_goes_to_what_git_calls_it_here(
    state_dir: Path, operator: views.ShowingOperator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: str
) -> None:
    git(tmp_path, "init", "-q", "-b", "main")
    git(tmp_path, "commit", "-q", "--allow-empty", "-m", "first")
    monkeypatch.chdir(tmp_path)
    assert backstay("rollback", "--to", named, state_dir=state_dir).code == Exit.OK
    (action,) = operator.actions
    assert action.args == {"to": named if named == "nowhere" else git(tmp_path, "rev-parse", "HEAD")}


def test_a_revision_is_never_an_option_of_git(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q", "-b", "main")
    with pytest.raises(Failed):
        wait.resolve("--show-toplevel", tmp_path)


def test_every_outcome_is_a_state_that_status_knows() -> None:
    assert set(wait.OUTCOMES) <= set(status.RevisionState.__args__)  # type: ignore[attr-defined]
