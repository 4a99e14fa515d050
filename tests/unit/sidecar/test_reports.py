from backstay.config.wire import Report
from backstay.sidecar.engine import Observed
from backstay.sidecar.reports import KEEP, ReportRing

NOTHING = Observed(rows=[], peers=[], serving={"s": 1.0}, open_requests=2)


def filled(count: int) -> ReportRing:
    ring = ReportRing("boot")
    for second in range(count):
        ring.add(NOTHING, at=5000.0 + second, now=float(second))
    return ring


def numbers(ring: ReportRing) -> list[int]:
    return [report.sequence for report in ring.pending()]


def test_a_report_carries_what_was_observed_under_the_next_number() -> None:
    ring = filled(1)
    assert ring.add(NOTHING, at=5001.0, now=1.0) == Report(
        boot="boot", sequence=2, at=5001.0, serving={"s": 1.0}, open_requests=2
    )


def test_everything_up_to_the_acked_number_is_forgotten() -> None:
    ring = filled(5)
    ring.acked(3)
    assert numbers(ring) == [4, 5]
    ring.acked(1)
    assert numbers(ring) == [4, 5]


def test_two_minutes_are_kept_and_what_is_lost_is_counted() -> None:
    ring = filled(int(KEEP) + 11)
    assert (numbers(ring)[0], numbers(ring)[-1], ring.lost) == (11, int(KEEP) + 11, 10)


def test_numbers_go_on_after_losses() -> None:
    ring = filled(int(KEEP) + 2)
    ring.acked(10_000)
    assert ring.add(NOTHING, at=0.0, now=500.0).sequence == int(KEEP) + 3


def test_a_report_tells_of_keys_that_were_missed() -> None:
    seen = Observed(rows=[], peers=[], serving={}, open_requests=0, missing_keys=["https://issuer.example/keys"])
    report = ReportRing("boot").add(seen, at=5000.0, now=0.0)
    assert report.missing_keys == ["https://issuer.example/keys"]
