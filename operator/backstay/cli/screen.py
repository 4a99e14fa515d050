"""A live picture of one rollout under traffic on a terminal; one plain line per change everywhere else.

Used by the demo. It knows how a MeshRollout object looks, nothing of how it came to be.
"""

import sys
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.live import Live

_BLOCKS: Final = " ▁▂▃▄▅▆▇█"
_BAR: Final = 24


class Screen:
    """A context manager around everything that is shown."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._live: Live | None = None
        self._console: Console | None = None
        self._last = ""

    def __enter__(self) -> Self:
        if sys.stdout.isatty():
            from rich.console import Console
            from rich.live import Live

            self._console = Console()
            self._live = Live(console=self._console, refresh_per_second=8, transient=True)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def chapter(self, text: str) -> None:
        self._print(f"\n[bold]► {text}[/bold]", f"\n► {text}")

    def done(self, text: str) -> None:
        self._print(f"  [green]✔[/green] {_escape(text)}", f"  ✔ {text}")

    def failed(self, text: str) -> None:
        self._print(f"  [red]✗ {_escape(text)}[/red]", f"  ✗ {text}")

    def say(self, text: str) -> None:
        self._print(_escape(text), text)

    def show(self, rollout: Mapping[str, Any] | None, seconds: Sequence[Mapping[str, Any]]) -> None:
        """The rollout as it is now, and the last seconds of traffic."""
        if self._live is not None:
            self._live.update(_picture(rollout, seconds))
        elif rollout is not None:
            line = progress(rollout)
            if line != self._last:
                self._last = line
                self._print(line, f"    {line}")

    def _print(self, marked_up: str, plain: str) -> None:
        if self._console is not None:
            self._console.print(marked_up, highlight=False)
        else:
            print(plain, flush=True)


def _escape(text: str) -> str:
    return text.replace("[", r"\[")


def progress(rollout: Mapping[str, Any]) -> str:
    """`r2 shifting: stage move, wave 1 of 4: sa-webapp 17 %` - what a line of a log needs."""
    status = rollout["status"]
    shares = ", ".join(f"{_short(item['workload'])} {_percent(item.get('share', 0))}" for item in status["workloads"])
    return f"{status['id']} {status['phase']}: wave {status['wave']} of {status['waves']}: {shares}"


def _short(workload: str) -> str:
    return workload.rpartition("/")[2]


def _percent(share: float) -> str:
    """Shares are percentages in status."""
    return f"{share:.0f} %"


def _picture(rollout: Mapping[str, Any] | None, seconds: Sequence[Mapping[str, Any]]) -> "RenderableType":
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    traffic = Text.assemble("  traffic  ", *(_second(item) for item in seconds))
    if rollout is None:
        return Group(Text(""), traffic)
    status = rollout["status"]
    head = Text(f"  {status['id']}  {status['phase']}  wave {status['wave']} of {status['waves']}", style="bold")
    table = Table.grid(padding=(0, 2))
    for item in status["workloads"]:
        table.add_row("  " + _short(item["workload"]), _bar(item.get("share", 0.0)), _cohorts(item))
    return Group(Text(""), head, table, Text(""), traffic)


def _second(line: Mapping[str, Any]) -> tuple[str, str]:
    """One column a second: as high as its requests, red if any failed."""
    total = sum(line["outcomes"].values())
    bad = sum(count for outcome, count in line["outcomes"].items() if not outcome.startswith("2"))
    height = min(len(_BLOCKS) - 1, round(total / max(line["sent"], 1) * (len(_BLOCKS) - 2)) + 1 if total else 0)
    return _BLOCKS[height], "red" if bad else "green"


def _bar(share: float) -> str:
    full = round(share / 100 * _BAR)
    return "█" * full + "░" * (_BAR - full) + f" {_percent(share):>5}"


def _cohorts(item: Mapping[str, Any]) -> str:
    cohorts = item.get("cohorts") or {}
    return "   ".join(
        f"{name} {found['bad']} of {found['requests']} failed"
        for name in ("candidate", "stable")
        if (found := cohorts.get(name)) and found.get("requests")
    )
