"""Spans as a collector takes them."""

import json

import pytest

from backstay.sidecar.engines.python.spans import MAX_KEPT, Collector, Span, Spans, encode, request
from backstay.sidecar.engines.python.trace import Trace

TRACE = Trace(b"0af7651916cd43dd8448eb211c80319c", b"b7ad6b7169203331", b"00f067aa0ba902b7")
SPAN = Span(TRACE, True, "GET inbound:80", 1.5, 2.0, 200, (("url.path", "/a"), ("http.response.status_code", 200)))


def test_a_batch_is_an_export_request_of_otlp() -> None:
    found = json.loads(encode([SPAN], "shop/web", "1.0"))
    assert found == {
        "resourceSpans": [
            {
                "resource": {
                    "attributes": [
                        {"key": "service.name", "value": {"stringValue": "web"}},
                        {"key": "service.namespace", "value": {"stringValue": "shop"}},
                        {"key": "backstay.engine", "value": {"stringValue": "python"}},
                    ]
                },
                "scopeSpans": [
                    {
                        "scope": {"name": "backstay", "version": "1.0"},
                        "spans": [
                            {
                                "traceId": TRACE.trace.decode(),
                                "spanId": TRACE.span.decode(),
                                "parentSpanId": TRACE.parent.decode(),
                                "name": "GET inbound:80",
                                "kind": 2,
                                "startTimeUnixNano": "1500000000",
                                "endTimeUnixNano": "2000000000",
                                "attributes": [
                                    {"key": "url.path", "value": {"stringValue": "/a"}},
                                    {"key": "http.response.status_code", "value": {"intValue": "200"}},
                                ],
                                "status": {},
                            }
                        ],
                    }
                ],
            }
        ]
    }


def test_roots_have_no_parent_and_failures_say_so() -> None:
    root = SPAN._replace(trace=TRACE._replace(parent=b""), status=503, is_inbound=False)
    (span,) = json.loads(encode([root], "shop/web", "1.0"))["resourceSpans"][0]["scopeSpans"][0]["spans"]
    assert "parentSpanId" not in span
    assert (span["kind"], span["status"]) == (3, {"code": 2})


@pytest.mark.parametrize(
    ("endpoint", "place"),
    [
        ("http://collector", ("collector", 4318, "/v1/traces")),
        ("http://collector.shop:80/", ("collector.shop", 80, "/v1/traces")),
        ("http://[::1]:4318/otlp/v1/traces", ("::1", 4318, "/otlp/v1/traces")),
    ],
)
def test_an_endpoint_has_otlps_defaults(endpoint: str, place: tuple[str, int, str]) -> None:
    assert Collector.of(endpoint) == place


def test_a_request_closes_its_connection() -> None:
    assert request(Collector("c", 4318, "/p"), b"{}") == (
        b"POST /p HTTP/1.1\r\nHost: c:4318\r\nContent-Type: application/json\r\nContent-Length: 2\r\n"
        b"Connection: close\r\n\r\n{}"
    )


def test_more_than_can_be_kept_is_dropped_and_counted() -> None:
    spans = Spans("1.0")
    spans.add(SPAN)  # nobody wants it
    spans.send_to("http://collector", "shop/web")
    for _ in range(MAX_KEPT + 3):
        spans.add(SPAN)
    assert spans.dropped == 3


async def test_a_collector_that_is_not_there_costs_its_batch_and_nothing_else() -> None:
    spans = Spans("1.0")
    spans.send_to("http://127.0.0.1:1", "shop/web")
    spans.add(SPAN)
    await spans.finish(10.0)
    assert (spans.sent, spans.dropped) == (0, 1)
