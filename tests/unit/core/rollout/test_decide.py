"""Stories of rollouts: what is seen in, what is done out."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from backstay.config.model import LATENCY_BOUNDS_MS
from backstay.core.rollout import memo, phases, plan, verdict
from backstay.core.rollout.decide import decide
from backstay.core.rollout.model import (
    Block,
    Counts,
    Hold,
    Nacked,
    Observation,
    Order,
    Phase,
    Promote,
    ProxyView,
    Restore,
    Rollout,
    SetSeats,
    Settings,
    Stratum,
    Tell,
    Verdict,
    WentBack,
)
from support.rollouts import GOOD, QUICK, WEB, Play, calm, counts, fleet, play, stage, two_way


def replaced(settings: Settings = QUICK, **fields: Any) -> Settings:
    return msgspec.structs.replace(settings, **fields)


# --- forward ----------------------------------------------------------------------------------------------------------


def test_a_good_change_goes_out_in_waves_is_promoted_and_bakes() -> None:
    story = play().until(Phase.SUCCEEDED, GOOD, GOOD)
    assert story.reasons == [
        "RolloutStarted",
        "WavePassed", "WaveStarted",
        "WavePassed", "WaveStarted",
        "WavePassed", "WaveStarted",
        "WavePassed", "Live",
        "Baked",
    ]  # fmt: skip
    assert story.stable == {WEB: "new"}
    assert [c for c in story.commands if isinstance(c, Promote)] == [Promote()]
    assert story.rollout.workloads[WEB].proven


def test_soak_is_a_floor_under_a_pass() -> None:
    story = play(settings=replaced(soak=10.0)).looks(10, GOOD, GOOD)
    assert (story.phase, story.rollout.wave) == (Phase.SHIFTING, 0)
    assert story.looks(2, GOOD, GOOD).rollout.wave == 1


def test_nothing_is_judged_good_before_the_seats_are_acked() -> None:
    story = play()
    story.acks = False
    story.proxies = fleet(8)
    assert story.looks(20, (0, 0), GOOD).phase is Phase.PREPARING


def test_a_candidate_nobody_confirms_is_unknown() -> None:
    story = play(settings=replaced(confirm_within=10.0))
    story.acks = False
    story.proxies = fleet(8)
    assert story.looks(12, (0, 0), GOOD).phase is Phase.HOLDING
    assert story.rollout.sentence == "holding: the candidate was not confirmed by the proxies that are to serve it"


def test_equal_consecutive_waves_merge() -> None:
    """One proxy that cannot split has moved after the first wave: there is nothing left to move."""
    story = play(fleet(1, can_split=False), before={WEB: calm()})
    assert story.on_candidate == {"web-0": 1.0}
    assert story.until(Phase.BAKING, GOOD, None).reasons == ["RolloutStarted", "WavePassed", "Live"]


def test_immediate_moves_everybody_at_once_and_is_still_watched() -> None:
    story = play(settings=replaced(immediate=True), before={WEB: calm()})
    assert story.on_candidate == {f"web-{n}": 1.0 for n in range(8)}
    assert story.look((200, 190)).phase is Phase.ROLLING_BACK


def test_gateways_move_last() -> None:
    views = fleet(4) | fleet(2, "shop/gate", is_gateway=True)
    story = play(views, stages=(stage(web="new", gate="new"),))
    story.until(Phase.BAKING, blocks=None, candidate=GOOD, stable=GOOD)
    shares = [m.message.split(" ")[0] for m in story.commands if isinstance(m, Tell) and m.reason == "WaveStarted"]
    assert shares == ["25", "60", "100", "100", "100", "100", "100"]


def test_gateways_serve_stable_while_others_have_waves_to_go() -> None:
    views = fleet(4) | fleet(2, "shop/gate", is_gateway=True)
    story = play(views, stages=(stage(web="new", gate="new"),))
    assert {p for p in story.on_candidate if p.startswith("gate")} == set()


def test_stages_go_one_after_the_other_and_each_builds_on_the_one_before() -> None:
    story = play(stages=(stage("expand", web="wide"), stage("move", web="new")))
    story.until(Phase.PREPARING).look(GOOD, GOOD)
    while story.rollout.stage == 0:
        story.look(GOOD, GOOD)
    assert plan.targets(story.rollout, story.stable, story.proxies)["web-0"].stable == "wide"
    assert story.stable == {WEB: "old"}
    assert story.until(Phase.BAKING, GOOD, GOOD).stable == {WEB: "new"}


# --- failing ----------------------------------------------------------------------------------------------------------


def test_most_of_the_requests_failing_is_a_fail_at_the_first_look() -> None:
    story = play(before={WEB: calm()}).look((20, 20), GOOD)
    assert story.phase is Phase.ROLLING_BACK
    assert story.on_candidate == {}
    said = (
        "web, 1 of 8 proxies on the new revision: 20 of 20 requests failed (100 %), 0 of 1,000 on the others (0 %); "
        "chance of that without a cause under 1 in 1,000,000. Rolled back after 1.0 s. "
        "Cause: no healthy upstream, route sa-logic:80 rule main."
    )
    assert story.last == (
        SetSeats(workload=WEB),
        Restore(workloads=(WEB,)),
        Hold(sentence=said),
        Tell(reason="RolloutFailed", message=said, warning=True),
    )


def test_the_sentence_names_the_line_of_git() -> None:
    origins = {WEB: {"routes/sa-logic:80#main": "mesh/sa-logic.yaml:14"}}
    story = play(before={WEB: calm()}).look((20, 20), GOOD, origins=origins)
    assert story.rollout.sentence.endswith(
        "Cause: no healthy upstream, route sa-logic:80 rule main, mesh/sa-logic.yaml:14."
    )


def test_a_plain_regression_is_a_fail_within_seconds() -> None:
    story = play(before={WEB: calm()}).until(Phase.ROLLING_BACK, (20, 2), (140, 0), limit=10)
    assert story.rollout.workloads[WEB].evidence.verdict is Verdict.FAIL
    assert story.rollout.detected_after == story.second
    assert 0 < story.rollout.harmed <= 20


def test_a_common_outage_is_no_evidence_against_the_candidate() -> None:
    story = play(settings=replaced(deadline=600.0, soak=60.0)).looks(5, GOOD, GOOD).looks(10, (20, 10), (140, 70))
    assert story.phase is Phase.SHIFTING


def test_on_fail_pause_leaves_the_wave_and_says_so() -> None:
    story = play(settings=replaced(on_fail="pause"), before={WEB: calm()}).look((20, 20), GOOD)
    assert story.phase is Phase.PAUSED
    assert len(story.on_candidate) == 1
    assert story.reasons[-1] == "RolloutFailing"
    assert "Paused: onFail is pause." in story.rollout.sentence


def test_a_content_nack_fails_the_rollout_at_once() -> None:
    story = play()
    seated = next(iter(story.on_candidate))
    assert story.nack(seated, "content").phase is Phase.ROLLING_BACK
    assert story.rollout.sentence == f"{seated} refused its config: DiskFull: no space. Rolled back."


def test_a_nack_of_another_config_says_nothing_about_this_one() -> None:
    stray = Nacked(proxy="web-1", workload=WEB, digest="other", fault="content", reason="X", message="y")
    assert play().look(nacks=(stray,)).phase is Phase.SHIFTING


def test_an_environment_nack_leaves_the_proxy_out() -> None:
    story = play(20)
    seated = next(iter(story.on_candidate))
    story.nack(seated, "environment")
    assert story.phase is not Phase.ROLLING_BACK
    assert seated not in story.on_candidate
    assert len(story.on_candidate) == 1
    assert story.reasons[-1] == "ProxyLeftOut"


def test_too_many_left_out_is_unknown_and_holds() -> None:
    story = play()
    for _ in range(2):
        story.nack(next(iter(story.on_candidate)), "environment")
    assert story.looks(6, GOOD, GOOD).phase is Phase.HOLDING
    assert story.rollout.sentence.startswith("holding: 2 proxies are left out, 1 may be: web-")


def test_a_candidate_that_takes_proxies_down_is_not_handed_on_to_one_after_the_other() -> None:
    story = play(before={WEB: calm()})
    for _ in range(60):
        for proxy in story.on_candidate:
            story.view(proxy, connected=False, share=0.0, silent_for=11.0)
        story.look(None, GOOD)
    down = [view.id for view in story.proxies.values() if not view.connected]
    assert (story.phase, len(down), story.on_candidate) == (Phase.HOLDING, 2, {})
    assert story.rollout.sentence == f"holding: 2 proxies are left out, 1 may be: {', '.join(sorted(down))}"


@pytest.mark.parametrize("reason", ["Restarts", "ControlLost"])
def test_a_candidate_that_went_back_while_stable_stayed_fails(reason: str) -> None:
    story = play()
    seated = next(iter(story.on_candidate))
    assert story.went_back((seated,), reason).phase is Phase.ROLLING_BACK
    assert story.rollout.sentence == (
        f"{seated} went back to stable by itself ({reason}) while stable proxies kept theirs. Rolled back."
    )


def test_one_lease_that_ended_alone_leaves_the_proxy_out() -> None:
    story = play()
    seated = next(iter(story.on_candidate))
    assert story.went_back((seated,), "LeaseEnded").phase is not Phase.ROLLING_BACK
    assert story.reasons[-1] == "ProxyLeftOut"


@pytest.mark.parametrize("reason", ["LeaseEnded", "Restarts", "ControlLost"])
def test_leases_that_ended_while_stable_was_cut_off_too_start_the_stage_again(reason: str) -> None:
    story = play().looks(5, GOOD, GOOD)
    assert story.rollout.wave == 1
    seated = tuple(story.on_candidate)
    story.acks = False
    kept = story.proxies
    story.proxies = {p: msgspec.structs.replace(v, connected=False, silent_for=20.0) for p, v in kept.items()}
    story.looks(3)
    story.proxies = kept
    story.acks = True
    story.went_back(seated, reason)
    assert (story.phase, story.rollout.wave, story.rollout.restarts) == (Phase.PREPARING, 0, 1)
    assert story.reasons[-1] == "StageRestarted"
    assert story.until(Phase.BAKING, GOOD, GOOD).stable == {WEB: "new"}


def test_leases_that_ended_while_the_operator_was_dead_start_the_stage_again() -> None:
    """A new operator has met nobody; then they come back one by one and say what they did meanwhile."""
    story = play().looks(5, GOOD, GOOD)
    seated, kept = tuple(story.on_candidate), story.proxies
    story.proxies = {}
    story.looks(3)
    story.proxies = kept
    story.went_back(seated, "LeaseEnded")
    assert (story.phase, story.rollout.wave, story.rollout.restarts) == (Phase.PREPARING, 0, 1)


def test_a_new_operator_whose_first_look_meets_some_proxies_leaves_none_of_them_out() -> None:
    """On a busy machine some have connected before it looks for the first time; their leases ended all the same."""
    story = play().looks(8, GOOD, GOOD)
    early, *late = story.on_candidate
    kept = story.proxies
    story.proxies = {proxy: view for proxy, view in kept.items() if proxy not in late}
    story.went_back((early,), "LeaseEnded", resumed=True)
    story.proxies = kept
    story.went_back(tuple(late), "LeaseEnded")
    assert (story.rollout.restarts, story.reasons.count("StageRestarted")) == (1, 1)
    assert "ProxyLeftOut" not in story.reasons


def test_proxies_that_come_back_later_from_the_same_outage_are_neither_left_out_nor_blamed() -> None:
    """A new operator meets them over some seconds, each with the lease that ended meanwhile."""
    story = play().looks(8, GOOD, GOOD)
    early, *late = story.on_candidate
    assert len(late) >= 2
    kept, story.proxies = story.proxies, {}
    story.looks(3)
    story.proxies = {proxy: view for proxy, view in kept.items() if proxy not in late}
    story.went_back((early,), "LeaseEnded")
    for proxy, reason in zip(late, ("LeaseEnded", "ControlLost"), strict=False):
        story.proxies |= {proxy: kept[proxy]}
        story.went_back((proxy,), reason)
    assert story.rollout.restarts == 1
    assert "ProxyLeftOut" not in story.reasons
    assert story.until(Phase.BAKING, GOOD, GOOD).stable == {WEB: "new"}


def test_time_without_measurement_does_not_count_towards_the_deadline() -> None:
    story = play(settings=replaced(deadline=20.0, soak=10.0)).looks(3, (0, 0), (5, 0))
    seated = next(iter(story.on_candidate))
    story.view(seated, connected=True, silent_for=6.0).looks(60, None, (5, 0))
    assert story.phase is Phase.HOLDING
    assert story.view(seated, silent_for=0.0).looks(3, (0, 0), (5, 0)).rollout.wave == 0


def test_losing_every_seated_proxy_holds_and_goes_on_when_they_are_back() -> None:
    story = play(settings=replaced(soak=30.0)).looks(3, GOOD, GOOD)
    seated = next(iter(story.on_candidate))
    story.view(seated, connected=False, silent_for=6.0)
    assert story.looks(4, None, GOOD).phase is Phase.HOLDING
    story.view(seated, connected=True, silent_for=0.0)
    assert story.looks(2, GOOD, GOOD).phase is Phase.SHIFTING


def test_a_lost_proxy_frees_its_seat_and_is_taken_back_when_it_returns() -> None:
    story = play(20, settings=replaced(soak=30.0)).looks(3, GOOD, GOOD)
    seated = next(iter(story.on_candidate))
    story.view(seated, connected=False, silent_for=11.0).look(None, GOOD)
    assert seated not in story.on_candidate
    assert "ProxyLeftOut" in story.reasons
    story.view(seated, connected=True, silent_for=0.0).look(GOOD, GOOD)
    assert memo.load(story.rollout.memo).left_out == {}


# --- directions -------------------------------------------------------------------------------------------------------

OUT = ({WEB: "out"},)
HALF = replaced(shares=(0.5, 1.0), soak=30.0)
FAILED = counts(50, 25, reasons={"routes/b.shop:80#main": {"5xx": 25}})
ANSWERED_BADLY = counts(50, 12, reasons={"inbound:8080": {"5xx": 12}})
FINE = counts(50, 0)
PLACES = {WEB: {"routes/b.shop:80#main": "mesh/b.yaml:7"}}


def test_noise_of_the_other_direction_does_not_dilute_what_changed() -> None:
    """A proxy that serves both configs answers badly under either, when what it asks fails under one."""
    block = two_way((FAILED, FINE), (ANSWERED_BADLY, ANSWERED_BADLY), whole=(counts(0, 0), counts(0, 0)))
    story = play(settings=HALF, sides=OUT, before={WEB: calm(50, both_ways=True)}).look(blocks=(block,), origins=PLACES)
    assert story.phase is Phase.ROLLING_BACK
    assert story.rollout.sentence == (
        "web, 4 of 8 proxies on the new revision: 25 of 50 requests failed (50 %), 0 of 50 on the others (0 %); "
        "chance of that without a cause under 1 in 1,000,000. Rolled back after 1.0 s. "
        "Cause: 5xx, route b.shop:80 rule main, mesh/b.yaml:7."
    )
    evidence = story.rollout.workloads[WEB].evidence
    assert (evidence.candidate_total, evidence.candidate_bad, evidence.stable_total) == (50, 25, 50)


def test_nonsense_answered_although_all_calls_end_well_is_caught_at_whole_proxies() -> None:
    block = two_way((FINE, FINE), (ANSWERED_BADLY, FINE))
    story = play(settings=HALF, sides=OUT, before={WEB: calm(50, both_ways=True)})
    story.until(Phase.ROLLING_BACK, blocks=(block,), origins=PLACES, limit=4)
    assert story.rollout.sentence.startswith(
        "web, 4 of 8 proxies on the new revision: 36 of 150 requests that it answered failed (24 %), 0 of 150 on the others"
    )
    assert story.rollout.sentence.endswith("Cause: 5xx, requests to port 8080, mesh/b.yaml:7.")
    assert story.rollout.harmed == 36


def test_answers_of_proxies_with_two_configs_prove_nothing_about_an_outbound_change() -> None:
    block = two_way((FINE, FINE), (ANSWERED_BADLY, FINE), whole=(counts(0, 0), FINE))
    story = play(settings=HALF, sides=OUT, before={WEB: calm(50, both_ways=True)}).looks(20, blocks=(block,))
    assert story.phase is Phase.SHIFTING


def test_an_inbound_change_is_judged_by_what_is_answered() -> None:
    denied = counts(50, 50, reasons={"inbound:8080": {"denied": 50}})
    block = two_way((FINE, FINE), (denied, FINE), whole=(counts(0, 0), FINE))
    story = play(settings=HALF, sides=({WEB: "in"},), before={WEB: calm(50, both_ways=True)}).look(blocks=(block,))
    assert story.phase is Phase.ROLLING_BACK
    assert story.rollout.sentence.endswith("Cause: denied, requests to port 8080.")


def answering_badly(digest: str, second: int) -> Block:
    return Block(
        workload=WEB,
        second=second,
        cohorts={digest: verdict.added(FINE, ANSWERED_BADLY)},
        share=1.0 if digest == "new" else 0.0,
        directions={
            "out": Stratum(cohorts={digest: FINE}, whole={digest: FINE}),
            "in": Stratum(cohorts={digest: ANSWERED_BADLY}, whole={digest: ANSWERED_BADLY}),
        },
    )


def test_a_bad_answering_last_wave_of_a_single_instance_is_tested_once_and_dismissed_if_it_stays() -> None:
    """Nothing to compare with: what does not fall when the wave is taken back is the new measure."""
    single = fleet(1)
    story = play(
        single,
        settings=replaced(shares=(1.0,), soak=60.0, deadline=600.0),
        sides=OUT,
        before={WEB: calm(50, both_ways=True)},
    )
    for _ in range(60):
        story.look(blocks=(answering_badly("new" if story.on_candidate else "old", story.second),))
    assert story.reasons == ["RolloutStarted", "HarmSuspected", "HarmDismissed"]


def test_stages_turn_to_the_direction_that_each_of_them_changes() -> None:
    steps = (stage("expand", web="wide"), stage("move", web="new"))
    story = play(stages=steps, sides=({WEB: "in"}, {WEB: "out"}), before={WEB: calm(50, both_ways=True)})
    story.until(Phase.BAKING, GOOD, GOOD)
    assert [
        plan.side_of(msgspec.structs.replace(story.rollout, phase=Phase.SHIFTING, stage=n), WEB) for n in (0, 1)
    ] == [
        "in",
        "out",
    ]
    assert plan.side_of(story.rollout, WEB) == "both"


def test_state_from_before_directions_still_loads() -> None:
    story = play(before={WEB: calm(50, both_ways=True)}).look(GOOD, GOOD)
    state = msgspec.json.decode(msgspec.json.encode(story.rollout))
    state.pop("sides", None)
    tests = state["workloads"][WEB]["evidence"]["tests"]
    tests["tracks"] = tests["tracks"][:5]
    story.rollout = msgspec.json.decode(msgspec.json.encode(state), type=Rollout)
    assert story.look((20, 20), GOOD).phase is Phase.ROLLING_BACK


# --- at once ----------------------------------------------------------------------------------------------------------

BOUNDS = len(LATENCY_BOUNDS_MS)
FAST = counts(50, 0, over=(50,) * 3 + (0,) * (BOUNDS - 3))
HANGING = counts(0, 0, over=(5,) * 9 + (0,) * (BOUNDS - 9))
"""None has ended; five have been open for longer than stable's p99."""


