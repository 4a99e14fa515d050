"""Status says what is so, in the shape Kubernetes tools read correctly (kstatus)."""

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from backstay.core import status
from backstay.core.problems import Problem, Severity
from backstay.core.rollout.model import HeldSet, Phase, Verdict
from backstay.core.view import MeshView, SourceCondition
from support import views
from support.kstatus import kstatus

REASON = re.compile(r"[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?")  # metav1.Condition's own pattern
ABNORMAL = ("Reconciling", "Stalled", "FetchFailed", "RolledBack")


def repository(view: MeshView) -> dict[str, Any]:
    return status.objects(view, {})[0].repository


def conditions(item: dict[str, Any]) -> dict[str, tuple[str, str]]:
    return {one["type"]: (one["status"], one["reason"]) for one in item["status"]["conditions"]}


# --- the repository in the moments that matter ------------------------------------------------------------


def test_a_live_mesh_is_current() -> None:
    found = repository(views.live())
    assert conditions(found) == {"Ready": ("True", "Succeeded"), "Validated": ("True", "Valid")}
    assert kstatus(found) == "Current"


def test_the_object_has_the_shape_of_the_crd() -> None:
    found = repository(views.live())
    assert (found["apiVersion"], found["kind"]) == ("backstay.dev/v1alpha1", "MeshRepository")
    assert found["metadata"] == {"name": "shop", "generation": 1}
    assert found["spec"] == {
        "url": "https://git.example/mesh.git",
        "ref": "main",
        "path": "",
        "interval": "30s",
        "suspend": False,
    }
    assert found["status"]["conditions"][0] == {
        "type": "Ready",
        "status": "True",
        "observedGeneration": 1,
        "lastTransitionTime": "2023-11-14T22:13:20Z",
        "reason": "Succeeded",
        "message": "main@sha1:aaaaaaaa is live",
    }
    assert {key: value for key, value in found["status"].items() if key.endswith("Revision")} == {
        "desiredRevision": views.named(views.OLD),
        "activeRevision": views.named(views.OLD),
        "lastAttemptedRevision": views.named(views.OLD),
        "lastAppliedRevision": views.named(views.OLD),
    }


def test_before_the_first_look_a_waiter_waits() -> None:
    """kstatus calls an object without conditions Current: it must see an observed generation that is behind."""
    fresh = replace(
        views.live(), observed_generation=0, state=msgspec.structs.replace(views.live().state, desired_revision="")
    )
    found = repository(fresh)
    assert found["status"]["observedGeneration"] == -1
    assert conditions(found)["Ready"] == ("Unknown", "Progressing")
    assert kstatus(found) == "InProgress"


def test_a_running_rollout_is_in_progress() -> None:
    found = repository(views.rolling())
    assert conditions(found) == {
        "Ready": ("False", "Progressing"),
        "Reconciling": ("True", "Progressing"),
        "Validated": ("True", "Valid"),
    }
    assert kstatus(found) == "InProgress"


def test_a_held_commit_fails_waiters_at_once_and_is_called_partly_live() -> None:
    found = repository(views.held())
    assert conditions(found) == {
        "Ready": ("False", "RevisionHeld"),
        "Stalled": ("True", "RevisionHeld"),
        "Validated": ("True", "Valid"),
        "RolledBack": ("True", "VerdictFail"),
    }
    assert kstatus(found) == "Failed"
    message = found["status"]["conditions"][0]["message"]
    assert message == f"main@sha1:bbbbbbbb is partly live: 1 document of bbbbbbbb held. {views.SENTENCE}"


def test_an_invalid_commit_is_stalled_and_names_the_line() -> None:
    found = repository(views.invalid())
    assert conditions(found)["Stalled"] == ("True", "ValidationFailed")
    assert conditions(found)["Validated"] == ("False", "ValidationFailed")
    assert found["status"]["conditions"][0]["message"] == (
        f"main@sha1:cccccccc is invalid and changes nothing: {views.PROBLEM}"
    )
    assert kstatus(found) == "Failed"


def test_a_remote_that_does_not_answer_is_tried_again() -> None:
    away = SourceCondition(ok=False, reason="Timeout", message="git did not answer in 60 s", at=views.NOW)
    found = repository(replace(views.live(), source=away))
    assert conditions(found) == {
        "Ready": ("False", "Timeout"),
        "Reconciling": ("True", "ProgressingWithRetry"),
        "Validated": ("True", "Valid"),
        "FetchFailed": ("True", "Timeout"),
    }


