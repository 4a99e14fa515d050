"""How the API server's judgement is read; the answers are those of Kubernetes 1.34 (tests/e2e/kubernetes asks for real)."""

from typing import Any

import pytest
from msgspec.structs import replace

from backstay.adapters.kubernetes.facts import PodFacts
from backstay.adapters.kubernetes.tokens import (
    Claims,
    EnrolmentRefused,
    check_pod,
    check_proxy,
    claims_of,
    is_address_of,
)

CLAIMS = Claims(namespace="shop", account="web", pod="web-1", pod_uid="u1")
POD = PodFacts(
    name="web-1",
    namespace="shop",
    uid="u1",
    account="web",
    workload="web",
    node="node-1",
    ips=("10.0.0.7", "fd00::7"),
    labels={},
    ports=(),
    is_ready=False,
    is_leaving=False,
    is_over=False,
    has_proxy=True,
    is_meshed=True,
    started_at=0.0,
)


def answer(**status: Any) -> dict[str, Any]:
    bound = {
        "authentication.kubernetes.io/node-name": ["node-1"],
        "authentication.kubernetes.io/pod-name": ["web-1"],
        "authentication.kubernetes.io/pod-uid": ["u1"],
    }
    good = {
        "authenticated": True,
        "user": {"username": "system:serviceaccount:shop:web", "extra": bound},
        "audiences": ["backstay-ca"],
    }
    return {"kind": "TokenReview", "status": {**good, **status}}


def reason_of(document: dict[str, Any]) -> str:
    with pytest.raises(EnrolmentRefused) as caught:
        claims_of(document)
    assert str(caught.value).endswith(f"[{caught.value.reason}]")
    return caught.value.reason


def test_a_bound_token_says_whose_it_is() -> None:
    assert claims_of(answer()) == CLAIMS


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        ("invalid bearer token", "TokenInvalid"),
        ("[invalid bearer token, service account token has expired]", "TokenExpired"),
        (
            '[invalid bearer token, token audiences ["x"] is invalid for the target audiences ["backstay-ca"]]',
            "TokenAudience",
        ),
        ("[invalid bearer token, service account token has been invalidated]", "PodGone"),
        ("", "TokenInvalid"),
    ],
)
def test_each_refusal_has_its_reason(error: str, reason: str) -> None:
    assert reason_of({"status": {"user": {}, "error": error}}) == reason


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        ({"audiences": None}, "TokenAudience"),
        ({"audiences": ["https://kubernetes.default.svc"]}, "TokenAudience"),
        ({"user": {"username": "system:serviceaccount:shop:web", "extra": {}}}, "TokenUnbound"),
        ({"user": {"username": "kubernetes-admin"}}, "NotAServiceAccount"),
        ({"user": {"username": "system:serviceaccount:shop"}}, "NotAServiceAccount"),
    ],
    ids=["a server that ignores audiences", "another audience", "unbound", "a person", "no account"],
)
def test_a_good_token_may_still_be_the_wrong_one(status: dict[str, Any], reason: str) -> None:
    assert reason_of(answer(**status)) == reason


def test_an_answer_that_is_none_is_nobodys_fault() -> None:
    assert reason_of({"kind": "Status"}) == "ReviewUnavailable"


def test_a_proxy_is_called_by_its_pod() -> None:
    check_proxy("web-1.shop", CLAIMS)
    with pytest.raises(EnrolmentRefused, match=r"'web-2.shop' brought the token of web-1.shop \[ProxyMismatch\]$"):
        check_proxy("web-2.shop", CLAIMS)


def refusal(pod: PodFacts | None, peer_ip: str = "10.0.0.7") -> str:
    with pytest.raises(EnrolmentRefused) as caught:
        check_pod(pod, CLAIMS, peer_ip)
    return caught.value.reason


def test_the_very_pod_from_its_own_address_is_let_in() -> None:
    assert check_pod(POD, CLAIMS, "10.0.0.7") is POD


def test_a_pod_that_is_gone_or_another_of_the_same_name_is_not() -> None:
    other = replace(POD, uid="u2")
    over = replace(POD, is_over=True)
    assert [refusal(None), refusal(other), refusal(over)] == ["PodGone"] * 3


def test_an_account_that_the_pod_does_not_have_is_not() -> None:
    other = replace(POD, account="bank")
    assert refusal(other) == "AccountMismatch"


def test_a_stolen_token_is_worth_nothing_elsewhere() -> None:
    assert refusal(POD, "10.0.0.8") == "AddressMismatch"
    with pytest.raises(EnrolmentRefused) as caught:
        check_pod(POD, CLAIMS, "10.0.0.8")
    assert str(caught.value) == (
        "web-1.shop asked from 10.0.0.8, its addresses are: 10.0.0.7, fd00::7 [AddressMismatch]"
    )


@pytest.mark.parametrize(
    ("peer", "own"),
    [
        ("10.0.0.7", True),
        ("::ffff:10.0.0.7", True),
        ("fd00:0::7", True),
        ("10.0.0.70", False),
        ("", False),
        ("10.0.0.7x", False),
    ],
)
def test_addresses_are_compared_as_addresses(peer: str, own: bool) -> None:
    assert is_address_of(POD, peer) is own