def usually_fast() -> verdict.Before:
    known = verdict.Before()
    for second in range(60):
        known = verdict.known(known, Block(workload=WEB, second=second, cohorts={"old": FAST}))
    return known


@pytest.mark.parametrize("proxies", [1, 2, 8])
@pytest.mark.parametrize(
    "candidate",
    [
        counts(5, 5),
        counts(5, 5, refused=5, reasons={"inbound:8080": {"denied": 5}}),
        HANGING,
    ],
    ids=["failing", "refused", "hanging"],
)
def test_five_requests_that_all_go_wrong_are_a_fail_at_the_look_that_sees_them(proxies: int, candidate: Counts) -> None:
    story = play(proxies, before={WEB: usually_fast()}).look(candidate, FAST)
    assert story.phase is Phase.ROLLING_BACK
    assert story.rollout.detected_after == 1.0


@pytest.mark.parametrize("candidate", [counts(1, 1), counts(0, 0, over=(1,) * 9 + (0,) * (BOUNDS - 9))])
def test_one_bad_request_a_second_is_a_fail_after_a_handful(candidate: Counts) -> None:
    story = play(1, before={WEB: usually_fast()}).until(Phase.ROLLING_BACK, candidate, FAST, limit=5)
    assert story.rollout.detected_after <= 5.0


