"""What is wrong with the shape of one document, all of it, in words for its author.

jsonschema finds the mistakes; each keyword our schemas use has one function here that says what is wrong and what was
expected. A test asserts that no keyword is without one.
"""

import functools
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final

import msgspec
from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError
from jsonschema.protocols import Validator
from jsonschema.validators import extend

from backstay.core.intents import KINDS, Metadata
from backstay.core.suggest import did_you_mean
from backstay.core.validate.schema import document_schema
from backstay.core.yamltree import shown

_MOST: Final = 100  # per document; see Limits.problems_per_file


@dataclass(frozen=True, slots=True, kw_only=True)
class Mistake:
    path: str
    reason: str
    message: str
    at_key: bool = False
    """The key is wrong, not its value."""


def mistakes(kind: str, raw: Mapping[str, Any]) -> list[Mistake]:
    """All mistakes, each once. Falls back on what the types say should the schema see nothing wrong."""
    found: dict[Mistake, None] = {}
    for error in islice(_validator(kind).iter_errors(raw), _MOST):
        found.update(dict.fromkeys(_explain(error)))
    return list(found) or first_mistake(kind, raw)


def first_mistake(kind: str, raw: Mapping[str, Any]) -> list[Mistake]:
    """The first mistake only, at a fraction of the cost: for documents too large to explain in full."""
    for key, type_ in (("metadata", Metadata), ("spec", KINDS[kind])):
        if key not in raw:
            return [Mistake(path="", reason="MissingField", message=f"`{key}` is missing, expected it here")]
        try:
            msgspec.convert(raw[key], type_)
        except msgspec.ValidationError as error:
            said, _, place = str(error).partition(" - at ")
            path = key + place.strip("`").removeprefix("$")
            return [Mistake(path=path, reason="WrongShape", message=f"{said[:1].lower()}{said[1:].replace('`', '')}")]
    message = "unknown field next to `metadata` and `spec`, expected none"
    return [Mistake(path="", reason="WrongShape", message=message)] if len(raw) > 4 else []


@functools.cache
def _validator(kind: str) -> Validator:
    """The types tell 1 from 1.0; JSON Schema does not by itself."""
    checker = Draft202012Validator.TYPE_CHECKER.redefine(
        "integer", lambda _, value: isinstance(value, int) and not isinstance(value, bool)
    )
    strict: type[Validator] = extend(Draft202012Validator, type_checker=checker)  # type: ignore[no-untyped-call] # no stub
    return strict(document_schema(kind))


def _explain(error: ValidationError) -> Iterator[Mistake]:
    # the stub types every attribute `Any | Unset`; errors of a validator always have them
    path = _path(error)
    explain = _EXPLANATIONS.get(str(error.validator), _other)
    yield from explain(error, path)


def _path(error: ValidationError) -> str:
    parts = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in error.absolute_path)
    return "".join(parts).removeprefix(".")


