"""Orders on MeshRollouts, and statuses that are written without a loop."""

import msgspec

from backstay.app.mesh import bare_status, is_handled, order_refusal, refusal_status, retry_args
from backstay.core.resources import MeshRepositorySpec
from backstay.core.rollout.model import HeldSet, MeshState
from backstay.core.tenancy import Refusal, Repository
from support import views

REPOSITORY = Repository(
    namespace="shop",
    name="shop",
    uid="u",
    created_at="2026-01-01T00:00:00Z",
    generation=3,
    spec=MeshRepositorySpec(url="https://git.example/mesh.git"),
)


def held(rollout: str, commit: str) -> HeldSet:
    return HeldSet(commit=commit, revision="r", rollout=rollout, documents={}, sentence="", since=0.0)


def test_an_order_is_for_the_present_rollout() -> None:
    state = views.rolling().state
    assert order_refusal("pause", "r2", state) == ""
    assert order_refusal("pause", "r1", state) == "r1 has ended; orders are for the present rollout, r2"
    assert order_refusal("abort", "r1", MeshState(mesh="shop")) == "r1 has ended; orders are for the present rollout"


def test_an_ended_rollout_can_be_tried_again() -> None:
    state = msgspec.structs.replace(views.live().state, held=(held("r1", "c" * 40), held("r0", "d" * 40)))
    assert order_refusal("retry", "r1", state) == ""
    assert retry_args("r1", state) == {"commit": "c" * 40}
    assert retry_args("r7", state) == {}


def test_a_word_that_is_no_order_is_answered_with_those_that_are() -> None:
    assert order_refusal("stop", "r2", views.rolling().state) == (
        "'stop' is no order, expected one of abort, pause, promote, promote-full, resume, retry"
    )


def test_a_refusal_is_stalled_and_not_reconciling() -> None:
    refusal = Refusal(reason="NamespaceClaimed", message="somebody else's")
    wish = refusal_status(REPOSITORY, {"metadata": {}}, refusal)
    assert [(c["type"], c["status"], c["reason"]) for c in wish.status["conditions"]] == [
        ("Ready", "False", "NamespaceClaimed"),
        ("Stalled", "True", "NamespaceClaimed"),
    ]
    assert wish.status["observedGeneration"] == 3


def test_the_time_of_a_condition_that_was_so_before_stays() -> None:
    before = {"type": "Ready", "status": "False", "lastTransitionTime": "2026-01-01T00:00:10Z"}
    found = {"status": {"conditions": [before], "activeRevision": "main@sha1:1"}}
    wish = bare_status(REPOSITORY, found, [("Ready", "False", "X", "m"), ("Stalled", "True", "X", "m")])
    ready, stalled = wish.status["conditions"]
    assert ready["lastTransitionTime"] == "2026-01-01T00:00:10Z"
    assert stalled["lastTransitionTime"] > "2026-01-01T00:00:10Z"
    assert wish.status["activeRevision"] == "main@sha1:1"


def test_an_order_is_obeyed_once_however_many_pictures_still_show_it() -> None:
    def picture(name: str, version: str) -> dict[str, dict[str, str]]:
        return {"metadata": {"name": name, "resourceVersion": version}}

    taken_off = {"shop-r1": 120}
    seen = [picture("shop-r1", "99"), picture("shop-r1", "120"), picture("shop-r1", "121"), picture("shop-r2", "100")]
    assert [is_handled(each, taken_off) for each in seen] == [True, True, False, False]
