"""The tests behind a verdict: what convinces them, what must not."""

import math

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from backstay.config.model import LATENCY_BOUNDS_MS
from backstay.core.rollout import verdict
from backstay.core.rollout.model import Block, Counts, Settings, Verdict
from support.rollouts import WEB, calm, counts

SETTINGS = Settings()
KNOWN = verdict.seed(calm(requests=160))


def block(candidate: Counts | None, stable: Counts | None, share: float = 0.125, **fields: object) -> Block:
    cohorts = {digest: c for digest, c in (("c", candidate), ("s", stable)) if c is not None}
    return Block(workload=WEB, second=0, cohorts=cohorts, share=share, **fields)  # type: ignore[arg-type]


def seen(tests: verdict.Tests, times: int, *args: object, gaining: tuple[str, ...] = (), **kw: object) -> verdict.Tests:
    for _ in range(times):
        tests = verdict.observe(tests, block(*args, **kw), "c", "s", SETTINGS, gaining=gaining)  # type: ignore[arg-type]
    return tests


def says(tests: verdict.Tests) -> tuple[Verdict, str]:
    judgement = verdict.judge(tests, SETTINGS)
    return judgement.verdict, judgement.outcome


def test_no_evidence_is_inconclusive() -> None:
    judgement = verdict.judge(verdict.Tests(), SETTINGS)
    expected = verdict.Judgement(verdict=Verdict.INCONCLUSIVE, worse=judgement.worse, better=0.0)
    assert judgement == expected
    assert judgement.worse == pytest.approx(0.0)


def test_five_of_five_failing_is_enough() -> None:
    tests = seen(KNOWN, 1, counts(5, 5), counts(140, 0))
    assert verdict.judge(tests, SETTINGS).catastrophe
    assert says(tests) == (Verdict.FAIL, "bad")


def test_four_of_four_is_not() -> None:
    assert not verdict.judge(seen(KNOWN, 1, counts(4, 4), counts(140, 0)), SETTINGS).catastrophe


def test_most_failing_on_both_sides_is_an_outage() -> None:
    assert says(seen(KNOWN, 5, counts(20, 14), counts(140, 98)))[0] is Verdict.INCONCLUSIVE


def test_bad_requests_of_one_second_alone_decide_nothing() -> None:
    """Four of twenty in one second, then nothing: a burst."""
    tests = seen(seen(KNOWN, 1, counts(20, 4), counts(140, 0)), 3, counts(20, 0), counts(140, 0))
    assert says(tests)[0] is not Verdict.FAIL


def test_a_third_failing_is_found_in_the_first_or_second_block() -> None:
    assert says(seen(KNOWN, 2, counts(20, 7), counts(140, 0))) == (Verdict.FAIL, "bad")


@pytest.mark.parametrize(("candidate", "stable"), [((20, 1), (140, 7)), ((20, 0), (140, 0)), ((200, 10), (1400, 70))])
def test_equal_rates_never_fail_and_pass_in_time(candidate: tuple[int, int], stable: tuple[int, int]) -> None:
    total = candidate[0] + stable[0]
    tests = verdict.seed(calm(requests=total, bad=candidate[1] + stable[1]))
    for _ in range(400):
        tests = seen(tests, 1, counts(*candidate), counts(*stable))
        assert says(tests)[0] is not Verdict.FAIL
    assert says(tests)[0] is Verdict.PASS


def test_a_pass_without_errors_takes_about_three_hundred_requests() -> None:
    """ln(1/0.05) / 0.01 = 300 once the dispersion is known to be small."""
    tests, requests = KNOWN, 0
    while says(tests)[0] is not Verdict.PASS:
        tests, requests = seen(tests, 1, counts(20, 0), counts(140, 0)), requests + 20
    assert 300 <= requests <= 500
    assert verdict.requests_needed(KNOWN, SETTINGS) == pytest.approx(300, rel=0.02)


def test_a_candidate_that_is_worse_by_the_tolerance_does_not_pass() -> None:
    assert says(seen(KNOWN, 100, counts(100, 2), counts(140, 1)))[0] is not Verdict.PASS


def test_harm_that_begins_late_is_not_buried_under_a_good_past() -> None:
    tests = seen(KNOWN, 200, counts(20, 0), counts(140, 0))
    assert says(seen(tests, 8, counts(20, 3), counts(140, 0))) == (Verdict.FAIL, "bad")


def test_an_outage_that_is_over_does_not_stall_a_pass() -> None:
    tests = seen(seen(KNOWN, 10, counts(20, 10), counts(140, 70)), 80, counts(20, 0), counts(140, 0))
    assert says(tests)[0] is Verdict.PASS


