"""`backstay wait --for live REV`: what a pipeline runs after the push, to know what became of its commit."""

import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import click

from backstay.cli.exits import Exit, Failed, OperatorAway
from backstay.cli.output import emit
from backstay.cli.session import Session, output_option, pass_session
from backstay.cli.timeline import DurationType
from backstay.core.durations import spell

LOOK_EVERY: Final = 0.5  # seconds; a commit takes at least a second from the push to the last ack
OUTCOMES: Final = {
    "live": Exit.OK,
    "partly-live": Exit.OK,
    "rolled-back": Exit.ROLLED_BACK,
    "held": Exit.HELD,
    "aborted": Exit.HELD,
    "invalid": Exit.INVALID,
}
"""States that end the wait. Partly live: all of this commit is live, documents of an earlier one are held."""
_SHA: Final = re.compile(r"[0-9a-f]{7,40}")


@click.command
@click.option("--for", "wanted", type=click.Choice(("live",)), default="live", show_default=True)
@click.argument("rev")
@click.option("--timeout", type=DurationType(), default="30m", show_default=True, help="Exit code 3 after this long.")
@output_option()
@pass_session
def wait(session: Session, wanted: str, rev: str, timeout: float, output: str) -> None:
    """Block until revision REV (a commit, branch or tag) is live everywhere.

    Exit code 0: live, 3: timed out, 4: rolled back, 5: held, 6: invalid.
    """
    sha = resolve(rev)
    last: dict[str, Any] = {"revision": sha, "state": "unknown", "sentence": ""}
    for last in _changes(session, sha, time.monotonic() + timeout, time.sleep):
        session.say(f"{sha[:8]} {last['state']}{': ' + last['sentence'] if last['sentence'] else ''}")
    code = OUTCOMES.get(last["state"], Exit.TIMEOUT)
    emit(output, {**last, "wanted": wanted, "exitCode": int(code)}, lambda _: f"{sha[:8]} {last['state']}")
    if code is Exit.TIMEOUT:
        raise Failed(f"{sha[:8]} is not {wanted} after {spell(timeout)}: {last['state']}", code=code)
    sys.exit(code)


def _changes(session: Session, sha: str, deadline: float, pause: Callable[[float], None]) -> Iterator[dict[str, Any]]:
    """Each state once, the last one last. An operator that is away (restarting, being upgraded) is waited for."""
    before: dict[str, Any] = {}
    while True:
        now = _look(session, sha)
        if now != before:
            yield now
            before = now
        if now["state"] in OUTCOMES or time.monotonic() >= deadline:
            return
        pause(min(LOOK_EVERY, max(deadline - time.monotonic(), 0.0)))


def _look(session: Session, sha: str) -> dict[str, Any]:
    try:
        revisions = session.client().items("/v1/revisions")
    except OperatorAway as away:
        return {"revision": sha, "state": "unknown", "sentence": away.message}
    for item in revisions:
        if item["metadata"]["name"].startswith(sha):
            state = item["status"]
            return {"revision": item["metadata"]["name"], "state": state["state"], "sentence": state["sentence"]}
    return {"revision": sha, "state": "unseen", "sentence": "the operator has not seen this commit yet"}


def resolve(rev: str, folder: Path | None = None) -> str:
    """A sha for what was typed: hex as it is, other names by git in the present folder. Raises Failed."""
    text = rev.rpartition("@sha1:")[2]
    if _SHA.fullmatch(text):
        return text
    try:
        command = ["git", "rev-parse", "--verify", "--quiet", "--end-of-options", f"{text}^{{commit}}"]
        found = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Failed(f"cannot ask git what {rev!r} is: {error}", hint="name the commit by its sha") from error
    if found.returncode != 0:
        raise Failed(f"git knows no commit {rev!r} here", hint="name it by its sha, or run this in the mesh repository")
    return found.stdout.strip()
