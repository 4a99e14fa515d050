"""What is shown as objects: whole wishes from views, and what counts as a change by hand."""

from typing import Any

from backstay.adapters.kubernetes.client import ApiClient, Credentials
from backstay.adapters.kubernetes.objects import (
    OWNER,
    Owner,
    Projection,
    Wish,
    _Written,
    body_of,
    desired,
    event_body,
    is_as_wished,
    memory_of,
    refused,
    status_of,
)
from backstay.core import status
from backstay.core.ports import Event
from backstay.core.rollout.model import Phase
from backstay.core.view import MeshView
from support import views

SHOP = Owner(namespace="shop", name="shop", uid="u-1", ref="main", namespaces=("shop",))


def shown(view: MeshView, owner: Owner = SHOP, **more: Any) -> dict[str, Wish]:
    objects, _ = status.objects(view, {})
    return desired(objects, owner, **more)


def test_a_view_becomes_a_status_a_rollout_and_an_intent_per_document() -> None:
    wishes = shown(views.rolling())
    assert sorted(wishes) == ["MeshIntent/shop/route.b", "MeshRepository/shop/shop", "MeshRollout/shop/shop-r2"]
    repository = wishes["MeshRepository/shop/shop"]
    assert (repository.spec, repository.owner) == (None, None)
    assert (repository.status["ref"], repository.status["namespaces"], repository.status["phase"]) == (
        "main", ["shop"], "wave 1/4",
    )  # fmt: skip


def test_everything_else_is_labelled_and_goes_with_its_repository() -> None:
    body = body_of(shown(views.live())["MeshIntent/shop/route.b"])
    assert body["metadata"] == {
        "name": "route.b",
        "namespace": "shop",
        "labels": {OWNER: "shop.shop"},
        "ownerReferences": [
            {
                "apiVersion": "backstay.dev/v1alpha1",
                "kind": "MeshRepository",
                "name": "shop",
                "uid": "u-1",
                "controller": True,
                "blockOwnerDeletion": False,
            }
        ],
    }
    assert (body["spec"]["place"], body["spec"]["repository"]) == ("b.yaml:1", "shop/shop")


def test_an_owner_in_another_namespace_is_not_referred_to() -> None:
    platform = Owner(namespace="platform", name="mesh", uid="u-2", namespaces=("platform", "shop"))
    wish = shown(views.live(), platform)["MeshIntent/shop/route.b"]
    assert "ownerReferences" not in body_of(wish)["metadata"]
    assert wish.labels == {OWNER: "platform.mesh"}


def test_documents_outside_its_namespaces_are_not_shown() -> None:
    bank = Owner(namespace="bank", name="bank", uid="u-3", namespaces=("bank",))
    assert [key for key in shown(views.live(), bank) if key.startswith("MeshIntent")] == []


def test_a_status_never_carries_a_spec() -> None:
    for wish in shown(views.rolling()).values():
        assert set(status_of(wish)) == {"apiVersion", "kind", "metadata", "status"}


def test_the_last_order_is_shown_with_its_rollout() -> None:
    order = {"order": "pause", "actor": "ann", "done": True}
    wish = shown(views.rolling(Phase.PAUSED), orders={"shop-r2": order})["MeshRollout/shop/shop-r2"]
    assert (wish.status["lastOrder"], wish.status["progress"]) == (order, "wave 1/4")


def test_what_others_have_added_is_no_change_by_hand() -> None:
    wish = shown(views.live())["MeshIntent/shop/route.b"]
    found = {"spec": {**wish.spec, "later": 1}, "status": {**wish.status, "theirs": "x"}}  # type: ignore[dict-item] # set
    assert is_as_wished(found, wish)
    assert not is_as_wished({**found, "spec": {**found["spec"], "file": "other.yaml"}}, wish)
    assert not is_as_wished({**found, "status": {**found["status"], "conditions": []}}, wish)
    assert not is_as_wished({"spec": found["spec"]}, wish)


def test_a_sighting_older_than_our_write_is_no_news() -> None:
    projection = Projection(ApiClient(Credentials(None)), SHOP)  # type: ignore[arg-type] # it is never asked
    wishes = shown(views.live())
    projection.show(wishes)
    metadata = {"name": "route.b", "namespace": "shop", "resourceVersion": "7"}
    edited = {"metadata": metadata, "spec": {"file": "other.yaml"}}
    assert not projection.saw("MeshIntent", edited), "nothing was written yet"
    projection._written["MeshIntent/shop/route.b"] = _Written(version=8, status=b"x")
    assert not projection.saw("MeshIntent", edited), "what was seen is older than what was written"
    assert projection.saw("MeshIntent", {**edited, "metadata": {**metadata, "resourceVersion": "9"}})
    assert not projection.saw("MeshIntent", {**edited, "metadata": {**metadata, "name": "route.z"}})


def test_times_of_conditions_outlive_the_operator() -> None:
    found = {
        "status": {
            "conditions": [
                {"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:10Z"},
                {"type": "Odd", "status": "True", "lastTransitionTime": "yesterday"},
            ]
        }
    }
    assert dict(memory_of("MeshRepository/shop", found)) == {"MeshRepository/shop#Ready": ("True", 1767225610.0)}
    assert dict(memory_of("x", {"metadata": {}})) == {}


def test_a_refusal_keeps_what_was_known_before() -> None:
    condition = {"type": "Stalled", "status": "True"}
    wish = refused(SHOP, [condition], 4, {"activeRevision": "main@sha1:1", "conditions": ["old"]})
    assert wish.status == {
        "activeRevision": "main@sha1:1", "observedGeneration": 4, "conditions": [condition], "ref": "main",
    }  # fmt: skip


def test_an_event_is_about_the_repository_and_says_nothing_secret() -> None:
    event = Event(at=1767225610.0, kind="rollout", reason="RolledBack", message="token=abc failed", warning=True)
    body = event_body(event, SHOP, "pod-a")
    assert (body["type"], body["reason"], body["message"], body["action"]) == (
        "Warning", "RolledBack", "token=*** failed", "Rollout",
    )  # fmt: skip
    assert body["involvedObject"]["uid"] == "u-1"
    assert (body["firstTimestamp"], body["count"]) == ("2026-01-01T00:00:10Z", 1)
