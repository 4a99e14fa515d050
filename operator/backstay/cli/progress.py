"""What `backstay up` tells its terminal while it runs: how many instances are ready, what keeps ending, what is live.

Pure: two looks go in, the lines that are news come out. `up` looks and writes.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from backstay.core.rollout.model import Phase
from backstay.core.status import RUNNING, repository_conditions, short
from backstay.core.view import MeshView

SAID_EVERY: Final = 5.0
"""Seconds between two lines that only count instances: short enough to be a sign of life, long enough not to be noise."""
STARTING: Final = 20.0
"""Seconds an instance may take before its name is said: ten times an idle machine's start of one."""
ENDS_SAID: Final = frozenset({3, 10, 30, 100, 300, 1000})
"""After how many ends in a row a process is complained about: not for one slip, not for every restart."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trouble:
    """One process of an instance that is not ready."""

    problem: str
    """`hello-0: application ended with exit code 1`"""
    ends: int = 0
    """How often it has ended since the operator started."""
    last_words: str = ""
    """The last line of its log."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """The mesh at one moment, as far as it is told."""

    at: float
    """Seconds on a steady clock."""
    ready: int = 0
    total: int = 0
    troubles: Mapping[str, Trouble] = field(default_factory=dict)
    """By instance."""
    standing: str = ""
    said_at: float = float("-inf")
    """When instances were last counted aloud."""
    ready_said: int = -1
    waiting_since: float = 0.0


def standing(view: MeshView) -> str:
    """One sentence that changes only when something was decided, not with every request that is counted."""
    rollout = view.state.rollout
    if view.observed_generation != view.generation:
        return ""  # for the blink of an eye after the start
    if rollout is None or rollout.phase not in RUNNING:
        return repository_conditions(view)[0].message
    where = f"rollout {rollout.id} of {short(rollout.cause.revision)}: {rollout.phase.value}"
    if rollout.phase is Phase.ROLLING_BACK:
        return f"{where}. {rollout.sentence}".rstrip(". ")
    return f"{where}, wave {rollout.wave + 1}"


def news(before: Look, now: Look) -> tuple[list[str], Look]:
    """The lines to write, and what to remember until the next look."""
    counted = list(_counted(before, now))
    decided = [now.standing] if now.standing not in ("", before.standing) else []
    return [*counted, *_complaints(before, now), *decided], _remember(before, now, counted=bool(counted))


def _remember(before: Look, now: Look, *, counted: bool) -> Look:
    return Look(
        at=now.at,
        ready=now.ready,
        total=now.total,
        troubles=now.troubles,
        standing=now.standing or before.standing,
        said_at=now.at if counted else before.said_at,
        ready_said=now.ready if counted else before.ready_said,
        waiting_since=_waiting_since(before, now),
    )


def _waiting_since(before: Look, now: Look) -> float:
    """Since when not all are ready, as seen by the first look that saw it."""
    waited = before.total > 0 and before.ready < before.total
    return before.waiting_since if waited else now.at


def _counted(before: Look, now: Look) -> Iterator[str]:
    if now.ready == before.ready_said or not now.total:
        return
    if now.ready == now.total or now.at - before.said_at >= SAID_EVERY:
        yield f"{now.ready} of {now.total} instances ready"


def _complaints(before: Look, now: Look) -> Iterator[str]:
    since = _waiting_since(before, now)
    is_late = now.at - since >= STARTING > before.at - since
    for instance, trouble in sorted(now.troubles.items()):
        known = before.troubles.get(instance, Trouble(problem=""))
        if any(known.ends < number <= trouble.ends for number in ENDS_SAID) or (is_late and not trouble.ends):
            yield _sentence(trouble)


def _sentence(trouble: Trouble) -> str:
    times = f" ({trouble.ends} times so far)" if trouble.ends else ""
    words = f"; its log ends: {trouble.last_words}" if trouble.last_words else ""
    return f"{trouble.problem}{times}{words}"
