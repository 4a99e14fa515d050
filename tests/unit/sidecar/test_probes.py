"""What a probe's path stands for, and the bytes that are sent for it. Real applications answer in tests/e2e/sidecar."""

import pytest

from backstay.sidecar.probes import (
    Place,
    Question,
    Unwell,
    frame,
    health_request,
    parse,
    request,
    serving_status,
    status_of,
)


def test_questions_are_read_as_the_webhook_writes_them() -> None:
    text = (
        '{"/app-health/web/livez": {"type": "http", "port": 8080, "path": "/live?x=1", "scheme": "HTTPS",'
        ' "headers": [["X-Probe", "1"]], "timeoutSeconds": 3},'
        ' "/app-health/web/readyz": {"type": "tcp", "port": 8080, "timeoutSeconds": 1},'
        ' "/app-health/db/readyz": {"type": "grpc", "port": 9000, "service": "db", "timeoutSeconds": 1}}'
    )
    assert parse(text) == {
        "/app-health/web/livez": Question(
            type="http", port=8080, path="/live?x=1", scheme="HTTPS", headers=[("X-Probe", "1")], timeoutSeconds=3
        ),
        "/app-health/web/readyz": Question(type="tcp", port=8080),
        "/app-health/db/readyz": Question(type="grpc", port=9000, service="db"),
    }
    assert parse("") == {}


def test_what_cannot_be_read_names_the_setting() -> None:
    with pytest.raises(ValueError, match=r"--app-probes: Object missing required field `port`"):
        parse('{"/app-health/web/livez": {"type": "http"}}')


@pytest.mark.parametrize(
    ("health_host", "app_host", "is_redirected", "place"),
    [
        ("10.1.0.2", "127.0.0.1", True, Place(host="10.1.0.2", source="127.0.0.6")),
        ("fd01::2", "127.0.0.1", True, Place(host="fd01::2", source="::6")),
        ("0.0.0.0", "127.0.0.1", True, Place(host="127.0.0.1")),
        ("127.0.0.1", "127.0.0.1", True, Place(host="127.0.0.1")),
        ("10.1.0.2", "127.0.0.1", False, Place(host="10.1.0.2")),
        ("localhost", "127.0.0.5", False, Place(host="127.0.0.5")),
    ],
)
def test_the_application_is_asked_where_the_kubelet_would(
    health_host: str, app_host: str, is_redirected: bool, place: Place
) -> None:
    assert Place.of(health_host, app_host, is_redirected=is_redirected) == place


def test_a_request_carries_the_probes_headers_which_win_over_ours() -> None:
    plain = Question(type="http", port=80, path="/live")
    assert request(plain, "fd01::2") == (
        b"GET /live HTTP/1.1\r\nHost: [fd01::2]:80\r\nUser-Agent: kube-probe/backstay\r\nAccept: */*\r\n"
        b"Connection: close\r\n\r\n"
    )
    own = Question(type="http", port=80, headers=[("host", "shop.example"), ("X-A", "b")])
    assert request(own, "10.0.0.1") == (
        b"GET / HTTP/1.1\r\nUser-Agent: kube-probe/backstay\r\nAccept: */*\r\nhost: shop.example\r\nX-A: b\r\n"
        b"Connection: close\r\n\r\n"
    )


@pytest.mark.parametrize("path", ["/a b", "/a\r\nX: y"])
def test_what_would_be_another_request_is_not_sent(path: str) -> None:
    with pytest.raises(ValueError, match="cannot be sent"):
        request(Question(type="http", port=80, path=path), "10.0.0.1")


@pytest.mark.parametrize("line", [b"", b"SSH-2.0-x", b"HTTP/2 200", b"HTTP/1.1 20", b"HTTP/1.1 abc OK"])
def test_a_status_comes_from_http_only(line: bytes) -> None:
    with pytest.raises(Unwell):
        status_of(line)


def test_a_status_needs_no_phrase() -> None:
    assert [status_of(b"HTTP/1.1 204 No Content"), status_of(b"HTTP/1.0 500")] == [204, 500]


def test_frames_have_the_form_of_http2() -> None:
    assert frame(0x6, 0x1, 0, b"12345678") == b"\x00\x00\x08\x06\x01\x00\x00\x00\x0012345678"


def test_a_health_request_names_its_service() -> None:
    """The message's own length and the field's; a name longer than a byte of HPACK or of protobuf can say works too."""
    assert health_request("h:1", "db").endswith(b"\x00\x00\x00\x00\x04" + b"\x0a\x02db")
    assert health_request("h:1", "").endswith(b"\x00\x00\x00\x00\x00")
    assert health_request("h:1", "x" * 200).endswith(b"\x0a\xc8\x01" + b"x" * 200)


def message(body: bytes) -> bytes:
    return b"\x00" + len(body).to_bytes(4) + body


@pytest.mark.parametrize(("body", "status"), [(b"\x08\x01", 1), (b"\x08\x02", 2), (b"", 0)])
def test_a_health_status_is_read(body: bytes, status: int) -> None:
    assert serving_status(message(body)) == status


@pytest.mark.parametrize("data", [b"", b"\x00\x00", b"\x01" + message(b"\x08\x01")[1:], message(b"\x08\x01") + b"x"])
def test_what_is_no_health_status_is_no_answer(data: bytes) -> None:
    with pytest.raises(Unwell):
        serving_status(data)
