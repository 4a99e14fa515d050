"""Counters give increments, once each, and lose nothing when a config goes."""

from dataclasses import dataclass

from backstay.config.wire import PeerRow
from backstay.sidecar.engines.python.stats import BUCKETS, Counters, Ledger, bucket_of

LIVE = ("c",)


@dataclass
class Open:
    counters: Counters
    started: float


def zeros(**at: int) -> list[int]:
    return [at.get(f"b{index}", 0) for index in range(BUCKETS)]


def test_a_bound_is_within_its_bucket() -> None:
    assert [bucket_of(ms / 1000) for ms in (0, 1, 1.1, 60_000, 60_001)] == [0, 0, 1, 14, 15]


def test_collect_gives_what_happened_since_the_last_time() -> None:
    ledger = Ledger()
    counters = ledger.counters("c", "out", "routes/web.shop:80#r", "web.shop:80/")
    counters.attempts += 2
    counters.blame("5xx")
    counters.finish(0.003, 500)
    ((row,), peers) = ledger.collect([], 0.0, LIVE)
    assert (row.total, row.bad, row.attempts, row.latency, row.over) == (
        1,
        {"5xx": 1},
        2,
        zeros(b2=1),
        [1, 1] + [0] * 13,
    )
    assert peers == []
    assert ledger.collect([], 1.0, LIVE) == ([], [])
    counters.finish(0.0, 200)
    ((row,), _) = ledger.collect([], 2.0, LIVE)
    assert (row.total, row.bad, row.over) == (1, {}, [0] * 15)


def test_an_open_request_crosses_each_bound_once_whether_it_ends_or_not() -> None:
    ledger = Ledger()
    counters = ledger.counters("c", "in", "inbound:80", "")
    counters.open = 1
    request = Open(counters, started=100.0)
    ((row,), _) = ledger.collect([request], 100.2, LIVE)
    assert (row.total, row.over) == (0, [1] * 7 + [0] * 8)
    assert ledger.collect([request], 100.2, LIVE) == ([], [])
    ((row,), _) = ledger.collect([request], 100.6, LIVE)
    assert row.over == [0] * 7 + [1, 1] + [0] * 6
    counters.open = 0
    counters.finish(0.7, 200)
    ((row,), _) = ledger.collect([], 101.0, LIVE)
    assert (row.total, row.over) == (1, [0] * 15)


def test_peers_are_counted_per_config_and_forgotten_once_told() -> None:
    ledger = Ledger()
    ledger.connected("web-0", "c", failed=False)
    ledger.connected("web-0", "c", failed=True)
    ledger.peer_failed_late("web-0", "d")
    assert ledger.collect([], 0.0, LIVE)[1] == [PeerRow("web-0", "c", 2, 1), PeerRow("web-0", "d", 0, 1)]
    assert ledger.collect([], 0.0, LIVE)[1] == []


def test_counters_of_a_config_that_is_gone_stay_until_told_and_until_its_last_request_ended() -> None:
    ledger = Ledger()
    old = ledger.counters("old", "in", "inbound:80", "")
    old.open = 1
    old.finish(0.0, 200)
    assert len(ledger.collect([], 0.0, LIVE)[0]) == 1
    assert ledger.collect([], 0.0, LIVE)[0] == []
    assert ledger.counters("old", "in", "inbound:80", "") is old
    old.open = 0
    old.finish(0.0, 200)
    assert len(ledger.collect([], 0.0, LIVE)[0]) == 1
    ledger.collect([], 0.0, LIVE)
    assert ledger.counters("old", "in", "inbound:80", "") is not old
    (total,) = ledger.sums()
    assert total.codes == {200: 2}


def test_a_request_that_was_open_and_has_gone_without_an_answer_is_not_counted_again() -> None:
    """Its crossings were told while it was open; nothing else about the counters changes when it is aborted."""
    ledger = Ledger()
    counters = ledger.counters("c", "in", "inbound:80", "")
    counters.open = 1
    request = Open(counters, started=100.0)
    assert len(ledger.collect([request], 100.2, LIVE)[0]) == 1
    counters.open = 0
    ((row,), _) = ledger.collect([], 100.3, LIVE)
    assert (row.total, row.over) == (0, [-1] * 7 + [0] * 8)
    assert ledger.collect([], 100.4, LIVE)[0] == []


def test_counters_that_never_counted_leave_nothing_behind() -> None:
    ledger = Ledger()
    ledger.counters("old", "out", "routes/web.shop:80#r", "")
    assert ledger.collect([], 0.0, LIVE) == ([], [])
    assert ledger.sums() == []
