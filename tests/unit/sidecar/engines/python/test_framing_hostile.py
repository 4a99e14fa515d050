"""Invariant: any head either becomes exactly one request that reads the same to a second parser, or is refused."""

import httptools
from hypothesis import given, settings
from hypothesis import strategies as st

from backstay.sidecar.engines.python import framing
from backstay.sidecar.engines.python.framing import CHUNKED, Fields, Refusal, RequestHead, read_request


class Parsed:
    """What httptools makes of bytes."""

    def __init__(self) -> None:
        self.target = b""
        self.fields: Fields = []
        self.messages = 0

    def on_url(self, url: bytes) -> None:
        self.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.fields.append((name, value))

    def on_message_begin(self) -> None:
        self.messages += 1


def parse(data: bytes) -> tuple[Parsed, httptools.HttpRequestParser] | None:
    parsed = Parsed()
    parser = httptools.HttpRequestParser(parsed)
    try:
        parser.feed_data(data)
    except httptools.HttpParserError:
        return None
    except httptools.HttpParserUpgrade:
        pass
    return parsed, parser


NAMES = st.sampled_from(
    [b"Host", b"host", b"Content-Length", b"Content_Length", b"Transfer-Encoding", b"Connection", b"Expect", b"Upgrade",
     b"TE", b"X-Backstay-A", b"x_backstay_a", b"X-Forwarded-Client-Cert", b"Authorization", b"A"]
)  # fmt: skip
VALUES = st.sampled_from(
    [b"", b"web", b"web:80", b"a,b", b"0", b"3", b"3, 3", b"chunked", b"Chunked ", b"gzip, chunked", b"close", b"keep-alive",
     b"upgrade, Content-Length", b"Authorization, A", b"websocket", b"h2c", b"100-continue", b"\xff"]
)  # fmt: skip
TARGETS = st.sampled_from(
    [b"/", b"/a/../b?c", b"/%2e%2e/x", b"http://web/a", b"http://web?x", b"//a", b"*", b"/%00", b"web:80"]
)
METHODS = st.sampled_from([b"GET", b"POST", b"HEAD", b"OPTIONS", b"DELETE"])


def judge(method: bytes, target: bytes, fields: Fields) -> RequestHead | Refusal | None:
    lines = [method + b" " + target + b" HTTP/1.1", *(name + b": " + value for name, value in fields)]
    found = parse(b"\r\n".join(lines) + b"\r\n\r\n")
    if found is None:
        return None
    parsed, parser = found
    return read_request(parser.get_method(), parsed.target, parser.get_http_version(), parsed.fields)


@settings(max_examples=400, deadline=None)
@given(METHODS, TARGETS, st.lists(st.tuples(NAMES, VALUES), max_size=6))
def test_what_goes_on_is_one_request_that_reads_as_it_was_decided(method: bytes, target: bytes, fields: Fields) -> None:
    head = judge(method, target, fields)
    if not isinstance(head, RequestHead):
        return
    body = b"0\r\n\r\n" if head.length == CHUNKED else b"x" * max(head.length, 0)
    again = parse(head.block + body)
    assert again is not None
    parsed, parser = again
    names = [name.lower().replace(b"_", b"-") for name, _ in parsed.fields]
    assert (parsed.messages, parser.get_method()) == (1, method)
    assert parsed.target == head.path + (b"?" + head.query if head.query else b"")
    assert names.count(b"host") == 1
    assert names.count(b"content-length") + names.count(b"transfer-encoding") <= 1
    assert not [name for name in names if name.startswith(b"x-backstay-") or name == b"x-forwarded-client-cert"]


def test_long_names_of_fields_are_not_remembered() -> None:
    """4,096 requests with a name of 58 KB each would otherwise stay as 240 MB until the proxy ends."""
    before = sum(map(len, framing._kinds))
    for number in range(20):
        head = judge(b"GET", b"/", [(b"Host", b"web"), (b"x%d" % number + b"a" * 50_000, b"1")])
        assert isinstance(head, RequestHead)
    assert sum(map(len, framing._kinds)) - before < 50_000
