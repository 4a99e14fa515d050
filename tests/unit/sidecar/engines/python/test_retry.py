"""Whether a failed try is made again, and after how long."""

import pytest

from backstay.config.model import Retry
from backstay.sidecar.engines.python.retry import Outcome, backoff_seconds, outcome_of, should_retry, within_budget


def retry(*conditions: str, attempts: int = 2, any_method: bool = False) -> Retry:
    return Retry(attempts=attempts, retry_on=conditions, any_method=any_method)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("condition", "outcomes"),
    [
        ("connect-failure", {Outcome.CONNECT_FAILURE}),
        ("reset-before-request", {Outcome.RESET}),
        ("reset", {Outcome.RESET, Outcome.TRY_TIMEOUT}),
        ("gateway-error", {Outcome.CONNECT_FAILURE, Outcome.RESET, Outcome.TRY_TIMEOUT, Outcome.BAD_GATEWAY}),
        ("5xx", set(Outcome) - {Outcome.CONFLICT, Outcome.LISTED}),
        ("retriable-4xx", {Outcome.CONFLICT}),
        ("retriable-status-codes", {Outcome.LISTED}),
    ],
)
def test_each_condition_means_what_envoy_means(condition: str, outcomes: set[Outcome]) -> None:
    policy = retry(condition)
    found = {outcome for outcome in Outcome if should_retry(policy, outcome, tries=1, method=b"GET", written=True)}
    assert found == outcomes


def test_a_post_is_sent_again_only_if_nothing_was_written_or_its_document_says_so() -> None:
    def again(policy: Retry, *, written: bool) -> bool:
        return should_retry(policy, Outcome.RESET, tries=1, method=b"POST", written=written)

    assert not again(retry("reset"), written=True)
    assert again(retry("reset"), written=False)
    assert again(retry("reset", any_method=True), written=True)


def test_attempts_are_retries_after_the_first_try() -> None:
    policy = retry("5xx", attempts=2)
    found = [
        should_retry(policy, Outcome.SERVER_ERROR, tries=tries, method=b"GET", written=True) for tries in (1, 2, 3)
    ]
    assert found == [True, True, False]
    assert not should_retry(None, Outcome.SERVER_ERROR, tries=1, method=b"GET", written=True)


def test_the_budget_is_a_share_of_the_requests_in_flight_but_at_least_three() -> None:
    policy = retry("5xx")  # 20 percent
    assert within_budget(policy, retries_in_flight=2, in_flight=1)
    assert not within_budget(policy, retries_in_flight=3, in_flight=10)
    assert within_budget(policy, retries_in_flight=19, in_flight=100)
    assert not within_budget(policy, retries_in_flight=20, in_flight=100)


def test_backoff_is_drawn_below_a_growing_and_capped_bound() -> None:
    policy = Retry(attempts=9, retry_on=("5xx",), backoff_ms=25)
    bounds = [backoff_seconds(policy, nth, 1.0) for nth in (1, 2, 3, 4, 9)]
    assert bounds == pytest.approx([0.025, 0.075, 0.175, 0.25, 0.25])
    assert backoff_seconds(policy, 3, 0.5) == pytest.approx(0.0875)
    assert backoff_seconds(policy, 3, 0.0) == 0.0


def test_outcomes_of_statuses() -> None:
    found = [outcome_of(status) for status in (200, 404, 500, 501, 502, 503, 504)]
    gateway, server = Outcome.BAD_GATEWAY, Outcome.SERVER_ERROR
    assert found == [None, None, server, server, gateway, gateway, gateway]
