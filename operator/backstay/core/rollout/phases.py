"""The phases of a rollout and what may lead from one to the next.

Rule: every change of phase goes through TRANSITIONS; a pair that is not in the table is a mistake of ours and raises.
Rule: from ROLLING_BACK no event leads forward: it is healthy *because* we restore, so it finishes and never resumes.
Rule: ended phases have no way out. docs/rollout.md shows this table; a test fails when the two differ.
"""

import enum
from typing import Final

from backstay.core.rollout.model import Phase


class Event(enum.Enum):
    """What happened to a rollout, in the past tense."""

    SEATS_ACKED = "seats acked"
    WAVE_PASSED = "wave passed"
    STAGE_PASSED = "stage passed"
    LAST_PASSED = "last wave passed"
    FAILED = "failed"
    FAILED_PAUSING = "failed, onFail: pause"
    WENT_UNKNOWN = "cannot measure"
    RAN_OUT = "deadline without proof"
    MEASURED = "measured again"
    SUSPECTED = "shared harm seen"
    CONFIRMED = "harm fell when taken back"
    DISMISSED = "harm did not fall"
    RESTARTED = "stage began again"
    PAUSED = "paused"
    RESUMED = "resumed"
    PROMOTED = "promoted by a person"
    ABORTED = "aborted"
    RESTORED = "stable restored"
    RESTORED_ABORTED = "stable restored after abort"
    BAKED = "bake time over"
    BAKE_FAILED = "bake failed"


_MOVING: Final = (Phase.PREPARING, Phase.SHIFTING, Phase.HOLDING, Phase.SUSPECTING, Phase.PAUSED)
"""Phases in which some proxies serve the candidate and it is still open what becomes of it."""

_ALWAYS: Final = {
    Event.FAILED: Phase.ROLLING_BACK,
    Event.ABORTED: Phase.ROLLING_BACK,
    Event.PAUSED: Phase.PAUSED,
    Event.FAILED_PAUSING: Phase.PAUSED,
    Event.RESTARTED: Phase.PREPARING,
    Event.PROMOTED: Phase.PREPARING,
    Event.STAGE_PASSED: Phase.PREPARING,
    Event.LAST_PASSED: Phase.BAKING,
}

TRANSITIONS: Final[dict[tuple[Phase, Event], Phase]] = {
    **{(phase, event): after for phase in _MOVING for event, after in _ALWAYS.items()},
    (Phase.PREPARING, Event.SEATS_ACKED): Phase.SHIFTING,
    (Phase.PREPARING, Event.WENT_UNKNOWN): Phase.HOLDING,
    (Phase.SHIFTING, Event.WAVE_PASSED): Phase.PREPARING,
    (Phase.SHIFTING, Event.WENT_UNKNOWN): Phase.HOLDING,
    (Phase.SHIFTING, Event.RAN_OUT): Phase.HOLDING,
    (Phase.SHIFTING, Event.SUSPECTED): Phase.SUSPECTING,
    (Phase.PREPARING, Event.SUSPECTED): Phase.SUSPECTING,
    (Phase.HOLDING, Event.SUSPECTED): Phase.SUSPECTING,
    (Phase.HOLDING, Event.MEASURED): Phase.SHIFTING,
    (Phase.SUSPECTING, Event.CONFIRMED): Phase.PREPARING,
    (Phase.SUSPECTING, Event.DISMISSED): Phase.PREPARING,
    (Phase.PAUSED, Event.RESUMED): Phase.PREPARING,
    (Phase.ROLLING_BACK, Event.RESTORED): Phase.FAILED,
    (Phase.ROLLING_BACK, Event.RESTORED_ABORTED): Phase.ABORTED,
    (Phase.BAKING, Event.BAKED): Phase.SUCCEEDED,
    (Phase.BAKING, Event.BAKE_FAILED): Phase.ROLLING_BACK,
    (Phase.BAKING, Event.ABORTED): Phase.ROLLING_BACK,
}

ENDED: Final = frozenset({Phase.SUCCEEDED, Phase.FAILED, Phase.ABORTED, Phase.SUPERSEDED})
MOVING: Final = frozenset(_MOVING)


def after(phase: Phase, event: Event) -> Phase:
    """The phase that follows. Raises ValueError for what the table does not know."""
    try:
        return TRANSITIONS[phase, event]
    except KeyError:
        raise ValueError(f"no transition from {phase.value!r} on {event.value!r}") from None


def diagram() -> str:
    """The table as a Mermaid state diagram, one arrow per pair of phases, for docs/rollout.md."""
    arrows: dict[tuple[Phase, Phase], list[str]] = {}
    for (before, event), then in TRANSITIONS.items():
        arrows.setdefault((before, then), []).append(event.value)
    lines = ["stateDiagram-v2", f"    [*] --> {_state(Phase.PREPARING)}"]
    lines += [f"    {_state(a)} --> {_state(b)}: {' / '.join(names)}" for (a, b), names in arrows.items()]
    lines += [f"    {_state(phase)} --> [*]" for phase in Phase if phase in ENDED and phase is not Phase.SUPERSEDED]
    return "\n".join(lines) + "\n"


def _state(phase: Phase) -> str:
    return phase.value.replace("-", "_")