# --- shares only grow -------------------------------------------------------------------------------------------------


def test_what_thin_traffic_has_raised_stays_out_and_waves_below_it_merge() -> None:
    story = play(settings=replaced(deadline=60.0), before={WEB: calm(requests=12)})
    shares = []
    while story.phase is not Phase.BAKING:
        shares.append(sum(story.on_candidate.values()) / 8)
        story.look((round(12 * shares[-1]), 0), (12 - round(12 * shares[-1]), 0))
    assert shares == sorted(shares)
    assert sorted({round(share, 2) for share in shares}) == [0.05, 0.42, 0.6, 1.0]


# --- too little traffic -----------------------------------------------------------------------------------------------


def test_no_traffic_proceeds_at_the_deadline_and_says_so() -> None:
    story = play(settings=replaced(deadline=20.0)).looks(22)
    assert story.rollout.wave == 1
    assert [c.message for c in story.commands if isinstance(c, Tell) and c.reason == "NoTraffic"] == [
        "too little traffic to judge shop/web by the deadline; proceeding"
    ]
    assert not story.until(Phase.BAKING).rollout.workloads[WEB].proven


def test_no_traffic_holds_where_the_settings_say_hold() -> None:
    story = play(settings=replaced(deadline=20.0, on_no_traffic="hold")).looks(40)
    assert (story.phase, story.rollout.wave) == (Phase.HOLDING, 0)
    assert story.rollout.sentence == "holding: too little traffic to judge shop/web by the deadline"


