import json

from backstay.adapters.notifications import delay, encode, line, sign
from backstay.core.ports import Event

EVENT = Event(
    at=1.5, kind="rollout", reason="RolledBack", message="password=hunter2\nfailed", revision="main@sha1:1",
    subject="sa-logic", warning=True, number=7,
)  # fmt: skip


def test_an_event_is_one_clean_log_line() -> None:
    assert line(EVENT) == "rollout.RolledBack revision=main@sha1:1 subject=sa-logic password=*** failed"


def test_a_batch_is_json_with_cleaned_messages_and_what_was_dropped() -> None:
    assert json.loads(encode([EVENT], dropped=3)) == {
        "events": [
            {"number": 7, "at": 1.5, "kind": "rollout", "reason": "RolledBack", "message": "password=***\nfailed",
             "revision": "main@sha1:1", "subject": "sa-logic", "warning": True},
        ],
        "dropped": 3,
    }  # fmt: skip


def test_the_signature_is_hmac_sha256_of_the_body() -> None:
    # RFC 4231, test case 2
    expected = "sha256=5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
    assert sign(b"Jefe", b"what do ya want for nothing?") == expected


def test_waiting_doubles_up_to_a_minute_and_never_below_half() -> None:
    assert [delay(attempt, base=2.0, draw=1.0) for attempt in (1, 2, 3, 9)] == [2.0, 4.0, 8.0, 60.0]
    assert [delay(attempt, base=2.0, draw=0.0) for attempt in (1, 2, 9)] == [1.0, 2.0, 30.0]
