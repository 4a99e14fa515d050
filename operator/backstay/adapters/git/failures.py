"""What git said, as the few exceptions the loop knows. Pure; one table turns git's sentences into reasons.

Rule: a message leaves here cleaned, with no secret in it, and says what to do where that is known.
"""

import re
from collections.abc import Iterable
from typing import Final

from backstay import redact
from backstay.core.ports import SourceRefused, SourceUnavailable

_RULES: Final[tuple[tuple[re.Pattern[str], type[SourceUnavailable] | type[SourceRefused], str, str], ...]] = (
    (re.compile(r"Host key verification failed"), SourceUnavailable, "AuthenticationFailed",
     "the server's host key is not known; put it into known_hosts (compare it with what the forge publishes)"),
    (re.compile(r"Authentication failed|could not read (Username|Password)|terminal prompts disabled|"
                r"Permission denied \(|returned error: 40[13]|HTTP 40[13]|invalid credentials", re.IGNORECASE),
     SourceUnavailable, "AuthenticationFailed", "the server refused the credentials"),
    (re.compile(r"dubious ownership"), SourceUnavailable, "DubiousOwnership", "the folder belongs to somebody else"),
    (re.compile(r"couldn't find remote ref|not our ref|no such remote ref|unadvertised object"),
     SourceRefused, "RefNotFound", "the repository does not have it"),
    (re.compile(r"hasDot|hasDotdot|hasDotgit|fullPathname|emptyName|gitmodules", re.IGNORECASE),
     SourceRefused, "InvalidPath", "the history holds a path or submodule that git itself refuses"),
    (re.compile(r"fsck error|error in (packed )?object|pack has bad object|badTree|treeNotSorted"),
     SourceRefused, "GitOperationFailed", "the history holds a damaged or forged object"),
    (re.compile(r"No space left on device|disk quota|unable to write file", re.IGNORECASE),
     SourceUnavailable, "GitOperationFailed", "no space left for the mirror"),
    (re.compile(r"SSL certificate problem|certificate verify|server certificate verification", re.IGNORECASE),
     SourceUnavailable, "GitOperationFailed", "the server's certificate is not trusted; give its CA as ca file"),
    (re.compile(r"timed out|Timeout|too slow|Operation too slow", re.IGNORECASE),
     SourceUnavailable, "Timeout", "the server did not answer in time"),
)  # fmt: skip
_NOISE: Final = re.compile(r"^(hint:|remote: (Enumerating|Counting|Compressing|Total)|warning: redirecting)")


def failure(stderr: str, *, doing: str) -> SourceUnavailable | SourceRefused:
    """The exception for a git that failed with this text."""
    said = shown(stderr)
    for pattern, kind, reason, hint in _RULES:
        if pattern.search(stderr):
            return kind(reason, f"{doing}: {hint} (git: {said})")
    return SourceUnavailable("GitOperationFailed", f"{doing}: git failed: {said}")


def without(secrets: Iterable[str], text: str) -> str:
    """The text with every known secret taken out, wherever git found a reason to repeat one."""
    for secret in secrets:
        text = text.replace(secret, "***")
    return text


def shown(stderr: str) -> str:
    """git's own words on one line, fit for status and logs."""
    lines = [line.strip() for line in stderr.splitlines()]
    kept = [line for line in lines if line and not _NOISE.match(line)]
    return redact.clean("; ".join(kept), limit=600) or "no message"