def test_an_unproven_workload_does_not_hold_a_fleet_that_passes() -> None:
    views = fleet(8) | fleet(4, "shop/quiet")
    story = play(views, stages=(stage(web="new", quiet="new"),)).until(Phase.BAKING, GOOD, GOOD, limit=40)
    assert {name: state.proven for name, state in story.rollout.workloads.items()} == {WEB: True, "shop/quiet": False}
    assert story.reasons[-1] == "Live"


def test_a_workload_without_proxies_holds_nothing_up() -> None:
    story = play(8, stages=(stage(web="new", gone="new"),), stable={WEB: "old", "shop/gone": "old"})
    assert story.until(Phase.BAKING, GOOD, GOOD, limit=80).stable["shop/gone"] == "new"


@pytest.mark.parametrize("others", [{}, fleet(8)], ids=["alone", "beside one that is tried"])
def test_proxies_that_are_all_away_are_not_handed_untried_what_nobody_has_tried(others: dict[str, ProxyView]) -> None:
    away = fleet(3, "shop/far", connected=False, silent_for=20.0)
    stages = (stage(web="new", far="new"),) if others else (stage(far="new"),)
    story = play(away | others, stages=stages, settings=replaced(deadline=10.0)).looks(60, GOOD, GOOD)
    assert (story.phase, story.rollout.sentence) == (Phase.HOLDING, "holding: no proxy of shop/far is connected")
    for proxy in away:
        story.view(proxy, connected=True, silent_for=0.0)
    assert story.looks(2, GOOD, GOOD).phase is Phase.SHIFTING
    assert story.stable["shop/far"] == "old"


