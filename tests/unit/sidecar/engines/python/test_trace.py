"""Trace contexts are continued when they are beyond doubt, and nothing else of them is believed."""

from random import Random

import pytest

from backstay.config.model import Tracing
from backstay.sidecar.engines.python.framing import Fields
from backstay.sidecar.engines.python.trace import Trace, Tracer

TRACE, SPAN = b"0af7651916cd43dd8448eb211c80319c", b"b7ad6b7169203331"
SAMPLED = b"00-%b-%b-01" % (TRACE, SPAN)
OTHER = (b"accept", b"*/*")


def tracer(percent: float = 0.0, *, b3: bool = False) -> Tracer:
    return Tracer(Tracing(percent=percent, b3=b3), Random(7).random)


def values(fields: Fields) -> dict[bytes, bytes]:
    assert len({name for name, _ in fields}) == len(fields)
    return dict(fields)


def begun(fields: Fields, percent: float = 0.0, *, b3: bool = False) -> tuple[dict[bytes, bytes], Trace]:
    found, trace = tracer(percent, b3=b3).begin(fields)
    assert trace is not None
    return values(found), trace


def test_a_sampled_trace_is_continued_with_a_span_of_its_own() -> None:
    given = [OTHER, (b"Traceparent", SAMPLED), (b"tracestate", b"a=1")]
    found, trace = begun(given)
    assert (trace.trace, trace.parent) == (TRACE, SPAN)
    assert found == {
        b"accept": b"*/*",
        b"tracestate": b"a=1",
        b"traceparent": b"00-%b-%b-01" % (TRACE, trace.span),
    }
    assert trace.span != SPAN


def test_what_is_not_sampled_goes_on_as_it_came() -> None:
    given = [OTHER, (b"traceparent", b"00-%b-%b-00" % (TRACE, SPAN))]
    found, trace = tracer(100.0).begin(given)
    assert found is given
    assert trace is None


def test_a_request_without_a_context_begins_one_and_says_whether_it_is_sampled() -> None:
    found, trace = begun([OTHER], 100.0)
    assert trace.parent == b""
    assert found[b"traceparent"] == b"00-%b-%b-01" % (trace.trace, trace.span)
    fields, nothing = tracer(0.0).begin([OTHER])
    assert nothing is None
    assert values(fields)[b"traceparent"].endswith(b"-00")


@pytest.mark.parametrize(
    "given",
    [
        SAMPLED[:-1],
        SAMPLED.upper(),
        SAMPLED + b"-extra",
        b"ff" + SAMPLED[2:],
        b"00-%b-%b-01" % (b"0" * 32, SPAN),
        b"00-%b-%b-01" % (TRACE, b"0" * 16),
        b"",
    ],
)
def test_a_context_in_doubt_is_none_and_its_state_is_not_passed_on(given: bytes) -> None:
    found, trace = begun([(b"traceparent", given), (b"tracestate", b"a=1")], 100.0)
    assert trace.trace != TRACE
    assert trace.parent == b""
    assert found.keys() == {b"traceparent"}


def test_two_contexts_are_none() -> None:
    found, trace = begun([(b"traceparent", SAMPLED), (b"Traceparent", SAMPLED)], 100.0)
    assert trace.trace != TRACE
    assert found.keys() == {b"traceparent"}


def test_a_later_version_may_say_more() -> None:
    assert begun([(b"traceparent", b"01" + SAMPLED[2:] + b"-more")])[1].trace == TRACE


B3 = [(b"X-B3-TraceId", TRACE), (b"X-B3-SpanId", SPAN), (b"X-B3-Sampled", b"1")]


@pytest.mark.parametrize(
    "given",
    [
        B3,
        [(b"b3", b"%b-%b-1" % (TRACE, SPAN))],
        [(b"b3", b"%b-%b-d-%b" % (TRACE, SPAN, SPAN))],
        [*B3[:2], (b"x-b3-flags", b"1")],
        [(b"traceparent", SAMPLED), (b"b3", b"%b-%b-1" % (b"9" * 32, b"9" * 16))],
    ],
)
def test_b3_is_read_and_written_where_it_is_asked_for(given: Fields) -> None:
    found, trace = begun(given, b3=True)
    assert (trace.trace, trace.parent) == (TRACE, SPAN)
    assert found == {
        b"traceparent": b"00-%b-%b-01" % (TRACE, trace.span),
        b"x-b3-traceid": TRACE,
        b"x-b3-spanid": trace.span,
        b"x-b3-sampled": b"1",
        b"x-b3-parentspanid": SPAN,
    }


def test_short_b3_traces_are_filled_up() -> None:
    _, trace = begun([(b"b3", b"%b-%b-1" % (TRACE[16:], SPAN))], b3=True)
    assert trace.trace == b"0" * 16 + TRACE[16:]


def test_a_b3_decision_alone_decides() -> None:
    assert tracer(0.0, b3=True).begin([(b"b3", b"1")])[1] is not None
    found, trace = tracer(100.0, b3=True).begin([(b"b3", b"0")])
    assert trace is None
    assert values(found)[b"x-b3-sampled"] == b"0"


def test_b3_that_nobody_asked_for_is_a_field_like_others() -> None:
    found, trace = begun([(b"b3", b"%b-%b-0" % (TRACE, SPAN))], 100.0)
    assert found[b"b3"] == b"%b-%b-0" % (TRACE, SPAN)
    assert trace.trace != TRACE
