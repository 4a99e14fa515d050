"""Exit codes, and the one kind of error the command line ends with. docs/cli.md shows the same table (tested)."""

import enum
from typing import IO, Any

import click


class Exit(enum.IntEnum):
    OK = 0
    NO = 1
    TROUBLE = 2
    TIMEOUT = 3
    ROLLED_BACK = 4
    HELD = 5
    INVALID = 6
    INTERRUPTED = 130

    @property
    def meaning(self) -> str:
        return _MEANINGS[self]


_MEANINGS = {
    Exit.OK: "yes, or done",
    Exit.NO: "the answer is no: invalid, differs (with --exit-code), refused, rollout failed, a check failed",
    Exit.TROUBLE: "used wrongly, or could not find out",
    Exit.TIMEOUT: "timed out while waiting",
    Exit.ROLLED_BACK: "`wait`: the revision was rolled back",
    Exit.HELD: "`wait`: the revision is held (aborted or rolled back by a person, or it needs a held document)",
    Exit.INVALID: "`wait`: the revision is invalid",
    Exit.INTERRUPTED: "interrupted (Ctrl-C)",
}


class Failed(click.ClickException):
    """One clear sentence, and what to do about it."""

    def __init__(self, message: str, *, hint: str = "", code: Exit = Exit.TROUBLE) -> None:
        super().__init__(message)
        self.hint = hint
        self.code = code

    def show(self, file: IO[Any] | None = None) -> None:
        click.echo(f"{click.style('error:', fg='red', bold=True)} {self.message}", err=True)
        if self.hint:
            click.echo(f"{click.style('hint:', fg='cyan')} {self.hint}", err=True)


class OperatorAway(Failed):
    """Nobody answers on the operator's socket."""