def test_proxies_that_no_operator_of_today_has_met_are_not_handed_what_nobody_has_tried() -> None:
    """After a restart the platform knows who runs, before anybody has come back."""
    stages = (stage(web="new", far="new"),)
    story = play(8, stages=stages, stable={WEB: "old", "shop/far": "old"}, settings=replaced(deadline=10.0))
    story.looks(60, GOOD, GOOD, running=frozenset({WEB, "shop/far"}))
    assert (story.phase, story.rollout.sentence) == (Phase.HOLDING, "holding: no proxy of shop/far is connected")
    # They are scaled to zero: there is nobody to wait for any more.
    assert story.until(Phase.BAKING, GOOD, GOOD, limit=80, running=frozenset({WEB})).stable["shop/far"] == "new"


def test_immediate_waits_for_nobody_who_is_away() -> None:
    away = fleet(3, "shop/far", connected=False, silent_for=20.0)
    story = play(
        away | fleet(8), stages=(stage(web="new", far="new"),), settings=replaced(deadline=10.0, immediate=True)
    )
    assert story.until(Phase.BAKING, GOOD, GOOD, limit=80).stable["shop/far"] == "new"


def test_thin_traffic_raises_the_share_to_at_most_half() -> None:
    story = play(settings=replaced(deadline=600.0, soak=600.0), before={WEB: calm(requests=4)}).looks(
        30, (1, 0), (3, 0)
    )
    assert story.rollout.workloads[WEB].share == pytest.approx(0.25, abs=0.06)
    assert "ShareRaised" in story.reasons
    idle = play(settings=replaced(deadline=600.0, soak=600.0)).looks(30, (0, 0), (1, 0))
    assert idle.rollout.workloads[WEB].share == 0.5


def test_thin_traffic_keeps_a_waves_own_share_until_its_first_second_is_judged_then_doubles_it() -> None:
    """120 requests a second would need a half for a pass within ten seconds; 5 % is enough to see that nothing works."""
    story = play(settings=replaced(deadline=20.0, soak=20.0), before={WEB: calm(requests=120)})
    shares = []
    for _ in range(10):
        shares.append(round(story.rollout.workloads[WEB].share, 3))
        story.look((round(120 * shares[-1]), 0), (round(120 * (1 - shares[-1])), 0))
    assert shares == [0.05, 0.05, 0.05, 0.05, 0.1, 0.1, 0.2, 0.248, 0.248, 0.248]


def test_what_holds_for_want_of_traffic_says_so_again_after_it_held_for_another_reason() -> None:
    story = play(settings=replaced(deadline=10.0, on_no_traffic="hold")).until(Phase.HOLDING, (0, 0), (1, 0), limit=40)
    said = "holding: too little traffic to judge shop/web by the deadline"
    assert story.rollout.sentence == said
    seated = list(story.on_candidate)
    for proxy in seated:
        story.view(proxy, silent_for=6.0)
    assert story.looks(2).rollout.sentence == "holding: no proxy of shop/web that serves the candidate reports"
    for proxy in seated:
        story.view(proxy, silent_for=0.0)
    assert (story.looks(2, (0, 0), (1, 0)).phase, story.rollout.sentence) == (Phase.HOLDING, said)
    assert story.until(Phase.BAKING, GOOD, GOOD, limit=40).stable == {WEB: "new"}


# --- shared harm ------------------------------------------------------------------------------------------------------

LOGIC = "logic.shop:80"


def towards(total: int, bad: int) -> Counts:
    """Requests towards one destination, under stable."""
    return counts(total, bad, by_destination={LOGIC: (total, bad)})


def test_harm_that_falls_each_time_the_wave_is_taken_back_is_a_fail() -> None:
    story = play(settings=replaced(soak=600.0, deadline=2000.0), before={WEB: calm(destination=LOGIC)})
    for _ in range(120):
        harming = any(view.share > 0 for view in story.proxies.values())
        story.look((50, 15) if harming else None, towards(950, 285 if harming else 0))
        if story.phase is Phase.ROLLING_BACK:
            break
    assert story.reasons == ["RolloutStarted", "HarmSuspected", "HarmConfirmed", "HarmSuspected", "RolloutFailed"]
    assert story.rollout.suspicions == 2
    assert story.rollout.sentence.startswith(f"failures towards {LOGIC} over all callers rose from 0 % to ")
    assert "they fell each time the wave was taken back" in story.rollout.sentence


