import base64
import hashlib
import hmac
import json

import pytest

from backstay.control.webhook import Buckets, Knock, Outcome, judge

SECRET = b"a long shared secret"
PUSH = json.dumps({"ref": "refs/heads/main", "after": "1" * 40}).encode()
HEX = hmac.new(SECRET, PUSH, hashlib.sha256).hexdigest()
SHA1 = hmac.new(SECRET, PUSH, hashlib.sha1).hexdigest()
NOW = 1_800_000_000.0
KEY = b"k" * 32


def standard(body: bytes, at: float = NOW, key: bytes = KEY) -> dict[str, str]:
    signed = b"msg_1." + str(int(at)).encode() + b"." + body
    value = base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
    return {"webhook-id": "msg_1", "webhook-timestamp": str(int(at)), "webhook-signature": f"v1,{value}"}


def outcome(headers: dict[str, str], body: bytes = PUSH, *secrets: bytes) -> Outcome:
    return judge("shop", headers, body, secrets or (SECRET,), now=NOW)[0]


@pytest.mark.parametrize(
    ("headers", "provider"),
    [
        (
            {"X-GitHub-Event": "push", "X-Hub-Signature-256": f"sha256={HEX}", "X-Hub-Signature": f"sha1={SHA1}"},
            "github",
        ),
        ({"X-Gitea-Event": "push", "X-GitHub-Event": "push", "X-Gitea-Signature": HEX}, "gitea"),
        ({"X-Forgejo-Event": "push", "X-Gitea-Event": "push", "X-Forgejo-Signature": HEX}, "forgejo"),
        ({"X-Gogs-Event": "push", "X-Gogs-Signature": HEX}, "gogs"),
        ({"X-Gitlab-Event": "Push Hook", "X-Gitlab-Token": SECRET.decode()}, "gitlab"),
        ({"X-Event-Key": "repo:push", "X-Hub-Signature": f"sha256={HEX}"}, "bitbucket"),
        ({"X-Signature": f"sha256={HEX}"}, "generic"),
    ],
)
def test_a_signed_push_of_every_forge_is_accepted(headers: dict[str, str], provider: str) -> None:
    result, knock = judge("shop", headers, PUSH, (SECRET,), now=NOW)
    assert result is Outcome.ACCEPTED
    assert (knock.mesh, knock.provider, knock.ref) == ("shop", provider, "refs/heads/main")


def test_gitlabs_signing_token_is_understood_in_its_own_form() -> None:
    secret = b"whsec_" + base64.b64encode(KEY)
    headers = {"X-Gitlab-Event": "Push Hook", **standard(PUSH)}
    assert outcome(headers, PUSH, secret) is Outcome.ACCEPTED
    headers["webhook-signature"] = "v1,AAAA " + headers["webhook-signature"]  # several while a key is replaced
    assert outcome(headers, PUSH, secret) is Outcome.ACCEPTED


@pytest.mark.parametrize("age", [301, -301])
def test_a_signed_time_that_is_far_off_is_a_replay(age: int) -> None:
    assert outcome(standard(PUSH, NOW - age), PUSH, b"whsec_" + base64.b64encode(KEY)) is Outcome.FORGED


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"X-GitHub-Event": "push"},
        {"X-Hub-Signature-256": f"sha256={'0' * 64}"},
        {"X-Hub-Signature-256": HEX},
        {"X-Hub-Signature-256": ""},
        {"X-Hub-Signature-256": "sha256=é\udcff"},
        {"X-Hub-Signature": f"sha1={SHA1}"},
        {"X-Gitlab-Token": "wrong"},
        {"X-Gitlab-Token": ""},
        {"X-Gitea-Signature": "0" * 64},
        {"webhook-signature": "v1,x", "webhook-timestamp": "²"},
        # A good weak proof beside a bad strong one: the strong one decides.
        {"X-Hub-Signature-256": f"sha256={'0' * 64}", "X-Gitlab-Token": SECRET.decode()},
    ],
)
def test_what_is_not_signed_rightly_is_forged(headers: dict[str, str]) -> None:
    assert outcome(headers) is Outcome.FORGED


