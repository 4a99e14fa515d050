"""What `up` tells is news, each once: a count, a process that keeps ending, a decision."""

from dataclasses import replace

from backstay.cli.progress import ENDS_SAID, SAID_EVERY, STARTING, Look, Trouble, news, standing
from backstay.core.rollout.model import Phase
from support import views

BROKEN = "hello-0: application ended with exit code 1"


def told(*looks: Look) -> list[str]:
    """All lines of a run that looked like this."""
    lines: list[str] = []
    before = Look(at=0.0)
    for look in looks:
        new, before = news(before, look)
        lines += new
    return lines


def test_instances_are_counted_while_they_start_but_not_at_every_look() -> None:
    looks = [Look(at=number * 0.5, ready=number, total=11) for number in range(12)]
    assert told(*looks) == [
        "0 of 11 instances ready",
        f"{int(SAID_EVERY * 2)} of 11 instances ready",
        "11 of 11 instances ready",
    ]


def test_a_mesh_that_stays_as_it_is_says_nothing_more() -> None:
    calm = [Look(at=float(second), ready=2, total=2, standing="main@sha1:aaaaaaaa is live") for second in range(100)]
    assert told(*calm) == ["2 of 2 instances ready", "main@sha1:aaaaaaaa is live"]


def test_an_instance_that_is_lost_and_comes_back_is_counted_both_times() -> None:
    looks = [Look(at=at, ready=ready, total=2) for at, ready in ((0, 2), (60, 1), (61, 1), (62, 2))]
    assert told(*looks) == ["2 of 2 instances ready", "1 of 2 instances ready", "2 of 2 instances ready"]


def test_a_process_that_keeps_ending_is_named_with_its_last_words() -> None:
    looks = [
        Look(
            at=float(ends), total=0, troubles={"hello-0": Trouble(problem=BROKEN, ends=ends, last_words="no module x")}
        )
        for ends in range(12)
    ]
    assert told(*looks) == [
        f"{BROKEN} (3 times so far); its log ends: no module x",
        f"{BROKEN} (10 times so far); its log ends: no module x",
    ]


def test_one_slip_is_no_complaint() -> None:
    assert min(ENDS_SAID) > 1
    assert told(Look(at=1, troubles={"hello-0": Trouble(problem=BROKEN, ends=1)})) == []


def test_an_instance_that_takes_long_is_named_once() -> None:
    slow = {"hello-0": Trouble(problem="hello-0: application is not ready yet")}
    looks = [Look(at=float(second), ready=1, total=2, troubles=slow) for second in range(60)]
    assert told(*looks) == ["1 of 2 instances ready", "hello-0: application is not ready yet"]
    assert STARTING < 60


def test_a_rollout_is_told_by_phase_and_wave_not_by_its_counts() -> None:
    rolling = views.rolling()
    more = replace(rolling, now=rolling.now + 1)
    assert standing(rolling) == standing(more) == "rollout r2 of main@sha1:bbbbbbbb: shifting, wave 1"


def test_a_rollback_is_told_with_its_sentence() -> None:
    view = views.rolling(Phase.ROLLING_BACK)
    assert view.state.rollout is not None
    assert standing(view) == f"rollout r2 of main@sha1:bbbbbbbb: rolling-back. {view.state.rollout.sentence}".rstrip(
        ". "
    )


def test_what_is_live_is_told_in_the_words_of_status() -> None:
    assert standing(views.live()).startswith("main@sha1:")
    assert standing(replace(views.live(), generation=2)) == ""