# --- other outcomes ---------------------------------------------------------------------------------------------------


def timed(total: int, slow: int, usual_bound: int = 4) -> Counts:
    """All requests cross the first bounds; `slow` of them five bounds more."""
    over = tuple(
        total if n < usual_bound else slow if n < usual_bound + 5 else 0 for n in range(len(LATENCY_BOUNDS_MS))
    )
    return counts(total, 0, over=over)


def test_slower_than_stables_p99_fails_as_slow() -> None:
    tests = seen(verdict.Tests(), 5, None, timed(140, 0))
    assert says(seen(tests, 12, timed(20, 5), timed(140, 0))) == (Verdict.FAIL, "slow")


def test_requests_still_open_past_the_bound_count_as_slow() -> None:
    hanging = counts(0, 0, over=(20,) * 9 + (0,) * 6)
    tests = seen(verdict.Tests(), 5, None, timed(140, 0))
    assert says(seen(tests, 10, hanging, timed(140, 0))) == (Verdict.FAIL, "slow")


def test_slowness_of_both_is_no_evidence() -> None:
    tests = seen(verdict.Tests(), 5, None, timed(140, 0))
    assert says(seen(tests, 30, timed(20, 10), timed(140, 70)))[0] is not Verdict.FAIL


def test_no_single_second_decides_that_a_candidate_is_slow() -> None:
    """Everybody goes over: pools are cold, all connections are made at once. It fails only if that stays."""
    known = seen(verdict.Tests(), 60, None, timed(140, 1))
    cold = seen(known, 1, timed(92, 91), timed(20, 0), share=0.9)
    assert says(cold)[0] is Verdict.INCONCLUSIVE
    assert says(seen(cold, 5, timed(100, 1), None, share=0.99))[0] is not Verdict.FAIL
    assert says(seen(cold, 2, timed(92, 91), timed(20, 0), share=0.9)) == (Verdict.FAIL, "slow")


def test_one_second_of_requests_that_hang_decides() -> None:
    known = seen(verdict.Tests(), 60, None, timed(140, 1))
    hanging = counts(0, 0, over=(20,) * 9 + (0,) * 6)
    assert says(seen(known, 1, hanging, timed(140, 1))) == (Verdict.FAIL, "slow")


def test_more_tries_per_request_fail_as_retried() -> None:
    storm = counts(20, 0, attempts=60)
    assert says(seen(KNOWN, 15, storm, counts(140, 0))) == (Verdict.FAIL, "retried")


def test_failed_connections_to_updated_proxies_fail_as_connect() -> None:
    peers = {"c": (10, 6), "s": (70, 0)}
    assert says(seen(KNOWN, 10, None, counts(140, 0), peers=peers)) == (Verdict.FAIL, "connect")


def test_vanished_traffic_fails_once_it_has_lasted() -> None:
    tests = seen(KNOWN, 9, counts(1, 0), counts(139, 0), expected=0.5, share=0.5)
    assert says(tests)[0] is not Verdict.FAIL
    assert says(seen(tests, 3, counts(1, 0), counts(139, 0), expected=0.5, share=0.5)) == (Verdict.FAIL, "vanished")


def test_traffic_that_was_never_expected_does_not_vanish() -> None:
    assert says(seen(KNOWN, 60, None, counts(140, 0), expected=0.0, share=0.5))[0] is not Verdict.FAIL


def test_traffic_steps_compare_destinations_of_the_same_service() -> None:
    def step(v1: tuple[int, int], v2: tuple[int, int]) -> Counts:
        return Counts(total=999, bad=999, by_subset={"l:80/v1": v1, "l:80/v2": v2, "x:80/": (50, 50)})

    tests = seen(verdict.Tests(), 60, step((90, 0), (10, 0)), None, share=1.0, gaining=("l:80/v2",))
    assert says(tests)[0] is Verdict.PASS
    tests = seen(verdict.Tests(), 12, step((90, 0), (10, 5)), None, share=1.0, gaining=("l:80/v2",))
    assert says(tests) == (Verdict.FAIL, "bad")


# --- what the whole mesh suffers --------------------------------------------------------------------------------------


def lived_through(trouble: Counts, seconds: int, *, of_all: bool = True) -> verdict.Before:
    """Eight proxies: a minute of calm, seconds of trouble for all of them or for half of them, twenty seconds of calm."""
    known, calm_half = verdict.Before(), timed(80, 0)
    for half, times in ((calm_half, 60), (trouble, seconds), (calm_half, 20)):
        halves = (half, half if of_all else calm_half)
        second = Block(workload=WEB, second=0, cohorts={"s": verdict.added(*halves)})
        for _ in range(times):
            known = verdict.known(known, second, {"out": halves})
    return known


