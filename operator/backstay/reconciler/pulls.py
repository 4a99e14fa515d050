"""Answers pull requests: the same report as `backstay review`, with the registry as it is now, as comment and status.

A task of its own beside the loop: nothing of a pull request is applied, it is fetched into a mirror of its own and compared
in a process of its own, and no rollout waits for any of it. Each head is answered once, and once more when services or
workloads have become others.
"""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final, TypeAlias

from backstay.core.admitting import Rules
from backstay.core.ports import (
    Clock,
    ForgeRefused,
    ForgeUnavailable,
    JobFailed,
    Proposal,
    Proposals,
    PullRequest,
    ReviewDesk,
    SourceRefused,
    SourceUnavailable,
    Workbench,
)
from backstay.core.registry import Registry
from backstay.core.review import formats
from backstay.core.review.report import Report
from backstay.core.review.traffic import Traffic
from backstay.reconciler.journal import Journal
from backstay.reconciler.review_job import ReviewJob, encoded, report_in
from backstay.redact import clean
from backstay.tasks import hinted

_log: Final = logging.getLogger("backstay.reviews")
INTERVAL: Final = 30.0
"""Seconds between looks at what is open; a forge that knocks is answered at once. 120 requests an hour of GitHub's 5,000."""
RETRY_MOST: Final = 600.0
MOST_DOUBLINGS: Final = 10  # of the wait; RETRY_MOST is reached long before
"""Seconds between looks at a forge that does not answer, at most; also before a refused comment is tried again."""
AGAIN_AFTER: Final = 600.0
"""Seconds before a head is answered once more because the registry is another: a cluster that is being changed has peace."""
JITTER: Final = 0.1


