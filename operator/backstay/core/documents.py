"""Files of a revision -> documents with line and column, or problems.

Bytes become plain values in yamltree.py, a wrong shape is explained by validate/shape.py. In between, this module
tells the kind, makes the typed spec, and gives every problem its place. The registry and other documents play no part
(that is validate/rules.py), so what was read from a file once need not be read again (`Cache`).
"""

import hashlib
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from backstay.core.intents import API_VERSION, KINDS, Metadata, Spec
from backstay.core.problems import Problem
from backstay.core.snapshot import Document, DocumentKey, Position
from backstay.core.suggest import did_you_mean
from backstay.core.yamltree import DEFAULT_LIMITS, Fault, Limits, Tree, read, shown

__all__ = ["Cache", "Limits", "Parsed", "digest_of", "parse"]

_EXPLAINED_NODES: Final = 10_000
"""Values per file for which every mistake of shape is explained; jsonschema takes about 30 microseconds for each
(measured), a document beyond that gets its first mistake only."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parsed:
    documents: tuple[Document, ...] = ()
    problems: tuple[Problem, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class _File:
    """What one file came to."""

    documents: tuple[Document, ...]
    problems: tuple[Problem, ...]
    nodes: int


class Cache:
    """Remembers what files came to by name and content, the most recently used ones only.

    Keep one per mesh and hand it to every call: a push of five files out of two thousand then reads five.
    """

    def __init__(self, files: int = 20_000) -> None:
        """`files`: twice `Limits.files`, so that the last two revisions fit."""
        self._files = files
        self._entries: OrderedDict[object, _File] = OrderedDict()
        self.sound: set[tuple[DocumentKey, str]] = set()
        """Documents of the last commit, by key and digest, that are right by themselves (validate/rules.py)."""
        self.hits = 0
        self.misses = 0

    def get(self, key: object) -> _File | None:
        found = self._entries.get(key)
        if found is None:
            self.misses += 1
            return None
        self.hits += 1
        self._entries.move_to_end(key)
        return found

    def put(self, key: object, file: _File) -> None:
        self._entries[key] = file
        if len(self._entries) > self._files:
            self._entries.popitem(last=False)


def parse(
    files: Mapping[str, bytes],
    *,
    default_namespace: str = "default",
    limits: Limits = DEFAULT_LIMITS,
    valid_cache: Cache | None = None,
) -> Parsed:
    """Read all files, in the order of their names. One file's fault keeps no other from being read."""
    documents: list[Document] = []
    problems: list[Problem] = []
    nodes = 0
    for number, name in enumerate(sorted(files), start=1):
        if number > limits.files:
            problems.append(_over(name, "files", len(files), limits.files))
            break
        file = _cached(name, files[name], default_namespace, limits, valid_cache)
        nodes += file.nodes
        if nodes > limits.nodes:
            problems.append(_over(name, "values", nodes, limits.nodes))
            break
        documents.extend(file.documents)
        problems.extend(file.problems)
    return Parsed(documents=tuple(documents), problems=tuple(problems))


def _over(name: str, what: str, count: int, limit: int) -> Problem:
    message = f"from this file on nothing was read: the commit has {count} {what}, expected at most {limit}"
    return Problem(file=name, message=message, reason="LimitExceeded")


def _cached(name: str, data: bytes, namespace: str, limits: Limits, cache: Cache | None) -> _File:
    if cache is None:
        return _parse_file(name, data, namespace, limits)
    key = (name, hashlib.sha256(data).digest(), namespace, limits)
    found = cache.get(key)
    if found is None:
        found = _parse_file(name, data, namespace, limits)
        cache.put(key, found)
    return found


def _parse_file(name: str, data: bytes, namespace: str, limits: Limits) -> _File:
    if not name.isprintable():
        message = f"the file's name {shown(name)} has control characters, expected none"
        visible = name.encode("unicode_escape").decode("ascii")
        return _File(documents=(), problems=(Problem(file=visible, message=message, reason="FileName"),), nodes=0)
    content = read(data, limits)
    documents: list[Document] = []
    problems: list[Problem] = []
    explained = 0
    for tree in content.trees:
        explained += tree.nodes
        made = _Reading(name, tree, namespace, explain_all=explained <= _EXPLAINED_NODES).document()
        if isinstance(made, Document):
            documents.append(made)
        else:
            problems.extend(made)
    problems.extend(_from_fault(name, fault) for fault in content.faults)
    return _File(documents=tuple(documents), problems=_capped(name, sorted(problems), limits), nodes=content.nodes)


def _capped(name: str, problems: list[Problem], limits: Limits) -> tuple[Problem, ...]:
    more = len(problems) - limits.problems_per_file
    if more <= 0:
        return tuple(problems)
    rest = Problem(file=name, message=f"{more} more problems in this file are not shown", reason="TooManyProblems")
    return (*problems[: limits.problems_per_file], rest)