ALL_FAIL = counts(80, 80, over=(80,) * 4 + (0,) * 11)
ALL_HANG = counts(80, 0, over=(80,) * 11 + (0,) * 4)


def test_an_outage_of_all_proxies_is_not_taken_for_burstiness() -> None:
    tests = seen(verdict.seed(lived_through(ALL_FAIL, 5)), 25, counts(20, 0), counts(140, 0))
    assert says(tests)[0] is Verdict.PASS


def test_an_outage_a_moment_ago_does_not_hide_a_plain_regression() -> None:
    """One of twenty requests fails: found after as many as on a day without an outage."""
    calm_day = verdict.seed(lived_through(timed(80, 0), 5))
    after = verdict.seed(lived_through(ALL_FAIL, 5))
    assert blocks_until_fail(calm_day, counts(20, 1), counts(140, 0)) == 7
    assert 0 < blocks_until_fail(after, counts(20, 1), counts(140, 0)) <= 8


def blocks_until_fail(tests: verdict.Tests, candidate: Counts, stable: Counts) -> int:
    for number in range(1, 200):
        tests = seen(tests, 1, candidate, stable)
        if says(tests)[0] is Verdict.FAIL:
            return number
    return 0


def test_in_an_outage_of_both_no_single_second_decides() -> None:
    """Half of all requests fail for some seconds; in the last, by a burst, more of the candidate's than of stable's."""
    tests = seen(verdict.seed(calm(requests=1600)), 70, counts(200, 0), counts(1400, 0))
    for candidate, stable in ((144, 548), (103, 638), (108, 547)):
        tests = seen(tests, 1, counts(200, candidate), counts(1400, stable))
    assert says(seen(tests, 1, counts(200, 131), counts(1400, 374)))[0] is not Verdict.FAIL
    assert says(seen(tests, 1, counts(200, 131), counts(1400, 4))) == (Verdict.FAIL, "bad")


@pytest.mark.parametrize(("phi", "reckoned"), [(1.4, 1.4), (2.0, 2.0), (8.0, 9.8), (100.0, 105.0)])
def test_great_dispersion_is_doubted_and_small_is_not(phi: float, reckoned: float) -> None:
    assert verdict._doubted(phi) == pytest.approx(reckoned)


def test_a_burst_of_some_proxies_is_burstiness() -> None:
    tests = seen(verdict.seed(lived_through(ALL_FAIL, 5, of_all=False)), 25, counts(20, 0), counts(140, 0))
    assert says(tests)[0] is Verdict.INCONCLUSIVE


def test_seconds_in_which_everything_stood_still_do_not_hide_slowness() -> None:
    """A quarter of the candidate's requests takes half a second more: found in five seconds, as on a calm machine."""
    tests = verdict.seed(lived_through(ALL_HANG, 5))
    assert says(seen(tests, 5, timed(20, 5), timed(140, 0))) == (Verdict.FAIL, "slow")


def test_what_hangs_is_told_from_what_is_answered_meanwhile() -> None:
    """Half of the candidate's requests hang; the other half is answered as fast as ever."""
    known = seen(verdict.Tests(), 60, None, timed(140, 1))
    half = counts(12, 0, over=(24,) * 4 + (12,) * 6 + (0,) * 5, latency=(0,) * 4 + (12,) + (0,) * 11)
    assert says(seen(known, 1, half, timed(140, 1))) == (Verdict.FAIL, "slow")


def test_no_cohort_scatters_more_than_its_requests_allow() -> None:
    """Twenty requests that all share one fate are one observation, not none."""
    outages = verdict.Tally(n=10_000.0, k=300.0, scatter=1e6, blocks=70.0)
    assert verdict._phi_expected(outages, 20) == 20.0


# --- before/after -----------------------------------------------------------------------------------------------------


def test_the_last_wave_is_compared_with_the_rate_before_it() -> None:
    tests = seen(verdict.next_wave(KNOWN), 5, counts(160, 16), None, share=1.0)
    assert verdict.judge(tests, SETTINGS) == msgspec.structs.replace(
        verdict.judge(tests, SETTINGS), verdict=Verdict.FAIL, before_after=True, outcome="bad"
    )


def test_before_after_allows_half_of_the_rate_or_one_point() -> None:
    usual = verdict.seed(calm(requests=1000, bad=40))
    assert says(seen(usual, 60, counts(1000, 58), None, share=1.0))[0] is not Verdict.FAIL
    assert says(seen(usual, 60, counts(1000, 80), None, share=1.0))[0] is Verdict.FAIL


def test_nothing_known_before_bets_nothing() -> None:
    tests = seen(verdict.Tests(), 50, counts(20, 2), None, share=1.0)
    assert says(tests)[0] is Verdict.INCONCLUSIVE


