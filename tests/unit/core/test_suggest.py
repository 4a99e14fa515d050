import pytest

from backstay.core.suggest import NAMES, did_you_mean, nearest


@pytest.mark.parametrize(
    ("word", "expected"), [("timeout", "timeouts"), ("TIMEOUTS", "timeouts"), ("zzz", ""), (None, ""), ("t" * 99, "")]
)
def test_the_nearest_word_is_found(word: object, expected: str) -> None:
    assert nearest(word, ["retry", "timeouts", "matches"]) == expected


def test_names_must_be_nearer_than_fields() -> None:
    assert nearest("sa-feedback", ["sa-webapp", "sa-logic"], NAMES) == ""
    assert nearest("sa-logik", ["sa-webapp", "sa-logic"], NAMES) == "sa-logic"


def test_nothing_is_said_where_nothing_is_near() -> None:
    assert did_you_mean("zzz", ["retry"]) == ""
    assert did_you_mean("retri", ["retry"]) == "; did you mean 'retry'?"
