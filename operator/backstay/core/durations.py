"""Go-style durations (`1m30s`, `250ms`), as kubectl users write them."""

import re
from functools import lru_cache
from typing import Final

_UNIT_SECONDS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_PART: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h)")


@lru_cache(maxsize=1024)  # a mesh has the same few durations in thousands of places
def seconds(text: str) -> float:
    """Seconds of a duration. Raises ValueError for anything else."""
    parts = _PART.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise ValueError(f"{text!r} is not a duration; expected something like '250ms', '15s' or '1m30s'")
    return sum(float(number) * _UNIT_SECONDS[unit] for number, unit in parts)


def milliseconds(text: str) -> int:
    return round(seconds(text) * 1000)


def spell(value: float) -> str:
    """A duration for people: `1.3s`, `2m10s`, `3h05m`."""
    if value < 10:
        return f"{value:.1f}s"
    if value < 60:
        return f"{value:.0f}s"
    if value < 3600:
        return f"{int(value // 60)}m{int(value % 60):02d}s"
    return f"{int(value // 3600)}h{int(value % 3600 // 60):02d}m"
