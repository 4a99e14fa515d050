"""`backstay history`: past rollouts and how they ended."""

from typing import Any

import click

from backstay.cli.output import emit, table
from backstay.cli.session import Session, output_option, pass_session
from backstay.cli.shown import COLUMNS, as_list, listed


@click.command
@output_option()
@pass_session
def history(session: Session, output: str) -> None:
    """Past rollouts and how they ended, newest first."""
    rollouts = listed(session, "rollouts")
    if not rollouts:
        session.say("no rollout yet")
    emit(output, as_list("rollouts", rollouts), lambda wide: _text(rollouts, wide))


def _text(rollouts: list[dict[str, Any]], wide: bool) -> str:
    """The table; the sentences, which say why, go below it unless they have a column of their own."""
    lines = [table(COLUMNS["rollouts"], rollouts, wide=wide)] if rollouts else []
    for rollout in rollouts if not wide else ():
        status = rollout["status"]
        if status.get("sentence"):
            lines.append(f"{status['id']}: {status['sentence']}")
    return "\n".join(lines)
