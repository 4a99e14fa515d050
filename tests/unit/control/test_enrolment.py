from backstay.config.wire import EnrolAnswer, EnrolRequest
from backstay.control.enrolment import (
    MAX_CALLERS,
    REFUSALS_AT_ONCE,
    REFUSALS_PER_SECOND,
    REPEAT_WITHIN,
    AttemptLimiter,
    RecentAnswers,
)


def test_guessing_is_stopped_and_may_go_on_slowly() -> None:
    limiter = AttemptLimiter()
    for _ in range(int(REFUSALS_AT_ONCE)):
        assert limiter.admits("10.0.0.1", 0.0)
        limiter.refused("10.0.0.1", 0.0)
    one = 1 / REFUSALS_PER_SECOND
    assert limiter.admits("10.0.0.1", 0.5 * one) is False
    assert limiter.admits("10.0.0.2", 0.5 * one) is True
    assert limiter.admits("10.0.0.1", 1.0 * one) is True
    assert limiter.outcomes == {"refused": int(REFUSALS_AT_ONCE), "limited": 1}


def test_honest_enrolments_are_never_limited() -> None:
    limiter = AttemptLimiter()
    for _ in range(1000):
        assert limiter.admits("10.0.0.1", 0.0)
        limiter.granted()
    assert limiter.outcomes == {"granted": 1000}


def test_a_crowd_of_addresses_does_not_fill_the_memory() -> None:
    limiter = AttemptLimiter()
    for number in range(MAX_CALLERS + 100):
        limiter.refused(f"a{number}", 0.0)
    assert len(limiter._buckets) <= MAX_CALLERS


def test_a_lost_answer_may_be_asked_for_again_with_the_same_key_only() -> None:
    answers = RecentAnswers()
    asked = EnrolRequest(proxy="a-1", csr="CSR", token="t")
    answer = EnrolAnswer(certificate="C", trust={}, identity="i", expires_at=1.0)
    answers.keep(asked, answer, 0.0)
    assert answers.find(asked, REPEAT_WITHIN - 1) == answer
    assert answers.find(EnrolRequest(proxy="a-1", csr="OTHER", token="t"), 1.0) is None
    assert answers.find(asked, REPEAT_WITHIN) is None
