"""Which pull requests are answered, when, and what happens where the forge, git or the comparison fails."""

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import msgspec
import pytest

from backstay.core.admitting import Rules
from backstay.core.ports import (
    Event,
    ForgeRefused,
    ForgeUnavailable,
    JobFailed,
    Proposal,
    PullRequest,
    Revision,
    SourceRefused,
    SourceUnavailable,
    Tree,
)
from backstay.core.registry import Registry
from backstay.reconciler.journal import Journal
from backstay.reconciler.keeper import Keeper
from backstay.reconciler.pulls import AGAIN_AFTER, Reviews, ReviewWatch, Standing
from backstay.reconciler.review_job import ReviewJob, encoded, report_in, reviewed
from ports.fakes import FakeDisk, FakeStore
from support.policy import registry
from support.world import FakeClock

MESH = b"apiVersion: backstay.dev/v1alpha1\nkind: Mesh\nmetadata: {name: m}\nspec: {}\n"
ROUTE = b"""apiVersion: backstay.dev/v1alpha1
kind: Route
metadata: {name: web, namespace: shop}
spec:
  hosts: [web]
  rules: [{name: main, backendRefs: [{name: web, port: 80}], timeouts: {request: %ss}}]
"""


def tree(sha: str, **files: bytes) -> Tree:
    named = {name.replace("__", "."): content for name, content in files.items()}
    return Tree(revision=Revision(sha=sha, ref="main"), files=named)


def request(number: int = 7, head: str = "a", base: str = "main") -> PullRequest:
    return PullRequest(number=number, head=head * 40, base=base)


@dataclass
class Forge:
    """Desk, proposals and bench in one; what it raises is set by the test."""

    requests: list[PullRequest] = field(default_factory=lambda: [request()])
    fails: dict[str, Exception] = field(default_factory=dict)
    comments: dict[int, str] = field(default_factory=dict)
    statuses: list[tuple[str, bool, str]] = field(default_factory=list)
    fetched: list[int] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    jobs: int = 0
    lists: int = 0
    closed: bool = False
    head: bytes = ROUTE % b"3"

    def _may(self, what: str) -> None:
        if what in self.fails:
            raise self.fails[what].with_traceback(None)  # else a thousand failures make one endless traceback

    async def open_requests(self) -> Sequence[PullRequest]:
        self.lists += 1
        self._may("list")
        return self.requests

    async def comment(self, number: int, text: str) -> None:
        self._may("comment")
        self.comments[number] = text

    async def status(self, sha: str, *, good: bool, description: str) -> None:
        self._may("status")
        self.statuses.append((sha, good, description))

    async def branch(self) -> str:
        return "main"

    async def fetch(self, asked: PullRequest) -> Proposal:
        self._may("fetch")
        self._may(f"fetch {asked.number}")
        self.fetched.append(asked.number)
        base = tree("b" * 40, mesh__yaml=MESH, web__yaml=ROUTE % b"15")
        return Proposal(base=base, head=tree(asked.head, mesh__yaml=MESH, web__yaml=self.head))

    async def keep_only(self, heads: Iterable[str]) -> None:
        self.kept = sorted(heads)

    async def close(self) -> None:
        self.closed = True

    async def review(self, job: bytes) -> bytes:
        self._may("job")
        self.jobs += 1
        return msgspec.msgpack.encode(reviewed(msgspec.msgpack.decode(job, type=ReviewJob)))


class Case:
    def __init__(self) -> None:
        self.forge = Forge()
        self.clock = FakeClock()
        self.registry = registry()
        self.keeper = Keeper(FakeStore(FakeDisk()), 1, "default")
        journal = Journal(self.keeper, self.clock)
        reviews = Reviews(desk=self.forge, proposals=self.forge, bench=self.forge, interval=3600)
        self.watch = ReviewWatch(reviews, journal, self.clock, self.standing)

    def standing(self) -> Standing:
        rules = Rules(trust_domain="backstay.local")
        return Standing(mesh="default", registry=self.registry, rules=rules, default_namespace="shop")

    def told(self) -> list[tuple[str, str]]:
        events: list[Event] = self.keeper._events
        return [(event.reason, event.message) for event in events]


