"""What is read from the API's objects before any loop runs."""

from typing import Any

import msgspec
import pytest

from backstay.app.meshes import grants_of, repository_of, shared_documents
from backstay.core.documents import parse
from support import views

FOUND: dict[str, Any] = {
    "metadata": {
        "namespace": "shop",
        "name": "mesh",
        "uid": "u-1",
        "creationTimestamp": "2026-01-01T00:00:00Z",
        "generation": 4,
    },
    "spec": {"url": "https://git.example/mesh.git", "allow": {"namespaces": ["shop", "bank"]}},
}


def test_an_object_is_read_with_its_defaults() -> None:
    found = repository_of(FOUND)
    assert (found.key, found.generation, found.wanted, found.spec.interval) == ("shop/mesh", 4, ("shop", "bank"), "30s")


def test_a_field_of_a_newer_release_is_left_aside() -> None:
    """Its definitions come first in an upgrade, and the API server writes their defaults into every object."""
    newer = {**FOUND, "spec": {**FOUND["spec"], "teleport": True}}
    assert repository_of(newer) == repository_of(FOUND)


def test_a_spec_that_says_more_of_what_is_known_is_not_half_read() -> None:
    with pytest.raises(msgspec.ValidationError, match="unknown field `teleport`"):
        repository_of({**FOUND, "spec": {**FOUND["spec"], "allow": {"teleport": True}}})


def test_grants_are_read_from_annotations() -> None:
    annotations = {"shop": {"backstay.dev/repository": "platform/mesh", "other": "x"}, "bank": {}}
    assert grants_of(annotations) == {"shop": "platform/mesh"}


def test_only_what_is_about_the_whole_cluster_is_handed_down_and_stays_where_it_was() -> None:
    mesh = b"apiVersion: backstay.dev/v1alpha1\nkind: Mesh\nmetadata: {name: m}\nspec: {defaults: {timeout: 7s}}\n"
    [document] = parse({"mesh.yaml": mesh}, default_namespace="backstay-system").documents
    route = views.STABLE.documents["Route/shop/b"]
    handed = shared_documents("backstay-system/mesh", [document, route])
    assert list(handed) == ["backstay-system/mesh/mesh.yaml#Mesh/backstay-system/m"]
    [again] = parse(handed, default_namespace="shop").documents
    assert (again.key, again.spec) == (document.key, document.spec)