def test_a_source_that_must_not_be_read_is_stalled() -> None:
    refused = SourceCondition(ok=False, reason="RefNotFound", message="no branch 'mian'", at=views.NOW, stalled=True)
    assert conditions(repository(replace(views.live(), source=refused)))["Stalled"] == ("True", "RefNotFound")


def test_a_rollout_goes_on_while_the_source_is_refused() -> None:
    """Stalled would make a waiter give up although the mesh still moves."""
    refused = SourceCondition(ok=False, reason="RefNotFound", message="no branch 'mian'", at=views.NOW, stalled=True)
    found = conditions(repository(replace(views.rolling(), source=refused)))
    assert "Stalled" not in found
    assert found["FetchFailed"] == ("True", "RefNotFound")


def test_an_abort_is_not_called_a_verdict() -> None:
    base = views.held()
    state = msgspec.structs.replace(base.state, history=(views.rollout(Phase.ABORTED),))
    assert conditions(repository(replace(base, state=state)))["RolledBack"] == ("True", "Ordered")


def test_suspended_and_behind_says_so() -> None:
    state = msgspec.structs.replace(views.live().state, suspended=True, desired_revision=views.named(views.NEW))
    found = repository(replace(views.live(), state=state))
    assert conditions(found)["Ready"] == ("False", "Suspended")
    assert found["spec"]["suspend"] is True


def test_status_holds_no_credentials() -> None:
    away = SourceCondition(ok=False, reason="GitOperationFailed", message="https://joe:s3cret@git.example failed")
    dirty = replace(views.live(), url="https://joe:s3cret@git.example/mesh.git", source=away)
    assert b"s3cret" not in msgspec.json.encode(status.objects(dirty, {})[0].repository)


# --- transition times ------------------------------------------------------------


def transition(view: MeshView, memory: status.Memory) -> tuple[str, status.Memory]:
    shown, memory = status.objects(view, memory)
    ready = shown.repository["status"]["conditions"][0]
    return ready["lastTransitionTime"], memory


def test_a_condition_keeps_its_time_while_its_status_stays() -> None:
    first, memory = transition(views.live(), {})
    later = replace(views.live(), now=views.NOW + 60, waiting={"Route/shop/b": views.PROBLEM})
    second, memory = transition(later, memory)
    third, _ = transition(replace(views.rolling(), now=views.NOW + 90), memory)
    assert (first, second, third) == ("2023-11-14T22:13:20Z", "2023-11-14T22:13:20Z", "2023-11-14T22:14:50Z")


def test_a_condition_that_comes_back_is_new() -> None:
    _, memory = transition(views.held(), {})
    _, memory = transition(replace(views.live(), now=views.NOW + 60), memory)
    shown, _ = status.objects(replace(views.held(), now=views.NOW + 120), memory)
    times = {one["type"]: one["lastTransitionTime"] for one in shown.repository["status"]["conditions"]}
    assert times["Stalled"] == times["RolledBack"] == "2023-11-14T22:15:20Z"


# --- kstatus rules for every state ------------------------------------------------------------

problems = st.builds(
    Problem,
    file=st.just("b.yaml"),
    message=st.just("wrong"),
    reason=st.sampled_from(["UnknownField", "WeightSum"]),
    severity=st.sampled_from(Severity),
    document=st.sampled_from(["", "Route/shop/b", "Route/shop/new"]),
)
sources = st.one_of(
    st.just(SourceCondition()),
    st.builds(
        SourceCondition,
        ok=st.just(False),
        reason=st.sampled_from(["Timeout", "RefNotFound"]),
        message=st.just("away"),
        stalled=st.booleans(),
    ),
)
held_sets = st.builds(
    HeldSet,
    commit=st.sampled_from([views.OLD, views.NEW]),
    revision=st.just(views.named(views.NEW)),
    rollout=st.sampled_from(["r1", "r2"]),
    documents=st.just({"Route/shop/b": "d"}),
    sentence=st.sampled_from(["", views.SENTENCE]),
    since=st.just(views.NOW),
)
revisions = st.sampled_from(["", views.named(views.OLD), views.named(views.NEW)])


