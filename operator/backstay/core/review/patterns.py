"""Examples of what a pattern takes: where sets of values cannot be computed, a few real values are compared instead.

Patterns are RE2, whose syntax Python's own parser nearly reads; a pattern it cannot read has no examples, and the review
says of every pattern that it was looked at by examples only.
"""

import re
import re._constants as _sre  # type: ignore[import-not-found]
from collections.abc import Iterator
from itertools import islice, product
from re import _parser  # type: ignore[attr-defined]
from typing import Any, Final

_MOST: Final = 24  # examples of one pattern
_CHOICES: Final = 3  # of one alternative or class
_REPEATS: Final = (0, 1, 2)  # beyond the least number


def examples(pattern: str) -> list[bytes]:
    """Texts that the pattern takes (as far as this knows), the shortest first; empty for one that cannot be read."""
    try:
        tree = _parser.parse(pattern)
        found = dict.fromkeys(islice(_strings(tree), _MOST * 4))
    except (re.error, RecursionError, OverflowError):
        return []
    return [text.encode() for text in sorted(found, key=lambda text: (len(text), text))[:_MOST]]


def _strings(tree: Any) -> Iterator[str]:
    parts = [list(islice(_one(operation, argument), _CHOICES)) for operation, argument in tree]
    for chosen in islice(product(*parts), _MOST * 4):
        yield "".join(chosen)


def _one(operation: Any, argument: Any) -> Iterator[str]:
    if operation is _sre.LITERAL:
        yield chr(argument)
    elif operation is _sre.NOT_LITERAL:
        yield next(chr(code) for code in range(97, 123) if code != argument)
    elif operation is _sre.ANY:
        yield from ("a", "0")
    elif operation is _sre.IN:
        yield from _in(argument)
    elif operation is _sre.BRANCH:
        for branch in argument[1]:
            yield from islice(_strings(branch), _CHOICES)
    elif operation is _sre.SUBPATTERN:
        yield from _strings(argument[3])
    elif operation in (_sre.MAX_REPEAT, _sre.MIN_REPEAT):
        yield from _repeated(argument)
    elif operation is _sre.AT:
        yield ""


def _repeated(argument: Any) -> Iterator[str]:
    least, most, tree = argument
    for more in _REPEATS:
        if least + more <= most:
            for text in islice(_strings(tree), _CHOICES):
                yield text * (least + more)


def _in(items: Any) -> Iterator[str]:
    """Members of a character class."""
    if items and items[0][0] is _sre.NEGATE:
        taken = {text for item in items[1:] for text in _members(item)}
        yield from islice((chr(code) for code in range(48, 123) if chr(code) not in taken), _CHOICES)
        return
    for item in items:
        yield from islice(_members(item), _CHOICES)


_CATEGORIES: Final = {
    _sre.CATEGORY_DIGIT: "017",
    _sre.CATEGORY_NOT_DIGIT: "a-",
    _sre.CATEGORY_WORD: "a0_",
    _sre.CATEGORY_NOT_WORD: "-.",
    _sre.CATEGORY_SPACE: " ",
    _sre.CATEGORY_NOT_SPACE: "a0",
}


def _members(item: Any) -> Iterator[str]:
    operation, argument = item
    if operation is _sre.LITERAL:
        yield chr(argument)
    elif operation is _sre.RANGE:
        yield from (chr(code) for code in range(argument[0], argument[1] + 1))
    elif operation is _sre.CATEGORY:
        yield from _CATEGORIES.get(argument, "")
