"""Line and column of what a JSON decoder complains about: of a byte offset, or of a path into the document.

For files that people write (`backstay sidecar --config`); what travels between programs has no lines. Called after a mistake
only, so the text is read once more instead of being decoded with positions.
"""

import json
import re
from typing import Final

_OFFSET: Final = re.compile(r"^JSON is malformed: (.*) \(byte (\d+)\)$")
_ENDS: Final = "Input data was truncated"
_PATH: Final = re.compile(r"^(.*) - at `(?:key in )?\$(.*)`$", re.DOTALL)
_STEP: Final = re.compile(r"\.([^.\[\]]+)|\[(\d+)\]|\[\.\.\.\]")
_UNKNOWN: Final = re.compile(r"unknown field `(.*)`$")
_BLANK: Final = re.compile(r"[ \t\r\n]*")
_decoder: Final = json.JSONDecoder()


def located(text: str, complaint: str) -> str:
    """`LINE:COLUMN: path: what is wrong` for a complaint of msgspec's decoder; without the parts that it does not tell."""
    if found := _OFFSET.match(complaint):
        at = len(text.encode()[: int(found[2])].decode("utf-8", "replace"))
        return f"{_line_and_column(text, at)}: not JSON: {found[1]}"
    if found := _PATH.match(complaint):
        said, path = found[1], found[2].lstrip(".")
        steps: list[str | int] = [name or int(index) for name, index in _STEP.findall(found[2]) if name or index]
        unknown = _UNKNOWN.search(said)
        at = place_of(text, [*steps, unknown[1]] if unknown else steps)
        return f"{_line_and_column(text, at)}: {path}: {said[0].lower()}{said[1:]}"
    return "not JSON: ends in the middle" if complaint == _ENDS else complaint


def place_of(text: str, steps: list[str | int]) -> int:
    """Index of the value at the end of these steps, or of the last value on the way there that exists."""
    at = _skip(text, 0)
    for step in steps:
        inner = _child(text, at, step)
        if inner is None:
            break
        at = inner
    return at


def _child(text: str, at: int, step: str | int) -> int | None:
    """Where the value of a key, or the n-th of a list, begins; `at` is where the object or the list does."""
    if text[at] not in "{[":
        return None
    is_object, number, at = text[at] == "{", 0, _skip(text, at + 1)
    while text[at] not in "}]":
        key: str | int = number
        if is_object:
            key, at = _decoder.raw_decode(text, at)
            at = _skip(text, _skip(text, at) + 1)  # past the colon
        if key == step:
            return at
        _, at = _decoder.raw_decode(text, at)
        at = _skip(text, at)
        if text[at] == ",":
            at = _skip(text, at + 1)
        number += 1
    return None


def _skip(text: str, at: int) -> int:
    blank = _BLANK.match(text, at)
    return blank.end() if blank is not None else at


def _line_and_column(text: str, at: int) -> str:
    line_start = text.rfind("\n", 0, at) + 1
    return f"{text.count(chr(10), 0, at) + 1}:{at - line_start + 1}"
