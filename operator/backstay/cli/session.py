"""What every verb gets to know: where the operator's state is, how to speak, in which form to answer."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

if TYPE_CHECKING:
    from backstay.cli.client import Client

_Command = TypeVar("_Command", bound=Callable[..., Any])
FORMATS: Final = ("table", "wide", "json", "yaml")


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    state_dir: Path
    verbosity: int = 0
    """-1: only errors and what was asked for; 1: more."""
    actor: str = ""
    """Who gives orders; empty: the user of this machine. `kubectl backstay` says whom the API server knows."""

    def say(self, text: str) -> None:
        """Talk: for people, on stderr, never mixed with data."""
        if self.verbosity >= 0:
            click.echo(text, err=True)

    def client(self, *, timeout: float = 10.0) -> "Client":
        from backstay.cli.client import Client  # late: 20 ms for HTTP that `version` need not pay

        return Client(self.state_dir, timeout=timeout, actor=self.actor)


pass_session: Final = click.make_pass_decorator(Session)


def default_state_dir() -> Path:
    """Where `backstay up` keeps its state unless told otherwise: the user's state folder, as XDG says."""
    home = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(home) / "backstay"


def output_option(*more: str) -> Callable[[_Command], _Command]:
    """`-o`, the same everywhere; some verbs know more forms."""
    return click.option(
        "-o",
        "--output",
        type=click.Choice((*FORMATS, *more)),
        default="table",
        show_default=True,
        help="Form of the answer.",
    )


def reason_option(command: _Command) -> _Command:
    return click.option("--reason", default="", help="Why; kept with the order and shown to others.")(command)