@st.composite
def any_view(draw: st.DrawFn) -> MeshView:
    phase = draw(st.one_of(st.none(), st.sampled_from(Phase)))
    base = views.live() if phase is None else views.rolling(phase)
    state = msgspec.structs.replace(
        base.state,
        held=draw(st.lists(held_sets, max_size=2).map(tuple)),
        desired_revision=draw(revisions),
        attempted_revision=draw(revisions),
        active_revision=draw(revisions),
        queued=draw(revisions),
        suspended=draw(st.booleans()),
    )
    return replace(
        base,
        state=state,
        source=draw(sources),
        problems=draw(st.lists(problems, max_size=3).map(tuple)),
        fault=draw(st.sampled_from(["", "disk full"])),
        held_dependency=draw(st.sampled_from(["", "b.yaml:3: needs a held document"])),
        observed_generation=draw(st.sampled_from([0, 1])),
        desired=draw(st.sampled_from([None, base.desired])),
        waiting=draw(st.sampled_from([{}, {"Route/shop/b": views.PROBLEM}])),
    )


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)  # a busy machine is no fault of the views
@given(any_view())
def test_every_state_keeps_the_rules(view: MeshView) -> None:
    shown, memory = status.objects(view, {})
    everything = [shown.repository, *shown.rollouts, *shown.intents, *shown.workloads, *shown.proxies]
    for item in everything:
        check_conditions(item["status"]["conditions"])
    found = conditions(shown.repository)
    assert not {"Reconciling", "Stalled"} <= set(found)
    assert all(found[name][0] == "True" for name in ABNORMAL if name in found)
    if found["Ready"][0] == "True":
        assert not {"Reconciling", "Stalled", "FetchFailed", "RolledBack"} & set(found)
        assert kstatus(shown.repository) == "Current"
    again, same = status.objects(view, memory)
    assert (again, same) == (shown, memory)


def check_conditions(found: list[dict[str, Any]]) -> None:
    assert len({one["type"] for one in found}) == len(found)
    for one in found:
        assert set(one) == {"type", "status", "observedGeneration", "lastTransitionTime", "reason", "message"}
        assert one["status"] in ("True", "False", "Unknown")
        assert REASON.fullmatch(one["reason"]), one
        assert one["lastTransitionTime"]


# --- intents ------------------------------------------------------------


def intent(view: MeshView) -> dict[str, Any]:
    (found,) = status.objects(view, {})[0].intents
    return found


def test_a_live_document_is_programmed_everywhere() -> None:
    found = intent(views.live())
    assert found["metadata"] == {"name": "route.b", "namespace": "shop", "generation": 1}
    assert (found["spec"]["file"], found["spec"]["line"]) == ("b.yaml", 1)
    assert found["status"]["proxies"] == {"updated": 2, "total": 2}
    assert found["status"]["state"] == "live"
    assert conditions(found) == {
        "Accepted": ("True", "Accepted"),
        "ResolvedRefs": ("True", "ResolvedRefs"),
        "Programmed": ("True", "Programmed"),
        "Proven": ("Unknown", "NotTried"),
    }


def test_a_document_in_a_wave_counts_its_proxies() -> None:
    found = intent(views.rolling())
    assert found["status"]["proxies"] == {"updated": 1, "total": 2}
    assert found["status"]["state"] == "rolling-out"
    assert conditions(found)["Programmed"] == ("False", "Progressing")


def test_a_document_that_does_not_change_is_live_during_the_rollout_of_others() -> None:
    """Stable and candidate say the same of it, so a proxy that serves both serves it to every request."""
    base = views.rolling()
    other = msgspec.structs.replace(views.rollout(), documents=("Route/shop/other",))
    found = intent(replace(base, desired=base.stable, state=msgspec.structs.replace(base.state, rollout=other)))
    assert (found["status"]["state"], found["status"]["proxies"]) == ("live", {"updated": 2, "total": 2})


def test_a_held_document_says_why() -> None:
    found = intent(views.held())
    assert found["status"]["state"] == "held"
    assert found["status"]["held"]["sentence"] == views.SENTENCE
    assert conditions(found)["Programmed"] == ("False", "Held")
    assert conditions(found)["Proven"] == ("False", "VerdictFail")


def test_an_invalid_document_is_not_accepted() -> None:
    found = intent(views.invalid())
    assert (found["status"]["state"], conditions(found)["Accepted"]) == ("invalid", ("False", "UnknownField"))


def test_a_document_that_is_only_in_an_invalid_commit_is_shown_with_its_place() -> None:
    new = replace(views.PROBLEM, document="Route/shop/new", file="new.yaml", line=3)
    found = status.objects(replace(views.invalid(), problems=(new,)), {})[0].intents
    assert [(item["spec"]["name"], item["spec"]["file"], item["spec"]["line"]) for item in found] == [
        ("b", "b.yaml", 1),
        ("new", "new.yaml", 3),
    ]


