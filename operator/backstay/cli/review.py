"""`backstay review BASE..HEAD`: what a change does, said before it is merged.

Reads two revisions (or two folders), asks the core, writes the report down. In a pipeline it finds out by itself what is
compared; a base that has moved on is replaced by where the two parted.
"""

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

import click

from backstay.cli.exits import Exit, Failed
from backstay.cli.files import Files, read_folder, read_revision
from backstay.cli.output import to_yaml
from backstay.cli.registries import Declared
from backstay.cli.session import Session, pass_session
from backstay.cli.worlds import registry_of, without_collector
from backstay.core.evaluate import World
from backstay.core.review import formats
from backstay.core.review.report import Report, as_object
from backstay.core.validate import Cache, validate
from backstay.reconciler.reviewing import Side, base_side, review_of

FORMATS: Final = ("text", "markdown", "json", "yaml", "sarif", "github", "junit")
_GIT_TIMEOUT: Final = 60.0  # seconds; asks the local object store only


@click.command
@click.argument("revisions", metavar="[BASE..HEAD | BASE_DIR HEAD_DIR]", nargs=-1)
@click.option("-d", "--dir", "folder", type=click.Path(path_type=Path), default=".", help="Folder of the documents.")
@click.option("-w", "--workloads", type=click.Path(path_type=Path), help="Services and workloads, from a file.")
@click.option("--registry", type=click.Path(path_type=Path), help="Services and workloads, from a JSON file.")
@click.option("-n", "--namespace", default="", help="Of documents that do not name theirs.")
@click.option("-o", "--output", "outputs", multiple=True, metavar="FORMAT[=FILE]", help=f"{', '.join(FORMATS)}.")
@click.option(
    "--fail-on",
    type=click.Choice(("deny", "warn", "widening", "never")),
    default="deny",
    show_default=True,
    help="What makes the exit code 1: invalid or forbidden; warnings too; wider access too.",
)
@click.option("--traffic", type=click.File("rb"), help="Access log: whom a stricter mTLS mode would refuse.")
@click.option("--comment", is_flag=True, help="Write the report into one comment of the pull request, edited in place.")
@pass_session
def review(
    session: Session,
    revisions: tuple[str, ...],
    folder: Path,
    workloads: Path | None,
    registry: Path | None,
    namespace: str,
    outputs: tuple[str, ...],
    fail_on: str,
    traffic: IO[bytes] | None,
    comment: bool,
) -> None:
    """Say what a change does: to which requests, to whose access, by which line.

    BASE..HEAD are commits of the repository in --dir; HEAD left out is the working folder. In a pull request's pipeline
    nothing needs to be said.
    """
    targets = [_target(text) for text in outputs or ("text",)]
    known = registry_of(session, workloads, registry, traffic=True)
    compared = compare(revisions, folder)
    with without_collector():
        report = make_report(compared, known, namespace or known.namespace, traffic)
    inside = "" if len(revisions) == 2 else within_repository(folder)
    for form, path in targets:
        text = written(report, form, inside)
        if path is None:
            click.echo(text)
        else:
            path.write_text(text + "\n", encoding="utf-8")
    if comment:
        from backstay.cli.pull_request import write_comment  # aiohttp, only where it is needed

        write_comment(session, formats.as_markdown(report))
    sys.exit(Exit.NO if fails(report, fail_on) else Exit.OK)


def _target(text: str) -> tuple[str, Path | None]:
    form, _, path = text.partition("=")
    if form not in FORMATS:
        raise Failed(f"unknown form {form!r}, expected one of {', '.join(FORMATS)}")
    return form, Path(path) if path else None


def fails(report: Report, fail_on: str) -> bool:
    """Whether the exit code says no; each level takes in the ones before it."""
    if fail_on == "never":
        return False
    warned = fail_on in ("warn", "widening") and report.warned
    return report.denied or warned or (fail_on == "widening" and report.widens)


# --- what is compared -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    base: Files
    head: Files
    notes: tuple[str, ...] = ()


