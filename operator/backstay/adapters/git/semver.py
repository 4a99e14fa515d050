"""Which of many tags a version range means. Pure.

Ranges are written as package managers and Flux users write them: `1.x`, `^1.2`, `~1.2.3`, `>=1.0 <2.0`, `1.2 - 1.4`,
alternatives with `||`. A pre-release (`2.0.0-rc.1`) is taken only by a range that names a pre-release itself.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, TypeAlias

Core: TypeAlias = tuple[int, int, int]

_NUMBER: Final = r"0|[1-9][0-9]{0,8}"
_TAIL: Final = r"(?:-(?P<pre>[0-9A-Za-z.-]+))?(?:\+[0-9A-Za-z.-]+)?"
_TAG: Final = re.compile(rf"v?(?P<a>{_NUMBER})\.(?P<b>{_NUMBER})\.(?P<c>{_NUMBER}){_TAIL}")
_PARTIAL: Final = re.compile(
    rf"v?(?P<a>{_NUMBER}|[xX*])(?:\.(?P<b>{_NUMBER}|[xX*])(?:\.(?P<c>{_NUMBER}|[xX*]){_TAIL})?)?"
)
_HYPHEN: Final = re.compile(r"(\S+)\s+-\s+(\S+)")
_COMPARISON: Final = re.compile(r"(>=|<=|!=|=|>|<|\^|~>?|)\s*([0-9A-Za-z.*+-]+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    core: Core
    pre: tuple[str, ...] = ()

    @property
    def order(self) -> tuple[Core, bool, tuple[tuple[bool, int, str], ...]]:
        """Sorts as semver.org section 11 says: a pre-release before its release, numbers before words."""
        words = tuple((not word.isdigit(), int(word) if word.isdigit() else 0, word) for word in self.pre)
        return self.core, not self.pre, words


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """`low <= version < high`; `negated` for `!=`."""

    low: Version
    high: Version | None
    negated: bool = False
    names_pre: bool = False

    def holds(self, version: Version) -> bool:
        inside = self.low.order <= version.order and (self.high is None or version.order < self.high.order)
        return inside is not self.negated


class Range:
    """A parsed range. Raises ValueError with what was expected."""

    def __init__(self, text: str) -> None:
        self.text = text
        self._alternatives = tuple(_alternative(part.strip(), text) for part in text.split("||"))

    def takes(self, version: Version) -> bool:
        return any(_all_hold(intervals, version) for intervals in self._alternatives)

    def newest(self, tags: Iterable[str]) -> str | None:
        """The tag with the greatest version that the range takes; tags that are no versions are passed over."""
        versions = ((parse(tag), tag) for tag in tags)
        taken = [(version.order, tag) for version, tag in versions if version is not None and self.takes(version)]
        return max(taken)[1] if taken else None


def parse(tag: str) -> Version | None:
    """The version a tag names, None if it names none."""
    found = _TAG.fullmatch(tag)
    if found is None:
        return None
    core = (int(found["a"]), int(found["b"]), int(found["c"]))
    return Version(core=core, pre=tuple(found["pre"].split(".")) if found["pre"] else ())


def _all_hold(intervals: tuple[Interval, ...], version: Version) -> bool:
    if version.pre and not any(interval.names_pre for interval in intervals):
        return False
    return all(interval.holds(version) for interval in intervals)


def _alternative(text: str, whole: str) -> tuple[Interval, ...]:
    hyphen = _HYPHEN.fullmatch(text)
    if hyphen is not None:
        return _compared(">=", hyphen[1], whole), _compared("<=", hyphen[2], whole)
    intervals: list[Interval] = []
    at = 0
    while at < len(text):
        found = _COMPARISON.match(text, at)
        if found is None:
            raise _bad(whole)
        intervals.append(_compared(found[1], found[2], whole))
        at = found.end()
        at += len(text[at:]) - len(text[at:].lstrip(" ,"))
    if not intervals:
        raise _bad(whole)
    return tuple(intervals)


def _compared(operator: str, text: str, whole: str) -> Interval:
    """One comparison as an interval, with a partial version standing for all that begin like it."""
    found = _PARTIAL.fullmatch(text)
    if found is None:
        raise _bad(whole)
    numbers = _given(found["a"], found["b"], found["c"])
    pre = tuple(found["pre"].split(".")) if found["pre"] and len(numbers) == 3 else ()
    low = Version(core=_padded(numbers), pre=pre)
    after = _after(numbers, low)
    match operator:
        case "" | "=":
            return Interval(low=low, high=after, names_pre=bool(pre))
        case "!=":
            return Interval(low=low, high=after, negated=True)
        case ">=":
            return Interval(low=low, high=None, names_pre=bool(pre))
        case ">":
            return Interval(low=after or _NOTHING, high=None, names_pre=bool(pre))
        case "<":
            return Interval(low=_LEAST, high=low, names_pre=bool(pre))
        case "<=":
            return Interval(low=_LEAST, high=after, names_pre=bool(pre))
        case "^":
            return Interval(low=low, high=_next(numbers, _first_that_counts(numbers)), names_pre=bool(pre))
    return Interval(low=low, high=_next(numbers, min(1, len(numbers) - 1)), names_pre=bool(pre))  # ~


def _given(*texts: str | None) -> tuple[int, ...]:
    """The leading numbers: `1.x` and `1` give (1,), `*` gives ()."""
    numbers: list[int] = []
    for text in texts:
        if text is None or text in "xX*":
            break
        numbers.append(int(text))
    return tuple(numbers)


def _padded(numbers: tuple[int, ...]) -> Core:
    a, b, c = (*numbers, 0, 0, 0)[:3]
    return a, b, c


def _first_that_counts(numbers: tuple[int, ...]) -> int:
    """What `^` keeps: the first number that is not zero (a 0.x minor is a breaking change)."""
    return next((index for index, number in enumerate(numbers) if number), len(numbers) - 1)


def _after(numbers: tuple[int, ...], low: Version) -> Version | None:
    """The least version behind all that begin with these numbers; None: there is none."""
    if low.pre:
        return Version(core=low.core, pre=(*low.pre, "0"))
    if len(numbers) == 3:
        a, b, c = low.core
        return Version(core=(a, b, c + 1), pre=("0",))
    return _next(numbers, len(numbers) - 1)


def _next(numbers: tuple[int, ...], index: int) -> Version | None:
    """The least version in which the number at `index` is one greater: its first pre-release."""
    if not numbers:
        return None
    return Version(core=_padded((*numbers[:index], numbers[index] + 1)), pre=("0",))


def _bad(text: str) -> ValueError:
    return ValueError(f"{text!r} is not a version range; expected something like '1.x', '^1.2' or '>=1.0 <2.0'")


_LEAST: Final = Version(core=(0, 0, 0), pre=("0",))
_NOTHING: Final = Version(core=(10**9, 0, 0))
