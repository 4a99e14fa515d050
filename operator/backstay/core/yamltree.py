"""Bytes of one YAML file -> plain JSON values with the place of each, or problems; knows nothing about intents.

A restricted YAML 1.2: core-schema scalars (`on`, `no`, `5s` and `1:30` stay text, `0777` is 777), no tags, no anchors,
no aliases, no duplicate keys, UTF-8 only. It reads libyaml's *events* and builds the tree itself, so that a budget can
stop a hostile file at any node: composing first would need memory for the whole file (half a million nodes fit into a
megabyte), and libyaml's composer recurses in C as deep as the author likes.

Rule: `read` never raises, whatever the bytes.
"""

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

import yaml
from yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    StreamEndEvent,
)

try:
    from yaml.cyaml import CParser as _Parser  # type: ignore[attr-defined] # missing in the stub
except ImportError:  # PyYAML was built without libyaml: the same events, about ten times slower
    from yaml.loader import BaseLoader as _Parser  # type: ignore[assignment]

Position: TypeAlias = tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Caps that keep a hostile file within a second and 64 MiB; generous for what people write by hand."""

    file_bytes: int = 1024 * 1024
    """Kubernetes refuses objects over 1.5 MiB (etcd's request limit); a Route of ten rules has about 2 KiB."""
    files: int = 10_000
    documents_per_file: int = 1_000
    nodes_per_file: int = 50_000
    """A node with its position takes about 0.7 KiB here (measured), so this is half of 64 MiB."""
    nodes: int = 2_000_000
    """Of all files together."""
    depth: int = 32
    """The deepest intent has 10 levels."""
    key_length: int = 317
    """The longest legal Kubernetes label key: 253 for the prefix, `/`, 63 for the name."""
    path_characters: int = 8 * 1024 * 1024
    """Sum over the position index of one file: long keys times deep nesting would otherwise multiply."""
    problems_per_file: int = 100
    """A hundred problems are read by nobody; the rest is counted."""


DEFAULT_LIMITS: Final = Limits()


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """Something wrong with the text, before anybody asked what it means."""

    line: int
    column: int
    path: str
    reason: str
    message: str


@dataclass(slots=True, kw_only=True)
class Tree:
    """One YAML document as plain values."""

    value: Any
    line: int
    column: int
    positions: dict[str, Position] = field(default_factory=dict)
    """Path -> place of the value; `path~` is the place of its key."""
    faults: list[Fault] = field(default_factory=list)
    nodes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Read:
    trees: tuple[Tree, ...] = ()
    faults: tuple[Fault, ...] = ()
    """Those of the file: what follows the first of them was not read."""

    @property
    def nodes(self) -> int:
        return sum(tree.nodes for tree in self.trees)


class _Stop(Exception):
    """The rest of the file cannot or must not be read."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.message)
        self.fault = fault


def read(data: bytes, limits: Limits = DEFAULT_LIMITS) -> Read:
    """Every document of one file. Empty documents are left out."""
    if len(data) > limits.file_bytes:
        message = f"the file has {len(data)} bytes, expected at most {limits.file_bytes}"
        return Read(faults=(Fault(line=0, column=0, path="", reason="FileTooLarge", message=message),))
    text = _decode(data)
    if isinstance(text, Fault):
        return Read(faults=(text,))
    return _read_text(text, limits)


def _read_text(text: str, limits: Limits) -> Read:
    trees: list[Tree] = []
    walk = _Walk(text, limits)
    try:
        for tree in walk.documents():
            trees.append(tree)  # noqa: PERF402 - what was read before a fault must be kept
    except _Stop as stop:
        return Read(trees=tuple(trees), faults=(*walk.unfinished(), stop.fault))
    except yaml.MarkedYAMLError as error:
        return Read(trees=tuple(trees), faults=(*walk.unfinished(), _syntax_fault(error, text)))
    except (
        yaml.YAMLError,
        ValueError,
    ) as error:  # what libyaml says without a mark, and what PyYAML makes of odd input
        fault = Fault(line=0, column=0, path="", reason="YamlSyntax", message=f"not readable as YAML: {error}")
        return Read(trees=tuple(trees), faults=(*walk.unfinished(), fault))
    finally:
        walk.dispose()
    return Read(trees=tuple(trees))


# --- text -------------------------------------------------------------------------------------------------------------

# YAML allows neither C0 (but tab and line ends) nor DEL nor surrogates. NEL, U+2028, U+2029 are line ends for libyaml
# and not for editors; bidirectional controls make a review show other text than what is read (CVE-2021-42574).
_FORBIDDEN: Final = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ufeff\ufffe\uffff\ud800-\udfff]"
)
_FORBIDDEN_IN_VALUES: Final = re.compile(_FORBIDDEN.pattern.replace("\x0b\x0c\x0e-\x1f", "\x09-\x1f"))
_BOM: Final = "\ufeff"


def _decode(data: bytes) -> str | Fault:
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        before = data[: error.start].decode("utf-8")
        line, column = _place(before, len(before))
        message = f"byte 0x{data[error.start]:02x} is not valid UTF-8, expected the file to be UTF-8"
        return Fault(line=line, column=column, path="", reason="NotUtf8", message=message)
    text = text.removeprefix(_BOM)
    found = _FORBIDDEN.search(text)
    if found is None:
        return text
    line, column = _place(text, found.start())
    message = f"control character U+{ord(found.group()):04X} in the text, expected none"
    return Fault(line=line, column=column, path="", reason="ControlCharacter", message=message)


def _place(text: str, index: int) -> Position:
    return text.count("\n", 0, index) + 1, index - (text.rfind("\n", 0, index) + 1) + 1


_SAID: Final = (
    ("mapping values are not allowed", "a second `: ` here, expected text that contains `: ` to be quoted"),
    ("found unexpected end of stream", "the file ends before the quote is closed, expected the closing quote"),
    ("did not find expected ',' or", "the bracket or brace is not closed, expected `,` or its end"),
    ("did not find expected key", "no key at this indentation, expected one that lines up with its neighbours"),
    ("did not find expected '-' indicator", "no item of the list, expected `-` that lines up with its neighbours"),
    ("did not find expected node content", "nothing that could be a value, expected one"),
    ("found unknown escape character", "an unknown escape, expected single quotes for a literal `\\`"),
    ("did not find expected <document start>", "a second document without its mark, expected `---` before it"),
    ("could not find expected ':'", "a key without `:`, expected `:` after it"),
    ("found character that cannot start any token", "no value can begin with this character, expected it to be quoted"),
    ("found incompatible YAML document", "another YAML version, expected 1.1 or 1.2 or no %YAML line"),
)
"""What libyaml says and what an author wants to hear; anything else is passed on as libyaml says it."""


def _syntax_fault(error: yaml.MarkedYAMLError, text: str) -> Fault:
    mark = error.problem_mark or error.context_mark
    line, column = (mark.line + 1, mark.column + 1) if mark else (0, 0)
    tabbed = _tab_in_indentation(text, line)
    if tabbed:
        message = "a tab indents this line, expected spaces"
        return Fault(line=line, column=tabbed, path="", reason="TabIndentation", message=message)
    problem = error.problem or "unreadable"
    message = next((said for start, said in _SAID if problem.startswith(start)), f"{problem}, expected YAML")
    begun = error.context_mark.line + 1 if error.context_mark else line
    since = f"; what is wrong may have begun in line {begun}" if begun != line else ""
    return Fault(line=line, column=column, path="", reason="YamlSyntax", message=message + since)


def _tab_in_indentation(text: str, line: int) -> int:
    """Column of a tab among the blanks that begin the line, 0 if there is none."""
    lines = text.split("\n", line)
    if not 0 < line <= len(lines):
        return 0
    blanks = re.match(r"[ \t]*", lines[line - 1])
    return blanks.group().find("\t") + 1 if blanks else 0


# --- scalars ----------------------------------------------------------------------------------------------------------

_NULL: Final = frozenset({"", "~", "null", "Null", "NULL"})
_BOOL: Final = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_INT: Final = re.compile(r"[-+]?[0-9]+\Z")
_OCTAL: Final = re.compile(r"0o[0-7]+\Z")
_HEX: Final = re.compile(r"0x[0-9a-fA-F]+\Z")
_FLOAT: Final = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?\Z")
_NOT_FINITE: Final = re.compile(r"([-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))\Z")
_MAX_INTEGER: Final = 2**63 - 1  # every reader of the JSON must get the same value
_MAX_DIGITS: Final = 40  # longer ones are not even converted: that takes time quadratic in their length


def plain(text: str) -> Any:
    """The YAML 1.2 core value of an unquoted scalar. Raises ValueError for a number that no intent can mean."""
    if text in _NULL:
        return None
    if text in _BOOL:
        return _BOOL[text]
    if text[0] not in "+-.0123456789":
        return text
    for pattern, number in _NUMBERS:
        if pattern.match(text):
            return number(text)
    return text


def _integer(base: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if len(text) > _MAX_DIGITS or abs(int(text, base)) > _MAX_INTEGER:
            raise ValueError(f"{shown(text)} is too large, expected a number that fits into 64 bits")
        return int(text, base)

    return number


def _decimal(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{shown(text)} is too large, expected a number that fits into 64 bits")
    return value


def _refuse(text: str) -> float:
    raise ValueError(f"{shown(text)} is not a finite number, expected one; quote it if text is meant")


_NUMBERS: Final[tuple[tuple[re.Pattern[str], Callable[[str], int | float]], ...]] = (
    (_INT, _integer(10)),
    (_OCTAL, _integer(0)),
    (_HEX, _integer(0)),
    (_FLOAT, _decimal),
    (_NOT_FINITE, _refuse),
)


def shown(value: object, longest: int = 60) -> str:
    """A value as messages show it: its repr, cut to a line."""
    text = repr(value[: longest + 1]) if isinstance(value, str) else repr(value)
    return text if len(text) <= longest + 2 else f"{text[:longest]}…"


# --- structure --------------------------------------------------------------------------------------------------------

_MULTI_LINE: Final = ("metadata.annotations.",)
"""Paths under which a value may have several lines. Elsewhere a line end is never meant, and `$` of a pattern would
let one pass at the end; a kind that wants text blocks adds its field here."""


class _Walk:
    """Builds the trees of one file from events."""

    def __init__(self, text: str, limits: Limits) -> None:
        self._parser: Any = _Parser(text)
        self._limits = limits
        self._most_nodes, self._most_characters = limits.nodes_per_file, limits.path_characters
        self._deepest = limits.depth
        self._nodes = 0
        self._characters = 0
        self._tree = Tree(value=None, line=0, column=0)
        self._positions = self._tree.positions
        self._is_open = False

    def unfinished(self) -> tuple[Fault, ...]:
        """Faults of a document that was not read to its end."""
        return tuple(self._tree.faults) if self._is_open else ()

    def dispose(self) -> None:
        self._parser.dispose()

    def documents(self) -> Iterator[Tree]:
        count = 0
        while True:
            event = self._parser.get_event()
            if isinstance(event, StreamEndEvent):
                return
            if isinstance(event, DocumentStartEvent):
                count += 1
                if count > self._limits.documents_per_file:
                    raise self._too_many("documents", self._limits.documents_per_file, event)
                tree = self._document(event)
                if tree.value is not None or tree.faults:
                    yield tree

    def _document(self, start: Any) -> Tree:
        root = self._parser.get_event()
        line, column = root.start_mark.line + 1, root.start_mark.column + 1
        self._tree = Tree(value=None, line=line, column=column)
        self._positions = self._tree.positions
        self._is_open = True
        before = self._nodes
        if start.tags:
            self._fault(start, "", "TagForbidden", "a %TAG directive, expected none: intents use no tags")
        self._tree.value = self._node(root, "", 0)
        if self._tree.value is None and _is_bare_null(root):
            self._tree.faults.clear()  # an empty document between two `---`
        self._tree.nodes = self._nodes - before
        self._is_open = False
        return self._tree

    # `_node`, `_mapping` and `_scalar` run for every value of every file: what is nearly never so is asked first in the
    # cheapest way and looked at elsewhere. It is half of what `backstay route test` spends on a thousand files.

    def _node(self, event: Any, path: str, depth: int) -> Any:
        self._nodes += 1
        self._characters += len(path)
        if self._nodes > self._most_nodes or self._characters > self._most_characters or depth > self._deepest:
            self._refuse_size(event)
        mark = event.start_mark
        self._positions[path] = (mark.line + 1, mark.column + 1)
        kind = type(event)
        if kind is AliasEvent:
            message = f"alias '*{event.anchor}', expected the value itself: intents use no anchors and aliases"
            self._fault(event, path, "AliasForbidden", message)
            return None
        if event.anchor is not None or event.tag is not None:
            self._check_properties(event, path)
        if kind is ScalarEvent:
            return self._scalar(event, path)
        return self._mapping(path, depth) if kind is MappingStartEvent else self._sequence(path, depth)

    def _refuse_size(self, event: Any) -> None:
        if self._nodes > self._limits.nodes_per_file:
            raise self._too_many("values", self._limits.nodes_per_file, event)
        if self._characters > self._limits.path_characters:
            raise self._too_many("characters of paths", self._limits.path_characters, event)
        raise self._stop(event, "LimitExceeded", f"nested too deep, expected at most {self._limits.depth} levels")

    def _too_many(self, what: str, limit: int, event: Any) -> _Stop:
        return self._stop(event, "LimitExceeded", f"the file has too many {what}, expected at most {limit}")

    def _check_properties(self, event: Any, path: str) -> None:
        if event.anchor is not None:
            message = f"anchor '&{event.anchor}', expected none: intents use no anchors and aliases"
            self._fault(event, path, "AnchorForbidden", message)
        if event.tag is not None:
            tag = event.tag.replace("tag:yaml.org,2002:", "!!")
            self._fault(event, path, "TagForbidden", f"tag {shown(tag)}, expected none: intents use no tags")

    def _mapping(self, path: str, depth: int) -> dict[str, Any]:
        value: dict[str, Any] = {}
        next_event, positions = self._parser.get_event, self._positions
        while type(event := next_event()) is not MappingEndEvent:
            key = self._key(event, path)
            inner = f"{path}.{key}" if path else key
            item = next_event()
            if key in value:
                self._duplicate(event, key, inner)
                self._node(item, f"{inner}~again", depth + 1)
                continue
            mark = event.start_mark
            positions[f"{inner}~"] = (mark.line + 1, mark.column + 1)
            value[key] = self._node(item, inner, depth + 1)
        return value

    def _key(self, event: Any, path: str) -> str:
        if type(event) is not ScalarEvent:
            raise self._stop(event, "KeyNotText", "a key that is a list, an object or an alias, expected text")
        if event.anchor is not None or event.tag is not None:
            self._check_properties(event, path)
        key: str = event.value
        if len(key) > self._limits.key_length:
            message = f"a key of {len(key)} characters, expected at most {self._limits.key_length}"
            raise self._stop(event, "LimitExceeded", message)
        return key

    def _duplicate(self, event: Any, key: str, path: str) -> None:
        first = self._tree.positions[f"{path}~"][0]
        message = f"key {shown(key)} is given twice, first in line {first}; expected it once"
        self._fault(event, path, "DuplicateKey", message)

    def _sequence(self, path: str, depth: int) -> list[Any]:
        value: list[Any] = []
        while type(event := self._parser.get_event()) is not SequenceEndEvent:
            value.append(self._node(event, f"{path}[{len(value)}]", depth + 1))
        return value

    def _scalar(self, event: Any, path: str) -> Any:
        text: str = event.value
        if not (text.isascii() and text.isprintable()):
            self._check_text(event, text, path)
        if event.style:
            return text
        try:
            value = plain(text)
        except ValueError as error:
            self._fault(event, path, "BadNumber", str(error))
            return 0
        if value is None:
            self._fault(
                event, path, "NoValue", "no value is given here, expected one; leave the key out for the default"
            )
        return value

    def _check_text(self, event: Any, text: str, path: str) -> None:
        pattern = _FORBIDDEN if path.startswith(_MULTI_LINE) else _FORBIDDEN_IN_VALUES
        found = pattern.search(text)
        if found is not None:
            message = f"control character U+{ord(found.group()):04X} in a value, expected text on one line"
            self._fault(event, path, "ControlCharacter", message)

    def _fault(self, event: Any, path: str, reason: str, message: str) -> None:
        self._tree.faults.append(self._make(event, path.replace("~again", ""), reason, message))
        if len(self._tree.faults) > self._limits.problems_per_file:
            raise self._too_many("problems", self._limits.problems_per_file, event)

    def _stop(self, event: Any, reason: str, message: str) -> _Stop:
        return _Stop(self._make(event, "", reason, message))

    def _make(self, event: Any, path: str, reason: str, message: str) -> Fault:
        mark = event.start_mark
        return Fault(line=mark.line + 1, column=mark.column + 1, path=path, reason=reason, message=message)


def _is_bare_null(event: Any) -> bool:
    return isinstance(event, ScalarEvent) and not event.style and event.tag is None and event.anchor is None