def _field(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


_TYPES: Final = {
    "object": "an object",
    "array": "a list",
    "string": "text",
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
}


def _wrong_type(error: Any, path: str) -> Iterator[Mistake]:
    wanted = _TYPES[error.validator_value]
    is_scalar = not isinstance(error.instance, dict | list)
    wrong = f"{_said(error.instance)} is {_kind_of(error.instance)}" if is_scalar else _said(error.instance)
    hint = "; quote it" if wanted == "text" and _fits_when_quoted(error) else _example(error.schema)
    yield Mistake(path=path, reason="WrongType", message=f"{wrong}, expected {wanted}{hint}")


def _fits_when_quoted(error: Any) -> bool:
    """True for 42 where a name is expected, not for 15 where a duration is."""
    is_scalar = not isinstance(error.instance, dict | list)
    return is_scalar and re.search(error.schema.get("pattern", ""), _spelt(error.instance)) is not None


def _said(value: object) -> str:
    if isinstance(value, dict):
        return "an object"
    return "a list" if isinstance(value, list) else _spelt(value)


def _spelt(value: object) -> str:
    """A scalar as YAML spells it."""
    return str(value).lower() if isinstance(value, bool) else shown(value)


def _kind_of(value: object) -> str:
    if isinstance(value, str):
        return "text"
    return "a boolean" if isinstance(value, bool) else "a number" if isinstance(value, int) else "a decimal number"


def _example(schema: Any) -> str:
    examples = schema.get("examples") if isinstance(schema, Mapping) else None
    return f" like {' or '.join(_spelt(item) for item in examples)}" if examples else ""


def _wrong_format(error: Any, path: str) -> Iterator[Mistake]:
    hint = f"something{_example(error.schema)}" if _example(error.schema) else f"the form {error.validator_value}"
    yield Mistake(path=path, reason="BadFormat", message=f"{shown(error.instance)} has the wrong form, expected {hint}")


def _unknown_value(error: Any, path: str) -> Iterator[Mistake]:
    options = ", ".join(str(option) for option in error.validator_value if option)
    message = f"unknown value {_said(error.instance)}, expected one of {options}"
    hint = did_you_mean(error.instance, error.validator_value)
    yield Mistake(path=path, reason="UnknownValue", message=message + hint)


def _missing(error: Any, path: str) -> Iterator[Mistake]:
    for name in error.validator_value:
        if name not in error.instance:
            yield Mistake(path=path, reason="MissingField", message=f"`{name}` is missing, expected it here")


def _unknown_field(error: Any, path: str) -> Iterator[Mistake]:
    known = error.schema.get("properties", {}) if isinstance(error.schema, Mapping) else {}
    for name in islice((name for name in error.instance if name not in known), _MOST):
        hint = did_you_mean(name, set(known) - set(error.instance)) or f", expected one of {', '.join(known)}"
        message = f"unknown field {shown(name)}{hint}"
        yield Mistake(path=_field(path, name), reason="UnknownField", message=message, at_key=True)


def _out_of_range(error: Any, path: str) -> Iterator[Mistake]:
    words = {
        "minimum": "at least",
        "maximum": "at most",
        "exclusiveMinimum": "more than",
        "exclusiveMaximum": "less than",
    }
    expected = f"{words[str(error.validator)]} {error.validator_value}"
    yield Mistake(path=path, reason="OutOfRange", message=f"{error.instance} is out of range, expected {expected}")


_UNITS: Final = {"Items": ("item", "items"), "Length": ("character", "characters"), "Properties": ("entry", "entries")}


def _wrong_size(error: Any, path: str) -> Iterator[Mistake]:
    keyword = str(error.validator)
    bound, limit, count = keyword[:3], error.validator_value, len(error.instance)
    one, many = _UNITS[keyword[3:]]
    message = (
        f"{count} {one if count == 1 else many}, "
        f"expected at {'least' if bound == 'min' else 'most'} {limit} {one if limit == 1 else many}"
    )
    yield Mistake(path=path, reason="TooFew" if bound == "min" else "TooMany", message=message)


def _other(error: Any, path: str) -> Iterator[Mistake]:
    yield Mistake(path=path, reason="WrongShape", message=error.message)


_EXPLANATIONS: Final[Mapping[str, Callable[[Any, str], Iterator[Mistake]]]] = {
    "type": _wrong_type,
    "pattern": _wrong_format,
    "enum": _unknown_value,
    "const": _other,
    "required": _missing,
    "additionalProperties": _unknown_field,
    "minimum": _out_of_range,
    "maximum": _out_of_range,
    "exclusiveMinimum": _out_of_range,
    "exclusiveMaximum": _out_of_range,
    "minItems": _wrong_size,
    "maxItems": _wrong_size,
    "minLength": _wrong_size,
    "maxLength": _wrong_size,
    "minProperties": _wrong_size,
    "maxProperties": _wrong_size,
}
EXPLAINED: Final = frozenset(_EXPLANATIONS)
"""Keywords the schemas may use."""
