import pytest

from backstay.sidecar.admin import TEXT, Act, Answer, Asked, answer, encode

PAGES = {"/healthz/ready": lambda: (200, TEXT, b"ready\n")}


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        (b"GET /healthz/ready HTTP/1.1\r\nHost: x\r\n\r\n", (200, TEXT, b"ready\n")),
        (b"GET /healthz/ready?x=1 HTTP/1.0\r\n\r\n", (200, TEXT, b"ready\n")),
        (b"GET /quitquitquit HTTP/1.1\r\n\r\n", (404, TEXT, b"/healthz/ready\n")),
        (b"POST /healthz/ready HTTP/1.1\r\n\r\n", (405, TEXT, b"only GET\n")),
        (b"GET /a b HTTP/1.1\r\n\r\n", (400, TEXT, b"bad request\n")),
        (b"\x16\x03\x01\r\n\r\n", (400, TEXT, b"bad request\n")),
    ],
)
def test_answers(head: bytes, expected: Answer) -> None:
    assert answer(head, PAGES) == expected


def test_an_answer_says_its_length_and_closes() -> None:
    assert encode((503, TEXT, b"waiting\n")) == (
        b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/plain; charset=utf-8\r\n"
        b"Content-Length: 8\r\nConnection: close\r\n\r\nwaiting\n"
    )
    assert encode((200, TEXT, b"ready\n"), head_only=True).endswith(b"Content-Length: 6\r\nConnection: close\r\n\r\n")


def level(asked: Asked) -> Answer:
    return 200, TEXT, f"{asked.method} {asked.query.get('level')} {asked.headers.get('accept')}".encode()


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        (b"POST /logging?level=debug HTTP/1.1\r\nAccept:  a/b \r\n\r\n", (200, TEXT, b"POST debug a/b")),
        (b"GET /logging HTTP/1.1\r\n\r\n", (405, TEXT, b"only POST\n")),
        (b"POST /logging?level=debug HTTP/1.1\r\nOrigin: http://evil\r\n\r\n", (403, TEXT, b"not for browsers\n")),
    ],
)
def test_what_changes_something_is_posted_and_not_by_browsers(head: bytes, expected: Answer) -> None:
    assert answer(head, {"/logging": Act(level, ("POST",))}) == expected
