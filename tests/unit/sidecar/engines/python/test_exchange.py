"""The table of phases."""

from backstay.sidecar.engines.python import exchange
from backstay.sidecar.engines.python.exchange import LEGAL, Phase, is_legal


def test_integers_and_phases_agree() -> None:
    assert all(is_legal(before, after) is ((before, after) in LEGAL) for before in Phase for after in Phase)


def test_plain_numbers_of_the_hot_path_are_those_of_the_phases() -> None:
    assert {phase.name: getattr(exchange, phase.name) for phase in Phase} == {phase.name: int(phase) for phase in Phase}


def test_nothing_follows_the_end_and_everything_can_end() -> None:
    assert not any(before is Phase.ENDED for before, _ in LEGAL)
    assert {before for before, after in LEGAL if after is Phase.ENDED} == set(Phase) - {Phase.ENDED}


def test_once_a_response_was_passed_on_there_is_no_other_try() -> None:
    assert {after for before, after in LEGAL if before is Phase.RESPONDING} == {Phase.ENDED}
