"""Regular expressions of documents: RE2, so that no pattern and no request can make a match take long.

RE2 has no look-around and no back-references; such patterns are refused when a commit is validated. It is imported only
where there is a pattern: a sidecar whose config has none starts without it.
"""

import functools
from typing import Any, Final, Protocol

MAX_PROGRAM_BYTES: Final = 1024 * 1024
"""Memory one pattern may take, its cache of states included. RE2's default is 8 MiB; with 1 MiB `[a-z]{1,500}` still
compiles, and 256 rules of a Route stay within a sidecar's memory."""


class BadPattern(ValueError):
    """A pattern that RE2 does not take; the message says why, in RE2's words."""


class Pattern(Protocol):
    """What is used of a compiled pattern."""

    @property
    def groups(self) -> int: ...
    def fullmatch(self, text: bytes) -> Any: ...
    def subn(self, repl: Any, text: bytes, count: int = 0) -> tuple[bytes, int]: ...


@functools.lru_cache(maxsize=4096)
def compile_pattern(pattern: str) -> Pattern:
    """A pattern over bytes. The same text gives the same object. Raises BadPattern."""
    import re2  # type: ignore[import-untyped]  # noqa: PLC0415 - has no stubs, and only configs with patterns need it

    options = re2.Options()
    options.log_errors = False
    options.max_mem = MAX_PROGRAM_BYTES
    try:
        compiled: Pattern = re2.compile(pattern.encode(), options=options)
    except re2.error as error:
        (said, *_) = error.args or ("not a pattern",)
        raise BadPattern(said.decode("utf-8", "replace") if isinstance(said, bytes) else str(said)) from error
    return compiled


def matches_whole(pattern: str, text: bytes) -> bool:
    """True if the pattern takes the text from its first byte to its last."""
    return compile_pattern(pattern).fullmatch(text) is not None
