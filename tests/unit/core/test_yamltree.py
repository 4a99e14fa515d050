"""Invariant of the fuzz tests: any bytes become trees or faults within the budgets, never an exception."""

import dataclasses
import time
import tracemalloc
from typing import Any, Final

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from backstay.core import yamltree
from backstay.core.yamltree import DEFAULT_LIMITS, Limits, plain, read

MEBIBYTE: Final = 1024 * 1024


def only_value(text: str) -> Any:
    (tree,) = read(text.encode()).trees
    assert tree.faults == []
    return tree.value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("on", "on"),
        ("no", "no"),
        ("Yes", "Yes"),
        ("y", "y"),
        ("5s", "5s"),
        ("1:30", "1:30"),
        ("2026-11-23", "2026-11-23"),
        ("1_000", "1_000"),
        ("1.2.3", "1.2.3"),
        ("-", "-"),
        (".", "."),
        ("true", True),
        ("FALSE", False),
        ("0777", 777),
        ("0o17", 15),
        ("0x1F", 31),
        ("-12", -12),
        ("+12", 12),
        ("1.5", 1.5),
        (".5", 0.5),
        ("1.", 1.0),
        ("1e3", 1000.0),
        ("-0.0", -0.0),
        ("~", None),
        ("", None),
        ("NULL", None),
    ],
)
def test_plain_scalars_follow_the_yaml_1_2_core_schema(text: str, value: object) -> None:
    assert (plain(text), type(plain(text))) == (value, type(value))


@pytest.mark.parametrize("text", [".nan", ".inf", "-.INF", "1e999", str(2**63), "-" + "9" * 5000, "0x" + "f" * 17])
def test_numbers_that_readers_would_disagree_about_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"^'.*(is not a finite number|is too large), expected"):
        plain(text)


def test_quoted_scalars_are_text_whatever_they_look_like() -> None:
    assert only_value("['1', \"true\", \"\", '~']") == ["1", "true", "", "~"]


def test_every_value_and_key_has_its_place() -> None:
    (tree,) = read(b"# first\nspec:\n  rules:\n  - {a: 1, \xc3\xa9: x}\n").trees
    assert tree.positions == {
        "": (2, 1),
        "spec~": (2, 1),
        "spec": (3, 3),
        "spec.rules~": (3, 3),
        "spec.rules": (4, 3),
        "spec.rules[0]": (4, 5),
        "spec.rules[0].a~": (4, 6),
        "spec.rules[0].a": (4, 9),
        "spec.rules[0].é~": (4, 12),
        "spec.rules[0].é": (4, 15),
    }


def test_the_pure_parser_says_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    text = b"a: {b: [1, 'x', no]}\n---\nc: &x !!int 1\nc: 2\n"
    with_libyaml = read(text)
    monkeypatch.setattr(yamltree, "_Parser", yaml.BaseLoader)
    assert read(text) == with_libyaml


@pytest.mark.parametrize(
    ("limits", "data", "message"),
    [
        (Limits(file_bytes=3), b"a: 1", "the file has 4 bytes, expected at most 3"),
        (Limits(documents_per_file=1), b"a: 1\n---\nb: 1", "the file has too many documents, expected at most 1"),
        (Limits(nodes_per_file=2), b"[1, 2]", "the file has too many values, expected at most 2"),
        (Limits(depth=1), b"[[1]]", "nested too deep, expected at most 1 levels"),
        (Limits(key_length=2), b"abc: 1", "a key of 3 characters, expected at most 2"),
        (Limits(path_characters=3), b"abcd: 1", "the file has too many characters of paths, expected at most 3"),
        (Limits(problems_per_file=1), b"[~, ~, ~]", "the file has too many problems, expected at most 1"),
    ],
)
def test_each_budget_stops_the_reading(limits: Limits, data: bytes, message: str) -> None:
    assert read(data, limits).faults[-1].message == message


def test_faults_of_a_document_that_breaks_off_are_kept() -> None:
    assert [fault.reason for fault in read(b"a: &x 1\na: 2\nb: [").faults] == [
        "AnchorForbidden",
        "DuplicateKey",
        "YamlSyntax",
    ]


HOSTILE: Final = {
    "nested lists": b"[" * MEBIBYTE,
    "nested objects": b"{a: " * (MEBIBYTE // 4),
    "nested blocks": b"- " * (MEBIBYTE // 2),
    "many values": b"[" + b"a," * (MEBIBYTE // 2 - 2) + b"]",
    "many keys": b"".join(b"%d: 1\n" % number for number in range(100_000)),
    "many documents": b"---\n1\n" * 170_000,
    "many faults": b"[" + b"~," * (MEBIBYTE // 2 - 2) + b"]",
    "one long text": b"a: '" + b"x" * (MEBIBYTE - 10) + b"'",
    "one long number": b"a: " + b"9" * (MEBIBYTE - 10),
    "one long comment": b"#" * MEBIBYTE,
    "one long key": b"a" * (MEBIBYTE - 10) + b": 1",
    "long keys, deep": b"".join(b" " * depth + b"k" * 300 + b":\n" for depth in range(30)) + b" " * 30 + b"- x\n" * 9,
    "aliases": b"a: &a [x]\nb: [" + b"*a," * (MEBIBYTE // 3 - 10) + b"]",
    "question marks": b"? " * (MEBIBYTE // 2),
    "no line ends": b"a " * (MEBIBYTE // 2),
    "tabs": b"\t" * MEBIBYTE,
    "not text": bytes(range(256)) * 4096,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_costs_less_than_a_second(name: str) -> None:
    started = time.process_time()
    read(HOSTILE[name])
    assert time.process_time() - started < 1.0


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_costs_less_than_64_mebibytes(name: str) -> None:
    tracemalloc.start()
    try:
        read(HOSTILE[name])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 64 * MEBIBYTE


def test_the_default_limits_are_these() -> None:
    assert dataclasses.asdict(DEFAULT_LIMITS) == {
        "file_bytes": 1024 * 1024,
        "files": 10_000,
        "documents_per_file": 1_000,
        "nodes_per_file": 50_000,
        "nodes": 2_000_000,
        "depth": 32,
        "key_length": 317,
        "path_characters": 8 * 1024 * 1024,
        "problems_per_file": 100,
    }


@given(st.binary(max_size=300))
@example(b"? [a]\n: b")
@example(b"\xef\xbb\xbf\xef\xbb\xbf")
@example(b"a: !<tag:yaml.org,2002:str> b")
@settings(max_examples=300, deadline=None)
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    found = read(data)
    assert all(fault.reason and fault.message for fault in found.faults)


@given(st.text(alphabet="ab:-[]{}#&*!|>'\"%@,? \n\t0.~", max_size=60))
@settings(max_examples=500, deadline=None)
def test_any_text_of_yaml_characters_is_read_or_refused(text: str) -> None:
    for tree in read(text.encode()).trees:
        assert all(line >= 1 and column >= 1 for line, column in tree.positions.values())
