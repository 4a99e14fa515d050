"""One cleaner for every text that leaves the process: no tokens, no credentials in URLs, no key material, no control bytes."""

import re
from typing import Final

_RULES: Final = (
    (re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]*://)[^/@\s]*@"), r"\1***@"),
    (re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL), "[private key]"),
    (re.compile(r"(?i)\b(authorization|proxy-authorization|x-gitlab-token|cookie|set-cookie)(\s*[:=]\s*)[^\r\n]+"), r"\1\2***"),
    (re.compile(r"(?i)\b(password|passwd|token|secret|api[_-]?key)(\"?\s*[:=]\s*\"?)[^\s\",;&]+"), r"\1\2***"),
    (re.compile(r"\b(gh[pousr]_[A-Za-z0-9]{20,}|glpat-[A-Za-z0-9_-]{16,}|eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]*)"), "***"),
)  # fmt: skip
_CONTROL: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def clean(text: str, *, limit: int = 4096) -> str:
    """Text that may be shown, stored in status and logged; at most `limit` characters."""
    for pattern, replacement in _RULES:
        text = pattern.sub(replacement, text)
    text = _CONTROL.sub(" ", text)
    return text if len(text) <= limit else text[: limit - 1] + "…"