def test_a_document_that_waits_names_what_is_missing() -> None:
    missing = replace(views.PROBLEM, reason="ServiceNotFound", severity=Severity.WAITING)
    found = intent(replace(views.live(), waiting={"Route/shop/b": missing}))
    assert (found["status"]["state"], conditions(found)["ResolvedRefs"]) == ("waiting", ("False", "ServiceNotFound"))


def test_too_little_traffic_is_not_called_proven() -> None:
    base = views.live()
    state = msgspec.structs.replace(base.state, history=(views.rollout(Phase.SUCCEEDED),))
    assert conditions(intent(replace(base, state=state)))["Proven"] == ("False", "TooLittleTraffic")


# --- proxies, workloads, rollouts, revisions ------------------------------------------------------------


def sync(view: MeshView) -> dict[str, str]:
    return {item["metadata"]["name"]: item["status"]["sync"] for item in status.objects(view, {})[0].proxies}


def test_proxies_in_step() -> None:
    assert sync(views.live()) == {"a-0": "synced", "a-1": "synced", "b-0": "synced", "b-1": "synced"}
    assert sync(views.rolling())["a-0"] == "splitting"


def altered(name: str, **fields: Any) -> MeshView:
    base = views.live()
    proxy = base.proxies[name]
    seen = {key: fields.pop(key) for key in ("connected", "stable") if key in fields}
    changed = replace(proxy, view=msgspec.structs.replace(proxy.view, **seen), **fields)
    return replace(base, proxies={**base.proxies, name: changed})


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"connected": False}, "away"),
        ({"stable": "other"}, "stale"),
        ({"last_nack": "DiskFull: no space"}, "refused"),
        ({"connected": False, "turned_away": "ProtocolMismatch: too old"}, "refused"),
    ],
)
def test_proxies_out_of_step(fields: dict[str, Any], word: str) -> None:
    assert sync(altered("a-0", **fields))["a-0"] == word


def test_proxies_that_are_not_let_in_are_told_by_name_and_reason() -> None:
    told = {"connected": False, "turned_away": "ProtocolMismatch: it speaks 9-9"}
    both = {name: altered(name, **told).proxies[name] for name in ("a-0", "b-1")}
    base = views.live()
    found = repository(replace(base, proxies={**base.proxies, **both}))
    assert found["status"]["turnedAway"] == [
        {"proxy": name, "message": "ProtocolMismatch: it speaks 9-9"} for name in ("a-0", "b-1")
    ]
    (ready,) = [each for each in found["status"]["conditions"] if each["type"] == "Ready"]
    assert ready["status"] == "True"
    assert ready["message"].endswith("; a-0 and 1 more not let in: ProtocolMismatch: it speaks 9-9")


def test_a_seat_that_was_not_taken_is_stale() -> None:
    base = views.rolling()
    assert sync(replace(base, proxies=views.live().proxies))["a-0"] == "stale"


def test_a_rollout_shows_cohorts_and_the_line_to_blame() -> None:
    (found,) = status.objects(views.held(), {})[0].rollouts
    assert found["status"]["verdict"] == "fail"
    assert found["status"]["detectedAfter"] == "1.3s"
    (workload,) = found["status"]["workloads"]
    assert workload["cohorts"] == {
        "candidate": {"requests": 118, "bad": 41},
        "stable": {"requests": 1204, "bad": 3},
    }
    assert workload["causes"] == [
        {"reason": "timeout", "route": "routes/b.shop:80#main", "count": 41, "origin": "b.yaml:7"}
    ]


@pytest.mark.parametrize(
    ("phase", "expected"),
    [
        (Phase.SHIFTING, "InProgress"),
        (Phase.PAUSED, "InProgress"),
        (Phase.BAKING, "Current"),
        (Phase.SUCCEEDED, "Current"),
        (Phase.FAILED, "Failed"),
        (Phase.ABORTED, "Failed"),
        (Phase.SUPERSEDED, "Failed"),
    ],
)
def test_a_rollout_tells_waiters_how_it_stands(phase: Phase, expected: str) -> None:
    (found,) = status.objects(views.rolling(phase), {})[0].rollouts
    assert kstatus(found) == expected


def test_the_worst_verdict_counts() -> None:
    made = views.rollout()
    passing = msgspec.structs.replace(
        made.workloads["shop/a"],
        evidence=msgspec.structs.replace(made.workloads["shop/a"].evidence, verdict=Verdict.PASS),
    )
    both = msgspec.structs.replace(made, workloads={"shop/a": made.workloads["shop/a"], "shop/b": passing})
    assert status.verdict_of(both) is Verdict.INCONCLUSIVE


