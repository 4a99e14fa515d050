"""Complaints of the decoder say where: line and column of what is wrong."""

import msgspec
import pytest

from backstay.config.jsonplace import located, place_of
from backstay.config.standalone import ConfigFile

TEXT = """{
  "workload": "edge/wéb",
  "parts": [
    {"part": "backend", "service": "a.b", "port": 80},
    {"part": "backend", "service": "c.d",
     "port": %s}
  ],
  "endpoints": {}
}
"""


def complaint_about(text: str) -> str:
    with pytest.raises(msgspec.DecodeError) as caught:
        msgspec.json.decode(text.encode(), type=ConfigFile)
    return str(caught.value)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ('"x"', "6:14: parts[1].port: expected `int`, got `str`"),
        ('1, "prot": 2', "6:25: parts[1]: object contains unknown field `prot`"),
        ("", "6:14: not JSON: invalid character"),
    ],
)
def test_a_mistake_is_told_with_its_line_and_column(value: str, said: str) -> None:
    text = TEXT % value
    assert located(text, complaint_about(text)) == said


def test_what_is_missing_is_told_with_where_it_should_be() -> None:
    text = TEXT.replace('"service": "a.b", ', "") % "1"
    assert located(text, complaint_about(text)) == "4:5: parts[0]: object missing required field `service`"


def test_a_text_that_ends_in_the_middle_has_no_line() -> None:
    assert located('{"a"', complaint_about('{"a"')) == "not JSON: ends in the middle"


def test_other_complaints_stay_as_they_are() -> None:
    assert located("{}", complaint_about("{}")) == "expected either `config`, or `workload` with `parts`"


@pytest.mark.parametrize(
    ("steps", "found"),
    [([], 0), (["a"], 6), (["a", 1], 9), (["a", 2, "b"], 18), (["a", 2, "c"], 12), (["a", 0, "x"], 7), (["z"], 0)],
)
def test_steps_that_lead_nowhere_end_where_they_still_led(steps: list[str | int], found: int) -> None:
    assert place_of('{"a": [1,2, {"b": 3}]}', steps) == found
