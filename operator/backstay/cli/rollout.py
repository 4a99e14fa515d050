"""`backstay rollout ...`: see and steer the running rollout."""

import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import click

from backstay.cli.exits import Exit, Failed
from backstay.cli.orders import order
from backstay.cli.output import bar, condition, emit, paint, revision, share_of
from backstay.cli.session import Session, output_option, pass_session, reason_option
from backstay.cli.shown import listed, repository
from backstay.cli.timeline import DurationType

LOOK_EVERY = 0.5  # seconds; proxies report every second, so more often shows nothing new
ENDED = ("succeeded", "baking", "failed", "aborted", "superseded")
"""Phases in which nothing moves any more; baking is live and only watched."""
GOOD = ("succeeded", "baking")


@click.group
def rollout() -> None:
    """See and steer the running rollout."""


@rollout.command
@click.argument("rollout_id", metavar="[ID]", default="")
@output_option()
@pass_session
def status(session: Session, rollout_id: str, output: str) -> None:
    """Phase, wave, cohorts and verdict. Exit code 1 if it did not end well."""
    found = pick(listed(session, "rollouts"), rollout_id)
    emit(output, found, lambda _: "\n".join(lines(found)))
    if found["status"]["phase"] in ENDED and found["status"]["phase"] not in GOOD:
        sys.exit(Exit.NO)


@rollout.command
@click.option("--timeout", type=DurationType(), default=None, help="Stop watching after this long (exit code 3).")
@pass_session
def watch(session: Session, timeout: float | None) -> None:
    """Follow the running rollout until it ends: a live table on a terminal, else one line per change.

    Exit code 0 if it is live, 1 if it was rolled back, aborted or superseded.
    """
    deadline = None if timeout is None else time.monotonic() + timeout
    views = _views(session, deadline, time.sleep)
    last = _watch_live(views) if sys.stdout.isatty() else _watch_plain(views)
    if last is None:
        raise Failed("no rollout has begun", code=Exit.TIMEOUT)
    if last["status"]["phase"] not in ENDED:
        raise Failed(f"rollout {last['status']['id']} is still {last['status']['phase']}", code=Exit.TIMEOUT)
    if last["status"]["phase"] not in GOOD:
        sys.exit(Exit.NO)


def _views(session: Session, deadline: float | None, pause: Callable[[float], None]) -> Iterator[dict[str, Any]]:
    """The present rollout over and over, up to and including the view in which it has ended. One that is about to
    begin is waited for: people type this right after a push."""
    wanted, waits = "", False
    while True:
        # Asked in this order a rollout that begins in between is seen as running, never as the one before.
        before = {} if wanted else repository(session)
        rollouts = listed(session, "rollouts")
        if rollouts and (wanted or not _about_to_begin(before, rollouts[0])):
            found = pick(rollouts, wanted)
            wanted = found["status"]["id"]
            yield found
            if found["status"]["phase"] in ENDED:
                return
        elif not waits:
            session.say("waiting for a rollout to begin")
            waits = True
        if deadline is not None and time.monotonic() >= deadline:
            return
        pause(LOOK_EVERY)


def _about_to_begin(before: dict[str, Any], newest: dict[str, Any]) -> bool:
    """Whether the newest rollout is over and git already wants something else."""
    is_behind = condition(before, "Reconciling").get("reason") == "Progressing"
    return is_behind and newest["status"]["phase"] in ENDED


def _watch_plain(views: Iterator[dict[str, Any]]) -> dict[str, Any] | None:
    last, said = None, ""
    for last in views:
        line = change_line(last)
        if line != said:
            click.echo(line)
            sys.stdout.flush()
            said = line
    return last


def _watch_live(views: Iterator[dict[str, Any]]) -> dict[str, Any] | None:
    from rich.console import Console  # late: 60 ms that only a live view needs
    from rich.live import Live

    from backstay.cli.picture import picture

    console = Console(no_color=click.get_current_context().find_root().color is False or None)
    last = None
    with Live(console=console, auto_refresh=False) as screen:
        for last in views:
            screen.update(picture(last, width=console.width), refresh=True)
    return last


