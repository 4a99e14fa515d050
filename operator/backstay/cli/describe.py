"""`backstay describe KIND NAME`: everything about one object, then what happened to it."""

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from backstay.cli.completion import complete_names, qualified
from backstay.cli.exits import Failed, OperatorAway
from backstay.cli.get import Kind
from backstay.cli.output import emit, paint
from backstay.cli.registries import live_registry
from backstay.cli.session import Session, output_option, pass_session
from backstay.cli.shown import listed, matches, nothing_named
from backstay.cli.timeline import concerns, event_line

if TYPE_CHECKING:
    from backstay.core.review.scope import Scope

EVENTS_SHOWN = 20  # a screen
EVENTS_BACK = 7 * 24 * 3600.0  # seconds; a week answers "what happened to it lately"


@click.command
@click.argument("kind", type=Kind())
@click.argument("name", shell_complete=complete_names)
@output_option()
@pass_session
def describe(session: Session, kind: str, name: str, output: str) -> None:
    """Everything about one object, with its events."""
    item = find(listed(session, kind), kind, name)
    events = [] if output in ("json", "yaml") else _events(session, kind, item)
    scope = [] if kind != "workloads" or output in ("json", "yaml") else _scope(session, item)
    emit(output, item, lambda _: "\n".join([*_lines(item, 0), *scope, *_event_lines(events)]))


def find(items: list[dict[str, Any]], kind: str, name: str) -> dict[str, Any]:
    """The one object that is meant. Raises Failed for none and for several."""
    found = [item for item in items if matches(kind, item, name)]
    if not found:
        raise nothing_named(kind, items, name)
    exact = [item for item in found if qualified(kind, item) == name]
    if len(found) > 1 and len(exact) != 1:
        names = ", ".join(qualified(kind, item) for item in found)
        raise Failed(f"{name!r} may be any of {names}", hint="say the full name")
    return (exact or found)[0]


def _lines(value: dict[str, Any], depth: int) -> Iterator[str]:
    """Nested values indented, conditions one a line: read by people, so no quotes and no empty fields."""
    pad = "  " * depth
    for key, inner in value.items():
        if key == "conditions":
            yield f"{pad}conditions:"
            yield from (_condition_line(one, pad) for one in inner)
        elif isinstance(inner, dict):
            yield f"{pad}{key}:{'' if inner else ' -'}"
            yield from _lines(inner, depth + 1)
        elif isinstance(inner, list):
            yield from _list_lines(key, inner, depth)
        elif inner != "":
            yield f"{pad}{key}: {paint(str(inner))}"


def _list_lines(key: str, values: list[Any], depth: int) -> Iterator[str]:
    pad = "  " * depth
    if all(not isinstance(value, dict) for value in values):
        yield f"{pad}{key}: {', '.join(map(str, values)) or '-'}"
        return
    yield f"{pad}{key}:"
    for value in values:
        first, *rest = _lines(value, depth + 2)
        yield f"{pad}  - {first.strip()}"
        yield from rest


def _condition_line(one: dict[str, Any], pad: str) -> str:
    word, since = one["status"], one["lastTransitionTime"]
    padded = paint(word) + " " * (8 - len(word))
    return f"{pad}  {one['type']:<13} {padded} {one['reason']}: {one['message']} (since {since})"


def _events(session: Session, kind: str, item: dict[str, Any]) -> list[dict[str, Any]]:
    """The newest events that name it; none when the operator is away (the object itself came from its memory)."""
    words = _names(kind, item)
    try:
        events = list(session.client().events(since=time.time() - EVENTS_BACK))
    except OperatorAway:
        return []
    return [event for event in events if any(concerns(event, word) for word in words)][-EVENTS_SHOWN:]


def _names(kind: str, item: dict[str, Any]) -> list[str]:
    full = qualified(kind, item)
    return [full, str(item["spec"].get("name", "")) or str(item["metadata"]["name"])]


def _event_lines(events: list[dict[str, Any]]) -> list[str]:
    return ["events:", *(f"  {event_line(event)}" for event in events)] if events else []


def _scope(session: Session, item: dict[str, Any]) -> list[str]:
    """What applies to a workload, what it may reach and who may reach it, by what is live."""
    from backstay.cli.worlds import live_snapshot, settled  # late: only for workloads
    from backstay.core.evaluate import UnknownWorkload, world
    from backstay.core.review.scope import scope_of

    key = qualified("workloads", item)
    registry = live_registry(session.client())
    try:
        found = scope_of(world(settled(session, live_snapshot(session), registry), registry), key)
    except (OperatorAway, UnknownWorkload):
        return []
    return list(scope_lines(found))


def scope_lines(scope: "Scope") -> Iterator[str]:
    if scope.outside:
        yield "from outside:"
        yield from (f"  {text}  {click.style(place, dim=True)}".rstrip() for text, place in scope.outside)
    yield "accepts:" if scope.mtls or scope.policies else "accepts: nothing, it has no ports"
    for port, mode in scope.mtls:
        yield f"  port {port}: mTLS {mode.upper()}  {click.style(scope.mtls_place, dim=True)}".rstrip()
    yield from (f"  {item.action} {item.name}  {click.style(item.place, dim=True)}" for item in scope.policies)
    if scope.callers:
        yield "callers:"
    for caller in scope.callers:
        told = f": {'; '.join(caller.requests)}" if caller.requests else ""
        yield f"  {caller.name} may {caller.extent} of port {caller.port}{told}"
    yield "may reach:" if scope.reaches else "may reach: nothing it has told of"
    yield from (f"  {host}  {click.style(place, dim=True)}".rstrip() for host, place in scope.reaches)
