"""The transition table and the page that shows it."""

import itertools
from pathlib import Path

import pytest

from backstay.core.rollout import phases
from backstay.core.rollout.model import Phase
from backstay.core.rollout.phases import Event

PAGE = Path(__file__).resolve().parents[4] / "docs" / "rollout.md"


def test_the_page_shows_the_table() -> None:
    assert f"```mermaid\n{phases.diagram()}```" in PAGE.read_text()


def test_ended_phases_have_no_way_out() -> None:
    assert [pair for pair in phases.TRANSITIONS if pair[0] in phases.ENDED] == []


def test_a_rollback_only_finishes() -> None:
    ways = {after for (before, _), after in phases.TRANSITIONS.items() if before is Phase.ROLLING_BACK}
    assert ways == {Phase.FAILED, Phase.ABORTED}


def test_every_phase_is_reached_and_every_running_one_left() -> None:
    reached = {Phase.PREPARING, *phases.TRANSITIONS.values()}
    assert reached == set(Phase) - {Phase.SUPERSEDED}
    assert {before for before, _ in phases.TRANSITIONS} == set(Phase) - phases.ENDED


def test_a_failure_and_a_person_are_heard_in_every_phase_that_moves() -> None:
    asked = itertools.product(phases.MOVING, (Event.FAILED, Event.ABORTED, Event.PAUSED, Event.PROMOTED))
    assert [pair for pair in asked if pair not in phases.TRANSITIONS] == []


def test_a_transition_nobody_wrote_down_is_a_mistake() -> None:
    with pytest.raises(ValueError, match=r"^no transition from 'failed' on 'wave passed'$"):
        phases.after(Phase.FAILED, Event.WAVE_PASSED)
