import pytest

from backstay.config.model import Manifest
from backstay.config.wire import RefusalExpected
from backstay.control.links import ProxyRecord, frame_overhead, framed, refusals
from backstay.core.ports import Assignment

STABLE, CANDIDATE = Manifest(workload="w", parts={}), Manifest(workload="w", parts={"a": "1"})


def record(**fields: object) -> ProxyRecord:
    desired = Assignment(stable=STABLE, candidate=CANDIDATE, share=0.25, lease_s=30.0)
    made = ProxyRecord(proxy="a-1", desired=desired, stable="s", candidate="c")
    for name, value in fields.items():
        setattr(made, name, value)
    return made


def test_what_is_wanted_is_the_assignment() -> None:
    assert record().wanted() == ("s", "c", 0.25, 30.0, ())
    assert record(desired=None).wanted() is None


def test_a_candidate_that_a_proxy_has_left_is_not_wanted_until_that_is_known() -> None:
    assert record(left_candidate="c").wanted() == ("s", "", 0.0, 30.0, ())
    assert record(left_candidate="other").wanted() == ("s", "c", 0.25, 30.0, ())


def test_the_newest_beliefs_are_kept() -> None:
    made = record()
    made.believe("", "a")
    made.believe("b", "c")
    made.believe("d", "a")
    assert made.believed == ("b", "c", "d", "a")
    made.believe("e")
    assert made.believed == ("c", "d", "a", "e")


def test_expected_refusals_travel_with_the_assignment() -> None:
    wanted = Assignment(stable=STABLE, expect_refused=(("spiffe://td/x", "h", "/p*"),))
    assert refusals(wanted) == [RefusalExpected(source="spiffe://td/x", host="h", path="/p*")]


@pytest.mark.parametrize(("size", "header"), [(125, 2), (126, 4), (65535, 4), (65536, 10)])
def test_frame_headers_are_counted(size: int, header: int) -> None:
    frame = framed(b"x" * size)
    assert frame_overhead(size) == header == len(frame) - size
    length = frame[1] if size < 126 else int.from_bytes(frame[2:header])
    assert (frame[0], length, frame[header:]) == (0x81, size, b"x" * size)  # final, text, not masked
