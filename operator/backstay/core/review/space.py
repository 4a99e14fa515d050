"""The space of requests, cut along everything two configs ask about: exact comparison of decision lists.

A request has values along dimensions (method, path, one per header and parameter named anywhere, who calls). Along each,
all values that no question of either config can tell apart are one, so a few representatives stand for all of them, and a
set of values is a bit mask. A condition of a rule is then a *box* (one mask per dimension it asks about), and the first
box of a list that holds a request decides. `differences` finds every box in which two lists decide differently.

Rule: a representative is a value that a proxy can really see, and whether a question takes it is asked of config/ itself.
Only patterns (RE2) cannot be cut exactly; their dimension says so (`is_exact`).
"""

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Generic, TypeAlias, TypeVar

Value: TypeAlias = bytes | None
"""None: the request has no such header or parameter."""
Box: TypeAlias = Mapping[str, int]
"""Dimension -> mask of the values inside; a dimension that is not named is not asked about."""
Outcome = TypeVar("Outcome", bound=Hashable)

MOST_BOXES: Final = 20_000
"""Pieces into which one comparison may cut the space. Rules that cross each other in many headers multiply; twenty thousand
take about a second, and nobody could read the result."""


class TooManyPieces(Exception):
    """Two lists cross in more ways than are worth counting: what is between them is said to be unproven."""


class Unknowable(Exception):
    """A config asks about something that this module has no dimension for: the change is shown as unproven."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One thing that rules ask of one dimension."""

    name: str
    """In words, as it follows a request: `under /v1`, `with x-version: v2`."""
    negated: str
    """The same for what it does not take: `not under /v1`."""
    takes: Callable[[Value], bool]


