"""What annotations ask for, and how kopf is set up."""

import itertools
from typing import Any

from backstay.adapters.kubernetes.handlers import Backoffs, order_in, requested_at, settings, without_order


def annotated(**annotations: str) -> dict[str, Any]:
    return {"metadata": {"annotations": {f"backstay.dev/{key}": value for key, value in annotations.items()}}}


def test_an_order_names_who_and_why() -> None:
    assert order_in(annotated(order="pause", actor="ann", reason="lunch")) == ("pause", "ann", "lunch")


def test_without_an_actor_the_program_that_wrote_it_is_named() -> None:
    fields: dict[str, object] = {"f:metadata": {"f:annotations": {"f:backstay.dev/order": {}}}}
    found = annotated(order="abort")
    found["metadata"]["managedFields"] = [
        {"manager": "argocd", "fieldsV1": {"f:metadata": {}}},
        {"manager": "kubectl-annotate", "fieldsV1": fields},
    ]
    assert order_in(found) == ("abort", "annotation by kubectl-annotate", "")
    assert order_in(annotated(order="abort")) == ("abort", "annotation", "")


def test_no_order_is_none() -> None:
    assert order_in({"metadata": {}}) is None
    assert order_in(annotated(order=" ")) is None


def test_words_of_people_are_cleaned_and_bounded() -> None:
    order, actor, reason = (
        order_in(annotated(order="pause\x00", actor="a" * 500, reason="token=abc; " + "x" * 5000)) or ("",) * 3
    )
    assert (order, len(actor), len(reason)) == ("pause", 253, 1024)
    assert "abc" not in reason


def test_an_order_is_taken_off_whole() -> None:
    assert without_order() == {
        "metadata": {
            "annotations": {"backstay.dev/order": None, "backstay.dev/actor": None, "backstay.dev/reason": None}
        }
    }


def test_a_request_to_look_is_any_text() -> None:
    assert requested_at(annotated(requestedAt="2026-01-01")) == "2026-01-01"
    assert requested_at({"metadata": {}}) == ""


def test_pauses_grow_to_a_quarter_of_a_minute_and_never_end() -> None:
    pauses = list(itertools.islice(iter(Backoffs()), 100))
    assert all(0.4 <= pause <= 18 for pause in pauses)
    assert pauses[0] < 0.7
    assert min(pauses[6:]) >= 12
    assert len(set(pauses)) > 90, "jitter"


def test_kopf_is_told_neither_to_give_up_nor_to_post_nor_to_keep_state_in_annotations() -> None:
    found = settings()
    assert isinstance(found.networking.error_backoffs, Backoffs)
    assert (found.networking.enforce_retry_after, found.posting.enabled) == (True, False)
    assert (found.watching.server_timeout, found.watching.client_timeout) == (290, 320)
    assert "Status" in type(found.persistence.progress_storage).__name__
    assert found.process.ultimate_exiting_timeout is None