def compare(revisions: tuple[str, ...], folder: Path) -> Compared:
    if len(revisions) == 2:
        base, head = (Path(text) for text in revisions)
        return Compared(base=_named(read_folder(base), str(base)), head=_named(read_folder(head), str(head)))
    if len(revisions) > 2:
        raise Failed("expected BASE..HEAD or two folders")
    text = revisions[0] if revisions else from_pipeline(os.environ)
    base_revision, dots, head_revision = text.partition("..")
    head_revision = head_revision.removeprefix(".")
    base_revision, notes = _parted(folder, base_revision, (head_revision or "HEAD") if dots else "HEAD")
    head_files = read_revision(folder, head_revision) if head_revision else read_folder(folder)
    return Compared(base=read_revision(folder, base_revision), head=head_files, notes=notes)


def _named(files: Files, name: str) -> Files:
    return Files(contents=files.contents, refused=files.refused, revision=name)


_PIPELINES: Final = (
    ("GITHUB_BASE_REF", "origin/{}"),
    ("CI_MERGE_REQUEST_DIFF_BASE_SHA", "{}"),
    ("CI_MERGE_REQUEST_TARGET_BRANCH_NAME", "origin/{}"),
    ("CHANGE_TARGET", "origin/{}"),
)
"""Variables in which forges name the base of a pull request: GitHub, Gitea and Forgejo; GitLab; Jenkins."""


def from_pipeline(environment: Mapping[str, str]) -> str:
    """`BASE..HEAD` of the pull request that a pipeline runs for. Raises Failed outside of one."""
    for name, form in _PIPELINES:
        if environment.get(name):
            return f"{form.format(environment[name])}..HEAD"
    raise Failed("nothing says what to compare", hint="name it: `backstay review main..HEAD`")


def _parted(folder: Path, base: str, head: str) -> tuple[str, tuple[str, ...]]:
    """The commit from which `head` goes on: the base itself, or where the two parted. Raises Failed."""
    found = _git(folder, "merge-base", "--end-of-options", base, head)
    if found.returncode == 0:
        parted = found.stdout.strip()
        exact = _git(folder, "rev-parse", "--verify", "--end-of-options", f"{base}^{{commit}}").stdout.strip()
        if parted == exact:
            return base, ()
        return parted, (f"{base} has moved on: compared with {parted[:12]}, where the two parted",)
    if _git(folder, "rev-parse", "--is-shallow-repository").stdout.strip() == "true":
        raise Failed(
            f"the commit at which {head} left {base} is not in this shallow clone",
            hint="fetch more of it: `fetch-depth: 0` for actions/checkout, `GIT_DEPTH: 0` on GitLab, "
            "or `git fetch --deepen=100`",
        )
    said = found.stderr.strip().splitlines()
    if said:
        raise Failed(f"git: {said[-1]}", hint=f"is {base!r} fetched? `git fetch origin {base.removeprefix('origin/')}`")
    return base, (f"{base} and {head} have no common history: everything is compared",)