def suspected() -> Play:
    """A shared harm has just been seen, and nobody has been told yet that the wave is taken back."""
    story = play(settings=replaced(soak=600.0, deadline=2000.0), before={WEB: calm(destination=LOGIC)})
    story.looks(5, None, towards(950, 0))
    story.acks = False
    return story.until(Phase.SUSPECTING, (50, 15), towards(950, 285), limit=20)


def test_requests_from_before_all_proxies_took_the_wave_back_say_nothing_about_the_suspicion() -> None:
    story = suspected().looks(6, (50, 15), towards(950, 285))
    assert story.phase is Phase.SUSPECTING
    story.acks = True
    story.ack().look((50, 15), towards(950, 285))
    story.looks(6, None, towards(950, 0))
    assert story.reasons == ["RolloutStarted", "HarmSuspected", "HarmConfirmed"]


def test_an_operator_that_dies_over_a_suspicion_hears_of_the_time_without_it_and_does_not_count_it() -> None:
    """The proxies went on with the candidate until the next operator met them; their reports of that come late."""
    story = suspected()
    here = dict(story.proxies)
    story.proxies.clear()
    story.look(resumed=True).looks(3)
    story.proxies.update(here)
    harmed = tuple(
        Block(workload=WEB, second=second, cohorts={"old": towards(950, 285)}) for second in range(story.second)
    )
    story.ack().look(blocks=harmed)
    story.acks = True
    story.ack().looks(30, None, towards(950, 0))
    assert story.reasons[:3] == ["RolloutStarted", "HarmSuspected", "HarmConfirmed"]


def test_a_suspicion_is_not_settled_by_silence() -> None:
    story = suspected()
    story.acks = True
    story.ack().looks(100, None, None)
    assert (story.phase, story.reasons[-1]) == (Phase.SUSPECTING, "HarmSuspected")
    assert story.until(Phase.PREPARING, None, towards(950, 0), limit=10).reasons[-1] == "HarmConfirmed"


def test_harm_that_does_not_fall_is_not_ours_and_the_rollout_goes_on() -> None:
    story = play(settings=replaced(soak=5.0, deadline=2000.0), before={WEB: calm(destination=LOGIC)})
    story.until(Phase.SUSPECTING, (50, 15), towards(950, 285), limit=20)
    story.looks(20, (50, 15), towards(950, 285))
    assert "HarmDismissed" in story.reasons
    assert "HarmConfirmed" not in story.reasons
    assert story.phase in {Phase.PREPARING, Phase.SHIFTING}
    assert story.until(Phase.BAKING, (1000, 0), towards(1000, 0), limit=200).rollout.suspicions == 0


def test_an_outage_in_the_last_wave_is_tested_before_it_is_believed() -> None:
    story = play(settings=replaced(soak=5.0, bake_time=600.0), before={WEB: calm()})
    while story.rollout.wave < 3:
        story.look(GOOD, GOOD)
    story.until(Phase.SUSPECTING, (1000, 300), (1000, 300), limit=20)
    assert story.looks(20, (1000, 300), (1000, 300)).reasons[-1] in {"HarmDismissed", "WavePassed", "WaveStarted"}
    assert "RolloutFailed" not in story.reasons


def test_a_bad_last_wave_is_failed_by_the_baseline_that_taking_it_back_makes() -> None:
    story = play(settings=replaced(soak=5.0), before={WEB: calm()})
    while story.rollout.wave < 3:
        story.look(GOOD, GOOD)
    assert story.until(Phase.ROLLING_BACK, (1000, 300), (1000, 0), limit=20).reasons[-2:] == [
        "HarmSuspected",
        "RolloutFailed",
    ]


# --- rolling back -----------------------------------------------------------------------------------------------------


def test_rollback_ends_when_all_have_acked_and_says_whether_errors_fell() -> None:
    story = play(before={WEB: calm()}).look((20, 20), GOOD).until(Phase.FAILED, None, GOOD, limit=10)
    assert story.reasons[-3:] == ["RolloutFailed", "Recovered", "Restored"]
    assert story.rollout.restored_after == 1.0


def test_rollback_says_when_errors_did_not_fall() -> None:
    story = play(before={WEB: calm()}).look((20, 20), (20, 0)).until(Phase.FAILED, None, (100, 60), limit=20)
    assert story.reasons[-3:] == ["RolloutFailed", "NotRecovered", "Restored"]
    assert "But failed requests did not fall after the rollback: 50 % before, 60 % now." in story.rollout.sentence


def test_rollback_waits_for_acks_and_for_leases_of_those_away() -> None:
    story = play(before={WEB: calm()})
    story.acks = False
    seated = next(iter(story.on_candidate))
    story.look((20, 20), GOOD).view(seated, connected=False, silent_for=1.0)
    assert story.looks(30, None, GOOD).phase is Phase.ROLLING_BACK
    story.view(seated, silent_for=61.0)
    assert story.until(Phase.FAILED, None, GOOD, limit=70).rollout.restored_after > 30


def test_rollback_undoes_stages_in_reverse_each_after_all_acks() -> None:
    story = play(stages=(stage("expand", web="wide"), stage("move", web="new")), before={WEB: calm()})
    while story.rollout.stage == 0:
        story.look(GOOD, GOOD)
    story.look((20, 20), GOOD)
    assert (story.phase, story.rollout.stage) == (Phase.ROLLING_BACK, 1)
    assert {t.stable for t in plan.targets(story.rollout, story.stable, story.proxies).values()} == {"wide"}
    story.look(None, GOOD)
    assert (story.phase, story.rollout.stage) == (Phase.ROLLING_BACK, 0)
    assert {t.stable for t in plan.targets(story.rollout, story.stable, story.proxies).values()} == {"old"}
    assert story.until(Phase.FAILED, None, GOOD, limit=10).reasons.count("StageUndone") == 1