TrafficOf: TypeAlias = Callable[[Iterable[str]], Traffic]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reviews:
    """What answering pull requests needs of the world."""

    desk: ReviewDesk
    proposals: Proposals
    bench: Workbench
    interval: float = INTERVAL
    traffic: TrafficOf | None = None
    """What is known of requests to and from some workloads."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """What a review is made with, as of now."""

    mesh: str
    registry: Registry
    rules: Rules
    default_namespace: str
    inherited: Mapping[str, bytes] = field(default_factory=dict)
    rollout_defaults: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Answer:
    head: str
    registry: Registry
    at: float
    """Monotonic seconds."""
    complete: bool
    """False: something was refused, and is tried again."""


class ReviewWatch:
    """Looks at the open pull requests and answers those that have no answer yet. `run` until cancelled."""

    def __init__(self, reviews: Reviews, journal: Journal, clock: Clock, standing: Callable[[], Standing]) -> None:
        self._reviews = reviews
        self._journal = journal
        self._clock = clock
        self._standing = standing
        self._answers: dict[int, _Answer] = {}
        self._kept: frozenset[str] = frozenset()
        """Heads that the mirror was last told to keep."""
        self._told: dict[int, str] = {}
        """The trouble that was last told of, by pull request; 0: the forge itself."""
        self._failures = 0
        self._hint = asyncio.Event()
        self._random = random.Random()  # noqa: S311 - spreads polls, protects nothing

    def __repr__(self) -> str:
        return f"<ReviewWatch answered={len(self._answers)} failures={self._failures}>"

    def hint(self) -> None:
        """Look now: a forge says that a pull request has changed."""
        self._hint.set()

    async def run(self) -> None:
        try:
            while True:
                await self.look()
                await self._pause()
        finally:
            await self._reviews.proposals.close()

    async def _pause(self) -> None:
        wait = self._reviews.interval * (1 + self._random.uniform(-JITTER, JITTER))
        if self._failures:
            wait = min(wait * 2**self._failures, RETRY_MOST)
        await hinted(self._hint, wait)

    async def look(self) -> None:
        """Answer what is open and has no answer yet, one after the other."""
        try:
            requests = await self._reviews.desk.open_requests()
            due = [request for request in requests if self._is_due(request)]
            if due:
                await self._answer_all(due)
            await self._forget_others({request.number for request in requests})
        except (ForgeUnavailable, ForgeRefused, SourceUnavailable, SourceRefused) as error:
            self._failed(f"pull requests cannot be looked at: {error}")
        except Exception as error:  # a forge that answers oddly once must not be the last that is asked
            _log.exception("reviews.failed")
            self._failed(clean(f"pull requests cannot be looked at: {error!r}", limit=300))
        else:
            self._failures = 0
            self._told.pop(0, None)

    def _failed(self, why: str) -> None:
        self._failures = min(self._failures + 1, MOST_DOUBLINGS)
        self._complain(0, why)

    async def _answer_all(self, due: list[PullRequest]) -> None:
        """Those of the followed branch; the others are none of this mesh's business."""
        branch = await self._reviews.proposals.branch()
        for request in due:
            if branch in ("", request.base):
                await self._answer(request)
            else:
                self._note(request, self._standing().registry, complete=True)

    def _is_due(self, request: PullRequest) -> bool:
        known = self._answers.get(request.number)
        if known is None or known.head != request.head:
            return True
        if self._clock.monotonic() < known.at + AGAIN_AFTER:
            return False
        now = self._standing().registry
        return not known.complete or (known.registry.services, known.registry.workloads) != (
            now.services,
            now.workloads,
        )

    async def _forget_others(self, numbers: set[int]) -> None:
        self._answers = {number: answer for number, answer in self._answers.items() if number in numbers}
        self._told = {number: text for number, text in self._told.items() if number in {0, *numbers}}
        heads = frozenset(answer.head for answer in self._answers.values())
        if heads != self._kept:
            await self._reviews.proposals.keep_only(heads)
            self._kept = heads

    def _note(self, request: PullRequest, registry: Registry, *, complete: bool) -> None:
        now = self._clock.monotonic()
        self._answers[request.number] = _Answer(head=request.head, registry=registry, at=now, complete=complete)

    # --- one pull request ---------------------------------------------------------------------------------------------

    async def _answer(self, request: PullRequest) -> None:
        """Review it and say so. What the forge or git cannot do now is done at the next look."""
        standing = self._standing()
        report: Report | None = None
        try:
            request, report = await self._report(request, standing)
            sentence = formats.plain(formats.summary(report))
        except (SourceRefused, JobFailed) as error:
            sentence = clean(f"cannot be reviewed: {error}", limit=300)
        except SourceUnavailable as error:
            self._complain(request.number, f"pull request {request.number} cannot be fetched: {error}")
            return
        except (
            Exception
        ) as error:  # an odd pull request must not keep the others waiting; it is tried again, not at once
            _log.exception("review.failed request=%d", request.number)
            self._complain(
                request.number, clean(f"pull request {request.number} cannot be reviewed: {error!r}", limit=300)
            )
            self._note(request, standing.registry, complete=False)
            return
        complete = await self._post(request, report, sentence)
        if complete is not None:
            self._note(request, standing.registry, complete=complete)

    async def _report(self, request: PullRequest, standing: Standing) -> tuple[PullRequest, Report]:
        """The report, and the request at the head that it is about: it may have moved on since it was listed."""
        proposal = await self._reviews.proposals.fetch(request)
        job = ReviewJob(
            proposal=Proposal(base=proposal.base, head=proposal.head, notes=(*proposal.notes, _basis(standing))),
            registry=standing.registry,
            rules=standing.rules,
            default_namespace=standing.default_namespace,
            inherited=standing.inherited,
            rollout_defaults=standing.rollout_defaults,
            traffic=self._reviews.traffic(standing.registry.workloads) if self._reviews.traffic is not None else None,
        )
        report = report_in(await self._reviews.bench.review(encoded(job)))
        return replace(request, head=proposal.head.revision.sha), report

    async def _post(self, request: PullRequest, report: Report | None, sentence: str) -> bool | None:
        """Comment and status, the one also where the other is refused. None: the forge is away, ask again soon."""
        desk, about = self._reviews.desk, f"pull request {request.number}"
        good = report is not None and not report.denied
        try:
            refused = await _refusal(desk.comment(request.number, comment_text(report, sentence)))
            refused += await _refusal(desk.status(request.head, good=good, description=sentence))
        except ForgeUnavailable as error:
            self._complain(request.number, f"{about} is not answered: {error}")
            return None
        if refused:
            self._complain(request.number, f"{about} is not answered: {'; '.join(refused)}")
            return False
        self._told.pop(request.number, None)
        self._journal.event("review", "Reviewed", f"{about} ({request.head[:12]}): {sentence}")
        return True

    def _complain(self, number: int, text: str) -> None:
        """Once for each trouble: a forge that is away for a night is one line."""
        if self._told.get(number) != text:
            self._told[number] = text
            self._journal.event("review", "ReviewNotPosted", text, warning=True)


async def _refusal(call: Awaitable[None]) -> list[str]:
    """Why the forge said no to this, if it did."""
    try:
        await call
    except ForgeRefused as error:
        return [str(error)]
    return []


def _basis(standing: Standing) -> str:
    registry = standing.registry
    meshed = sum(instance.meshed for instance in registry.instances.values())
    return (
        f"compared by the operator of mesh {standing.mesh} with what runs now: {len(registry.workloads)} workloads, "
        f"{meshed} proxies"
    )


def comment_text(report: Report | None, sentence: str) -> str:
    """What the comment says, without the marker that it is found by."""
    if report is None:
        return f"### 🛑 Backstay: {formats.markdown(sentence)}\n"
    return formats.as_markdown(report).removeprefix(f"{formats.MARKER}\n")
