"""Make before break, and how Envoy's answer is read."""

from pathlib import Path

from backstay.sidecar.engines.envoy.files import Folder, file_name
from backstay.sidecar.engines.envoy.render import Rendered
from backstay.sidecar.engines.envoy.updates import (
    CLUSTERS,
    FILTERS,
    LISTENERS,
    Step,
    Write,
    is_taken,
    rejected,
    steps,
    words,
)

FOLDER = Folder(Path("/run/envoy"))
FILTERED: list[tuple[str, dict[str, str]]] = [("l", {}), ("m", {"f": "one"}), ("m", {"f": "two"})]
"""Name of the listener, and the filters that it reads from files."""


def rendered(
    *clusters: str, route: str = "one", listener: str = "l", filters: dict[str, str] | None = None
) -> Rendered:
    return Rendered(
        listeners=[{"name": listener, "rds": {"route_config_name": "outbound"}}],
        clusters=[{"name": name} for name in clusters],
        routes={"outbound": {"name": "outbound", "to": route}},
        endpoints={name: {"cluster_name": name} for name in clusters},
        secrets={},
        filters={name: {"name": name, "typed_config": config} for name, config in (filters or {}).items()},
    )


def order(before: Rendered | None, after: Rendered) -> list[list[str]]:
    return [
        [str(write.path.relative_to(FOLDER.path)) for write in step.writes] for step in steps(before, after, FOLDER)
    ]


def test_nothing_changed_is_nothing_to_do() -> None:
    assert order(rendered("a"), rendered("a")) == []


def test_a_new_cluster_is_there_before_the_routes_and_an_old_one_goes_after_them() -> None:
    found = steps(rendered("a"), rendered("b", route="two"), FOLDER)
    assert order(rendered("a"), rendered("b", route="two")) == [
        ["endpoints/b.json"], ["clusters.json"], ["routes/outbound.json"], ["clusters.json"],
    ]  # fmt: skip
    assert [each["name"] for each in found[1].writes[0].resources] == ["b", "a"]
    assert [each["name"] for each in found[3].writes[0].resources] == ["b"]


def test_routes_that_somebody_reads_are_waited_for() -> None:
    (step,) = steps(rendered("a"), rendered("a", route="two"), FOLDER)
    assert [write.subscription for write in step.writes] == ["http.outbound.rds.outbound"]


def test_a_filters_file_is_there_before_listeners_name_it_and_then_changes_alone() -> None:
    none, one, other = (rendered("a", listener=name, filters=each) for name, each in FILTERED)
    assert order(none, one) == [["filters/f.json"], ["listeners.json"]]
    (step,) = steps(one, other, FOLDER)
    assert [(write.path, write.subscription) for write in step.writes] == [(FOLDER.filter("f"), f"{FILTERS}.f")]
    before = {f"{FILTERS}.f.config_reload": "1"}
    assert [is_taken(step, "2", before, {f"{FILTERS}.f.config_reload": count}) for count in "12"] == [False, True]


def test_an_update_is_taken_when_its_version_is_served_and_nothing_warms() -> None:
    step = Step((Write(FOLDER.listeners, (), LISTENERS), Write(FOLDER.clusters, (), CLUSTERS)))
    taken = {f"{LISTENERS}.version_text": "2", f"{CLUSTERS}.version_text": "2"}
    assert is_taken(step, "2", {}, taken)
    assert not is_taken(step, "3", {}, taken)
    assert not is_taken(step, "2", {}, taken | {"listener_manager.total_listeners_warming": "1"})


def test_an_update_is_refused_when_the_count_of_refusals_grows() -> None:
    step = Step((Write(FOLDER.clusters, (), CLUSTERS),))
    before, after = {f"{CLUSTERS}.update_rejected": "1"}, {f"{CLUSTERS}.update_rejected": "2"}
    assert (rejected(step, before, before), rejected(step, before, after)) == (False, True)


def test_envoys_words_are_found_behind_the_message_that_it_shows() -> None:
    said = "Filesystem config update rejected: "
    assert (
        words(["info x", f"warning config {said}old", f"warning config {said}Error adding: no", "more"])
        == "Error adding: no"
    )
    constraint = [
        f"warning config {said}goo.gle/debugproto",
        "virtual_hosts {",
        "}: Proto constraint validation failed (A.B: c)",
    ]
    assert words(constraint) == "A.B: c"
    assert words([]) == "Envoy refused the update and did not say why"


def test_names_of_the_mesh_are_safe_as_file_names_and_stay_different() -> None:
    assert file_name("web.shop:80/v1") == "web.shop~3a~80~2f~v1"
    assert len({file_name(name) for name in ("a/b", "a:b", "a~2f~b", "a b")}) == 4