def _git(folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    command = ["git", "-C", str(folder), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=_GIT_TIMEOUT, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Failed(f"cannot run git: {error}") from error


# --- the report -------------------------------------------------------------------------------------------------------


def make_report(compared: Compared, known: Declared, namespace: str, traffic: IO[bytes] | None = None) -> Report:
    """Validate the head, read the base, compare them; files that did not change are read once."""
    registry = known.registry
    cache = Cache()
    base = base_side(compared.base.contents, compared.base.revision, default_namespace=namespace, cache=cache)
    head = compared.head
    validated = validate(
        head.contents,
        revision=head.revision,
        registry=registry,
        default_namespace=namespace,
        refused=head.refused,
        cache=cache,
    )
    side = Side(revision=head.revision, validated=validated)
    return review_of(
        base,
        side,
        registry,
        notes=compared.notes,
        seen=lambda old, new: _plaintext(traffic, old, new),
        traffic=known.traffic,
        rollout_defaults=known.rollout_defaults,
    )


def _plaintext(traffic: IO[bytes] | None, before: World, after: World) -> tuple[str, ...]:
    if traffic is None:
        return ()
    from backstay.cli.replay import feed  # it reads logs, and is needed only with one
    from backstay.core.review.replay import PlaintextCallers

    callers = PlaintextCallers(before, after)
    feed(callers, traffic, "")
    return callers.told()


def within_repository(folder: Path) -> str:
    """Where the documents lie in their repository, `mesh/`; empty at its root, and outside of any."""
    asked = _git(folder, "rev-parse", "--show-prefix")
    return asked.stdout.rstrip("\n") if asked.returncode == 0 else ""


def written(report: Report, form: str, inside: str = "") -> str:
    writers: dict[str, Any] = {
        "text": lambda: "\n".join(text_lines(report)),
        "markdown": lambda: formats.as_markdown(report).rstrip("\n"),
        "json": lambda: _ascii_json(as_object(report)),
        "yaml": lambda: to_yaml(as_object(report)).rstrip("\n"),
        "sarif": lambda: _ascii_json(formats.as_sarif(report, inside)),
        "github": lambda: formats.as_github(report, inside),
        "junit": lambda: formats.as_junit(report),
    }
    found: str = writers[form]()
    return found


def _ascii_json(data: Any) -> str:
    """JSON that may be shown on a terminal: nothing but ASCII, so nothing that turns the reading direction."""
    import json

    return json.dumps(data, indent=2)


_COLORS: Final = {"error": "red", "warning": "yellow", "notice": "cyan"}
_DIRECTIONS: Final = {"gains": ("+", "red"), "loses": ("-", "yellow"), "refused otherwise": ("~", "cyan")}


def text_lines(report: Report) -> Iterator[str]:
    """The report for a terminal."""
    plain = formats.plain
    color = "red" if report.denied else "yellow" if report.widens or report.warned else "green"
    yield click.style(plain(formats.summary(report)), fg=color, bold=True)
    yield f"{plain(report.base)} → {plain(report.head)}"
    for item in (*report.problems, *report.guardrails):
        place = ":".join(str(part) for part in (plain(item.file), item.line, item.column) if part)
        severity = click.style(item.severity, fg=_COLORS[item.severity], bold=True)
        yield f"  {place}: {severity}: {plain(item.message)} [{plain(item.reason)}]"
    yield from _access_text(report)
    yield from _request_text(report)
    if report.plaintext:
        yield "\nplaintext callers seen that would be refused"
        yield from (f"  {plain(text)}" for text in report.plaintext)
    yield from _traffic_text(report)
    yield ""
    yield plain(formats.rollout_sentence(report))
    yield from (f"note: {plain(text)}" for text in report.notes)
    if report.untouched:
        yield plain(report.untouched)


def _traffic_text(report: Report) -> Iterator[str]:
    plain, replayed = formats.plain, report.traffic
    if replayed is None or not replayed.requests:
        return
    yield f"\n{click.style('live traffic', bold=True)}"
    yield f"  {plain(formats.traffic_sentence(replayed))}"
    for kind in replayed.kinds:
        yield f"  {kind.count} {kind.fate}"
        yield f"      {plain(kind.before)} → {plain(kind.after)}  {click.style(plain(formats.kind_places(kind)), dim=True)}"
        yield from (f"      {plain(example)}" for example in kind.examples)


def _access_text(report: Report) -> Iterator[str]:
    plain = formats.plain
    if report.access:
        yield f"\n{click.style('access', bold=True)}"
    for change in report.access:
        sign, color = _DIRECTIONS[change.direction]
        for sentence in formats.access_sentences(change):
            yield f"  {click.style(sign, fg=color, bold=True)} {change.direction}  {plain(sentence)}"
        yield f"      {plain(change.before)} → {plain(change.after)}  {click.style(plain(formats.places(change)), dim=True)}"
        if change.doubt:
            yield f"      not proven: {plain(change.doubt)}"


def _request_text(report: Report) -> Iterator[str]:
    plain = formats.plain
    if report.requests:
        yield f"\n{click.style('requests whose outcome changes', bold=True)}"
    for change in report.requests:
        for sentence in formats.request_sentences(change):
            yield f"  {plain(sentence)}"
        for text in formats.difference_texts(change):
            yield f"      {plain(text)}"
        yield f"      {click.style(plain(formats.places(change)), dim=True)}"
        if change.doubt:
            yield f"      not proven: {plain(change.doubt)}"
