"""What a client is told when the mesh itself answers."""

from backstay.config.wire import BAD_REASONS
from backstay.sidecar.engines.python.failures import FAILURES, local_response


def test_every_failure_is_counted_under_a_name_of_the_protocol() -> None:
    assert {failure.bad for failure in FAILURES.values()} - {""} <= set(BAD_REASONS)


def test_statuses() -> None:
    assert {reason: failure.status for reason, failure in FAILURES.items()} == {
        "no-route": 404, "unknown-host": 502, "denied": 403, "plaintext-refused": 0, "handshake-refused": 0, "fault": 503,
        "no-healthy-upstream": 503, "no-backend": 503, "overflow": 503, "connect-failure": 503, "reset": 503,
        "bad-response": 502, "timeout": 504, "not-ready": 503, "loop": 508, "client-gone": 0, "bad-request": 400,
        "slow-request": 408, "rate-limited": 429, "bad-rewrite": 400, "no-token": 401, "bad-token": 401,
    }  # fmt: skip


def test_a_local_response_is_whole() -> None:
    whole = b"HTTP/1.1 404 Not Found\r\nContent-Type: text/plain\r\nContent-Length: 9\r\n\r\nno-route\n"
    assert local_response(404, "no-route", close=False) == whole
    assert local_response(404, "no-route", close=False, with_body=False) == whole.removesuffix(b"no-route\n")
    assert b"Connection: close\r\n" in local_response(599, "x", close=True)
