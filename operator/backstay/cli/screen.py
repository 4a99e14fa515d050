"""A terminal on which a story is told: chapters that stay, and below them a live picture; plain lines where nobody sees
pictures (a pipe, CI).

Used by the demo. What the picture shows is picture.py's.
"""

import sys
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

if TYPE_CHECKING:
    from rich.console import Console
    from rich.live import Live

REDRAWN: Final = 8  # times a second: smooth, and a few percent of a core


class Screen:
    """A context manager around everything that is shown."""

    def __init__(self) -> None:
        self._live: Live | None = None
        self._console: Console | None = None
        self._last = ""

    def __enter__(self) -> Self:
        if sys.stdout.isatty():
            from rich.console import Console
            from rich.live import Live

            self._console = Console(highlight=False)
            self._live = Live(console=self._console, refresh_per_second=REDRAWN, transient=True)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def chapter(self, text: str) -> None:
        self._print(f"\n► {text}", style="bold cyan")

    def done(self, text: str) -> None:
        self._item("✔", "bold green", text)

    def failed(self, text: str) -> None:
        self._item("✗", "bold red", text)

    def say(self, text: str) -> None:
        self._print(text)

    def clear(self) -> None:
        """Take the live picture away: what comes now is the end."""
        if self._live is not None:
            self._live.update("", refresh=True)

    def show(self, rollout: Mapping[str, Any] | None, seconds: Sequence[Mapping[str, Any]]) -> None:
        """The rollout as it is now, and the last seconds of traffic."""
        if self._live is not None and self._console is not None:
            from backstay.cli.picture import picture  # late: only where there is a terminal

            self._live.update(picture(rollout, seconds, width=self._console.width))
        elif rollout is not None:
            self._say_change(progress(rollout))

    def _item(self, sign: str, style: str, text: str) -> None:
        """A sign and a sentence; what is too long for the line goes on under the sentence, not under the sign."""
        if self._console is None:
            print(f"  {sign} {text}", flush=True)
            return
        from rich.table import Table  # late: as above
        from rich.text import Text

        grid = Table.grid(padding=(0, 1))
        grid.add_row(Text(f"  {sign}", style=style), Text(text))
        self._console.print(grid)

    def _say_change(self, line: str) -> None:
        if line != self._last:
            self._last = line
            self._print(f"    {line}")

    def _print(self, text: str, style: str = "") -> None:
        if self._console is None:
            print(text, flush=True)
            return
        from rich.padding import Padding  # late: as above
        from rich.text import Text

        indent = len(text) - len(text.lstrip(" "))  # lines that wrap keep it
        self._console.print(Padding(Text(text[indent:], style=style), (0, 0, 0, indent)))


def progress(rollout: Mapping[str, Any]) -> str:
    """`r2 shifting: wave 1 of 4: sa-webapp 17 %`: what a line of a log needs."""
    from backstay.cli.picture import share_shown  # late: as above

    status = rollout["status"]
    shares = ", ".join(
        f"{item['workload'].rpartition('/')[2]} {share_shown(rollout, item):.0f} %" for item in status["workloads"]
    )
    return f"{status['id']} {status['phase']}: wave {status['wave']} of {status['waves']}: {shares}"
