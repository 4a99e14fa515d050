"""One timeline entry as people and programs get to see it."""

from typing import Any

from backstay.core.ports import Event
from backstay.redact import clean


def event_object(event: Event) -> dict[str, Any]:
    """Plain JSON values, cleaned: events carry commit subjects and foreign error texts."""
    return {
        "number": event.number,
        "at": event.at,
        "kind": event.kind,
        "type": "Warning" if event.warning else "Normal",
        "reason": event.reason,
        "message": clean(event.message),
        "revision": event.revision,
        "subject": clean(event.subject),
    }
