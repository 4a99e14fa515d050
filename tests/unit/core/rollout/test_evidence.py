"""Reports into blocks: every request in exactly one block, wherever and whenever its report arrives."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from backstay.config.wire import PeerRow, Report, Row
from backstay.core.rollout import evidence, verdict
from backstay.core.rollout.evidence import Counted, Folder
from backstay.core.rollout.model import Block, Counts, ProxyView
from support.rollouts import WEB, fleet

BACKEND = "logic.shop:80/v1"


def row(config: str = "old", total: int = 10, bad: int = 0, **fields: Any) -> Row:
    values: dict[str, Any] = {
        "config": config,
        "direction": "out",
        "route": "routes/logic:80#main",
        "backend": BACKEND,
        "total": total,
        "bad": fields.pop("reasons", {"5xx": bad} if bad else {}),
        "excused": 0,
        "attempts": total,
        "latency": [],
        "over": [],
    } | fields
    return Row(**values)


def report(
    sequence: int, *rows: Row, boot: str = "b", serving: dict[str, float] | None = None, **fields: Any
) -> Report:
    return Report(boot=boot, sequence=sequence, at=0.0, rows=list(rows), serving=serving or {"old": 1.0}, **fields)


def requests(blocks: list[Block]) -> int:
    return sum(counts.total for block in blocks for counts in block.cohorts.values())


def half(views: dict[str, ProxyView], proxy: str, share: float = 1.0) -> dict[str, ProxyView]:
    """The same fleet, this proxy serving the candidate."""
    return views | {proxy: msgspec.structs.replace(views[proxy], candidate="new", share=share)}


def test_a_second_closes_when_all_connected_proxies_have_reported_it() -> None:
    folder, views = Folder(), fleet(2)
    folder.fold("web-0", WEB, report(1, row()), 100)
    assert folder.blocks(100.5, views) == []
    folder.fold("web-1", WEB, report(1, row(bad=1)), 100)
    made = folder.blocks(100.9, views)
    assert [(b.workload, b.second, b.cohorts["old"].total, b.cohorts["old"].bad) for b in made] == [(WEB, 100, 20, 1)]


def test_a_second_closes_without_those_that_are_late_and_their_reports_still_count_once() -> None:
    folder, views = Folder(), fleet(2)
    folder.fold("web-0", WEB, report(1, row()), 100)
    folder.fold("web-1", WEB, report(1, row()), 100)
    assert requests(folder.blocks(100.5, views)) == 20
    folder.fold("web-0", WEB, report(2, row()), 101)
    assert requests(folder.blocks(103.0, views)) == 10
    folder.fold("web-1", WEB, report(2, row(total=7)), 104)
    late = folder.blocks(104.0, views)
    assert [(b.second, b.cohorts["old"].total) for b in late] == [(101, 7)]
    assert folder.fold("web-1", WEB, report(2, row(total=7)), 105) is False
    assert folder.blocks(110.0, views) == []


def test_a_backlog_lands_in_the_seconds_it_speaks_of() -> None:
    """Five reports kept while the connection was away arrive together; the newest tells the offset."""
    folder, views = Folder(), fleet(1)
    for sequence in range(1, 6):
        folder.fold("web-0", WEB, report(sequence, row(total=sequence)), 105)
    made = folder.blocks(105.0, views)
    assert [(b.second, b.cohorts["old"].total) for b in made] == [(101, 1), (102, 2), (103, 3), (104, 4), (105, 5)]


def test_a_missing_report_is_no_block() -> None:
    folder, views = Folder(), fleet(1)
    folder.fold("web-0", WEB, report(1, row()), 100)
    folder.fold("web-0", WEB, report(4, row()), 103)
    assert [b.second for b in folder.blocks(103.0, views)] == [100, 103]


def test_a_new_boot_counts_from_its_own_start() -> None:
    folder, views = Folder(), fleet(1)
    folder.fold("web-0", WEB, report(50, row()), 100)
    folder.blocks(100.0, views)
    assert folder.fold("web-0", WEB, report(1, row(total=3), boot="c"), 105)
    assert [(b.second, b.cohorts["old"].total) for b in folder.blocks(105.0, views)] == [(105, 3)]


def test_only_what_is_in_blocks_may_be_acked_and_gaps_stop_it() -> None:
    folder, views = Folder(), fleet(2)
    folder.fold("web-0", WEB, report(5, row()), 100)
    assert folder.ackable() == {}
    folder.fold("web-1", WEB, report(9, row()), 100)
    folder.blocks(100.5, views)
    assert folder.ackable() == {"web-0": 5, "web-1": 9}
    folder.fold("web-0", WEB, report(7, row()), 102)
    folder.blocks(104.5, views)
    assert folder.ackable() == {"web-0": 5, "web-1": 9}
    folder.fold("web-0", WEB, report(6, row()), 104)
    folder.blocks(105.0, views)
    assert folder.ackable() == {"web-0": 7, "web-1": 9}


def test_a_gap_older_than_proxies_keep_reports_is_given_up() -> None:
    folder, views = Folder(), fleet(1)
    folder.fold("web-0", WEB, report(1, row()), 100)
    folder.blocks(100.0, views)
    for sequence in range(3, 130):
        folder.fold("web-0", WEB, report(sequence, row()), 99 + sequence)
        folder.blocks(99.0 + sequence, views)
    assert folder.ackable() == {"web-0": 129}


def test_after_a_kill_what_was_counted_is_not_counted_again() -> None:
    folder, views = Folder(), fleet(1)
    folder.fold("web-0", WEB, report(1, row()), 100)
    folder.blocks(100.0, views)
    saved = evidence.encode(folder.export())
    folder.fold("web-0", WEB, report(2, row()), 101)
    folder.blocks(101.0, views)
    again = Folder(evidence.decode(saved))
    assert [again.fold("web-0", WEB, report(s, row()), 7) for s in (1, 2, 3)] == [False, True, True]
    assert requests(again.blocks(7.0, views)) == 20
    assert again.export() == {"web-0": Counted(boot="b", sequence=3)}


def test_cohorts_are_by_config_and_a_proxy_with_both_is_in_both() -> None:
    folder, views = Folder(), half(fleet(1), "web-0", 0.4)
    serving = {"old": 0.6, "new": 0.4}
    folder.fold("web-0", WEB, report(1, row("old", 60), row("new", 40, bad=2), serving=serving), 100)
    (block,) = folder.blocks(100.0, views)
    assert {config: (c.total, c.bad) for config, c in block.cohorts.items()} == {"old": (60, 0), "new": (40, 2)}
    assert block.share == pytest.approx(0.4)


def test_excused_refusals_are_no_evidence_and_reasons_are_kept_per_route() -> None:
    folder, views = Folder(), fleet(1)
    refused = row(
        total=10,
        reasons={"denied": 3, "5xx": 1},
        excused=4,
        attempts=12,
        direction="in",
        backend="",
        route="inbound:80",
    )
    folder.fold("web-0", WEB, report(1, refused), 100)
    (block,) = folder.blocks(100.0, views)
    assert block.cohorts["old"] == Counts(
        total=6, bad=4, attempts=6, refused=3, reasons={"inbound:80": {"denied": 3, "5xx": 1}}
    )


def test_destinations_and_subsets_are_summed_and_tries_that_never_began_hide_none() -> None:
    folder, views = Folder(), fleet(1)
    rows = (row(total=10, bad=1, attempts=13), row(total=5, attempts=0, backend="logic.shop:80/v2"))
    folder.fold("web-0", WEB, report(1, *rows), 100)
    (block,) = folder.blocks(100.0, views)
    counts = block.cohorts["old"]
    assert (counts.total, counts.attempts) == (15, 18)
    assert counts.by_destination == {"logic.shop:80": (15, 1)}
    assert counts.by_subset == {"logic.shop:80/v1": (10, 1), "logic.shop:80/v2": (5, 0)}


def test_failed_connections_are_charged_to_what_the_called_proxy_serves() -> None:
    views = half(fleet(2), "web-0") | fleet(1, "shop/caller")
    peers = [PeerRow("web-0", "c", 10, 9), PeerRow("web-1", "c", 10, 0), PeerRow("stranger", "c", 5, 5)]
    folder = Folder()
    folder.fold("caller-0", "shop/caller", report(1, peers=peers), 100)
    charged = [b.peers for b in folder.blocks(103.0, views) if b.workload == WEB]
    assert charged == [{"new": (10, 9), "old": (10, 0)}]


def test_a_called_proxy_with_two_configs_is_left_to_count_its_own_refusals() -> None:
    views = half(fleet(1), "web-0", 0.5) | fleet(1, "shop/caller")
    folder = Folder()
    folder.fold("caller-0", "shop/caller", report(1, peers=[PeerRow("web-0", "c", 10, 5)]), 100)
    assert [b for b in folder.blocks(103.0, views) if b.workload == WEB] == []


def test_expected_traffic_follows_what_each_proxy_usually_gets() -> None:
    folder, views = Folder(), fleet(2)
    for second in range(1, 4):
        folder.fold("web-0", WEB, report(second, row(total=90)), 100 + second)
        folder.fold("web-1", WEB, report(second, row(total=10)), 100 + second)
        folder.blocks(100.0 + second, views)
    views = half(views, "web-1")
    for second in (4, 5):
        folder.fold("web-0", WEB, report(second, row(total=90)), 100 + second)
        folder.fold("web-1", WEB, report(second, row("new", total=10), serving={"new": 1.0}), 100 + second)
    changing, settled = folder.blocks(106.0, views)
    assert (changing.share, changing.expected) == (0.0, 0.0)
    assert settled.share == 0.5
    assert settled.expected == pytest.approx(0.1)


def answered(config: str, total: int, bad: int = 0) -> Row:
    return row(config, total, bad, direction="in", backend="", route="inbound:80")


def test_directions_are_kept_apart_and_whole_proxies_within_them() -> None:
    folder = Folder()
    views = half(half(fleet(3), "web-0"), "web-1", 0.5)
    split = (row("new", 5), row("old", 5), answered("new", 5, 1), answered("old", 5, 1))
    rows = {"web-0": (row("new"), answered("new", 10, 3)), "web-1": split, "web-2": (row("old"), answered("old", 10))}
    serving = {"web-0": {"old": 0.0, "new": 1.0}, "web-1": {"old": 0.5, "new": 0.5}, "web-2": {"old": 1.0}}
    for proxy, told in rows.items():
        folder.fold(proxy, WEB, report(1, *told, serving=serving[proxy]), 100)
    (block,) = folder.blocks(100.0, views)
    seen = {
        direction: [
            {config: (c.total, c.bad) for config, c in cohorts.items()} for cohorts in (stratum.cohorts, stratum.whole)
        ]
        for direction, stratum in block.directions.items()
    }
    assert seen == {
        "in": [{"new": (15, 4), "old": (15, 1)}, {"new": (10, 3), "old": (10, 0)}],
        "out": [{"new": (15, 0), "old": (15, 0)}, {"new": (10, 0), "old": (10, 0)}],
    }
    assert {config: (c.total, c.bad) for config, c in block.cohorts.items()} == {"new": (30, 4), "old": (30, 1)}


def test_the_second_in_which_a_proxy_changes_config_is_not_whole() -> None:
    folder, views = Folder(), half(fleet(1), "web-0")
    folder.fold("web-0", WEB, report(1, row("old")), 100)
    folder.blocks(100.0, views)
    folder.fold("web-0", WEB, report(2, row("old", 4), row("new", 6), serving={"new": 1.0}), 101)
    folder.fold("web-0", WEB, report(3, row("old", 1), row("new", 9), serving={"new": 1.0}), 102)
    changing, after = folder.blocks(102.0, views)
    assert changing.directions["out"].whole == {}
    assert {config: c.total for config, c in after.directions["out"].whole.items()} == {"new": 9}


def test_expected_traffic_is_known_by_direction() -> None:
    """web-0 asks, web-1 answers: half of all, but each direction has its own proxy."""
    folder, views = Folder(), fleet(2)
    folder.fold("web-0", WEB, report(1, row(total=90), answered("old", 10)), 101)
    folder.fold("web-1", WEB, report(1, row(total=10), answered("old", 90)), 101)
    folder.blocks(101.0, views)
    views = half(views, "web-1")
    for second in (2, 3):
        folder.fold("web-0", WEB, report(second, row(total=90), answered("old", 10)), 100 + second)
        served = (row("new", 10), answered("new", 90))
        folder.fold("web-1", WEB, report(second, *served, serving={"new": 1.0}), 100 + second)
    block = folder.blocks(104.0, views)[-1]
    assert block.expected == pytest.approx(0.5)
    assert {d: s.expected for d, s in block.directions.items()} == {"in": pytest.approx(0.9), "out": pytest.approx(0.1)}


def test_what_stable_did_is_learnt_by_direction() -> None:
    folder, views = Folder(), fleet(1)
    for second in range(1, 61):
        folder.fold("web-0", WEB, report(second, row(total=100), answered("old", 100, 10)), 100 + second)
        folder.blocks(100.0 + second, views)
    known = folder.before()[WEB]
    rates = {side: verdict.usual_rate(verdict.seed(known, side)) for side in ("in", "out", "both")}
    assert rates == {"in": pytest.approx(0.1), "out": 0.0, "both": pytest.approx(0.05)}
    assert verdict.usual_rate(verdict.seed(known, "out"), verdict.ASIDE) == pytest.approx(0.1)


def test_the_usual_rate_of_requests_does_not_begin_at_zero() -> None:
    folder, views = Folder(), fleet(1)
    folder.fold("web-0", WEB, report(1, row(total=100)), 101)
    folder.blocks(101.0, views)
    assert folder.before()[WEB].requests_per_s == pytest.approx(100)


def test_expected_traffic_is_unknown_for_proxies_never_seen_under_stable() -> None:
    folder, views = Folder(), half(fleet(1), "web-0", 0.5)
    folder.fold("web-0", WEB, report(1, row("new", 5), row("old", 5), serving={"old": 0.5, "new": 0.5}), 100)
    assert [b.expected for b in folder.blocks(100.0, views)] == [0.0]


def test_most_failing_beside_another_config_is_not_waited_for() -> None:
    folder, views = Folder(), half(fleet(3), "web-0", 0.5)
    bad = report(1, row("new", 10, bad=10), row("old", 10), serving={"old": 0.5, "new": 0.5})
    folder.fold("web-0", WEB, bad, 100)
    assert requests(folder.blocks(100.0, views)) == 20


def test_what_stable_did_is_learnt_only_while_nothing_else_is_served() -> None:
    folder, views = Folder(), fleet(1)
    for second in range(1, 61):
        folder.fold("web-0", WEB, report(second, row(total=100, bad=1)), 100 + second)
        folder.blocks(100.0 + second, views)
    known = folder.before()[WEB]
    assert verdict.usual_rate(verdict.seed(known)) == pytest.approx(0.01)
    assert known.requests_per_s == pytest.approx(100, rel=0.06)
    views = half(views, "web-0", 0.5)
    rows = (row("new", 50, bad=50), row("old", 50))
    for second in range(61, 64):
        folder.fold("web-0", WEB, report(second, *rows, serving={"old": 0.5, "new": 0.5}), 100 + second)
        folder.blocks(100.0 + second, views)
    assert verdict.usual_rate(verdict.seed(folder.before()[WEB])) == pytest.approx(0.01, abs=0.003)


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(1, 12), st.integers(0, 3), st.booleans()), max_size=60))
@hypothesis_settings(max_examples=100, deadline=None)
def test_whatever_order_reports_come_in_each_counts_exactly_once(
    arrivals: list[tuple[int, int, int, bool]],
) -> None:
    """Late, twice, out of order, with looks in between: the sum over blocks is the sum over distinct reports."""
    folder, views, now, total = Folder(), fleet(3), 100, 0
    for proxy, sequence, wait, look in arrivals:
        now += wait
        folder.fold(f"web-{proxy}", WEB, report(sequence, row(total=1)), now)
        total += requests(folder.blocks(float(now), views)) if look else 0
    total += requests(folder.blocks(now + 20.0, views))
    assert total == len({(proxy, sequence) for proxy, sequence, _, _ in arrivals})


# --- versions of the application, and its start --------------------------------------------------------------------------


def of_template(views: dict[str, ProxyView], proxy: str, template: str, **fields: Any) -> dict[str, ProxyView]:
    return views | {proxy: msgspec.structs.replace(views[proxy], template=template, **fields)}


def second_of(folder: Folder, views: dict[str, ProxyView], rows: dict[str, Row], sequence: int = 1) -> Block:
    """One second in which each of these proxies reports one row."""
    for proxy, told in rows.items():
        folder.fold(proxy, WEB, report(sequence, told, serving={told.config: 1.0}), 100 + sequence)
    (block,) = folder.blocks(103.0 + sequence, views)
    return block


def test_a_proxy_that_has_just_started_gives_no_evidence_and_its_reports_are_acked() -> None:
    folder, views = Folder(), fleet(2)
    views = views | {"web-1": msgspec.structs.replace(views["web-1"], warm=False)}
    block = second_of(folder, views, {"web-0": row(), "web-1": row(bad=10)})
    assert (block.cohorts["old"].total, block.cohorts["old"].bad) == (10, 0)
    assert folder.ackable() == {"web-0": 1, "web-1": 1}


def test_nobody_is_blamed_for_a_peer_that_does_not_listen_yet() -> None:
    folder, views = Folder(), fleet(2)
    told = report(1, row(), peers=[PeerRow(peer="web-1", config="old", attempts=5, failures=5)])
    young = views | {"web-1": msgspec.structs.replace(views["web-1"], warm=False)}
    folder.fold("web-0", WEB, told, 100)
    assert [block.peers for block in folder.blocks(103.0, young)] == [{}]
    again = Folder()
    again.fold("web-0", WEB, told, 100)
    assert [block.peers for block in again.blocks(103.0, views)] == [{"old": (5, 5)}]


def test_proxies_of_two_versions_are_compared_within_the_one_that_has_the_candidate() -> None:
    """Two of three pods run the new version, which fails by itself; the candidate is on the old one."""
    views = of_template(half(fleet(4), "web-0"), "web-0", "v1")
    views = of_template(of_template(of_template(views, "web-1", "v1"), "web-2", "v2"), "web-3", "v2")
    rows = {"web-0": row("new"), "web-1": row(), "web-2": row(bad=10), "web-3": row(bad=10)}
    block = second_of(Folder(), views, rows)
    assert {config: (seen.total, seen.bad) for config, seen in block.cohorts.items()} == {
        "new": (10, 0),
        "old": (10, 0),
    }
    assert block.share == 0.5


def test_without_a_candidate_the_version_that_most_proxies_have_is_learnt_from() -> None:
    views = of_template(of_template(of_template(fleet(3), "web-0", "v1"), "web-1", "v2"), "web-2", "v2")
    folder = Folder()
    block = second_of(folder, views, {"web-0": row(bad=10), "web-1": row(), "web-2": row()})
    assert (block.cohorts["old"].total, block.cohorts["old"].bad) == (20, 0)


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 20), st.sampled_from(["old", "new"])), min_size=1, max_size=40)
)
@hypothesis_settings(max_examples=60, deadline=None)
def test_one_version_is_as_none_at_all(told: list[tuple[int, int, str]]) -> None:
    """What a platform without templates measures is what it measured before there were any."""
    plain = half(fleet(4), "web-0")
    labelled = {name: msgspec.structs.replace(view, template="v1") for name, view in plain.items()}
    made = []
    for views in (plain, labelled):
        folder = Folder()
        for sequence, (proxy, total, config) in enumerate(told, start=1):
            folder.fold(
                f"web-{proxy}", WEB, report(sequence, row(config, total), serving={config: 1.0}), 100 + sequence
            )
        made.append((folder.blocks(1000.0, views), folder.before(), folder.ackable()))
    assert made[0] == made[1]


# --- the usual share, while proxies come and go -----------------------------------------------------------------------


class Crowd:
    """Proxies of one workload that get so many requests a second between them, in equal parts; the first of them may
    serve the candidate. Those of `young` get requests as well, and give no evidence yet."""

    def __init__(self, total: int = 120) -> None:
        self.folder, self.total, self.second = Folder(), total, 0

    def passes(
        self, seconds: int, *names: str, trying: str = "", young: tuple[str, ...] = (), lost: float = 0
    ) -> Block:
        """The block of the last of these seconds. `lost`: the part of the candidate's requests that never arrive."""
        for _ in range(seconds):
            self.second += 1
            views = {name: self._view(name, name == trying, name not in young) for name in names}
            for name in names:
                got, config = self.total // len(names), "new" if name == trying else "old"
                got = round(got * (1 - lost)) if name == trying else got
                told = report(self.second, row(config, got), boot=name, serving={config: 1.0})
                self.folder.fold(name, WEB, told, self.second)
            [block] = self.folder.blocks(self.second, views)
        return block

    @staticmethod
    def _view(name: str, is_trying: bool, is_warm: bool) -> ProxyView:
        [view] = fleet(1).values()
        own = msgspec.structs.replace(view, id=name, warm=is_warm)
        return msgspec.structs.replace(own, candidate="new", share=1.0) if is_trying else own


