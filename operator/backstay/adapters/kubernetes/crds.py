"""bootstrap/crds from the types in core/resources.py: structural schemas, defaults, CEL rules, printer columns.

`generated()` gives the text of every file; `backstay schemas --crds FOLDER` writes and compares them, and a test fails
where they drift. Nothing of this runs in the operator.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec
import yaml

from backstay.core.resources import GROUP, RESOURCES, VERSION, Column, Kind, Rule

_UNSTARTED: Final = {"observedGeneration": -1}
"""The status of an object nobody has looked at: without it kstatus would call a new object Current at once."""
_KEPT: Final = (
    "type", "description", "pattern", "enum", "minLength", "maxLength", "minItems", "maxItems", "minimum", "maximum",
    "default", "items", "properties", "required", "additionalProperties",
)  # fmt: skip
"""Words of JSON Schema that structural schemas know as well."""


def generated() -> dict[str, str]:
    """File name -> text of everything under bootstrap/crds that is generated."""
    files = {f"{kind.resource}.yaml": _text(definition(kind)) for kind in RESOURCES.values()}
    listed = {"apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization", "resources": sorted(files)}
    return files | {"kustomization.yaml": _text(listed)}


def definition(kind: Kind) -> dict[str, Any]:
    """The CustomResourceDefinition of one kind."""
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {
            "name": kind.resource,
            "labels": {"app.kubernetes.io/name": "backstay", "app.kubernetes.io/part-of": "backstay"},
        },
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": kind.name,
                "listKind": f"{kind.name}List",
                "plural": kind.plural,
                "singular": kind.name.lower(),
                "shortNames": list(kind.short),
                "categories": ["backstay"],
            },
            "versions": [
                {
                    "name": VERSION,
                    "served": True,
                    "storage": True,
                    "subresources": {"status": {}},
                    "additionalPrinterColumns": [_column(column) for column in kind.columns],
                    "schema": {"openAPIV3Schema": _schema(kind)},
                }
            ],
        },
    }


def _column(column: Column) -> dict[str, Any]:
    shown = {"name": column.name, "type": column.type, "jsonPath": column.path}
    return shown | ({"priority": 1} if column.wide else {})


def _schema(kind: Kind) -> dict[str, Any]:
    _, components = msgspec.json.schema_components([kind.spec, kind.status], ref_template="#/$defs/{name}")
    status = _undefaulted(_structural(components[kind.status.__name__], components))
    status["default"] = _UNSTARTED
    status["properties"]["conditions"] |= {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]}
    status["properties"]["conditions"]["items"]["properties"]["lastTransitionTime"]["format"] = "date-time"
    spec = _structural(components[kind.spec.__name__], components)
    schema = {
        "type": "object",
        "description": kind.description,
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"type": "object"},
            "spec": _telling(spec) if kind.is_written_by_people else _undefaulted(spec),
            "status": status,
        },
    }
    for rule in kind.rules:
        _attach(schema, rule)
    return schema


def _structural(schema: Mapping[str, Any], components: Mapping[str, Any]) -> dict[str, Any]:
    """The schema with references put in, and only with words that structural schemas know."""
    schema = _resolved(schema, components)
    found: dict[str, Any] = {key: schema[key] for key in _KEPT if key in schema}
    if "exclusiveMinimum" in schema:
        found |= {"minimum": schema["exclusiveMinimum"], "exclusiveMinimum": True}
    if "properties" in found:
        found["properties"] = {key: _structural(value, components) for key, value in found["properties"].items()}
        found.pop("additionalProperties", None)  # unknown fields are pruned, or refused by kubectl's validation
    if "items" in found:
        found["items"] = _structural(found["items"], components)
    if isinstance(found.get("additionalProperties"), dict):
        found["additionalProperties"] = _structural(found["additionalProperties"], components)
    if found.get("required") == []:
        del found["required"]
    if "enum" in found:
        found["type"] = "string"
    if found.get("type") == "integer":
        found["format"] = "int64"
    return found


def _resolved(schema: Mapping[str, Any], components: Mapping[str, Any]) -> dict[str, Any]:
    """The schema a reference, or the only alternative to null, stands for; what is said beside it wins."""
    beside = {key: value for key, value in schema.items() if key not in {"$ref", "anyOf"}}
    if beside.get("default", ...) is None:
        del beside["default"]
    if "$ref" in schema:
        return _resolved(components[str(schema["$ref"]).rpartition("/")[2]], components) | beside
    options = [option for option in schema.get("anyOf", ()) if option != {"type": "null"}]
    if options:
        (only,) = options
        return _resolved(only, components) | beside
    return beside


def _undefaulted(schema: dict[str, Any]) -> dict[str, Any]:
    """What the operator writes is complete: defaults would only fill it with empty fields."""
    return {
        key: _each(value, _undefaulted) if key in {"properties", "items"} else value
        for key, value in schema.items()
        if key != "default"
    }


def _telling(schema: dict[str, Any]) -> dict[str, Any]:
    """Only defaults that say something: `path: ''` in everybody's objects does not."""
    found = {key: _each(value, _telling) if key in {"properties", "items"} else value for key, value in schema.items()}
    says_something = any("default" in value for value in found.get("properties", {}).values())
    if found.get("default", ...) in ("", [], (), {}) and not says_something:
        del found["default"]
    return found


def _each(value: dict[str, Any], change: Callable[[dict[str, Any]], dict[str, Any]]) -> dict[str, Any]:
    """Applied to the schema of items, or to those of all properties."""
    if "type" in value and isinstance(value["type"], str):
        return change(value)
    return {name: change(schema) for name, schema in value.items()}


def _attach(schema: dict[str, Any], rule: Rule) -> None:
    """Put a CEL rule where it belongs."""
    place = schema
    for step in rule.at.split(".") if rule.at else ():
        place = place["properties"][step]
    place.setdefault("x-kubernetes-validations", []).append({"rule": rule.expression, "message": rule.message})


class _Dumper(yaml.SafeDumper):
    """No anchors: two equal lists are written twice."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(content: Mapping[str, Any]) -> str:
    head = "# Generated by `backstay schemas` from operator/backstay/core/resources.py; do not edit.\n"
    return head + yaml.dump(content, Dumper=_Dumper, sort_keys=False, width=120, allow_unicode=True)