def test_a_proxy_that_never_confirms_stable_is_named_and_not_waited_for_for_ever() -> None:
    story = play(before={WEB: calm()}, settings=replaced(confirm_within=5.0))
    story.acks = False
    seated = next(iter(story.on_candidate))
    story.look((20, 20), GOOD).until(Phase.FAILED, None, GOOD, limit=30)
    assert [c.message for c in story.commands if isinstance(c, Tell) and c.reason == "NotRestored"] == [
        f"did not confirm stable: {seated}"
    ]


# --- the application's own rollout ---------------------------------------------------------------------------------------

UPDATED = {WEB: "shop/web is being updated itself, 1 of 8 instances so far"}


def test_a_wave_holds_while_the_application_itself_is_updated_and_goes_on_afterwards() -> None:
    story = play(before={WEB: calm()}).looks(10, GOOD, GOOD, updating=UPDATED)
    assert (story.phase, story.rollout.sentence) == (Phase.HOLDING, f"holding: {UPDATED[WEB]}")
    waited = story.looks(500, GOOD, GOOD, updating=UPDATED).rollout.wave_elapsed
    assert (story.phase, waited < story.rollout.settings.deadline) == (Phase.HOLDING, True)
    assert story.until(Phase.BAKING, GOOD, GOOD).stable == {WEB: "new"}


def test_another_workloads_update_holds_nothing() -> None:
    story = play().until(Phase.BAKING, GOOD, GOOD, updating={"shop/other": "shop/other is being updated itself"})
    assert story.stable == {WEB: "new"}


def test_a_bad_change_fails_while_the_application_itself_is_updated() -> None:
    story = play(before={WEB: calm()}).looks(6, None, GOOD, updating=UPDATED)
    assert story.phase is Phase.HOLDING
    assert story.look((20, 20), GOOD, updating=UPDATED).phase is Phase.ROLLING_BACK


def test_what_has_just_started_holds_the_wave_until_it_has_run_for_a_while() -> None:
    """A single replica that was replaced a moment ago: neither time nor its failures count."""
    story = play(fleet(1, warm=False), before={WEB: calm()}).looks(30, None, None)
    assert (story.phase, story.rollout.sentence) == (
        Phase.HOLDING,
        "holding: what serves the candidate of shop/web has not run for 60 s yet",
    )
    assert "NoTraffic" not in story.looks(100, None, None).reasons
    story.view("web-0", warm=True)
    assert story.until(Phase.BAKING, GOOD, GOOD).stable == {WEB: "new"}


def test_one_proxy_that_has_run_for_long_is_enough_to_go_by() -> None:
    proxies = fleet(8, warm=False) | {"web-3": msgspec.structs.replace(fleet(8)["web-3"], warm=True)}
    story = play(proxies, settings=replaced(shares=(0.25, 1.0)), before={WEB: calm()})
    assert "web-3" in story.on_candidate
    assert "RolloutHolding" not in story.until(Phase.BAKING, GOOD, GOOD).reasons


# --- people -----------------------------------------------------------------------------------------------------------


def test_a_pause_stops_the_clock_and_resume_goes_on() -> None:
    story = play().looks(2, GOOD, GOOD).order("pause", reason="lunch")
    assert (story.phase, story.rollout.actor, story.rollout.reason) == (Phase.PAUSED, "ann", "lunch")
    assert story.looks(100, GOOD, GOOD).phase is Phase.PAUSED
    assert story.order("resume").until(Phase.BAKING, GOOD, GOOD).stable == {WEB: "new"}


def test_a_fail_shows_while_paused_and_moves_nothing() -> None:
    story = play(before={WEB: calm()}).order("pause").looks(3, (20, 20), GOOD)
    assert story.phase is Phase.PAUSED
    assert story.reasons.count("RolloutFailing") == 1
    assert story.rollout.workloads[WEB].evidence.verdict is Verdict.FAIL


def test_resume_after_a_fail_begins_the_wave_again() -> None:
    story = play(before={WEB: calm()}, settings=replaced(on_fail="pause")).look((20, 20), GOOD).order("resume")
    assert story.phase is Phase.PREPARING
    assert story.until(Phase.BAKING, GOOD, GOOD).stable == {WEB: "new"}


def test_promote_moves_one_wave_and_promote_full_ends_the_rollout() -> None:
    story = play().order("promote")
    assert story.rollout.wave == 1
    assert story.order("promote-full", actor="bo", reason="urgent").phase is Phase.BAKING
    assert (story.rollout.actor, story.rollout.reason) == ("bo", "urgent")
    assert story.stable == {WEB: "new"}


def test_abort_restores_holds_and_ends_aborted() -> None:
    story = play().order("abort", reason="wrong repo")
    assert story.phase is Phase.ROLLING_BACK
    assert Hold(sentence="abort by ann: wrong repo") in story.last
    assert story.until(Phase.ABORTED, None, GOOD).rollout.sentence == "abort by ann: wrong repo"


def test_an_order_that_does_not_fit_is_refused_aloud() -> None:
    story = play().order("resume")
    refused = [c.message for c in story.commands if isinstance(c, Tell) and c.reason == "OrderRefused"]
    assert refused == ["resume by ann: the rollout is preparing"]


# --- baking -----------------------------------------------------------------------------------------------------------


def baking(**settings: Any) -> Play:
    return play(settings=replaced(bake_time=300.0, **settings), before={WEB: calm()}).until(Phase.BAKING, GOOD, GOOD)


def test_a_bad_bake_is_compared_with_the_config_before_and_restored() -> None:
    story = baking().until(Phase.ROLLING_BACK, (1000, 100), (1000, 0), limit=20)
    assert "BakeSuspected" in story.reasons
    assert story.stable == {WEB: "old"}
    assert Restore(workloads=(WEB,), to_previous=True) in story.last
    assert story.until(Phase.FAILED, None, GOOD).phase is Phase.FAILED