@pytest.mark.parametrize(
    ("phase", "proven", "expected"),
    [
        (Phase.SHIFTING, True, Verdict.INCONCLUSIVE),
        (Phase.BAKING, True, Verdict.PASS),
        (Phase.SUCCEEDED, True, Verdict.PASS),
        (Phase.SUCCEEDED, False, Verdict.INCONCLUSIVE),
    ],
)
def test_what_was_proven_stays_so_while_it_bakes(phase: Phase, proven: bool, expected: Verdict) -> None:
    made = views.rollout()
    workload = msgspec.structs.replace(
        made.workloads["shop/a"],
        proven=proven,
        evidence=msgspec.structs.replace(made.workloads["shop/a"].evidence, verdict=Verdict.INCONCLUSIVE),
    )
    rollout = msgspec.structs.replace(made, phase=phase, workloads={"shop/a": workload})
    assert status.verdict_of(rollout) is expected


@pytest.mark.parametrize(
    ("view", "sha", "expected"),
    [
        (views.live(), views.OLD, "live"),
        (views.rolling(), views.NEW, "rolling-out"),
        (views.rolling(), views.OLD, "live"),
        (views.held(), views.NEW, "rolled-back"),
        (views.invalid(), views.BAD, "invalid"),
        (views.live(), "d" * 40, "seen"),
    ],
)
def test_where_a_commit_stands(view: MeshView, sha: str, expected: str) -> None:
    assert status.standing_of(view, sha)[0] == expected


def test_a_commit_that_waits_for_a_held_one_is_held() -> None:
    state = msgspec.structs.replace(views.live().state, desired_revision=views.named(views.NEW))
    view = replace(views.live(), state=state, held_dependency="b.yaml:3: needs a held document")
    assert status.standing_of(view, views.NEW) == ("held", "b.yaml:3: needs a held document")


def test_a_commit_skipped_over_is_live_in_the_one_after_it() -> None:
    skipped = "e" * 40
    records = (views.revision(views.NEW, outcome="live"), views.revision(skipped), views.revision(views.OLD))
    state = msgspec.structs.replace(
        views.live().state,
        active_revision=views.named(views.NEW),
        desired_revision=views.named(views.NEW),
        revisions=records,
    )
    view = replace(views.live(), state=state)
    assert status.standing_of(view, skipped) == ("live", "contained in main@sha1:bbbbbbbb")


# --- a look after a look ----------------------------------------------------------------------------------------------


def looked_twice(first: MeshView, second: MeshView) -> tuple[status.Objects, status.Objects]:
    """The second view shown after the first one, and shown with no objects of before but the same memory."""
    before, memory = status.objects(first, {})
    return status.objects(second, memory, before)[0], status.objects(second, memory)[0]


@pytest.mark.parametrize("make", [views.live, views.rolling, views.held, views.invalid])
def test_what_is_shown_again_is_what_would_be_shown_anew(make: Callable[[], MeshView]) -> None:
    """Whatever comes after whatever: documents that are not written again must say what they would say."""
    for other in (views.live, views.rolling, views.held, views.invalid):
        again, anew = looked_twice(make(), replace(other(), now=other().now + 60))
        assert again.intents == anew.intents


def test_an_unchanged_mesh_shows_the_same_objects_of_its_documents() -> None:
    view = views.live()
    first, memory = status.objects(view, {})
    again, _ = status.objects(replace(view, now=view.now + 60), memory, first)
    assert [id(item) for item in again.intents] == [id(item) for item in first.intents]


def test_documents_of_the_running_rollout_are_shown_by_its_newest_sentence() -> None:
    view = views.rolling()
    rollout = view.state.rollout
    assert rollout is not None
    later = msgspec.structs.replace(view.state, rollout=msgspec.structs.replace(rollout, wave=rollout.wave + 1))
    again, anew = looked_twice(view, replace(view, state=later))
    assert again.intents == anew.intents


def test_a_commit_that_was_rolled_out_with_a_guilty_one_goes_its_own_way() -> None:
    view, guilty = views.held(), "d" * 40
    apart = tuple(msgspec.structs.replace(held, commit=guilty) for held in view.state.held)
    flowed = replace(view, state=msgspec.structs.replace(view.state, held=apart))
    assert status.standing_of(flowed, guilty)[0] == "rolled-back"
    assert status.standing_of(flowed, views.NEW)[0] == "partly-live"
    stuck = replace(view, state=msgspec.structs.replace(flowed.state, active_revision=views.named(views.OLD)))
    assert status.standing_of(stuck, views.NEW) == ("rolled-back", views.SENTENCE)
