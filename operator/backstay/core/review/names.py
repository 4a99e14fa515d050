"""Spellings of hosts, patterns among them: which one a name belongs to, and a name that belongs to one."""

from collections.abc import Container
from typing import Final

from backstay.config.match import patterns_of
from backstay.core.review.space import FILLERS


def most_specific(name: bytes, known: Container[bytes]) -> bytes | None:
    """The name itself where it is known, else the narrowest known pattern that takes it. A port belongs to the spelling."""
    if name in known:
        return name
    host, colon, port = name.partition(b":")
    patterns = (pattern + colon + port for pattern in patterns_of(host))
    return next((pattern for pattern in patterns if pattern in known), None)


_MORE: Final = 8
"""Names that somebody took on purpose; each is tried doubled, tripled and so on."""


def one_of(spelling: bytes, known: Container[bytes] = ()) -> bytes:
    """A name that a pattern takes and that belongs to no narrower one; any other spelling as it is."""
    if not spelling.startswith(b"*"):
        return spelling
    words = (filler * number for number in range(1, _MORE) for filler in FILLERS if filler.isalnum())
    names = (word.lower().encode() + spelling[1:] for word in words)
    return next((name for name in names if most_specific(name, known) in (None, spelling)), b"other" + spelling[1:])
