"""`backstay timeline [HOST]`: commits, waves, endpoints, certificates and orders, in the order they happened."""

import re
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import click

from backstay.cli.completion import complete_names
from backstay.cli.exits import OperatorAway
from backstay.cli.output import clock, emit, revision
from backstay.cli.session import Session, output_option, pass_session
from backstay.core.durations import seconds

FOLLOW_TIMEOUT = 60.0
"""Seconds without a sign of life (the operator gives one every 15) after which a followed stream counts as dead."""


class DurationType(click.ParamType[float]):
    """Go-style durations, as everywhere else."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        try:
            return seconds(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


@click.command
@click.argument("host", default="", shell_complete=complete_names)
@click.option("--since", type=DurationType(), default="1h", show_default=True, help="How far back.")
@click.option("-f", "--follow", is_flag=True, help="Go on with what happens from now on.")
@output_option()
@pass_session
def timeline(session: Session, host: str, since: float, follow: bool, output: str) -> None:
    """Commits, waves, endpoints and certificates in one order; with HOST only what concerns it."""
    found = _wanted(_events(session, time.time() - since, follow), host)
    if not follow:
        events = list(found)
        if not events:
            session.say("nothing happened in that time")
        emit(
            output,
            {"apiVersion": "backstay.dev/v1alpha1", "kind": "EventList", "items": events},
            lambda _: "\n".join(map(event_line, events)),
        )
        return
    for event in found:
        emit(output, event, lambda _, event=event: event_line(event))  # type: ignore[misc]


def _events(session: Session, since: float, follow: bool) -> Iterator[Mapping[str, Any]]:
    try:
        yield from session.client(timeout=FOLLOW_TIMEOUT if follow else 10.0).events(since=since, follow=follow)
    except OperatorAway as away:
        if follow:
            raise
        from backstay.cli import offline  # late: only without an operator
        from backstay.core.events import event_object  # late: as above

        session.say(f"{away.message}; answering from its state file")
        yield from map(event_object, offline.read_events(session.state_dir, since=since))


def _wanted(events: Iterable[Mapping[str, Any]], host: str) -> Iterator[Mapping[str, Any]]:
    return (event for event in events if not host or concerns(event, host))


def concerns(event: Mapping[str, Any], name: str) -> bool:
    """Whether the event's subject or sentence names it as a whole word: `sa-logic` is not `sa-logic-v2`."""
    if not name:
        return False
    word = re.compile(rf"(?<![\w-]){re.escape(name)}(?![\w-])")
    return any(word.search(str(event.get(field, ""))) for field in ("subject", "message", "revision"))


def event_line(event: Mapping[str, Any]) -> str:
    mark = click.style("!", fg="yellow") if event["type"] == "Warning" else " "
    about = " ".join(filter(None, (str(event["subject"]), revision(str(event["revision"])))))
    return f"{clock(event['at'])} {mark} {event['kind']:<11} {event['reason']:<18} {event['message']}" + (
        f"  ({about})" if about else ""
    )
