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


def test_yaml_means_the_same_and_moves_no_cursor() -> None:
    import yaml

    data = {"a": "x\u202ey: z", "b\u2066": ["\x1b[31m", "\u00ad", "two\nlines", "ok: 1", "é", 1.5, None, True]}
    text = output.to_yaml(data)
    assert all(line.isprintable() for line in text.split("\n"))
    assert yaml.safe_load(text) == data