@pytest.fixture
def case() -> Case:
    return Case()


async def test_a_pull_request_is_answered_once_with_what_runs_now(case: Case) -> None:
    await case.watch.look()
    await case.watch.look()
    assert case.forge.fetched == [7]
    assert "timeout 15 s &#8594; 3 s" in case.forge.comments[7]
    assert "<code>bbbbbbbbbbbb</code> → <code>aaaaaaaaaaaa</code>" in case.forge.comments[7]
    assert "compared by the operator of mesh default with what runs now" in case.forge.comments[7]
    assert not case.forge.comments[7].startswith("<!--"), "the desk has a marker of its own"
    ((sha, good, sentence),) = case.forge.statuses
    assert (sha, good) == ("a" * 40, True)
    assert case.told() == [("Reviewed", f"pull request 7 (aaaaaaaaaaaa): {sentence}")]


async def test_a_new_head_is_answered_anew(case: Case) -> None:
    await case.watch.look()
    case.forge.requests, case.forge.head = [request(head="c")], ROUTE % b"4"
    await case.watch.look()
    assert "15 s &#8594; 4 s" in case.forge.comments[7]
    assert [sha[0] for sha, _, _ in case.forge.statuses] == ["a", "c"]
    assert case.forge.kept == ["c" * 40]


async def test_what_another_registry_may_change_is_said_again_but_not_at_once(case: Case) -> None:
    await case.watch.look()
    case.registry = Registry(services=case.registry.services)
    await case.watch.look()
    assert case.forge.fetched == [7]
    case.clock.now += AGAIN_AFTER
    await case.watch.look()
    assert case.forge.fetched == [7, 7]
    case.clock.now += AGAIN_AFTER
    await case.watch.look()
    assert case.forge.fetched == [7, 7], "nothing has changed since"


async def test_requests_for_other_branches_are_none_of_our_business(case: Case) -> None:
    case.forge.requests = [request(base="release")]
    await case.watch.look()
    assert (case.forge.fetched, case.forge.comments) == ([], {})


async def test_what_is_closed_is_forgotten(case: Case) -> None:
    case.forge.requests = [request(7), request(8, head="c")]
    await case.watch.look()
    case.forge.requests = [request(8, head="c")]
    await case.watch.look()
    assert case.forge.kept == ["c" * 40]


async def test_an_invalid_head_is_a_failure(case: Case) -> None:
    case.forge.head = b"kind: [\n"
    await case.watch.look()
    ((_, good, sentence),) = case.forge.statuses
    assert not good
    assert sentence.startswith("INVALID")


def test_what_the_operator_would_refuse_is_said_before_the_merge(case: Case) -> None:
    job = ReviewJob(
        proposal=Proposal(base=tree("b" * 40, mesh__yaml=MESH), head=tree("a" * 40, mesh__yaml=MESH)),
        registry=case.registry,
        rules=Rules(trust_domain="elsewhere.local"),
        default_namespace="shop",
    )
    report = reviewed(job)
    assert (report.valid, [item.reason for item in report.problems]) == (False, ["TrustDomainMismatch"])


@pytest.mark.parametrize(
    ("where", "error", "sentence"),
    [
        ("job", JobFailed("it took more memory than a review may"), "it took more memory than a review may"),
        ("fetch", SourceRefused("LimitExceeded", "10001 YAML files"), "10001 YAML files"),
    ],
)
async def test_what_cannot_be_reviewed_is_said_so_and_not_tried_again(
    case: Case, where: str, error: Exception, sentence: str
) -> None:
    case.forge.fails = {where: error}
    await case.watch.look()
    assert case.forge.comments == {7: f"### 🛑 Backstay: cannot be reviewed&#58; {sentence}\n"}
    assert case.forge.statuses == [("a" * 40, False, f"cannot be reviewed: {sentence}")]
    case.forge.fails, case.forge.comments = {}, {}
    await case.watch.look()
    assert case.forge.comments == {}


