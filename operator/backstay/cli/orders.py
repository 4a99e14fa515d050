"""Orders about the whole mesh: rollback, reconcile, suspend, resume. Each is one request; the operator decides."""

from collections.abc import Mapping

import click

from backstay.cli.exits import Failed
from backstay.cli.output import emit
from backstay.cli.session import Session, output_option, pass_session, reason_option
from backstay.cli.wait import resolve


@click.command
@click.option("--to", "to", required=True, metavar="REV", help="Revision to go back to.")
@click.option("--path", "path", default="", help="Only documents of this file or folder.")
@reason_option
@output_option()
@pass_session
def rollback(session: Session, to: str, path: str, reason: str, output: str) -> None:
    """Make an earlier revision live at once, without git.

    Aborts a running rollout. What it undoes is held until its documents change or somebody says `rollout retry`.
    """
    order(session, output, "rollback", reason, {"to": _named(to), **({"path": path} if path else {})})


def _named(to: str) -> str:
    """`HEAD~1`, a branch or a tag as a commit, where git knows it here; the operator says what it makes of the rest."""
    try:
        return resolve(to)
    except Failed:
        return to


@click.command
@reason_option
@output_option()
@pass_session
def reconcile(session: Session, reason: str, output: str) -> None:
    """Look at git now instead of at the next interval."""
    order(session, output, "reconcile", reason)


@click.command
@reason_option
@output_option()
@pass_session
def suspend(session: Session, reason: str, output: str) -> None:
    """Stop following git. A running rollout goes on; proxies, certificates and endpoints are looked after."""
    order(session, output, "suspend", reason)


@click.command
@reason_option
@output_option()
@pass_session
def resume(session: Session, reason: str, output: str) -> None:
    """Follow git again after `suspend`. (`rollout resume` is for a paused rollout.)"""
    order(session, output, "unsuspend", reason)


@click.command
@click.argument("who", metavar="PROXY|IDENTITY")
@click.option("--undo", is_flag=True, help="Trust it again.")
@reason_option
@output_option()
@pass_session
def revoke(session: Session, who: str, undo: bool, reason: str, output: str) -> None:
    """Cut an identity off: all proxies refuse it, and close its connections, within two seconds.

    Instances of one service account share an identity, so all of them are cut off. It gets no new certificate either.
    """
    order(session, output, "unrevoke" if undo else "revoke", reason, {"who": who})


def order(session: Session, output: str, verb: str, reason: str, args: Mapping[str, str] | None = None) -> None:
    """Give it and show the answer; a refusal ends with exit code 1."""
    result = session.client().act(verb, reason=reason, args=args)
    emit(output, result, lambda _: str(result["message"]))
