import base64
import json
from typing import Any

from backstay.adapters.kubernetes.injection import response
from backstay.core.inject import Outcome, Verdict


def answer(outcome: Outcome) -> Any:
    told = json.loads(response("u-1", outcome))
    assert (told["apiVersion"], told["kind"]) == ("admission.k8s.io/v1", "AdmissionReview")
    return told["response"]


def test_a_pod_that_is_injected_gets_its_patch() -> None:
    patch = ({"op": "add", "path": "/spec/volumes", "value": []},)
    told = answer(Outcome(verdict=Verdict.INJECT, reason="Injected", patch=patch))
    assert json.loads(base64.b64decode(told.pop("patch"))) == list(patch)
    assert told == {"uid": "u-1", "allowed": True, "patchType": "JSONPatch"}


def test_a_pod_that_is_left_alone_is_let_through_in_silence_or_with_a_warning() -> None:
    assert answer(Outcome(verdict=Verdict.SKIP, reason="NotAsked")) == {"uid": "u-1", "allowed": True}
    assert answer(Outcome(verdict=Verdict.SKIP, reason="HostNetwork", message="not injected")) == {
        "uid": "u-1",
        "allowed": True,
        "warnings": ["backstay: not injected"],
    }


def test_a_refusal_says_why() -> None:
    assert answer(Outcome(verdict=Verdict.REFUSE, reason="ReservedPort", message="pod a/b: no [ReservedPort]")) == {
        "uid": "u-1",
        "allowed": False,
        "status": {"code": 422, "reason": "Invalid", "message": "backstay: pod a/b: no [ReservedPort]"},
    }
