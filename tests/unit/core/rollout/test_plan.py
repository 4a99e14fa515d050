"""Waves and seats: who serves the candidate now."""

import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from backstay.core.rollout import plan
from backstay.core.rollout.model import Phase, ProxyView, Rollout, Settings, Stage, WorkloadRollout
from backstay.core.rollout.plan import Target
from support.rollouts import CAUSE, GOOD, QUICK, WEB, Play, fleet, play, stage


def at(share: float, proxies: dict[str, ProxyView], seats: dict[str, float] | None = None) -> Rollout:
    """A rollout of one workload that asks for this share."""
    return Rollout(
        id="r1",
        cause=CAUSE,
        settings=QUICK,
        phase=Phase.SHIFTING,
        stages=(stage(web="new"),),
        workloads={WEB: WorkloadRollout(share=share, seats=seats or {})},
    )


def given_to(share: float, proxies: dict[str, ProxyView], seats: dict[str, float] | None = None) -> dict[str, float]:
    return plan.seats(at(share, proxies, seats), proxies).workloads[WEB].seats


@pytest.mark.parametrize(
    ("count", "share", "expected"),
    [
        (1, 0.05, [0.05]),
        (2, 0.25, [0.5]),
        (8, 0.05, [0.4]),
        (8, 0.25, [1.0, 1.0]),
        (8, 0.6, [1.0, 1.0, 1.0, 1.0, 0.8]),
        (10, 0.3, [1.0, 1.0, 1.0]),
        (3, 1.0, [1.0, 1.0, 1.0]),
        (3, 0.0, []),
        (0, 0.6, []),
    ],
)
def test_a_share_is_whole_proxies_and_one_that_serves_both(count: int, share: float, expected: list[float]) -> None:
    assert sorted(given_to(share, fleet(count)).values(), reverse=True) == pytest.approx(expected)


def test_engines_that_cannot_split_get_whole_proxies_rounded_up() -> None:
    assert (
        given_to(0.25, fleet(3, can_split=False)) == {"web-2": 1.0}
        or len(given_to(0.25, fleet(3, can_split=False))) == 1
    )


def test_proxies_that_change_their_engine_move_as_a_whole() -> None:
    views = fleet(4)
    changing = msgspec.structs.replace(at(0.05, views), whole=(WEB,))
    assert list(plan.seats(changing, views).workloads[WEB].seats.values()) == [1.0]
    assert list(given_to(0.05, views).values()) == [pytest.approx(0.2)]


def test_the_share_of_all_proxies_bounds_how_many_single_replicas_move_at_once() -> None:
    views: dict[str, ProxyView] = {}
    for n in range(10):
        views |= fleet(1, f"shop/one{n}", can_split=False)
    names = {view.workload for view in views.values()}
    rollout = msgspec.structs.replace(at(0.25, views), workloads={name: WorkloadRollout(share=0.25) for name in names})
    seated = [name for name, state in plan.seats(rollout, views).workloads.items() if state.seats]
    assert len(seated) == math.ceil(0.25 * 10)


def test_a_proxy_keeps_its_seat_when_others_come_and_go() -> None:
    first = given_to(0.25, fleet(8))
    grown = given_to(0.25, fleet(11), first)
    assert {p for p, s in first.items() if s == 1.0} <= set(grown)
    assert sum(grown.values()) == pytest.approx(0.25 * 11)


def test_a_departing_proxy_frees_its_seat_for_another() -> None:
    views = fleet(8)
    first = given_to(0.25, views)
    gone = next(iter(first))
    rest = {p: v for p, v in views.items() if p != gone}
    after = given_to(0.25, rest, first)
    assert gone not in after
    assert sum(after.values()) == pytest.approx(0.25 * 7)
    assert set(first) - {gone} <= set(after)


def test_a_proxy_that_is_away_keeps_its_seat_until_its_lease_must_have_ended() -> None:
    views = fleet(4)
    first = given_to(0.25, views)
    seated = next(iter(first))
    views[seated] = msgspec.structs.replace(views[seated], connected=False, silent_for=59.0)
    assert set(given_to(0.25, views, first)) == {seated}
    views[seated] = msgspec.structs.replace(views[seated], silent_for=61.0)
    assert seated not in given_to(0.25, views, first)


def test_the_young_and_the_absent_are_seated_last() -> None:
    views = fleet(4)
    views["web-0"] = msgspec.structs.replace(views["web-0"], warm=False)
    views["web-1"] = msgspec.structs.replace(views["web-1"], warm=False)
    assert set(given_to(0.5, views)) == {"web-2", "web-3"}


def test_one_splitting_proxy_among_whole_ones_takes_the_rest() -> None:
    views = fleet(3, can_split=False) | {"s": ProxyView(id="s", workload=WEB, connected=True)}
    for share in (0.1, 0.3, 0.6, 0.9):
        given = given_to(share, views)
        assert sum(given.values()) == pytest.approx(share * 4)
        assert {p for p, s in given.items() if s < 1.0} <= {"s"}


