"""The live picture says what the objects say, at every width, and never grows while numbers change."""

import io
from typing import Any

import pytest
from rich.console import Console, RenderableType

from backstay.cli.picture import picture, share_shown, traffic, waves
from backstay.core import status
from backstay.core.rollout.model import Phase
from backstay.core.view import MeshView
from support import views


def drawn(what: RenderableType, width: int = 160) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(what)
    return console.export_text()


def rollout_of(view: MeshView) -> dict[str, Any]:
    return status.objects(view, {})[0].rollouts[0]


def second(ok: int, bad: int = 0) -> dict[str, Any]:
    return {"outcomes": {"200": ok, **({"500": bad} if bad else {})}, "sent": ok + bad, "open": 0}


def test_it_shows_where_from_which_wave_which_share_which_cohorts_and_why() -> None:
    text = drawn(picture(rollout_of(views.held())))
    for part in ("r2  main@sha1:bbbbbbbb", "a ", "50 %", "41/118 (34.7 %)", "3/1204 (0.249 %)", views.SENTENCE):
        assert part in text


@pytest.mark.parametrize("width", [40, 60, 80, 100, 120, 200])
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    shown = picture(rollout_of(views.rolling()), [second(90, 3)] * 200, width=width)
    assert max(len(line) for line in drawn(shown, width).splitlines()) <= width


def test_narrow_terminals_keep_the_candidates_failures() -> None:
    text = drawn(picture(rollout_of(views.held()), width=60), 60)
    assert "41/118 (34.7 %)" in text
    assert "3/1204" not in text


def test_waves_that_passed_the_present_one_and_those_to_come() -> None:
    shown = rollout_of(views.rolling())["status"] | {"wave": 2, "waves": 4, "waveElapsed": "3s"}
    assert drawn(waves(shown)).strip() == "●━━◉━━○━━○  shifting, wave 2 of 4, 3s in it"


def test_a_rollout_that_failed_is_crossed_where_it_failed() -> None:
    shown = rollout_of(views.rolling(Phase.ROLLING_BACK))["status"] | {"wave": 1, "waves": 4, "waveElapsed": "3s"}
    assert drawn(waves(shown)).startswith("  ✗━━○━━○━━○  rolling-back")


def test_a_rollout_that_is_live_has_no_open_wave() -> None:
    shown = rollout_of(views.rolling(Phase.BAKING))["status"] | {"wave": 4, "waves": 4}
    assert drawn(waves(shown)).strip() == "●━━●━━●━━●  baking"


def test_seconds_in_which_a_request_failed_are_red() -> None:
    line = traffic([second(100), second(50, 50), second(0), second(25)])
    assert line.plain == "  traffic  ██ ▃  25/s, 50 failed in 4 s"
    assert [line.plain[span.start] for span in line.spans if span.style == "red"] == ["█", ","]


def test_what_is_live_runs_everywhere_though_nobody_has_a_seat() -> None:
    live = rollout_of(views.rolling(Phase.BAKING))
    assert [share_shown(live, workload) for workload in live["status"]["workloads"]] == [100.0]


def test_nothing_to_show_is_nothing() -> None:
    assert drawn(picture(None)).strip() == ""
