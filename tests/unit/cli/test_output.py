"""Text for people: bars, rates, columns."""

import pytest

from backstay.cli import output


@pytest.mark.parametrize(
    ("percent", "shown"), [(0, "░░░░"), (0.5, "█░░░"), (50, "██░░"), (99, "███░"), (99.9, "███░"), (100, "████")]
)
def test_a_bar_is_empty_only_at_nothing_and_full_only_at_all(percent: float, shown: str) -> None:
    assert output.bar(percent, 4) == shown


def test_a_rate_of_nothing_is_no_rate() -> None:
    assert (output.share_of(0, 0), output.share_of(41, 118)) == ("0/0", "41/118 (34.7 %)")