class Dimension:
    """The distinguishable values of one property of a request."""

    def __init__(
        self, name: str, values: Iterable[Value], questions: Mapping[Hashable, Question], *, is_exact: bool = True
    ) -> None:
        """`values` must show every combination of answers that is possible; doubles are dropped."""
        self.name = name
        self.questions = questions
        self.is_exact = is_exact
        self._by_answers: dict[tuple[bool, ...], int] = {}
        kept: list[Value] = []
        for value in values:
            answers = self._answers(value)
            if answers not in self._by_answers:
                self._by_answers[answers] = len(kept)
                kept.append(value)
        self.values: tuple[Value, ...] = tuple(kept)
        self.all = (1 << len(kept)) - 1
        self.masks: dict[Hashable, int] = {
            key: sum(1 << place for answers, place in self._by_answers.items() if answers[number])
            for number, key in enumerate(questions)
        }

    def _answers(self, value: Value) -> tuple[bool, ...]:
        return tuple(question.takes(value) for question in self.questions.values())

    def holds(self, mask: int, value: Value) -> bool:
        """Whether a value lies in a set. One that no representative stands for (a pattern's) lies in all of them."""
        place = self._by_answers.get(self._answers(value))
        return place is None or bool(mask >> place & 1)

    def one_of(self, mask: int) -> Value:
        """A value of the set, the plainest one."""
        return self.values[(mask & -mask).bit_length() - 1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry(Generic[Outcome]):
    """One line of a decision list."""

    box: Box
    outcome: Outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference(Generic[Outcome]):
    box: Box
    before: Outcome
    after: Outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class Decisions(Generic[Outcome]):
    """A list whose first matching entry decides, and what holds where none does."""

    entries: tuple[Entry[Outcome], ...]
    default: Outcome
    labels: Mapping[int, str] = field(default_factory=dict)


def intersect(one: Box, other: Box) -> Box | None:
    """None if no request lies in both."""
    both = dict(one)
    for name, mask in other.items():
        both[name] = both[name] & mask if name in both else mask
        if not both[name]:
            return None
    return both


def subtract(box: Box, other: Box, alls: Mapping[str, int]) -> Iterator[Box]:
    """What of a box lies outside of another, as boxes that do not overlap."""
    rest = dict(box)
    for name, mask in other.items():
        here = rest.get(name, alls[name])
        outside = here & ~mask
        if outside:
            yield {**rest, name: outside}
        rest[name] = here & mask
        if not rest[name]:
            return


class _Cutter:
    """Cuts boxes by lists, and stops when there are too many pieces."""

    def __init__(self, alls: Mapping[str, int]) -> None:
        self._alls = alls
        self._made = 0

    def count(self) -> None:
        self._made += 1
        if self._made > MOST_BOXES:
            raise TooManyPieces

    def without(self, box: Box, others: Sequence[Box]) -> Iterator[Box]:
        """The pieces of a box that lie in none of the others."""
        pieces = [(box, 0)]
        while pieces:
            piece, start = pieces.pop()
            self.count()
            for number in range(start, len(others)):
                if intersect(piece, others[number]) is not None:
                    pieces += [(rest, number + 1) for rest in subtract(piece, others[number], self._alls)]
                    break
            else:
                yield piece

    def decided(self, box: Box, decisions: Decisions[Outcome]) -> Iterator[tuple[Box, Outcome]]:
        """The box cut by who decides in it."""
        pieces = [(box, 0)]
        entries = decisions.entries
        while pieces:
            piece, start = pieces.pop()
            self.count()
            for number in range(start, len(entries)):
                inside = intersect(piece, entries[number].box)
                if inside is not None:
                    yield inside, entries[number].outcome
                    pieces += [(rest, number + 1) for rest in subtract(piece, entries[number].box, self._alls)]
                    break
            else:
                yield piece, decisions.default


def differences(
    before: Decisions[Outcome], after: Decisions[Outcome], dimensions: Mapping[str, Dimension]
) -> list[Difference[Outcome]]:
    """Every piece of the space in which the outcome differs; pieces do not overlap. Raises TooManyPieces.

    A request that no changed entry takes is decided by the same entry in both lists, so only the boxes of changed entries
    are looked into: cost follows the change.
    """
    cutter = _Cutter({name: dimension.all for name, dimension in dimensions.items()})
    found = []
    seen: list[Box] = []
    for start in _changed_boxes(before, after):
        for fresh in cutter.without(start, seen):
            for piece, old in cutter.decided(fresh, before):
                for inner, new in cutter.decided(piece, after):
                    if old != new:
                        found.append(Difference(box=inner, before=old, after=new))
        seen.append(start)
    return found


def decided(
    decisions: Decisions[Outcome], dimensions: Mapping[str, Dimension], box: Box | None = None
) -> Iterator[tuple[Box, Outcome]]:
    """The whole space, or a box, cut by who decides in it. Raises TooManyPieces."""
    return _Cutter({name: dimension.all for name, dimension in dimensions.items()}).decided(box or {}, decisions)


def _changed_boxes(before: Decisions[Outcome], after: Decisions[Outcome]) -> list[Box]:
    """Boxes of the entries that are not common to both lists in one order; everything if the defaults differ."""
    if before.default != after.default:
        return [{}]
    old, new = before.entries, after.entries
    start = 0
    while start < min(len(old), len(new)) and old[start] == new[start]:
        start += 1
    end = 0
    while end < min(len(old), len(new)) - start and old[-1 - end] == new[-1 - end]:
        end += 1
    changed = [*old[start : len(old) - end], *new[start : len(new) - end]]
    boxes: list[Box] = []
    for entry in changed:
        if entry.box not in boxes:
            boxes.append(entry.box)
    return boxes


# --- representatives --------------------------------------------------------------------------------------------------

FILLERS: Final = ("other", "x", "q7", "zz", "~", "0k", "41", "-", "_", "Y", "a1", "7", "b", "c", "d", "e")
"""What stands for `anything else`: words no document uses, and single characters where words do not do."""


def fill(prefix: bytes, suffix: bytes, taken: Callable[[bytes], bool], possible: Callable[[bytes], bool]) -> Value:
    """`prefix` + something + `suffix` that no longer prefix or suffix takes as well; None if there is no such value."""
    for number in range(4):
        for filler in FILLERS:
            value = prefix + (filler * (number + 1)).encode() + suffix
            if possible(value) and not taken(value):
                return value
    return None


def spread(
    exact: Iterable[bytes], prefixes: Iterable[bytes], suffixes: Iterable[bytes], possible: Callable[[bytes], bool]
) -> Iterator[bytes]:
    """Values that show every combination of answers to questions for these whole values, starts and ends.

    What starts a value takes is told by the longest of the starts, likewise its ends: one value per pair will do, and every
    exact one for itself.
    """
    known, starts, ends = list(dict.fromkeys(exact)), sorted({b"", *prefixes}), sorted({b"", *suffixes})
    whole = set(known)
    for start in starts:
        longer = [other for other in starts if other != start and other.startswith(start)]
        for end in ends:
            longer_ends = [other for other in ends if other != end and other.endswith(end)]
            value = fill(start, end, _taken(whole, longer, longer_ends), possible)
            if value is not None:
                yield value
    yield from (value for value in known if possible(value))


def _taken(whole: set[bytes], starts: Sequence[bytes], ends: Sequence[bytes]) -> Callable[[bytes], bool]:
    def taken(value: bytes) -> bool:
        return (
            value in whole
            or any(value.startswith(start) for start in starts)
            or any(value.endswith(end) for end in ends)
        )

    return taken


# --- words ------------------------------------------------------------------------------------------------------------


def described(dimension: Dimension, mask: int) -> str:
    """A set of values in words; empty for all of them.

    The narrowest question around the set, without those inside it; where that does not fit, the questions that make it up.
    """
    if mask == dimension.all:
        return ""
    around = min(
        (key for key, inside in dimension.masks.items() if inside & mask == mask),
        key=lambda key: dimension.masks[key].bit_count(),
        default=None,
    )
    base = dimension.masks[around] if around is not None else dimension.all
    start = [dimension.questions[around].name] if around is not None else []
    holes, left = _cover(dimension, base & ~mask)
    if not left:
        return " and ".join([*start, *(dimension.questions[key].negated for key in holes)])
    parts, rest = _cover(dimension, mask)
    told = [dimension.questions[key].name for key in parts]
    told += [f"such as {_shown(dimension.values[place])}" for place in _places(rest)[:3]]
    return " or ".join(told)


def _cover(dimension: Dimension, mask: int) -> tuple[list[Hashable], int]:
    """The fewest questions (greedily) that lie in a set, and what of it they leave."""
    chosen: list[Hashable] = []
    usable = [(key, inside) for key, inside in dimension.masks.items() if inside and inside & ~mask == 0]
    while mask:
        best = max(usable, key=lambda item: (item[1] & mask).bit_count(), default=None)
        if best is None or not best[1] & mask:
            break
        chosen.append(best[0])
        mask &= ~best[1]
    return chosen, mask


def _places(mask: int) -> list[int]:
    return [place for place in range(mask.bit_length()) if mask >> place & 1]


def _shown(value: Value) -> str:
    return "nothing" if value is None else value.decode("utf-8", "replace")
