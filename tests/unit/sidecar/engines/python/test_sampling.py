"""Samples: few, weighted, of whoever nobody else samples, and without anything secret."""

from types import SimpleNamespace
from typing import Any

import pytest

from backstay.config.wire import PlaintextRow, Sample
from backstay.sidecar.engines.python.ingress import Ingress
from backstay.sidecar.engines.python.listeners import Inbound, Listener, Outbound
from backstay.sidecar.engines.python.nobody import Nowhere
from backstay.sidecar.engines.python.sampling import MAX_TARGET, MOST_LOOKS, Sampler, names_of
from backstay.sidecar.engines.python.stats import MOST_CALLERS, Ledger

NO_SERVER: Any = None


def ended(
    listener: Listener | None = None, *, path: bytes = b"/a", query: bytes = b"", status: int = 200, identity: str = ""
) -> Any:
    """What a sampler reads of an exchange that is over."""
    return SimpleNamespace(
        downstream=SimpleNamespace(
            listener=listener or Outbound(NO_SERVER), identity=identity, address="10.0.0.7", secure=bool(identity)
        ),
        head=SimpleNamespace(authority=b"web", path=path, query=query),
        method=b"GET",
        status=status,
    )


def sampler(most: int = 5) -> Sampler:
    made = Sampler(lambda: 0.5)
    made.allow(most)
    return made


def finish(made: Sampler, exchange: Any, times: int = 1) -> None:
    """As flow.py does it."""
    for _ in range(times):
        made.left -= 1
        if made.left == 0:
            made.look(exchange)


def test_few_requests_are_all_told() -> None:
    made = sampler()
    finish(made, ended(), 2)
    finish(made, ended(status=503))
    assert made.collect(3, 3) == [
        Sample("GET", "web", "/a", "", 0, 200, 2),
        Sample("GET", "web", "/a", "", 0, 503, 1),
    ]
    assert made.collect(0, 0) == []


def test_nobody_asks_for_samples_nobody_gets_any() -> None:
    made = Sampler(lambda: 0.5)
    finish(made, ended(), 1000)
    assert made.collect(1000, 1000) == []


def test_samples_of_many_requests_stand_for_all_of_them() -> None:
    made = sampler(most=5)
    finish(made, ended(), 1000)
    made.collect(1000, 1000)
    for _ in range(20):
        for number in range(1000):
            finish(made, ended(path=b"/%d" % number))
        told = made.collect(1000, 1000)
        assert len(told) <= 5
        assert 600 <= sum(item.weight for item in told) <= 1000


def test_a_report_tells_no_more_than_it_may_whatever_comes() -> None:
    made = sampler(most=5)
    for number in range(10_000):
        finish(made, ended(path=b"/%d" % number))
    assert len(made.collect(10_000, 10_000)) == 5


def test_a_quiet_application_is_told_again_after_a_storm() -> None:
    made = sampler(most=5)
    finish(made, ended(), 100_000)
    made.collect(100_000, 100_000)
    made.collect(0, 0)
    finish(made, ended())
    assert made.collect(1, 1) == [Sample("GET", "web", "/a", "", 0, 200, 1)]


def test_requests_of_others_are_sampled_by_their_own_proxies() -> None:
    made = sampler()
    finish(made, ended(Inbound(NO_SERVER, 8080), identity="spiffe://td/ns/a/sa/b"))
    assert made.collect(0, 1) == []


def test_callers_without_a_certificate_are_sampled_where_they_come_in() -> None:
    made = sampler()
    finish(made, ended(Inbound(NO_SERVER, 8080)))
    finish(made, ended(Ingress(NO_SERVER, 80)))
    assert [(item.caller, item.port) for item in made.collect(0, 2)] == [("10.0.0.7", 8080), ("10.0.0.7", 80)]


def test_copies_and_requests_that_were_never_read_are_no_samples() -> None:
    made = sampler()
    copy, unread, gone = ended(), ended(), ended(status=0)
    copy.downstream.listener = Nowhere(copy.downstream)
    unread.head = None
    for exchange in (copy, unread, gone):
        finish(made, exchange)
    assert made.collect(3, 3) == []


def test_a_server_alone_is_not_looked_at_more_than_a_thousand_times_a_second() -> None:
    made = sampler()
    looks = 0
    for _ in range(3):
        looks = 0
        for _ in range(20 * MOST_LOOKS):
            made.left -= 1
            if made.left == 0:
                looks += 1
                made.look(ended(Inbound(NO_SERVER, 8080), identity="spiffe://td/ns/a/sa/b"))
        made.collect(0, 20 * MOST_LOOKS)
    assert looks <= MOST_LOOKS * 1.1


@pytest.mark.parametrize(
    ("query", "told"),
    [
        (b"", b""),
        (b"a=1&b=2", b"?a=&b="),
        (b"token=s3cr3t=x&flag", b"?token=&flag="),
        (b"=x", b"?="),
    ],
)
def test_values_of_the_query_stay_here(query: bytes, told: bytes) -> None:
    assert names_of(query) == told
    made = sampler()
    finish(made, ended(query=query))
    assert made.collect(1, 1)[0].target == "/a" + told.decode()


def test_targets_that_would_have_to_be_cut_are_left_out() -> None:
    made = sampler()
    finish(made, ended(path=b"/" * (MAX_TARGET + 1)))
    assert made.collect(1, 1) == []


def test_plaintext_callers_are_counted_by_address_within_a_bound() -> None:
    ledger = Ledger()
    ledger.note_plaintext(80, "10.0.0.7", accepted=1)
    ledger.note_plaintext(80, "10.0.0.7", refused=1)
    ledger.note_plaintext(80, "10.0.0.8")
    assert ledger.take_plaintext() == [PlaintextRow(80, "10.0.0.7", 1, 1), PlaintextRow(80, "10.0.0.8", 0, 0)]
    for number in range(MOST_CALLERS + 3):
        ledger.note_plaintext(80, str(number), accepted=1)
    rows = ledger.take_plaintext()
    assert (len(rows), rows[-1]) == (MOST_CALLERS + 1, PlaintextRow(80, "", 3, 0))
    assert ledger.take_plaintext() == []