def _from_fault(name: str, fault: Fault, document: str = "") -> Problem:
    return Problem(
        file=name,
        line=fault.line,
        column=fault.column,
        path=fault.path,
        message=fault.message,
        reason=fault.reason,
        document=document,
    )


_encoder: Final = msgspec.json.Encoder(order="sorted")


def digest_of(raw: Mapping[str, Any]) -> str:
    """SHA-256 of a document's canonical JSON: what it says, not how it is written."""
    return hashlib.sha256(_encoder.encode(raw)).hexdigest()


# --- one document -----------------------------------------------------------------------------------------------------

_ENVELOPE: Final = ("apiVersion", "kind", "metadata", "spec")


class _Reading:
    """One YAML document on its way to a Document."""

    def __init__(self, name: str, tree: Tree, namespace: str, *, explain_all: bool) -> None:
        self._name = name
        self._tree = tree
        self._namespace = namespace
        self._explain_all = explain_all

    def document(self) -> Document | list[Problem]:
        raw = self._tree.value
        key = self._key(raw)
        problems = [_from_fault(self._name, fault, key) for fault in self._tree.faults]
        if not isinstance(raw, dict):
            return problems or [self._problem("", "NotAnObject", f"{_kind_of(raw)}, expected an intent with `kind`")]
        unknown = list(self._wrong_kind(raw))
        if unknown:
            return problems + unknown
        if not problems:
            made = self._typed(raw)
            if isinstance(made, Document):
                return made
        known = {problem.path for problem in problems}
        return problems + [problem for problem in self._wrong_shape(raw, key) if problem.path not in known]

    def _key(self, raw: Any) -> str:
        """`Kind/namespace/name` as far as it can be told; "" if not."""
        metadata = raw.get("metadata") if isinstance(raw, dict) else None
        if not isinstance(metadata, dict) or not _is_kind(raw.get("kind")):
            return ""
        name, namespace = metadata.get("name"), metadata.get("namespace", self._namespace)
        return f"{raw['kind']}/{namespace}/{name}" if isinstance(name, str) and isinstance(namespace, str) else ""

    def _wrong_kind(self, raw: dict[str, Any]) -> Iterator[Problem]:
        version, kind = raw.get("apiVersion"), raw.get("kind")
        if "apiVersion" not in raw:
            yield self._problem("", "MissingField", f"`apiVersion` is missing, expected {API_VERSION!r}")
        elif version != API_VERSION:
            message = f"unknown apiVersion {shown(version)}, expected {API_VERSION!r}"
            yield self._problem("apiVersion", "UnknownApiVersion", message)
        if "kind" not in raw:
            yield self._problem("", "MissingField", f"`kind` is missing, expected one of {_kinds()}")
        elif not _is_kind(kind):
            message = f"unknown kind {shown(kind)}, expected one of {_kinds()}{did_you_mean(kind, KINDS)}"
            yield self._problem("kind", "UnknownKind", message)

    def _typed(self, raw: dict[str, Any]) -> Document | None:
        """The document, or None if its shape is wrong. The types accept exactly what the schemas do (both come from
        intents.py, a test compares them), and in a fiftieth of the time."""
        if set(raw) != set(_ENVELOPE):
            return None
        try:
            metadata = msgspec.convert(raw["metadata"], Metadata)
            spec: Spec = msgspec.convert(raw["spec"], KINDS[raw["kind"]])
        except msgspec.ValidationError:
            return None
        if "namespace" not in raw["metadata"]:
            metadata = msgspec.structs.replace(metadata, namespace=self._namespace)
        return Document(
            kind=raw["kind"],
            metadata=metadata,
            spec=spec,
            file=self._name,
            line=self._tree.line,
            positions=self._tree.positions,
            raw=raw,
            digest=digest_of(raw),
        )

    def _wrong_shape(self, raw: dict[str, Any], key: str) -> Iterator[Problem]:
        # jsonschema takes 0.1 s to import, and a commit without mistakes never needs it
        from backstay.core.validate.shape import first_mistake, mistakes  # noqa: PLC0415

        found = mistakes(raw["kind"], raw) if self._explain_all else first_mistake(raw["kind"], raw)
        for mistake in found:
            yield self._problem(mistake.path, mistake.reason, mistake.message, key, at_key=mistake.at_key)

    def _problem(self, path: str, reason: str, message: str, document: str = "", *, at_key: bool = False) -> Problem:
        line, column = self._place(f"{path}~" if at_key else path)
        return Problem(
            file=self._name, line=line, column=column, path=path, message=message, reason=reason, document=document
        )

    def _place(self, path: str) -> Position:
        return self._tree.positions.get(path, (self._tree.line, self._tree.column))


def _is_kind(value: object) -> bool:
    return isinstance(value, str) and value in KINDS


def _kinds() -> str:
    return ", ".join(KINDS)


def _kind_of(value: object) -> str:
    return (
        "a list" if isinstance(value, list) else f"the text {shown(value)}" if isinstance(value, str) else shown(value)
    )