def pick(rollouts: list[dict[str, Any]], rollout_id: str) -> dict[str, Any]:
    """The one with that id, or the present one, which comes first. Raises Failed."""
    for found in rollouts:
        if rollout_id in ("", found["status"]["id"], found["metadata"]["name"]):
            return found
    if rollout_id:
        raise Failed(f"no rollout {rollout_id!r}", hint="`backstay history` lists them", code=Exit.NO)
    raise Failed("no rollout has run yet", code=Exit.NO)


def change_line(found: dict[str, Any]) -> str:
    """One line that is different exactly when something worth a line has changed: no clocks, no counters."""
    state = found["status"]
    stage = f" {state['stage']}" if state["stages"] > 1 else ""
    wave = "" if state["phase"] in ENDED else f" wave {state['wave']}/{state['waves']}"
    said = "" if state["phase"] not in (*ENDED, "paused", "holding", "rolling-back") else state.get("sentence", "")
    head = f"{state['id']} {revision(found['spec']['cause']['revision'])} {state['phase']}{stage}{wave}"
    return f"{head} {state['verdict']}" + (f": {said}" if said else "")


def lines(found: dict[str, Any]) -> Iterator[str]:
    """A rollout as text."""
    state, cause = found["status"], found["spec"]["cause"]
    yield f"rollout   {state['id']}  {revision(cause['revision'])}  {cause.get('subject', '')}".rstrip()
    yield f"phase     {paint(state['phase'])}  {_progress(state)}"
    yield f"verdict   {paint(state['verdict'])}{': ' + state['sentence'] if state.get('sentence') else ''}"
    if state.get("actor"):
        yield f"order     by {state['actor']}{': ' + state['reason'] if state.get('reason') else ''}"
    if state["harmed"] or "detectedAfter" in state:
        detected, restored = state.get("detectedAfter", "-"), state.get("restoredAfter", "-")
        yield f"harm      {state['harmed']} requests, detected after {detected}, restored after {restored}"
    for workload in state["workloads"]:
        yield from _workload_lines(workload)


def _progress(state: dict[str, Any]) -> str:
    stage = f"stage {state['stageNumber']}/{state['stages']} ({state['stage']}), " if state["stages"] > 1 else ""
    return f"{stage}wave {state['wave']}/{state['waves']}, {state.get('waveElapsed', '0s')} in it"


def _workload_lines(workload: dict[str, Any]) -> Iterator[str]:
    proxies, cohorts = workload["proxies"], workload["cohorts"]
    yield (
        f"  {workload['workload']:<24} {bar(workload['share'])} {workload['share']:g} %, "
        f"{proxies['onCandidate']}/{proxies['total']} proxies, {paint(workload['verdict'])}"
    )
    yield f"    candidate {_rate(cohorts['candidate'])}   stable {_rate(cohorts['stable'])}"
    if workload["sentence"]:
        yield f"    {workload['sentence']}"
    for cause in workload["causes"]:
        yield f"    {cause['count']} x {cause['reason']} on {cause['route']}  {cause.get('origin', '')}".rstrip()


def _rate(cohort: dict[str, int]) -> str:
    return f"{share_of(cohort['bad'], cohort['requests'])} bad"


def _order_command(name: str, text: str) -> None:
    @rollout.command(name, help=text)
    @reason_option
    @output_option()
    @pass_session
    def command(session: Session, reason: str, output: str) -> None:
        order(session, output, name, reason)


_order_command("pause", "Stop at the present wave. Harm is still watched for and shown.")
_order_command("resume", "Go on after a pause.")
_order_command("abort", "Go back to stable now; its documents are held.")


@rollout.command
@click.option("--full", is_flag=True, help="Skip all waves that are left.")
@reason_option
@output_option()
@pass_session
def promote(session: Session, full: bool, reason: str, output: str) -> None:
    """Pass the present wave by hand, or with --full all of them."""
    order(session, output, "promote-full" if full else "promote", reason)


@rollout.command
@click.argument("what", metavar="[COMMIT|DOCUMENT]", default="")
@reason_option
@output_option()
@pass_session
def retry(session: Session, what: str, reason: str, output: str) -> None:
    """Release held documents and try them again: all, those of a commit, or one `Kind/namespace/name`."""
    named = {} if not what else {"document": what} if "/" in what else {"commit": what}
    order(session, output, "retry", reason, named)
