"""Weights may be walked; nothing else may."""

from backstay.core.ramp import gaining, ramped
from backstay.core.snapshot import Snapshot
from support.meshes import snapshot

ROUTE = """
apiVersion: backstay.dev/v1alpha1
kind: Backend
metadata: {name: b}
spec: {service: b, subsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}}]}
---
apiVersion: backstay.dev/v1alpha1
kind: Route
metadata: {name: b}
spec:
  hosts: [b]
  rules:
  - backendRefs: [{name: b, subset: v1, weight: %d}, {name: b, subset: v2, weight: %d}]
    timeouts: {request: %s}
"""
KEY = "Route/shop/b"


def weights(found: Snapshot) -> list[tuple[str | None, int]]:
    spec = found.documents[KEY].spec
    return [(ref.subset, ref.weight) for ref in spec.rules[0].backend_refs]  # type: ignore[union-attr]


def test_each_step_is_its_share_of_the_way() -> None:
    old, new = snapshot(ROUTE % (90, 10, "3s")), snapshot(ROUTE % (50, 50, "3s"))
    steps = ramped(old.documents, new, [KEY], [0.25, 0.5, 1.0])
    assert steps is not None
    assert [weights(step) for step in steps] == [
        [("v1", 8000), ("v2", 2000)],
        [("v1", 7000), ("v2", 3000)],
        [("v1", 50), ("v2", 50)],
    ]


def test_who_gains_is_named_by_destination() -> None:
    old, new = snapshot(ROUTE % (90, 10, "3s")), snapshot(ROUTE % (50, 50, "3s"))
    assert gaining(old.documents, new.documents, [KEY]) == ("b.shop:80/v2",)


def test_another_change_beside_the_weights_takes_waves() -> None:
    old, new = snapshot(ROUTE % (90, 10, "3s")), snapshot(ROUTE % (50, 50, "4s"))
    assert ramped(old.documents, new, [KEY], [0.5, 1.0]) is None


def test_a_new_route_takes_waves() -> None:
    new = snapshot(ROUTE % (50, 50, "4s"))
    assert ramped({}, new, [KEY], [0.5, 1.0]) is None
