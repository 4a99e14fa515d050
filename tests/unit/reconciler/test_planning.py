"""From wishes to a staged change, for one moment."""

from typing import Any

import msgspec
import pytest

from backstay.core.compile import PartCache, compile_mesh
from backstay.core.intents import MeshRollout
from backstay.core.registry import Registry
from backstay.core.resources import RolloutDefaults
from backstay.core.rollout.model import HeldSet
from backstay.core.snapshot import Snapshot
from backstay.reconciler.planning import MeshPlan, Wanted, expected_refusals, mesh_rollout, plan_mesh, settings_for
from support.meshes import registry, snapshot

HEAD = "apiVersion: backstay.dev/v1alpha1\n"
ROUTE = (
    HEAD
    + "kind: Route\nmetadata: {name: b}\nspec: {hosts: [b], rules: [{backendRefs: [%s], timeouts: {request: %s}}]}\n"
)
BACKEND = HEAD + "kind: Backend\nmetadata: {name: b}\nspec: {service: b, subsets: [{name: v2, labels: {v: two}}]}\n"
POLICY = HEAD + "kind: Authorization\nmetadata: {name: p}\nspec: {selector: {workloads: [b]}, rollout: %s}\n"


def docs(*texts: str) -> Snapshot:
    return snapshot("---\n".join(texts)) if texts else Snapshot(revision="", documents={})


def planned(old: Snapshot, new: Snapshot, found: Registry | None = None, **more: Any) -> MeshPlan:
    before = compile_mesh(old, registry())
    wanted = Wanted(
        desired=new,
        stable=old,
        held=more.pop("held", ()),
        kept=old.documents,
        registry=found or registry(),
        base=before.manifests,
        parts=before.parts,
        **more,
    )
    return plan_mesh(wanted, PartCache())


def stages(made: MeshPlan) -> list[tuple[str, list[str]]]:
    return [(item.name, sorted(item.configs)) for item in made.staged.stages] if made.staged else []


def test_an_unchanged_commit_plans_nothing() -> None:
    made = planned(docs(ROUTE % ("{name: b}", "1s")), docs(ROUTE % ("{name: b}", "1s")))
    assert (stages(made), made.documents) == ([], ())


def test_a_changed_document_is_named_as_the_cause() -> None:
    made = planned(docs(ROUTE % ("{name: b}", "1s")), docs(ROUTE % ("{name: b}", "2s")))
    assert made.documents == ("Route/shop/b",)


def test_a_removed_document_is_a_cause_too() -> None:
    made = planned(docs(ROUTE % ("{name: b}", "1s")), docs())
    assert (stages(made), made.documents) == ([("move", ["shop/a", "shop/b"])], ("Route/shop/b",))


def test_a_document_about_a_service_that_is_not_there_waits() -> None:
    made = planned(docs(), docs(ROUTE % ("{name: ghost}", "1s")))
    assert (stages(made), list(made.waiting)) == ([], ["Route/shop/b"])


def test_a_stable_document_keeps_its_config_when_its_service_vanishes() -> None:
    old = docs(ROUTE % ("{name: b}", "1s"))
    without = registry(("a",), [item for item in registry().workloads.values() if item.name == "a"])
    made = planned(old, old, without)
    assert stages(made) == []
    assert "routes/b.shop:80" in made.base["shop/a"].parts


def test_a_new_service_is_taken_into_stable_without_a_rollout() -> None:
    made = planned(docs(), docs(), registry(("a", "b", "c")))
    assert stages(made) == []
    assert "routes/c.shop:80" in made.base["shop/a"].parts


def test_a_new_workload_starts_with_the_stable_documents() -> None:
    old, new = docs(ROUTE % ("{name: b}", "1s")), docs(ROUTE % ("{name: b}", "2s"))
    grown = registry(("a", "b", "c"))
    made = planned(old, new, grown)
    assert made.base["shop/c"] == compile_mesh(old, grown).manifests["shop/c"]


def test_a_document_that_needs_a_held_one_is_a_conflict() -> None:
    old = docs(ROUTE % ("{name: b}", "1s"))
    new = docs(ROUTE % ("{name: b, subset: v2}", "1s"), BACKEND)
    digest = new.documents["Backend/shop/b"].digest
    held = HeldSet(commit="1", revision="r", rollout="r1", documents={"Backend/shop/b": digest}, sentence="", since=0)
    made = planned(old, new, held=(held,))
    assert [problem.reason for problem in made.conflict] == ["UnknownSubset"]
    assert made.staged is None


def test_a_config_that_failed_for_another_cause_is_not_tried_again() -> None:
    old, new = docs(ROUTE % ("{name: b}", "1s")), docs(ROUTE % ("{name: b}", "2s"))
    frozen = compile_mesh(new, registry()).digests["shop/a"]
    assert stages(planned(old, new, frozen={"shop/a": frozen})) == [("move", ["shop/b"])]


@pytest.mark.parametrize(
    ("rollout", "wanted"), [("{}", "hold"), ("{onNoTraffic: proceed}", "proceed")], ids=["default", "said"]
)
def test_policies_hold_without_traffic_unless_they_say_otherwise(rollout: str, wanted: str) -> None:
    found = docs(POLICY % rollout).documents.values()
    assert settings_for(MeshRollout(), found).on_no_traffic == wanted


def test_immediate_needs_every_changed_document_to_say_so() -> None:
    immediate = docs(POLICY % "{strategy: Immediate}").documents.values()
    mixed = docs(POLICY % "{strategy: Immediate}", ROUTE % ("{name: b}", "1s")).documents.values()
    assert settings_for(MeshRollout(), immediate).immediate
    assert not settings_for(MeshRollout(), mixed).immediate


def test_expected_refusals_come_from_the_changed_documents() -> None:
    found = docs(POLICY % "{expectRefused: [{source: 10.0.0.0/8, path: /x}]}").documents.values()
    assert expected_refusals(found) == (("10.0.0.0/8", "", "/x"),)


def test_defaults_of_the_repository_count_where_the_mesh_document_is_silent() -> None:
    defaults = msgspec.to_builtins(RolloutDefaults(soak="1s", warm_up="5s", shares=(50.0, 100.0)))
    mesh = HEAD + "kind: Mesh\nmetadata: {name: mesh}\nspec: {rollout: {soak: 7s}}\n"
    assert mesh_rollout(docs(), {}) == MeshRollout()
    assert mesh_rollout(docs(), defaults) == MeshRollout(soak="1s", warm_up="5s", shares=(50.0, 100.0))
    assert mesh_rollout(docs(mesh), defaults) == MeshRollout(soak="7s", warm_up="5s", shares=(50.0, 100.0))


def test_a_soak_and_a_deadline_that_do_not_fit_each_other_leave_time_for_evidence() -> None:
    assert settings_for(MeshRollout(soak="20m", deadline="10m"), ()).deadline == 1200.0