def arrives(block: Block) -> float:
    """What reached the candidate, of what was expected there."""
    got = {config: counts.total for config, counts in block.cohorts.items()}
    return got["new"] / sum(got.values()) / block.expected


def test_a_workload_that_grows_during_a_wave_takes_nothing_away_from_the_candidate() -> None:
    """Those that serve stable get less than before, too: they are not more usual for having been looked at later."""
    crowd, names = Crowd(), ("a", "b", "c")
    crowd.passes(30, *names)
    crowd.passes(5, *names, trying="a")
    more = tuple(f"d{n}" for n in range(6))
    assert arrives(crowd.passes(60, *names, *more, trying="a", young=more)) == pytest.approx(1, abs=0.1)
    assert arrives(crowd.passes(60, *names, *more, trying="a")) == pytest.approx(1, abs=0.1)


def test_a_workload_that_shrinks_during_a_wave_takes_nothing_away_from_the_candidate() -> None:
    crowd = Crowd()
    crowd.passes(30, "a", "b", "c", "d", "e", "f")
    crowd.passes(5, "a", "b", "c", "d", "e", "f", trying="a")
    assert arrives(crowd.passes(60, "a", "b", trying="a")) == pytest.approx(1, abs=0.1)


def test_nothing_is_expected_beside_a_newcomer_until_its_usual_share_is_known() -> None:
    crowd = Crowd()
    crowd.passes(30, "a", "b")
    crowd.passes(5, "a", "b", trying="a")
    assert crowd.passes(3, "a", "b", "c", trying="a").expected == 0.0
    assert crowd.passes(20, "a", "b", "c", trying="a").expected == pytest.approx(1 / 3, abs=0.03)


