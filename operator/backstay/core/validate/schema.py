"""The JSON Schemas (2020-12) of the intents, generated from the types in core/intents.py.

`generated()` gives the text of every file under schemas/; cli/schemas.py writes and compares them, validate/shape.py
explains mistakes with the same schemas in memory, reference.py makes the reference page from them. One thing differs
from the types on purpose: `null` is nowhere allowed, a field that is not meant is left out.
"""

import functools
import json
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from backstay.config.standalone import ConfigFile
from backstay.core.intents import API_VERSION, KINDS, Metadata

DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"
_BASE: Final = f"https://{API_VERSION.replace('/', '/schemas/')}"


def generated() -> dict[str, str]:
    """File name -> text of everything under schemas/ that is generated."""
    files = {f"{kind.lower()}.json": _text(document_schema(kind)) for kind in KINDS}
    return files | {"backstay.json": _text(any_document_schema()), "sidecar.json": _text(sidecar_schema())}


@functools.cache
def document_schema(kind: str) -> Mapping[str, Any]:
    """The schema of one kind's documents, standing alone."""
    definitions = _definitions(kind)
    return {
        "$schema": DIALECT,
        "$id": f"{_BASE}/{kind.lower()}.json",
        **_envelope(kind, definitions),
        "$defs": dict(sorted(definitions.items())),
    }


def any_document_schema() -> Mapping[str, Any]:
    """One schema for editors that are told a folder, not a kind."""
    definitions: dict[str, Any] = {}
    for kind in KINDS:
        own = _definitions(kind)
        definitions |= own | {kind: _envelope(kind, own)}
    return {
        "$schema": DIALECT,
        "$id": f"{_BASE}/backstay.json",
        "title": "Backstay intent",
        "description": "Any document of a mesh repository.",
        "type": "object",
        "required": ["apiVersion", "kind"],
        "properties": {"apiVersion": {"const": API_VERSION}, "kind": {"enum": list(KINDS)}},
        "oneOf": [{"$ref": f"#/$defs/{kind}"} for kind in KINDS],
        "$defs": dict(sorted(definitions.items())),
    }


def sidecar_schema() -> Mapping[str, Any]:
    """Of the file that `backstay sidecar --config` serves."""
    (reference,), components = msgspec.json.schema_components([ConfigFile], ref_template="#/$defs/{name}")
    return {
        "$schema": DIALECT,
        "$id": f"{_BASE}/sidecar.json",
        "title": "Backstay sidecar",
        **reference,
        "$defs": {name: _without_null(schema) for name, schema in sorted(components.items())},
    }


def _envelope(kind: str, definitions: Mapping[str, Any]) -> dict[str, Any]:
    spec = KINDS[kind].__name__
    return {
        "title": kind,
        "description": definitions[spec]["description"],
        "type": "object",
        "properties": {
            "apiVersion": {"description": "Version of this schema.", "const": API_VERSION},
            "kind": {"description": "What the document is.", "const": kind},
            "metadata": {"$ref": "#/$defs/Metadata"},
            "spec": {"$ref": f"#/$defs/{spec}"},
        },
        "required": ["apiVersion", "kind", "metadata", "spec"],
        "additionalProperties": False,
    }


def _definitions(kind: str) -> dict[str, Any]:
    _, components = msgspec.json.schema_components([KINDS[kind], Metadata], ref_template="#/$defs/{name}")
    return {name: _without_null(schema) for name, schema in components.items()}


def _without_null(schema: Any) -> Any:
    """The same schema without the alternative `null` and the default that stands for it."""
    if isinstance(schema, list | tuple):
        return [_without_null(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    plain = {key: _without_null(value) for key, value in schema.items() if (key, value) != ("default", None)}
    options = [option for option in plain.get("anyOf", ()) if option != {"type": "null"}]
    if len(options) != 1:
        return plain
    del plain["anyOf"]
    return options[0] | plain


def _text(schema: Mapping[str, Any]) -> str:
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"