async def test_a_token_without_the_right_is_told_once_and_the_status_is_written_all_the_same(case: Case) -> None:
    case.forge.fails = {"comment": ForgeRefused("the token may not write comments", 403)}
    await case.watch.look()
    await case.watch.look()
    assert len(case.forge.statuses) == 1
    assert case.told() == [("ReviewNotPosted", "pull request 7 is not answered: the token may not write comments")]
    case.forge.fails = {}
    case.clock.now += AGAIN_AFTER
    await case.watch.look()
    assert 7 in case.forge.comments, "it is tried again after a while: somebody may have mended the token"


@pytest.mark.parametrize("where", ["list", "comment", "status"])
async def test_a_forge_that_is_away_is_one_line_and_is_answered_when_it_is_back(case: Case, where: str) -> None:
    case.forge.fails = {where: ForgeUnavailable("gitea cannot be reached")}
    for _ in range(3):
        await case.watch.look()
    assert [reason for reason, _ in case.told()] == ["ReviewNotPosted"]
    case.forge.fails = {}
    await case.watch.look()
    assert 7 in case.forge.comments
    assert [reason for reason, _ in case.told()] == ["ReviewNotPosted", "Reviewed"]


async def test_commits_that_cannot_be_fetched_now_are_asked_for_again(case: Case) -> None:
    case.forge.fails = {"fetch": SourceUnavailable("Timeout", "git took more than 60 s")}
    await case.watch.look()
    assert case.forge.comments == {}
    case.forge.fails = {}
    await case.watch.look()
    assert 7 in case.forge.comments


async def test_one_odd_request_is_told_of_and_the_others_are_answered(case: Case) -> None:
    case.forge.requests = [request(7), request(8)]
    case.forge.fails = {"fetch 7": RuntimeError("odd")}
    await case.watch.look()
    assert list(case.forge.comments) == [8]
    assert case.told()[0] == ("ReviewNotPosted", "pull request 7 cannot be reviewed: RuntimeError('odd')")
    case.forge.fails = {}
    await case.watch.look()
    assert list(case.forge.comments) == [8], "not at once: what is odd now is odd in a second"
    case.clock.now += AGAIN_AFTER
    await case.watch.look()
    assert sorted(case.forge.comments) == [7, 8]


async def test_looking_goes_on_after_any_number_of_odd_failures(case: Case) -> None:
    case.forge.fails = {"list": RuntimeError("odd")}
    running = asyncio.ensure_future(case.watch.run())
    for _ in range(1100):  # 2 ** 1024 is no float
        asked = case.forge.lists
        case.watch.hint()
        while case.forge.lists == asked and not running.done():
            await asyncio.sleep(0)
    case.forge.fails = {}
    case.watch.hint()
    while 7 not in case.forge.comments and not running.done():
        await asyncio.sleep(0)
    assert not running.done()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert case.forge.closed
    assert case.told()[0] == ("ReviewNotPosted", "pull requests cannot be looked at: RuntimeError('odd')")


def test_a_job_and_its_report_survive_the_way_to_another_process(case: Case) -> None:
    base = tree("b" * 40, mesh__yaml=MESH, web__yaml=ROUTE % b"15")
    job = ReviewJob(
        proposal=Proposal(base=base, head=tree("a" * 40, mesh__yaml=MESH, web__yaml=ROUTE % b"3")),
        registry=case.registry,
        rules=Rules(trust_domain="backstay.local"),
        default_namespace="shop",
        rollout_defaults={"shares": [50.0, 100.0], "soak": "7s"},
    )
    arrived = msgspec.msgpack.decode(encoded(job), type=ReviewJob)
    assert encoded(arrived) == encoded(job)
    report = reviewed(arrived)
    assert (report.rollout.waves, report.rollout.soak_seconds) == ((50.0, 100.0), 7.0)
    assert report_in(msgspec.msgpack.encode(report)) == report
