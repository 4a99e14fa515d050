"""How many of the cases Envoy decides otherwise, and that none of these is about security. What differs is found by the tests beside
this one, which need an Envoy."""

import re
from pathlib import Path
from typing import Any

import pytest

from .cases import groups, known

FILES = (
    "traffic/actions.yaml",
    "traffic/matches.yaml",
    "security/authorization.yaml",
    "security/client_cert.yaml",
    "security/tokens.yaml",
    "http/requests.yaml",
    "http/exchanges.yaml",
)
MOST = 0.03
"""Of all cases; the rest is the same on both engines."""
DOCS = Path(__file__).parents[3] / "docs" / "engines.md"


def cases(file: str) -> list[str]:
    found: list[dict[str, Any]] = [case for entry in groups(file) for case in entry.get("cases", [entry])]
    return [str(case["name"]) for case in found]


def test_at_most_three_of_a_hundred_cases_differ() -> None:
    every = sum(len(cases(file)) for file in FILES)
    differing = sum(len(known(file)) for file in FILES)
    assert every > 700
    assert differing <= MOST * every
    said = re.search(r"(\d+) of them\. .*?lists each that differs, (\d+) \(([0-9.]+) %\)", DOCS.read_text(), re.DOTALL)
    assert said is not None
    assert said.groups() == (str(every), str(differing), f"{100 * differing / every:.1f}")


@pytest.mark.parametrize("file", FILES)
def test_what_differs_is_a_case(file: str) -> None:
    assert known(file).keys() - set(cases(file)) == set()


@pytest.mark.parametrize("file", [file for file in FILES if file.startswith("security/")])
def test_of_who_may_do_what_only_more_is_refused(file: str) -> None:
    assert [why for why in known(file).values() if not why.startswith("Refused; ")] == []