def test_an_outage_while_baking_is_no_reason_to_go_back() -> None:
    story = baking()
    for _ in range(60):
        story.look((1000, 100), (1000, 100))
    assert story.phase is Phase.BAKING
    assert "HarmDismissed" in story.reasons
    assert story.until(Phase.SUCCEEDED, GOOD, GOOD).stable == {WEB: "new"}


def test_a_bad_bake_only_alerts_where_the_settings_say_alert() -> None:
    story = baking(on_bake_fail="alert").looks(20, (1000, 100), (1000, 0))
    assert story.phase is Phase.BAKING
    assert story.reasons.count("BakeFailing") == 1


# --- traffic steps ----------------------------------------------------------------------------------------------------


def stepping() -> Play:
    steps = tuple(stage(web=f"step{n}") for n in (10, 50, 100))
    gaining = ("logic.shop:80/v2",)
    return play(stages=steps, settings=replaced(traffic=(0.1, 0.5, 1.0)), gaining=gaining, before={WEB: calm()})


def split(v1: tuple[int, int], v2: tuple[int, int]) -> Counts:
    total, bad = v1[0] + v2[0], v1[1] + v2[1]
    return counts(total, bad, by_subset={"logic.shop:80/v1": v1, "logic.shop:80/v2": v2, "other.shop:80/x": (5, 5)})


def test_traffic_steps_reach_every_proxy_and_compare_destinations() -> None:
    story = stepping()
    assert story.on_candidate == {f"web-{n}": 1.0 for n in range(8)}
    assert story.until(Phase.BAKING, split((500, 0), (500, 0))).stable == {WEB: "step100"}


def test_a_bad_destination_fails_its_traffic_step() -> None:
    story = stepping().until(Phase.ROLLING_BACK, split((180, 0), (20, 6)), limit=10)
    assert story.rollout.stage == 0
    assert story.rollout.workloads[WEB].evidence.candidate_bad > 0


# --- always -----------------------------------------------------------------------------------------------------------

looks = st.lists(
    st.tuples(
        st.sampled_from([(0, 0), (20, 0), (20, 1), (20, 12), (400, 0)]),
        st.sampled_from([(0, 0), (140, 0), (140, 3), (140, 80)]),
        st.sampled_from(["", "", "", "", "pause", "resume", "promote", "promote-full", "abort"]),
        st.sampled_from(["", "", "", "", "nack", "LeaseEnded", "Restarts", "lose", "find", "grow"]),
    ),
    max_size=60,
)


def observe(story: Play, step: tuple[tuple[int, int], tuple[int, int], str, str]) -> Observation:
    """One arbitrary second; also changes the fleet."""
    candidate, stable, verb, trouble = step
    seated = sorted(story.on_candidate)
    went: tuple[WentBack, ...] = ()
    if trouble in {"LeaseEnded", "Restarts"} and seated:
        went = (WentBack(proxy=seated[0], workload=WEB, digest=story.tried(), reason=trouble),)
    if trouble == "lose" and seated:
        story.view(seated[0], connected=False, silent_for=20.0)
    if trouble == "find":
        story.proxies = {
            p: msgspec.structs.replace(v, connected=True, silent_for=0.0) for p, v in story.proxies.items()
        }
    if trouble == "grow":
        story.proxies |= fleet(len(story.proxies) + 1)
    orders = (Order(verb=verb, actor="ann"),) if verb else ()  # type: ignore[arg-type]
    return Observation(
        elapsed=1.0,
        now=1e9,
        proxies=dict(story.proxies),
        blocks=story.block(WEB, candidate, stable),
        went_back=went,
        orders=orders,
    )


def advanced(before: Rollout, after: Rollout) -> int:
    return (after.stage - before.stage) * 10 + (after.wave - before.wave if after.stage == before.stage else 0)


def revived(rollout: Rollout) -> Rollout:
    """As it comes back from disk after a kill -9."""
    return msgspec.json.decode(msgspec.json.encode(rollout), type=Rollout)


@given(looks, st.sampled_from([1, 3, 20]))
@hypothesis_settings(max_examples=60, deadline=None)
def test_whatever_happens_a_look_is_one_step_and_a_kill_changes_nothing(
    steps: list[tuple[tuple[int, int], tuple[int, int], str, str]], count: int
) -> None:
    """At most one advance a look; a rollback never resumes; state from disk has the same future; seats fit shares."""
    story = play(count, settings=replaced(deadline=15.0), stages=(stage("expand", web="wide"), stage(web="new")))
    for step in steps:
        seen, before = observe(story, step), story.rollout
        after, commands = decide(before, seen, stable=story.stable)
        assert decide(revived(before), seen, stable=story.stable) == (after, commands)
        assert advanced(before, after) <= 10 if after.stage > before.stage else advanced(before, after) <= 3
        if before.phase is Phase.ROLLING_BACK:
            assert after.phase in {Phase.ROLLING_BACK, Phase.FAILED, Phase.ABORTED}
            assert Promote() not in commands
        if after.phase in phases.MOVING:
            seats_fit(after, story, memo.load(after.memo))
        story.rollout = after
        for command in commands:
            story._execute(command)
        story.ack()


def seats_fit(rollout: Rollout, story: Play, known: memo.Memo) -> None:
    state = rollout.workloads[WEB]
    able = [
        v
        for v in story.proxies.values()
        if v.id not in known.left_out and (v.connected or (v.id in state.seats and v.silent_for < 60))
    ]
    fits = sum(state.seats.values()) == pytest.approx(state.share * len(able))
    assert fits or len(known.left_out.keys() & story.proxies.keys()) > 1  # then nobody new is given a seat
