"""Token buckets, by the clock they are given."""

from backstay.config.model import RateLimit
from backstay.sidecar.engines.python.limits import Bucket, Verdict, told


def test_a_bucket_begins_full_and_fills_steadily() -> None:
    bucket = Bucket(RateLimit(requests=2, per_ms=1000, burst=2), now=0)
    assert [bucket.take(0), bucket.take(0)] == [Verdict(True, 1, 0.0), Verdict(True, 0, 0.5)]
    assert bucket.take(0) == Verdict(False, 0, 0.5)
    assert bucket.take(0.25) == Verdict(False, 0, 0.25)
    assert bucket.take(0.5).passes
    assert not bucket.take(0.75).passes
    assert [bucket.take(100).passes for _ in range(3)] == [True, True, False]


def test_a_clock_that_jumps_back_takes_nothing_away() -> None:
    bucket = Bucket(RateLimit(requests=1, per_ms=1000, burst=1), now=10)
    assert bucket.take(10).passes
    assert not bucket.take(5).passes
    assert bucket.take(6).passes


def test_callers_are_told_when_to_come_again_in_whole_seconds() -> None:
    limit = RateLimit(requests=3, per_ms=60_000, burst=9)
    assert told(limit, Verdict(False, 0, 19.2)) == [
        (b"Retry-After", b"20"),
        (b"X-RateLimit-Limit", b"3"),
        (b"X-RateLimit-Remaining", b"0"),
        (b"X-RateLimit-Reset", b"20"),
    ]
    assert told(limit, Verdict(False, 0, 0.01))[0] == (b"Retry-After", b"1")
