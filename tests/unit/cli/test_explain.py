"""`explain` knows every code and reason, and guesses."""

import pytest

from backstay.cli.exits import Exit
from support.commands import backstay


@pytest.mark.parametrize("name", ["BS1403", "bs1403", "WeightSum"])
def test_explain_knows_codes_and_reasons(name: str) -> None:
    ran = backstay("explain", name)
    assert ran.code == Exit.OK
    assert ran.out.startswith("BS1403 WeightSum: ")
    assert "\n\nMend: " in ran.out


def test_explain_of_what_nobody_knows() -> None:
    ran = backstay("explain", "BS0000")
    assert (ran.code, ran.out, ran.err.splitlines()[0]) == (Exit.NO, "", "error: nothing is known about 'BS0000'")


def test_explain_guesses() -> None:
    assert "did you mean WeightSum" in backstay("explain", "weightsu").err
