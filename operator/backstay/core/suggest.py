"""`, did you mean 'timeouts'?` for words that nearly are what was expected."""

import difflib
from collections.abc import Iterable
from typing import Final

_LONGEST: Final = 64  # no known word is longer, and difflib takes time quadratic in the length
_LENGTH_DIFFERENCE: Final = 6  # `sa-logic` for `sa-logic.shop` still counts
_MOST: Final = 1_000  # difflib compares with each


FIELDS: Final = 0.6
"""difflib's own cut-off: `retries` for `retry` is 0.67."""
NAMES: Final = 0.75
"""Names of services share prefixes: at 0.6 `sa-feedback` would be taken for `sa-webapp`."""


def nearest(word: object, known: Iterable[str], cutoff: float = FIELDS) -> str:
    """The known word that `word` was most likely meant to be, "" if none is near."""
    if not isinstance(word, str) or len(word) > _LONGEST:
        return ""
    near_length = (candidate for candidate in known if abs(len(candidate) - len(word)) <= _LENGTH_DIFFERENCE)
    candidates = sorted(near_length)[:_MOST]
    same = next((candidate for candidate in candidates if candidate.lower() == word.lower()), "")
    return same or next(iter(difflib.get_close_matches(word, candidates, n=1, cutoff=cutoff)), "")


def did_you_mean(word: object, known: Iterable[str], cutoff: float = FIELDS) -> str:
    """A clause to append to a message, empty when nothing is near."""
    found = nearest(word, known, cutoff)
    return f"; did you mean {found!r}?" if found else ""
