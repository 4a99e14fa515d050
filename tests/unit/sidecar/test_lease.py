from dataclasses import replace

from backstay.sidecar.clock import Instant
from backstay.sidecar.lease import (
    RESTART_WINDOW,
    Start,
    after_deaths,
    at_start,
    begin,
    is_over,
    outlives_restart,
    renew,
    why_it_ended,
)

NOW = Instant(since_boot=1000.0, wall=5_000_000.0, boot="b1")


def later(seconds: float, *, wall: float | None = None) -> Instant:
    return replace(NOW, since_boot=NOW.since_boot + seconds, wall=NOW.wall + (seconds if wall is None else wall))


def test_deaths_of_an_engines_process_count_for_a_minute() -> None:
    first = after_deaths((), 1, NOW)
    soon, late = later(RESTART_WINDOW - 1), later(RESTART_WINDOW)
    assert first == (NOW.since_boot,)
    assert after_deaths(first, 2, soon) == (NOW.since_boot, soon.since_boot, soon.since_boot)
    assert after_deaths(first, 1, late) == (late.since_boot,)


def test_a_lease_ends_after_its_length_unless_it_is_renewed() -> None:
    lease = begin("c", 60.0, NOW)
    assert [is_over(lease, later(59.9)), is_over(lease, later(60.0))] == [False, True]
    assert is_over(renew(lease, later(59.0)), later(118.0)) is False


def test_a_jump_of_the_wall_clock_changes_nothing_while_the_process_lives() -> None:
    lease = begin("c", 60.0, NOW)
    assert is_over(lease, later(1, wall=7200)) is False
    assert is_over(lease, later(60, wall=-7200)) is True


def test_a_lease_outlives_a_restart_only_within_all_three_bounds() -> None:
    lease = begin("c", 60.0, NOW)
    assert outlives_restart(lease, later(30)) is True
    assert outlives_restart(lease, later(61)) is False
    assert outlives_restart(lease, later(30, wall=61)) is False
    assert outlives_restart(lease, replace(later(30), boot="b2")) is False


def test_clocks_that_went_back_do_not_make_a_lease_longer() -> None:
    lease = begin("c", 60.0, NOW)
    assert outlives_restart(lease, replace(NOW, since_boot=10.0)) is False
    assert outlives_restart(lease, later(30, wall=-3600)) is False


def test_control_is_lost_only_if_nothing_was_acked_since_the_swap_and_nobody_is_there() -> None:
    fresh = begin("c", 60.0, NOW)
    assert why_it_ended(fresh, connected=False) == "ControlLost"
    assert why_it_ended(fresh, connected=True) == "LeaseEnded"
    assert why_it_ended(renew(fresh, NOW), connected=False) == "LeaseEnded"


def test_a_start_without_a_candidate_has_nothing_to_decide() -> None:
    assert at_start(candidate="", lease=None, restarts=(990.0,), was_clean=False, now=NOW) == Start(
        with_candidate=False, went_back="", restarts=()
    )


def test_one_restart_keeps_the_candidate_and_the_second_within_a_minute_does_not() -> None:
    lease = begin("c", 600.0, NOW)
    first = at_start(candidate="c", lease=lease, restarts=(), was_clean=False, now=later(1))
    assert first == Start(with_candidate=True, went_back="", restarts=(1001.0,))
    second = at_start(candidate="c", lease=lease, restarts=first.restarts, was_clean=False, now=later(60))
    assert second == Start(with_candidate=False, went_back="Restarts", restarts=(1001.0, 1060.0))
    too_late = at_start(candidate="c", lease=lease, restarts=first.restarts, was_clean=False, now=later(61))
    assert too_late == Start(with_candidate=True, went_back="", restarts=(1061.0,))


def test_a_restart_after_an_orderly_end_is_not_counted() -> None:
    lease = begin("c", 600.0, NOW)
    start = at_start(candidate="c", lease=lease, restarts=(999.0,), was_clean=True, now=later(1))
    assert start == Start(with_candidate=True, went_back="", restarts=(999.0,))


def test_a_start_without_a_running_lease_serves_stable() -> None:
    for lease in (None, begin("other", 60.0, NOW), begin("c", 0.5, NOW)):
        start = at_start(candidate="c", lease=lease, restarts=(), was_clean=False, now=later(1))
        assert (start.with_candidate, start.went_back) == (False, "LeaseEnded")


def test_a_new_share_of_the_same_candidate_is_not_a_new_swap() -> None:
    confirmed = renew(begin("c", 60.0, NOW), NOW)
    assert begin("c", 60.0, later(5), before=confirmed).confirmed is True
    assert begin("d", 60.0, later(5), before=confirmed).confirmed is False