@given(
    st.integers(0, 40),
    st.floats(0, 1),
    st.lists(st.tuples(st.integers(0, 40), st.floats(0, 1)), max_size=5),
)
@hypothesis_settings(max_examples=150, deadline=None)
def test_seats_always_sum_to_the_share_and_asking_again_changes_nothing(
    count: int, share: float, later: list[tuple[int, float]]
) -> None:
    seats: dict[str, float] = {}
    for n, s in [(count, share), *later]:
        seats = given_to(s, fleet(n), seats)
        assert sum(seats.values()) == pytest.approx(s * n, abs=1e-6)
        assert given_to(s, fleet(n), seats) == seats
        assert all(0 < value <= 1.0 for value in seats.values())


def test_targets_name_stable_candidate_and_share() -> None:
    story = play(4)
    seated = next(iter(story.on_candidate))
    expected = {p: Target("old", "", 0.0) for p in story.proxies} | {seated: Target("old", "new", 0.2)}
    assert plan.targets(story.rollout, story.stable, story.proxies) == expected
    assert set(plan.targets(story.rollout, story.stable)) == {seated}


@pytest.mark.parametrize("phase", [Phase.ROLLING_BACK, Phase.FAILED, Phase.ABORTED, Phase.SUCCEEDED])
def test_nobody_serves_a_candidate_in_a_phase_that_restores_or_has_ended(phase: Phase) -> None:
    story = play(4)
    rollout = msgspec.structs.replace(story.rollout, phase=phase)
    assert {t.candidate for t in plan.targets(rollout, story.stable, story.proxies).values()} == {""}


def test_stable_of_a_later_stage_holds_the_stages_before() -> None:
    stages = (stage("expand", web="wide", api="wide"), stage("contract", web="tight"))
    rollout = msgspec.structs.replace(play(4, stages=stages).rollout, stage=1)
    stable = {WEB: "old", "shop/api": "old", "shop/else": "old"}
    assert {w: plan.stage_stable(rollout, w, stable) for w in stable} == {
        WEB: "wide",
        "shop/api": "wide",
        "shop/else": "old",
    }


def superseding(old: Play, stages: tuple[Stage, ...]) -> Play:
    return play(old.proxies, stages=stages, stable=old.stable, carry=old.rollout, id="r2")


def two_workloads() -> Play:
    views = fleet(8) | fleet(8, "shop/api")
    story = play(views, stages=(stage(web="new", api="new"),), settings=msgspec.structs.replace(QUICK, deadline=4.0))
    while story.rollout.wave < 1:
        story.look(GOOD, GOOD)
    return story.look(GOOD, GOOD)


def test_a_newer_commit_keeps_wave_seats_and_evidence_of_workloads_it_leaves_alone() -> None:
    old = two_workloads()
    new = superseding(old, (stage(web="new", api="newer"),))
    assert new.rollout.workloads[WEB] == old.rollout.workloads[WEB]
    api = new.rollout.workloads["shop/api"]
    assert (api.wave, api.share, api.evidence.candidate_total) == (0, 0.05, 0)
    assert (new.rollout.wave, new.rollout.supersessions) == (0, 1)


def test_workloads_that_are_ahead_wait_for_the_others_and_lose_nothing() -> None:
    old = two_workloads()
    new = superseding(old, (stage(web="new", api="newer"),))
    while new.rollout.wave < 1:
        new.look(GOOD, GOOD, workload="shop/api")
    assert new.rollout.workloads[WEB].evidence.candidate_total >= old.rollout.workloads[WEB].evidence.candidate_total
    assert new.rollout.workloads[WEB].seats == old.rollout.workloads[WEB].seats


def test_another_stable_under_a_workload_starts_it_at_wave_one() -> None:
    old = two_workloads()
    old.stable[WEB] = "other"
    assert superseding(old, (stage(web="new", api="new"),)).rollout.workloads[WEB].wave == 0


def test_a_superseded_stage_goes_on_where_it_was_if_the_stages_before_are_the_same() -> None:
    stages = (stage("expand", web="wide"), stage("move", web="new"))
    old = play(8, stages=stages)
    while old.rollout.stage == 0:
        old.look(GOOD, GOOD)
    assert superseding(old, stages).rollout.stage == 1
    assert superseding(old, (stage("expand", web="wider"), stage("move", web="new"))).rollout.stage == 0


def test_thin_traffic_is_raised_to_at_most_half_and_never_lowered() -> None:
    settings = Settings(deadline=600.0)
    assert plan.thin_share(100.0, 0.05, 300, settings) == 0.05
    assert plan.thin_share(4.0, 0.05, 300, settings) == pytest.approx(0.25)
    assert plan.thin_share(0.1, 0.05, 300, settings) == 0.5
    assert plan.thin_share(0.1, 0.6, 300, settings) == 0.6
    assert plan.thin_share(0.0, 0.05, 300, settings) == 0.05
    assert plan.thin_share(0.1, 0.05, 300, settings, most=0.2) == 0.2


def test_thin_traffic_is_raised_step_by_step_from_as_many_requests_as_show_a_catastrophe() -> None:
    assert [plan.most_share(200.0, 0.05, second) for second in (0, 2, 3, 4.5, 6, 600)] == [
        0.05,
        0.05,
        0.1,
        0.2,
        0.4,
        1.0,
    ]
    assert plan.most_share(10.0, 0.05, 0) == 0.5
    assert plan.most_share(0.0, 0.05, 0) == 0.05
