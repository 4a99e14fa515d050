from backstay.sidecar.backoff import Backoff


def test_the_ceiling_doubles_up_to_the_cap_and_starts_again_after_success() -> None:
    backoff = Backoff(uniform=lambda low, high: high)
    assert [backoff.next() for _ in range(7)] == [0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]
    backoff.reset()
    assert backoff.next() == 0.2


def test_a_wait_is_never_zero_even_after_a_thousand_failures() -> None:
    backoff = Backoff(uniform=lambda low, high: low)
    waits = [backoff.next() for _ in range(1000)]
    assert (min(waits), max(waits)) == (0.02, 0.5)
