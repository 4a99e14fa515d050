"""`backstay status`: what is live, and whether all is well, on one screen."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import click

from backstay.cli.exits import OperatorAway
from backstay.cli.output import emit, paint, revision
from backstay.cli.session import Session, output_option, pass_session
from backstay.cli.shown import listed, repository

PROBLEMS_SHOWN = 10  # the first mistakes explain the rest; `validate` shows all


@click.command
@output_option()
@pass_session
def status(session: Session, output: str) -> None:
    """What is live, and whether all is well. `-o json` is the MeshRepository object."""
    found = repository(session)
    if output in ("json", "yaml"):
        emit(output, found, lambda _: "")
        return
    lines = [*_head(found), *_fleet(session), *_held(found), *_problems(found)]
    click.echo("\n".join(lines))


def _head(found: dict[str, Any]) -> Iterator[str]:
    spec, state = found["spec"], found["status"]
    place = " ".join(filter(None, (spec["url"], spec["ref"], spec["path"])))
    yield f"mesh       {found['metadata']['name']}  {place}{'  (suspended)' if spec['suspend'] else ''}"
    for one in state["conditions"]:
        word = click.style(one["status"], fg="green" if _is_good(one) else "red")
        yield f"{one['type']:<10} {word}  {one['reason']}: {one['message']}"
    yield f"desired    {revision(state.get('desiredRevision', '')) or '-'}"
    yield f"active     {revision(state.get('activeRevision', '')) or '-'}"


def _is_good(one: dict[str, Any]) -> bool:
    abnormal = one["type"] in ("Reconciling", "Stalled", "FetchFailed", "RolledBack")
    return bool((one["status"] == "True") != abnormal)


def _fleet(session: Session) -> Iterator[str]:
    """Counts; without an operator nobody knows how proxies are."""
    try:
        proxies = listed(session, "proxies")
    except OperatorAway:
        yield "proxies    unknown while no operator runs (they keep serving what they have)"
        return
    intents = listed(session, "intents")
    yield f"proxies    {len(proxies)}: {_counted(proxy['status']['sync'] for proxy in proxies)}"
    yield f"intents    {len(intents)}: {_counted(intent['status']['state'] for intent in intents)}"


def _counted(words: Iterator[str]) -> str:
    return ", ".join(f"{count} {paint(word)}" for word, count in sorted(Counter(words).items())) or "none"


def _held(found: dict[str, Any]) -> Iterator[str]:
    for held in found["status"]["held"]:
        yield f"held       {held['commit'][:8]}: {', '.join(held['documents'])}"
        yield f"           {held['sentence']}"


def _problems(found: dict[str, Any]) -> Iterator[str]:
    problems = found["status"]["problems"]
    for problem in problems[:PROBLEMS_SHOWN]:
        place = ":".join(str(problem[part]) for part in ("file", "line", "column") if part in problem)
        path = f" {problem['path']}:" if "path" in problem else ""
        yield f"{problem['severity']:<10} {place}:{path} {problem['message']} [{problem['reason']}]"
    if len(problems) > PROBLEMS_SHOWN:
        yield f"           and {len(problems) - PROBLEMS_SHOWN} more (`backstay status -o json`)"
