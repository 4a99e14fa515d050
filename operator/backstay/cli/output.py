"""Data on stdout in the form that was asked for. Tables are plain text in columns, as kubectl writes them: they can be
cut by awk and pasted into a chat. Pure except for `emit`, which writes."""

import datetime
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import click

from backstay.core.durations import spell

Json: TypeAlias = Mapping[str, Any]
BAR_WIDTH: Final = 24  # half the width of a narrow terminal's free space; one column is 4 %
DIGEST_SHOWN: Final = 12  # as git and docker do; unique in any mesh that fits on a machine

_COLORS: Final = {
    **dict.fromkeys(("True", "live", "pass", "succeeded", "synced", "baking", "ok"), "green"),
    **dict.fromkeys(("invalid", "fail", "failed", "rolled-back", "refused", "rolling-back"), "red"),
    **dict.fromkeys(("held", "waiting", "holding", "paused", "stale", "away", "partly-live", "aborted"), "yellow"),
    **dict.fromkeys(("rolling-out", "shifting", "preparing", "splitting", "queued", "pending"), "cyan"),
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    title: str
    value: Callable[[Json], str]
    wide: bool = False
    """Only with -o wide."""


def table(columns: Sequence[Column], rows: Sequence[Json], *, wide: bool = False, headers: bool = True) -> str:
    """Columns two spaces apart; colours do not count for the width."""
    shown = [column for column in columns if wide or not column.wide]
    cells = [[column.value(row) or "-" for column in shown] for row in rows]
    head = [[column.title for column in shown]] if headers else []
    widths = [max(len(line[place]) for line in [*head, *cells]) for place in range(len(shown))] if head or cells else []
    return "\n".join(_line(line, widths) for line in [*head, *cells])


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    padded = [paint(cell) + " " * (width - len(cell)) for cell, width in zip(cells, widths, strict=True)]
    return "  ".join(padded).rstrip()


def paint(word: str) -> str:
    """A status word in its colour; all other text as it is. click strips colours where nobody can see them."""
    color = _COLORS.get(word)
    return click.style(word, fg=color) if color else word


def emit(output: str, data: Any, text: Callable[[bool], str]) -> None:
    """Write `data` as JSON or YAML, or the text that `text(wide)` makes."""
    if output == "json":
        click.echo(to_json(data))
    elif output == "yaml":
        click.echo(to_yaml(data), nl=False)
    else:
        shown = text(output == "wide")
        if shown:
            click.echo(shown)


def to_json(data: Any) -> str:
    import msgspec  # late: 10 ms that `version` need not pay

    return msgspec.json.format(msgspec.json.encode(data), indent=2).decode()


def to_yaml(data: Any) -> str:
    """Nothing in it moves a cursor or turns the reading direction: such characters are written as escapes."""
    import yaml  # late: 20 ms, only when asked for

    class Visible(yaml.SafeDumper):
        """Quotes what holds characters that need an escape: plain text knows none."""

    def represent(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
        style = None if all(char.isprintable() or char == "\n" for char in text) else '"'
        return dumper.represent_scalar("tag:yaml.org,2002:str", text, style)

    Visible.add_representer(str, represent)
    written: str = yaml.dump(data, Dumper=Visible, sort_keys=False, allow_unicode=True, width=120)
    return "".join(char if char.isprintable() or char == "\n" else f"\\U{ord(char):08x}" for char in written)


def digest(text: str) -> str:
    return text[:DIGEST_SHOWN]


def revision(text: str) -> str:
    """`main@sha1:1a2b3c4d`."""
    head, colon, sha = text.rpartition(":")
    return f"{head}{colon}{sha[:8]}"


def age(stamp: str, now: float) -> str:
    """How long ago an RFC 3339 time was."""
    if not stamp:
        return ""
    return spell(max(now - datetime.datetime.fromisoformat(stamp).timestamp(), 0.0))


def clock(seconds: float) -> str:
    """A moment in the reader's own time zone."""
    return datetime.datetime.fromtimestamp(seconds).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def ratio(part: int, whole: int) -> str:
    return f"{part}/{whole}"


def share_of(bad: int, total: int) -> str:
    """`41/118 (35 %)`; with no request there is no rate."""
    return f"{bad}/{total} ({100 * bad / total:.3g} %)" if total else "0/0"


def bar(percent: float, width: int = BAR_WIDTH) -> str:
    """How far the candidate has come; something is visible as soon as there is anything, and full means all."""
    full = round(percent / 100 * width)
    if 0 < percent < 100:
        full = min(max(full, 1), width - 1)
    return "█" * full + "░" * (width - full)


def condition(item: Json, kind: str) -> Json:
    """The condition of that type, or an empty one."""
    conditions: list[Json] = item.get("status", {}).get("conditions", [])
    return next((found for found in conditions if found["type"] == kind), {})
