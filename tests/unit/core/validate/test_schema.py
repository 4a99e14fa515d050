"""The schemas on disk are those of the types, every keyword is explained, and schema and types accept the same."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from backstay.cli.schemas import differing, docs
from backstay.core.documents import parse
from backstay.core.intents import KINDS
from backstay.core.validate.schema import any_document_schema, document_schema, generated
from backstay.core.validate.shape import EXPLAINED, mistakes

REPOSITORY = Path(__file__).parents[4]
SILENT = {"$schema", "$id", "$defs", "$ref", "title", "description", "default", "examples", "properties", "items"}
FORBIDDEN_NAMES = {"on", "off", "yes", "no", "y", "n"}


def test_the_files_in_the_repository_are_generated() -> None:
    assert differing(REPOSITORY / "schemas", generated()) == []
    assert differing(REPOSITORY / "docs" / "reference", docs()) == []


def test_a_changed_file_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "route.json").write_text("{}", encoding="utf-8")
    (tmp_path / "old.json").write_text("{}", encoding="utf-8")
    (tmp_path / "mesh.json").write_text(generated()["mesh.json"], encoding="utf-8")
    wanted = {name: generated()[name] for name in ("route.json", "mesh.json", "backend.json")}
    assert differing(tmp_path, wanted) == [
        f"{tmp_path / 'backend.json'}: is missing",
        f"{tmp_path / 'route.json'}: differs from what the types say",
        f"{tmp_path / 'old.json'}: is not generated (any more)",
    ]


def test_there_is_one_schema_for_each_kind_and_one_for_all() -> None:
    assert set(generated()) == {f"{kind.lower()}.json" for kind in KINDS} | {"backstay.json", "sidecar.json"}
    for text in generated().values():
        Draft202012Validator.check_schema(json.loads(text))


def subschemas(schema: Any) -> Iterator[dict[str, Any]]:
    """Every schema inside a schema; examples and defaults are values, not schemas."""
    if isinstance(schema, list):
        for item in schema:
            yield from subschemas(item)
    elif isinstance(schema, dict):
        yield schema
        for keyword, value in schema.items():
            if keyword in ("properties", "$defs"):
                yield from (inner for item in value.values() for inner in subschemas(item))
            elif keyword not in ("examples", "default", "enum", "const", "required"):
                yield from subschemas(value)


@pytest.mark.parametrize("kind", KINDS)
def test_every_keyword_has_words_for_what_is_wrong(kind: str) -> None:
    used = {keyword for schema in subschemas(dict(document_schema(kind))) for keyword in schema}
    assert used - SILENT <= EXPLAINED


@pytest.mark.parametrize("kind", KINDS)
def test_no_field_is_called_what_kubectl_takes_for_a_boolean(kind: str) -> None:
    names = {name for schema in subschemas(dict(document_schema(kind))) for name in schema.get("properties", ())}
    assert names & FORBIDDEN_NAMES == set()


@pytest.mark.parametrize("kind", KINDS)
def test_null_is_nowhere_allowed(kind: str) -> None:
    assert all(
        schema.get("type") != "null" and "anyOf" not in schema for schema in subschemas(dict(document_schema(kind)))
    )


@pytest.mark.parametrize("kind", KINDS)
def test_examples_and_defaults_satisfy_their_own_schema(kind: str) -> None:
    root = document_schema(kind)
    for schema in subschemas(dict(root)):
        validator = Draft202012Validator({**schema, "$defs": root["$defs"]})
        for value in [*schema.get("examples", ()), *([schema["default"]] if "default" in schema else [])]:
            validator.validate(value)


def test_the_schema_for_editors_tells_the_kinds_apart() -> None:
    validator = Draft202012Validator(any_document_schema())
    head = {"apiVersion": "backstay.dev/v1alpha1", "metadata": {"name": "a"}}
    assert validator.is_valid({**head, "kind": "Mesh", "spec": {"egress": "ALLOW_ANY"}})
    assert not validator.is_valid({**head, "kind": "Backend", "spec": {"egress": "ALLOW_ANY"}})


# --- schema and types agree -------------------------------------------------------------------------------------------

EXAMPLES: dict[str, dict[str, Any]] = {
    "Mesh": {"egress": "ALLOW_ANY", "defaults": {"timeout": "5s"}, "rollout": {"shares": [5, 100], "tolerance": 1}},
    "Route": {
        "hosts": ["sa-logic"],
        "port": 80,
        "rules": [
            {
                "name": "a",
                "matches": [{"path": {"value": "/a"}, "method": "GET", "headers": [{"name": "x", "value": "y"}]}],
                "backendRefs": [{"name": "sa-logic", "weight": 5, "subset": "v1"}],
                "timeouts": {"request": "5s"},
                "retry": {"attempts": 1, "retryOn": ["5xx"], "anyMethod": True},
                "fault": {"delay": {"duration": "1s", "percentage": 0.5}},
            }
        ],
        "rollout": {"traffic": [10, 100], "expectRefused": [{"source": "10.0.0.0/8"}]},
    },
    "Backend": {"service": "a", "subsets": [{"name": "v1", "labels": {"v": "1"}}], "tls": {"mode": "MESH"}},
    "Authentication": {
        "selector": {"workloads": ["a"]},
        "mtls": {"mode": "STRICT", "ports": [{"port": 1, "mode": "STRICT"}]},
    },
    "ExternalService": {
        "hosts": ["api.pay.example", "*.pay.example"],
        "ports": [{"port": 80}, {"port": 443, "protocol": "TLS"}],
        "tls": {"port": 8443, "sni": "pay.example", "subjectAltNames": ["a.example"], "caCertificates": "PEM"},
    },
    "Gateway": {
        "selector": {"workloads": ["ingress"]},
        "listeners": [
            {
                "name": "a",
                "port": 8443,
                "protocol": "HTTPS",
                "hosts": ["*.example.com"],
                "tls": {"secretRef": {"name": "b"}, "minVersion": "1.3"},
            }
        ],
    },
    "Authorization": {
        "action": "Deny",
        "rules": [
            {"from": [{"principals": ["*"], "serviceAccounts": ["a/b"]}], "to": [{"paths": ["/a*"], "ports": [1]}]}
        ],
    },
    "Guardrail": {
        "kinds": ["Route"],
        "namespaces": ["shop"],
        "operations": ["UPDATE"],
        "severity": "Warn",
        "validations": [{"expression": "change.weightStep <= 25.0", "message": "too fast"}],
        "failurePolicy": "Ignore",
    },
    "Expectation": {
        "from": "shop/sa-webapp",
        "request": {"method": "POST", "url": "http://sa-logic/analyse?x=1", "headers": {"x-version": "v2"}},
        "expect": {
            "outcome": "Routed",
            "rule": "main",
            "destinations": [{"name": "sa-logic", "port": 80, "subset": "v1", "percent": 90}],
            "timeout": "3s",
            "retries": 2,
        },
    },
}
ODD = st.sampled_from(
    [0, -1, 1.0, 0.5, 1e9, 2**40, True, "", "x", "5s", "A b", "*", "/x", [], ["x"], [1], {}, {"x": 1}]
)


def paths(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from paths(inner, (*path, key))


def changed(value: Any, path: tuple[str | int, ...], new: Any) -> Any:
    """A copy with one value replaced; REMOVED removes it, ADDED adds a field beside it."""
    if not path:
        return new
    copy: Any = dict(value) if isinstance(value, dict) else list(value)
    if len(path) == 1 and new is REMOVED:
        del copy[path[0]]
    else:
        copy[path[0]] = changed(value[path[0]], path[1:], new)
    return copy


REMOVED = object()


@st.composite
def documents(draw: st.DrawFn) -> dict[str, Any]:
    kind = draw(st.sampled_from(sorted(KINDS)))
    spec: Any = EXAMPLES[kind]
    for _ in range(draw(st.integers(0, 2))):
        path = draw(st.sampled_from([path for path in paths(spec) if path] or [()]))
        spec = changed(spec, path, draw(st.just(REMOVED) | ODD)) if path else spec
    return {"apiVersion": "backstay.dev/v1alpha1", "kind": kind, "metadata": {"name": "a"}, "spec": spec}


@pytest.mark.parametrize("kind", KINDS)
def test_the_examples_are_valid_for_both(kind: str) -> None:
    raw = {"apiVersion": "backstay.dev/v1alpha1", "kind": kind, "metadata": {"name": "a"}, "spec": EXAMPLES[kind]}
    assert mistakes(kind, raw) == []
    assert parse({"a.yaml": msgspec.json.encode(raw)}).problems == ()


@given(documents())
@settings(max_examples=500, deadline=None)
def test_types_accept_exactly_what_the_schema_does(raw: dict[str, Any]) -> None:
    found = mistakes(raw["kind"], raw)
    parsed = parse({"a.yaml": msgspec.json.encode(raw)})
    assert bool(parsed.documents) == (not found)
    assert all(mistake.reason != "WrongShape" for mistake in found), "the schema sees everything that the types refuse"