def test_a_new_wave_forgets_stakes_and_keeps_rates() -> None:
    tests = verdict.next_wave(seen(KNOWN, 5, counts(20, 3), counts(140, 1)))
    assert verdict.judge(tests, SETTINGS).worse == pytest.approx(0.0)
    assert tests.tracks[0].stable[0] > 140 * 60
    assert tests.tracks[0].candidate[0] > 90


# --- arithmetic -------------------------------------------------------------------------------------------------------


def kl(a: float, b: float) -> float:
    return a * math.log(a / b) + (1 - a) * math.log((1 - a) / (1 - b))


@given(
    st.floats(0.0005, 0.3),
    st.floats(0.001, 0.6),
    st.sampled_from([0.0, 0.002, 0.01]),
    st.floats(0.5, 2000),
    st.floats(0.5, 2000),
)
@example(b=0.25, above=0.5, d=0.0, n=1.0, nb=1.0)  # the first guess is the border itself
@example(b=0.296875, above=0.0078125, d=0.0, n=232.0, nb=0.5)
@hypothesis_settings(deadline=None)
def test_the_border_point_is_the_nearest_of_the_null(b: float, above: float, d: float, n: float, nb: float) -> None:
    """Moving it either way raises size * KL + size * KL."""
    a = min(0.98, b + d + above)
    m = verdict.border(a, b, d, n, nb)

    def cost(at: float) -> float:
        return n * kl(a, at + d) + nb * kl(b, at)

    step = max(m * 1e-3, 1e-9)
    assert b - 1e-12 <= m <= a - d + 1e-12
    assert cost(m) <= cost(min(m + step, a - d)) + 1e-7
    assert cost(m) <= cost(max(m - step, b)) + 1e-7


@given(
    st.floats(0.001, 0.4),
    st.sampled_from([1.0, 2.0, 5.0]),
    st.sampled_from([1.0, 3.0]),
    st.sampled_from(list(verdict.ALTERNATIVES)),
)
@hypothesis_settings(deadline=None)
def test_a_block_is_an_e_value_at_the_border_of_the_null(p: float, phi: float, phi_b: float, a: float) -> None:
    """Exactly: the expectation of the factor over all outcomes of 6 and 9 requests, wherever the null is true."""
    n, nb, margin, b = 6, 9, 0.002, 0.01
    if a <= b + margin:
        return
    q = p + margin
    total = 0.0
    for k in range(n + 1):
        for kb in range(nb + 1):
            chance = math.comb(n, k) * q**k * (1 - q) ** (n - k) * math.comb(nb, kb) * p**kb * (1 - p) ** (nb - kb)
            total += chance * math.exp(verdict._pair(verdict._Seen(n, k, nb, kb), a, b, margin, 1 / phi, 1 / phi_b))
    assert total <= 1 + 1e-6


def test_state_from_disk_gives_the_same_future() -> None:
    tests = seen(KNOWN, 7, counts(20, 1), counts(140, 1))
    again = verdict.load(verdict.dump(tests))
    assert again == tests
    assert seen(again, 3, counts(20, 2), counts(140, 0)) == seen(tests, 3, counts(20, 2), counts(140, 0))


# --- words ------------------------------------------------------------------------------------------------------------


def told(tests: verdict.Tests) -> str:
    return verdict.sentence("shop/sa-webapp", tests, verdict.judge(tests, SETTINGS), "2 of 16 proxies")


def test_the_sentence_says_both_rates_and_the_chance() -> None:
    tests = seen(KNOWN, 2, counts(59, 20), counts(602, 1))
    assert told(tests) == (
        "sa-webapp, 2 of 16 proxies on the new revision: 40 of 118 requests failed (34 %), 2 of 1,204 on the others "
        "(0.2 %); chance of that without a cause under 1 in 1,000,000"
    )


def test_the_sentence_says_when_only_time_could_be_compared() -> None:
    assert told(seen(KNOWN, 3, counts(100, 40), None, share=1.0)) == (
        "sa-webapp, 2 of 16 proxies on the new revision: 120 of 300 requests failed (40 %), before/after: 0.01 % before; "
        "chance of that without a cause under 1 in 1,000,000"
    )


def test_the_sentence_for_vanished_traffic_names_what_was_due() -> None:
    tests = seen(KNOWN, 20, counts(1, 0), counts(139, 0), expected=0.5, share=0.5)
    assert told(tests) == (
        "sa-webapp, 2 of 16 proxies on the new revision: 0.7 % of the requests arrived there, 50 % were expected; "
        "chance of that without a cause under 1 in 1,000,000"
    )
