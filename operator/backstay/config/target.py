"""What of a request is decided by: its target with dot segments resolved, and the fields that a matcher may see.

The data plane asks `clean_target` of every request it takes in, the operator's evaluator of every request it is asked
about: both decide by what would be forwarded, never by another spelling of it.
"""

import re
from typing import Final

_NEEDS_LOOK: Final = re.compile(rb"[%\\#\x00-\x20\x7f-\xff]|/\.")
_BAD_IN_TARGET: Final = re.compile(rb"[\\#\x00-\x20\x7f-\xff]|%00|%(?![0-9A-Fa-f]{2})")
_DOT: Final = re.compile(rb"%2e", re.IGNORECASE)

OWN_PREFIX: Final = b"x-backstay-"
"""Identity and control fields are the mesh's to write; a client's are removed (threats H8)."""
UNSEEN_FIELDS: Final = frozenset(
    (
        b"host", b"content-length", b"transfer-encoding", b"connection", b"expect", b"upgrade", b"keep-alive",
        b"proxy-connection", b"proxy-authenticate", b"proxy-authorization", b"te", b"trailer", b"http2-settings",
        b"x-forwarded-client-cert",
    )
)  # fmt: skip
"""Fields that are between two hops or the proxy's own: they are not forwarded, so no matcher sees them."""


def is_seen(name: bytes) -> bool:
    """False for a field that a matcher never gets to see, whoever sends it."""
    lower = name.lower()
    spelled = lower.replace(b"_", b"-")
    return not spelled.startswith(OWN_PREFIX) and spelled not in UNSEEN_FIELDS


def clean_target(target: bytes, method: bytes) -> bytes | None:
    """The target to decide by and to forward: dot segments resolved; None if it cannot be read in one way only."""
    if target == b"*":
        return target if method == b"OPTIONS" else None
    if _NEEDS_LOOK.search(target) is None:
        return target
    if _BAD_IN_TARGET.search(target) is not None:
        return None
    path, question, query = target.partition(b"?")
    return resolve_dots(path) + question + query


def resolve_dots(path: bytes) -> bytes:
    """Remove dot segments, also those written `%2e` (RFC 3986, 5.2.4 and 6.2.2.2); never leaves the root."""
    segments = path.split(b"/")[1:]
    plain = [_DOT.sub(b".", segment) if b"%" in segment else segment for segment in segments]
    if b"." not in plain and b".." not in plain:
        return path
    kept: list[bytes] = []
    for original, segment in zip(segments, plain, strict=True):
        if segment == b"..":
            del kept[-1:]
        elif segment != b".":
            kept.append(original)
    if plain[-1] in (b".", b".."):
        kept.append(b"")
    return b"/" + b"/".join(kept)