def test_a_changed_body_is_forged() -> None:
    assert outcome({"X-Hub-Signature-256": f"sha256={HEX}"}, PUSH + b" ") is Outcome.FORGED


def test_an_empty_secret_opens_nothing() -> None:
    empty = hmac.new(b"", PUSH, hashlib.sha256).hexdigest()
    assert outcome({"X-Signature": f"sha256={empty}"}, PUSH, b"") is Outcome.FORGED
    assert outcome({"X-Gitlab-Token": ""}, PUSH, b"") is Outcome.FORGED


def test_both_secrets_work_while_one_is_replaced() -> None:
    assert outcome({"X-Hub-Signature-256": f"sha256={HEX}"}, PUSH, b"new one", SECRET) is Outcome.ACCEPTED


def signed(body: bytes, event: str = "push") -> dict[str, str]:
    return {
        "X-GitHub-Event": event,
        "X-Hub-Signature-256": f"sha256={hmac.new(SECRET, body, hashlib.sha256).hexdigest()}",
    }


@pytest.mark.parametrize("body", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b"payload=%7B%7D"])
def test_a_signed_body_that_is_not_json_is_malformed(body: bytes) -> None:
    assert outcome(signed(body), body) is Outcome.MALFORMED


@pytest.mark.parametrize(("event", "about"), [("push", False), ("pull_request", True), ("pull_request_sync", True)])
def test_a_knock_tells_whether_it_is_about_pull_requests(event: str, about: bool) -> None:
    result, knock = judge("shop", signed(PUSH, event), PUSH, (SECRET,), now=NOW)
    assert (result, knock.is_about_requests) == (Outcome.ACCEPTED, about)


@pytest.mark.parametrize("event", ["ping", "star", "issues", "issue_comment"])
def test_pings_and_other_events_are_answered_and_wake_nobody(event: str) -> None:
    assert outcome(signed(PUSH, event)) is Outcome.IGNORED


@pytest.mark.parametrize(
    ("payload", "ref"),
    [
        ({"ref": "refs/tags/v1"}, "refs/tags/v1"),
        ({"push": {"changes": [{"new": {"type": "branch", "name": "main"}, "old": None}]}}, "main"),
        ({"push": {"changes": [{"new": None}]}}, ""),
        ({"changes": [{"ref": {"id": "refs/heads/main", "type": "BRANCH"}, "type": "UPDATE"}]}, "refs/heads/main"),
        ({"ref": 5}, ""),
        (["anything"], ""),
        ({"ref": "a\x1b[2Jb" + "x" * 500}, "a [2Jb" + "x" * 193 + "…"),
    ],
)
def test_the_ref_is_only_for_the_log_and_cleaned(payload: object, ref: str) -> None:
    body = json.dumps(payload).encode()
    expected = Knock(mesh="shop", provider="github", event="push", ref=ref)
    assert judge("shop", signed(body), body, (SECRET,), now=NOW) == (Outcome.ACCEPTED, expected)


def test_a_bucket_allows_a_burst_and_then_a_rate() -> None:
    buckets = Buckets(burst=3, refill=2.0)
    assert [buckets.take("a", 0.0) for _ in range(4)] == [True, True, True, False]
    assert buckets.take("b", 0.0)
    assert [buckets.take("a", 1.0) for _ in range(3)] == [True, True, False]
    assert not buckets.take("a", 0.5)  # a clock that went back gives nothing


def test_buckets_of_many_addresses_do_not_grow_without_end() -> None:
    buckets = Buckets(burst=1, refill=0.0, kept=10)
    for number in range(100):
        buckets.take(str(number), 0.0)
    assert len(buckets._levels) == 10
