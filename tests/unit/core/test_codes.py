"""Every reason has a code, every code an explanation, and neither changes its meaning."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import backstay
from backstay.core.codes import CODES, EXPLANATIONS, Explanation, code_of, explain, suggestions

ROOT = Path(backstay.__file__).parent
READING = [
    ROOT / "core" / "yamltree.py",
    ROOT / "core" / "documents.py",
    *sorted((ROOT / "core" / "validate").glob("*")),
]
FIELD_VALUES = set(re.findall(r'"([A-Za-z]+)"', (ROOT / "core" / "intents.py").read_text(encoding="utf-8")))
"""What documents may say (`PathPrefix`) is no reason, and no reason is called like one of them."""
CAMEL = re.compile(r"([A-Z][a-z0-9]+){2,}\Z")


def constants(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def reasons_given(path: Path) -> Iterator[str]:
    """Literal reasons of Problems and of the exceptions of the source port."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            called = node.func.id if isinstance(node.func, ast.Name) else ""
            wanted = [keyword.value for keyword in node.keywords if called == "Problem" and keyword.arg == "reason"]
            if called in ("SourceRefused", "SourceUnavailable"):
                wanted += node.args[:1]
            yield from (item.value for item in wanted if isinstance(item, ast.Constant) and isinstance(item.value, str))


def reasons_warned_of(path: Path) -> Iterator[str]:
    """Reasons of events that are told as warnings: `tell("HarmSuspected", ..., warning=True)`."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and any(
            keyword.arg == "warning" and isinstance(keyword.value, ast.Constant) and keyword.value.value is True
            for keyword in node.keywords
        ):
            texts = [arg.value for arg in node.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)]
            yield from (text for text in texts if CAMEL.match(text))


def test_every_warning_of_an_event_has_a_code() -> None:
    used = {reason for path in sorted(ROOT.rglob("*.py")) for reason in reasons_warned_of(path)}
    assert {reason for reason in used if not code_of(reason)} == set()
    assert {"CommitInvalid", "HarmSuspected"} <= used


def test_every_reason_a_pod_is_refused_for_has_a_code() -> None:
    """By the injection webhook, and when its proxy enrols."""
    rooms = (ROOT / "core" / "inject.py", *sorted((ROOT / "adapters" / "kubernetes").glob("*.py")))
    refusing = re.compile(r'(?:_Refused|EnrolmentRefused|_refusal)\(\s*"([A-Za-z]+)"')
    used = {reason for path in rooms for reason in refusing.findall(path.read_text(encoding="utf-8"))}
    assert {reason for reason in used if not code_of(reason)} == set()
    assert {"ForeignMesh", "AddressMismatch"} <= used


def test_every_reason_that_reading_intents_gives_has_a_code() -> None:
    used = {text for path in READING if path.suffix == ".py" for text in constants(path) if CAMEL.match(text)}
    used -= {"Draft202012Validator"} | FIELD_VALUES
    assert FIELD_VALUES.isdisjoint(item.reason for item in EXPLANATIONS)
    assert {reason for reason in used if not code_of(reason)} == set()
    assert len(used) > 50, "the search finds what it is meant to"


def test_every_reason_of_a_problem_or_of_the_source_has_a_code() -> None:
    used = {reason for path in sorted(ROOT.rglob("*.py")) for reason in reasons_given(path)}
    assert {reason for reason in used if not code_of(reason)} == set()
    assert {"RefNotFound", "LimitExceeded"} <= used


def test_codes_and_reasons_are_one_to_one() -> None:
    assert len(CODES) == len({item.reason for item in EXPLANATIONS}) == len(EXPLANATIONS)


@pytest.mark.parametrize("item", EXPLANATIONS, ids=lambda item: item.code)
def test_an_explanation_is_whole(item: Explanation) -> None:
    assert re.fullmatch(r"BS[1-5][0-9]{3}", item.code)
    assert re.fullmatch(r"[A-Z][A-Za-z0-9]+", item.reason)
    assert item.title[0].isupper()
    assert not item.title.endswith(".")
    assert item.cause.endswith(".")
    assert item.mend.endswith(".")


def test_codes_ascend() -> None:
    codes = [item.code for item in EXPLANATIONS]
    assert codes == sorted(codes)


def test_a_code_or_a_reason_is_explained_however_it_is_written() -> None:
    explanation = CODES["BS1403"]
    assert explanation.reason == "WeightSum"
    assert explain("bs1403") == explain("weightsum") == explain(" WeightSum ") == explanation
    assert explain("BS9999") is None
    assert code_of("WeightSum") == "BS1403"
    assert code_of("Succeeded") == ""
    assert suggestions("weight") == ("WeightSum",)
