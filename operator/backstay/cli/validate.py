"""`backstay validate [DIR]`: what the operator would say of these files, before they are pushed."""

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import click

from backstay.cli.exits import Exit
from backstay.cli.files import Files, read_folder
from backstay.cli.output import to_json, to_yaml
from backstay.cli.registries import declared
from backstay.cli.session import Session, pass_session
from backstay.core.codes import code_of
from backstay.core.problems import Problem, Severity
from backstay.core.validate import Validated
from backstay.core.validate import validate as judge

DEFAULT_NAMESPACE: Final = "default"  # as kubectl's
_COLORS: Final = {Severity.ERROR: "red", Severity.WARNING: "yellow", Severity.WAITING: "cyan"}
_GITHUB: Final = {Severity.ERROR: "error", Severity.WARNING: "warning", Severity.WAITING: "notice"}
_SARIF: Final = {Severity.ERROR: "error", Severity.WARNING: "warning", Severity.WAITING: "note"}


@click.command
@click.argument("folder", metavar="[DIR]", type=click.Path(path_type=Path), default=".")
@click.option(
    "-w", "--workloads", type=click.Path(path_type=Path), help="Check services and workloads against this file."
)
@click.option(
    "-n", "--namespace", default="", help="Of documents that do not name theirs; else the workloads file says."
)
@click.option("-o", "--output", type=click.Choice(("text", "json", "yaml", "github", "sarif")), default="text")
@pass_session
def validate(session: Session, folder: Path, workloads: Path | None, namespace: str, output: str) -> None:
    """Check a folder of documents as the operator would.

    Exit code 0: valid, 1: invalid, 2: could not be read. Warnings and what waits for the registry are no errors.
    """
    files = read_folder(folder)
    known = declared(workloads) if workloads else None
    result = judge(
        files.contents,
        revision=files.revision,
        registry=known.registry if known else None,
        default_namespace=namespace or (known.namespace if known else DEFAULT_NAMESPACE),
        refused=files.refused,
    )
    if output in ("github", "sarif"):
        result = replace(result, problems=from_here(result.problems, folder))
    shown = WRITERS[output](result, files)
    if shown:
        click.echo(shown)
    if output == "text":
        session.say(summary(result, folder))
    sys.exit(Exit.NO if result.errors else Exit.OK)


def from_here(problems: Iterable[Problem], folder: Path) -> tuple[Problem, ...]:
    """With files named from the present folder: in a pipeline that is the checkout's root, which forges count from."""
    return tuple(replace(problem, file=(folder / problem.file).as_posix()) for problem in problems)


def label(reason: str) -> str:
    """`BS1403 WeightSum`."""
    return f"{code_of(reason)} {reason}".strip()


def summary(result: Validated, folder: Path) -> str:
    counts = {severity: sum(p.severity is severity for p in result.problems) for severity in Severity}
    told = [
        f"{count} {severity.value}{'s' * (count != 1)}"
        for severity, count in counts.items()
        if count and severity is not Severity.WAITING
    ]
    if counts[Severity.WAITING]:
        told.append(f"{counts[Severity.WAITING]} waiting for the registry")
    word = "invalid" if result.errors else "valid"
    return f"{folder}: {len(result.documents)} documents, {word}{' (' + ', '.join(told) + ')' if told else ''}"


def as_text(result: Validated, files: Files) -> str:
    return "\n".join(line for problem in result.problems for line in problem_lines(problem, files.contents))


def problem_lines(problem: Problem, contents: Mapping[str, bytes]) -> Iterator[str]:
    """`file:line:col: path: message [BSnnnn Reason]`, the line itself, and a caret below the place."""
    place = ":".join(str(part) for part in (problem.file, problem.line, problem.column) if part)
    path = f" {problem.path}:" if problem.path else ""
    severity = click.style(problem.severity.value, fg=_COLORS[problem.severity], bold=True)
    yield f"{place}:{path} {severity}: {problem.message} [{label(problem.reason)}]"
    yield from _excerpt(problem, contents)


def _excerpt(problem: Problem, contents: Mapping[str, bytes]) -> Iterator[str]:
    lines = contents.get(problem.file, b"").decode("utf-8", "replace").splitlines()
    if not 0 < problem.line <= len(lines):
        return
    number = f"{problem.line:>5}"
    source = "".join(character if character.isprintable() else " " for character in lines[problem.line - 1])
    yield f"{number} | {source}"
    if problem.column:
        yield f"{'':>5} | {' ' * (problem.column - 1)}{click.style('^', fg=_COLORS[problem.severity], bold=True)}"


def result_object(result: Validated, files: Files) -> dict[str, Any]:
    return {
        "apiVersion": "backstay.dev/v1alpha1",
        "kind": "ValidationResult",
        "valid": not result.errors,
        "documents": len(result.documents),
        "files": len(files.contents),
        "problems": [problem_object(problem) for problem in result.problems],
    }


def problem_object(problem: Problem) -> dict[str, Any]:
    return {
        "file": problem.file,
        "line": problem.line,
        "column": problem.column,
        "path": problem.path,
        "message": problem.message,
        "reason": problem.reason,
        "code": code_of(problem.reason),
        "severity": problem.severity.value,
        "document": problem.document,
    }


def as_github(problems: Iterable[Problem]) -> str:
    """Workflow commands: GitHub shows each beside its line in the pull request."""
    return "\n".join(_github_line(problem) for problem in problems)


def _github_line(problem: Problem) -> str:
    fields = {
        "file": problem.file,
        "line": problem.line,
        "col": problem.column,
        "title": label(problem.reason),
    }
    told = ",".join(f"{key}={_escape(str(value), ',:')}" for key, value in fields.items() if value)
    path = f"{problem.path}: " if problem.path else ""
    return f"::{_GITHUB[problem.severity]} {told}::{_escape(path + problem.message)}"


def _escape(text: str, also: str = "") -> str:
    """As GitHub's own toolkit escapes: percent first, then line ends, then what separates properties."""
    for character in "%\r\n" + also:
        text = text.replace(character, f"%{ord(character):02X}")
    return text


def sarif_object(problems: Sequence[Problem]) -> dict[str, Any]:
    """SARIF 2.1.0: what code scanning services take."""
    rules = sorted({problem.reason for problem in problems})
    driver = {
        "name": "backstay",
        "informationUri": "https://backstay.dev",
        "rules": [{"id": code_of(reason), "name": reason} for reason in rules],
    }
    return {
        "version": "2.1.0",
        "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
        "runs": [{"tool": {"driver": driver}, "results": [_sarif_result(problem) for problem in problems]}],
    }


def _sarif_result(problem: Problem) -> dict[str, Any]:
    region = {"startLine": max(problem.line, 1), "startColumn": max(problem.column, 1)}
    place = {"artifactLocation": {"uri": problem.file}, "region": region}
    return {
        "ruleId": code_of(problem.reason),
        "level": _SARIF[problem.severity],
        "message": {"text": f"{problem.path}: {problem.message}" if problem.path else problem.message},
        "locations": [{"physicalLocation": place}],
    }


WRITERS: Final[Mapping[str, Callable[[Validated, Files], str]]] = {
    "text": as_text,
    "json": lambda result, files: to_json(result_object(result, files)),
    "yaml": lambda result, files: to_yaml(result_object(result, files)).rstrip("\n"),
    "github": lambda result, _: as_github(result.problems),
    "sarif": lambda result, _: json.dumps(sarif_object(result.problems), indent=2),
}
