"""THREAT_MODEL.md names proofs that exist, and every threat that test data is about."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "THREAT_MODEL.md").read_text(encoding="utf-8")
ROW = re.compile(r"^\| ([A-Z]\d+(?:[–,] ?[A-Z]\d+)*) \|(.*)$", re.MULTILINE)


def rows() -> dict[str, str]:
    """Each name with the rest of its row; `J1–J9` names nine."""
    found: dict[str, str] = {}
    for names, rest in ROW.findall(PAGE):
        for name in expanded(names):
            found[name] = rest
    return found


def expanded(names: str) -> Iterator[str]:
    first, dash, last = names.partition("–")
    if dash:
        yield from (f"{first[0]}{number}" for number in range(int(first[1:]), int(last[1:]) + 1))
    else:
        yield from names.split(", ")


@pytest.mark.parametrize("name", rows())
def test_every_threat_has_a_proof_that_exists(name: str) -> None:
    proofs = re.findall(r"`([^`]+)`", rows()[name].rpartition("|")[0].rpartition("|")[2])
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    missing = [proof for proof in proofs if not (ROOT / proof).exists() and proof.removeprefix("make ") not in targets]
    assert proofs
    assert missing == []


def test_every_threat_of_the_test_data_is_on_the_page() -> None:
    named = set()
    for path in (ROOT / "tests" / "conformance" / "http").glob("*.yaml"):
        named |= {case["threat"] for case in yaml.safe_load(path.read_text(encoding="utf-8")) if case["threat"]}
    assert named - rows().keys() == set()
    assert {f"H{number}" for number in range(1, 19)} - named == {"H10", "H16", "H17"}, "these have no case as data"