def test_a_newcomer_without_requests_is_nobody_to_compare_with() -> None:
    """It reports from the moment its proxy is there, before anybody knows of it."""
    crowd = Crowd()
    crowd.passes(30, "a", "b")
    views = {name: crowd._view(name, name == "a", True) for name in ("a", "b", "c")}
    for name, rows in (("a", [row("new", 60)]), ("b", [row("old", 60)]), ("c", [])):
        serving = {"new" if name == "a" else "old": 1.0}
        crowd.folder.fold(name, WEB, report(31, *rows, boot=name, serving=serving), 31)
        crowd.folder.fold(name, WEB, report(32, *rows, boot=name, serving=serving), 32)
    blocks = crowd.folder.blocks(32, views)
    assert [each.expected for each in blocks] == [0.0, pytest.approx(0.5)]


def test_what_vanishes_during_all_that_is_still_seen() -> None:
    crowd, names = Crowd(), ("a", "b", "c")
    crowd.passes(30, *names)
    crowd.passes(20, *names, "d", "e", trying="a", lost=0.8)
    assert arrives(crowd.passes(20, *names, "d", "e", trying="a", lost=0.8)) < 0.4


def test_the_first_second_of_a_proxy_is_soon_forgotten() -> None:
    """A mesh that has just started: who was ready first had everything, who came last had nothing yet."""
    crowd = Crowd()
    crowd.passes(3, "a")
    crowd.passes(27, "a", "b", "c")
    crowd.passes(1, "a", "b", "c", trying="a")
    assert arrives(crowd.passes(1, "a", "b", "c", trying="a")) > 0.8
