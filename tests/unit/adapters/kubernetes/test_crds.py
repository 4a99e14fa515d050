"""The definitions on disk are those of the types, they are structural, and they keep every field that status writes."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest

from backstay.adapters.kubernetes.crds import definition, generated
from backstay.core import status
from backstay.core.resources import RESOURCES, repository_spec
from backstay.core.rollout.model import Phase
from backstay.core.view import MeshView
from support import views

ROOT = Path(__file__).parents[4]
# structural schemas: https://kubernetes.io/docs/tasks/extend-kubernetes/custom-resources/custom-resource-definitions/
FORBIDDEN = {"$ref", "anyOf", "oneOf", "allOf", "const", "title", "examples", "$defs", "definitions", "uniqueItems"}


def schema_of(kind: str) -> dict[str, Any]:
    found = definition(RESOURCES[kind])["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    assert isinstance(found, dict)
    return found


def nodes(schema: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    yield path, schema
    for name, child in schema.get("properties", {}).items():
        yield from nodes(child, f"{path}.{name}")
    for word in ("items", "additionalProperties"):
        if isinstance(schema.get(word), Mapping):
            yield from nodes(schema[word], f"{path}[]")


def unknown(value: object, schema: Mapping[str, Any], path: str = "") -> list[str]:
    """Paths of a value that the API server would drop."""
    if isinstance(value, Mapping):
        known, rest = schema.get("properties", {}), schema.get("additionalProperties")
        found = [f"{path}.{key}" for key in value if key not in known and rest is None]
        for key, item in value.items():
            found += unknown(item, known.get(key, rest or {}), f"{path}.{key}")
        return found
    if isinstance(value, list | tuple):
        return [text for item in value for text in unknown(item, schema.get("items", {}), f"{path}[]")]
    return []


def test_the_files_on_disk_are_those_of_the_types() -> None:
    folder = ROOT / "bootstrap" / "crds"
    on_disk = {path.name: path.read_text(encoding="utf-8") for path in folder.iterdir()}
    assert on_disk == generated(), "run `backstay schemas --crds bootstrap/crds`"


@pytest.mark.parametrize("kind", RESOURCES)
def test_schemas_are_structural(kind: str) -> None:
    for path, node in nodes(schema_of(kind)):
        assert not FORBIDDEN & node.keys(), path
        assert isinstance(node["type"], str), path
        assert not ("properties" in node and "additionalProperties" in node), path


@pytest.mark.parametrize("kind", RESOURCES)
def test_an_object_nobody_has_looked_at_is_in_progress(kind: str) -> None:
    assert schema_of(kind)["properties"]["status"]["default"] == {"observedGeneration": -1}


@pytest.mark.parametrize(
    "view", [views.live(), *(views.rolling(phase) for phase in Phase)], ids=["live", *(phase.value for phase in Phase)]
)
def test_every_field_that_status_writes_is_kept(view: MeshView) -> None:
    shown, _ = status.objects(view, {})
    assert shown.intents
    dropped = unknown(shown.repository["status"], schema_of("MeshRepository")["properties"]["status"])
    for kind, items in (("MeshRollout", shown.rollouts), ("MeshIntent", shown.intents)):
        for item in items:
            for half in ("spec", "status"):
                dropped += unknown(item[half], schema_of(kind)["properties"][half], f"{kind}.{half}")
    assert dropped == []


def test_defaults_of_the_schema_are_those_of_the_types() -> None:
    spec = repository_spec({"url": "https://git.example/mesh.git"})
    assert (spec.interval, spec.timeout, spec.suspend, spec.prune_guard.max_percent) == ("30s", "60s", False, 50)
    properties = schema_of("MeshRepository")["properties"]["spec"]["properties"]
    assert {name: item["default"] for name, item in properties.items() if "default" in item} == {
        "interval": "30s", "timeout": "60s", "suspend": False, "reviews": False, "pruneGuard": {},
    }  # fmt: skip


def test_fields_of_a_newer_release_do_not_stop_the_operator_that_still_leads() -> None:
    url = "https://git.example/mesh.git"
    assert repository_spec({"url": url, "comesLater": True}) == repository_spec({"url": url})
    with pytest.raises(msgspec.ValidationError, match="unknown field `brnch`"):
        repository_spec({"url": url, "ref": {"brnch": "main"}})


def test_what_the_operator_writes_has_no_defaults_beside_the_first() -> None:
    for kind in ("MeshRollout", "MeshIntent"):
        for path, node in nodes(schema_of(kind)):
            assert "default" not in node or path == ".status", path
