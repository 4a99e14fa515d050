"""`backstay test`: the Expectations of a repository, checked as the operator checks them, or recorded."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from backstay.cli.exits import Exit, Failed
from backstay.cli.output import emit, to_yaml
from backstay.cli.route import parse_headers
from backstay.cli.session import Session, output_option, pass_session
from backstay.cli.validate import problem_object
from backstay.cli.worlds import Where, load, where_options, workload_named
from backstay.core import expectations
from backstay.core.compile import declared
from backstay.core.evaluate import Asked, Request, World, request_to
from backstay.core.intents import ExpectationSpec
from backstay.core.problems import Problem, Severity
from backstay.core.review.formats import plain
from backstay.core.review.routes import rule_samples
from backstay.core.review.space import TooManyPieces, Unknowable


@click.command
@click.option("--record", type=click.Path(path_type=Path, dir_okay=False), help="Write Expectations into this file.")
@click.option(
    "-r",
    "--request",
    "requests",
    multiple=True,
    metavar="'WORKLOAD METHOD URL'",
    help="Record this one; else all rules.",
)
@click.option("-H", "--header", "headers", multiple=True, metavar="NAME: VALUE", help="Of the recorded requests.")
@where_options
@output_option()
@pass_session
def test(
    session: Session,
    record: Path | None,
    requests: tuple[str, ...],
    headers: tuple[str, ...],
    folder: Path,
    at: str,
    live: bool,
    workloads: Path | None,
    registry: Path | None,
    namespace: str,
    output: str,
) -> None:
    """Check every Expectation of a repository. Exit code 1 if one does not hold.

    --record writes what is true now: of the requests given with -r, or of one request for each rule of each Route.
    """
    where = Where(folder=folder, at=at, live=live, workloads=workloads, registry=registry, namespace=namespace)
    world, names_in = load(session, where)
    if record is not None:
        asked = list(_given(world, requests, headers, names_in)) if requests else list(_of_every_rule(session, world))
        _write(record, world, asked, names_in)
        session.say(f"{record}: {len(asked)} expectation{'s' * (len(asked) != 1)}")
        return
    found = expectations.check(world)
    total = sum(isinstance(item.spec, ExpectationSpec) for item in world.snapshot.documents.values())
    emit(output, _object(found, total), lambda _: "\n".join(_lines(found, total)))
    sys.exit(Exit.NO if any(item.severity is Severity.ERROR for item in found) else Exit.OK)


def _object(found: tuple[Problem, ...], total: int) -> dict[str, Any]:
    failed = len({item.document for item in found if item.severity is Severity.ERROR})
    return {
        "apiVersion": "backstay.dev/v1alpha1",
        "kind": "TestResult",
        "expectations": total,
        "failed": failed,
        "problems": [problem_object(item) for item in found],
    }


def _lines(found: tuple[Problem, ...], total: int) -> Iterator[str]:
    failed = len({item.document for item in found if item.severity is Severity.ERROR})
    waiting = len({item.document for item in found if item.severity is not Severity.ERROR})
    yield from (plain(str(item)) for item in found)
    color = "red" if failed else "green"
    told = f", {waiting} cannot be checked yet" if waiting else ""
    yield click.style(f"{total - failed - waiting} of {total} expectations hold{told}", fg=color, bold=True)


# --- recording --------------------------------------------------------------------------------------------------------


def _given(
    world: World, requests: tuple[str, ...], headers: tuple[str, ...], namespace: str
) -> Iterator[tuple[str, Request]]:
    for text in requests:
        words = text.split()
        if len(words) != 3:
            raise Failed(f"{text!r} is no request, expected 'WORKLOAD METHOD URL'")
        caller = workload_named(words[0], world.registry, namespace)
        try:
            yield caller.key, request_to(words[1], words[2], parse_headers(headers))
        except ValueError as error:
            raise Failed(str(error)) from error


def _of_every_rule(session: Session, world: World) -> Iterator[tuple[str, Request]]:
    """One request a rule, from the first workload that says it calls the host, or else the first of all."""
    for caller, key in sorted(_first_callers(world).items()):
        try:
            yield from ((key, _request(question)) for question in rule_samples(world, key, caller))
        except (TooManyPieces, Unknowable) as error:
            session.say(f"{caller} is left out: {str(error) or 'its rules cross each other in too many ways'}")


def _first_callers(world: World) -> dict[str, str]:
    """Routes part -> a workload that may ask it, of those hosts that a document is about."""
    found: dict[str, str] = {}
    workloads = sorted(world.registry.workloads.values(), key=lambda item: (declared(item) is None, item.key))
    for workload in workloads:
        for key in world.manifest(workload.key).parts:
            if key.startswith("routes/") and key not in found and world.document_of(workload.key, key) is not None:
                found[key] = workload.key
    return found


def _request(question: Asked) -> Request:
    return Request(
        method=question.method.decode(),
        authority=question.authority.decode(),
        path=question.path.decode(),
        query=question.query.decode(),
        headers=tuple((name.decode(), value.decode("latin-1")) for name, value in question.fields),
    )


def _write(path: Path, world: World, asked: list[tuple[str, Request]], namespace: str) -> None:
    documents = []
    names: dict[str, int] = {}
    for caller, request in asked:
        trace = world.trace(caller, request)
        rule = trace.sent.rule.name if trace.sent.rule is not None else "none"
        host = request.authority.partition(":")[0].partition(".")[0].lower()
        stem = "".join(char if char.isalnum() else "-" for char in f"{host}-{rule}".lower()).strip("-")[:50]
        names[stem] = names.get(stem, 0) + 1
        name = stem if names[stem] == 1 else f"{stem}-{names[stem]}"
        documents.append(expectations.recorded(trace, name, namespace))
    path.write_text("---\n".join(to_yaml(item) for item in documents), encoding="utf-8")
