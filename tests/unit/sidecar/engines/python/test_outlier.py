"""Ejections and active checks, as a table of what happens to one endpoint."""

from backstay.config.model import Outlier
from backstay.sidecar.engines.python.outlier import UNREACHED, Health, may_eject


def after(*statuses: int, rule: Outlier) -> bool:
    health = Health()
    for status in statuses:
        health.note(status)
    return health.has_failed(rule)


def test_failures_count_only_in_a_row() -> None:
    rule = Outlier(consecutive_5xx=3)
    assert after(500, 503, UNREACHED, rule=rule)
    assert not after(500, 503, 200, 500, 500, rule=rule)
    assert not after(500, 503, 404, 500, 500, rule=rule)
    assert not after(500, 500, 500, 500, rule=Outlier(consecutive_5xx=0))


def test_gateway_errors_and_silence_have_counts_of_their_own() -> None:
    gateway = Outlier(consecutive_5xx=0, consecutive_gateway=2)
    assert after(502, UNREACHED, rule=gateway)
    assert not after(502, 500, 504, rule=gateway)
    local = Outlier(consecutive_5xx=0, consecutive_local=2)
    assert after(UNREACHED, UNREACHED, rule=local)
    assert not after(UNREACHED, 503, UNREACHED, rule=local)


def test_every_ejection_lasts_longer_up_to_a_most_and_good_times_are_remembered() -> None:
    rule, health = Outlier(base_ms=1000, max_ms=2500), Health()
    spans = []
    for now in (0.0, 10.0, 20.0):
        health.eject(rule, now)
        spans.append(health.until - now)
    assert spans == [1.0, 2.0, 2.5]
    assert (health.is_out(22.4), health.is_out(22.5)) == (True, False)
    health.forgive(rule, 23.0)
    assert health.ejections == 3, "not yet a base time inside"
    health.forgive(rule, 23.5)
    health.eject(rule, 30.0)
    assert (health.ejections, health.until) == (3, 32.5)


def test_one_may_always_go_unless_it_is_the_only_one_and_more_up_to_the_share() -> None:
    rule = Outlier(max_percent=50)
    assert [may_eject(rule, out=out, members=4) for out in range(4)] == [True, True, False, False]
    assert may_eject(Outlier(max_percent=0), out=0, members=2)
    assert not may_eject(Outlier(max_percent=100), out=0, members=1)


def test_checks_change_what_an_endpoint_is_held_to_be_after_so_many_in_a_row() -> None:
    health = Health()
    seen = [health.checked(passed=passed, unhealthy_after=2, healthy_after=3) for passed in (False, True, False, False)]
    assert (seen, health.is_out(0)) == ([False, False, False, True], True)
    seen = [
        health.checked(passed=passed, unhealthy_after=2, healthy_after=3)
        for passed in (True, True, False, True, True, True)
    ]
    assert (seen, health.is_out(0)) == ([False, False, False, False, False, True], False)
