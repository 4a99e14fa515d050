"""`backstay up`: the operator, one sidecar per instance, and the services themselves, on this machine."""

import asyncio
import contextlib
import logging
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from backstay.cli.session import Session, pass_session
from backstay.cli.timeline import DurationType
from backstay.redact import clean
from backstay.settings import MOST_SAMPLES
from backstay.tasks import spawn, stop

if TYPE_CHECKING:
    from backstay.app import LocalOperator
    from backstay.cli.progress import Look
    from backstay.settings import LocalSettings

LOOK_EVERY: Final = 0.5  # seconds; what a person takes for "at once", and nothing to the operator
LOG_END: Final = 4096  # bytes of a log in which its last line is looked for


@click.command()
@click.argument("repository")
@click.option("-w", "--workloads", type=click.Path(path_type=Path, exists=True, dir_okay=False), required=True,
              help="What runs: services, workloads, commands (see docs/local.md).")  # fmt: skip
@click.option("--branch", default="", help="Branch to follow; default: the repository's own HEAD.")
@click.option("--tag", default="", help="Tag to follow.")
@click.option("--semver", default="", help="Range of version tags to follow, the newest wins.")
@click.option("--commit", default="", help="One commit, pinned.")
@click.option("--path", default="", help="Folder inside the repository that holds the documents.")
@click.option(
    "--interval",
    type=DurationType(),
    default="30s",
    show_default=True,
    help="Time between looks at a remote repository.",
)
@click.option("--mesh", default="default", show_default=True, help="Name of the mesh in status.")
@click.option("--trust-domain", default="backstay.local", show_default=True, help="SPIFFE trust domain.")
@click.option("--control-port", default=0, help="Where sidecars connect; default: a free port, kept.")
@click.option("--webhook-port", default=0, help="Where a forge may announce pushes; default: nowhere.")
@click.option("--webhook-secret-file", type=click.Path(path_type=Path, exists=True), help="Shared secret of webhooks.")
@click.option("--notify-url", default="", help="POST every event there as JSON (chat bridges, alerting).")
@click.option("--notify-secret-file", type=click.Path(path_type=Path, exists=True), help="Signs those posts.")
@click.option(
    "--commit-status",
    nargs=3,
    metavar="KIND API REPOSITORY",
    help="Follow each rollout with commit statuses: github, gitea or gitlab, its API's URL, owner/name.",
)
@click.option("--commit-status-token-file", type=click.Path(path_type=Path, exists=True), help="Token for them.")
@click.option("--reviews", is_flag=True, help="Answer pull requests there: the review as comment and status.")
@click.option("--username", default="", help="For https repositories.")
@click.option("--password-file", type=click.Path(path_type=Path, exists=True), help="Password or access token.")
@click.option("--bearer-file", type=click.Path(path_type=Path, exists=True), help="Bearer token, instead.")
@click.option("--ca-file", type=click.Path(path_type=Path, exists=True), help="PEM bundle to trust for https.")
@click.option("--ssh-identity", type=click.Path(path_type=Path, exists=True), help="Private key for ssh repositories.")
@click.option("--ssh-known-hosts", type=click.Path(path_type=Path, exists=True), help="Host keys of the ssh server.")
@click.option(
    "--traffic-samples",
    type=click.IntRange(0, MOST_SAMPLES),
    default=5,
    show_default=True,
    help="Requests a second that each sidecar tells of, for reviews.",
)
@click.option("--leave-running", is_flag=True, help="Leave proxies and services running when the operator ends.")
@pass_session
def up(session: Session, /, repository: str, workloads: Path, interval: float, **options: Any) -> None:
    """Run the mesh of REPOSITORY (a folder, or an https or ssh URL) on this machine.

    Starts the operator, one sidecar per instance, and the services of the workloads file; Ctrl-C ends all of it.
    From then on `git push` (or a commit in a local repository) is all it takes. Says what is ready and what is live;
    with -v also what each part of it does.
    """
    from backstay.settings import LocalSettings, SourceSettings  # late: `--help` need not pay for an operator

    if options["webhook_port"] and not options["webhook_secret_file"]:
        raise click.UsageError("--webhook-port needs --webhook-secret-file: an unsigned knock is never answered")
    _check_commit_status(options["commit_status"], options["commit_status_token_file"])
    if options["reviews"] and not options["commit_status"]:
        raise click.UsageError("--reviews needs --commit-status: it names the forge that has the pull requests")
    source = {name: options.pop(name) for name in _SOURCE_OPTIONS}
    settings = LocalSettings(
        source=SourceSettings(url=repository, interval=interval, **source),
        workloads=workloads,
        state_dir=session.state_dir,
        **options,
    )
    _log_to(session)
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(serve(settings, session))


def _check_commit_status(where: tuple[str, str, str] | None, token: Path | None) -> None:
    if where is None:
        return
    kind, api, repository = where
    if kind not in ("github", "gitea", "gitlab"):
        raise click.UsageError(f"--commit-status: unknown forge {kind!r}, expected github, gitea or gitlab")
    if not api.startswith(("https://", "http://")) or "/" not in repository:
        raise click.UsageError(
            "--commit-status: expected a URL and owner/name, as `gitea https://git.example/api/v1 o/r`"
        )
    if token is None:
        raise click.UsageError("--commit-status needs --commit-status-token-file")


_SOURCE_OPTIONS: Final = (
    "branch",
    "tag",
    "semver",
    "commit",
    "path",
    "username",
    "password_file",
    "bearer_file",
    "ca_file",
    "ssh_identity",
    "ssh_known_hosts",
)


def _log_to(session: Session) -> None:
    """Progress is told in sentences, so the log says only what is wrong unless asked for more."""
    level = {-1: logging.ERROR, 0: logging.WARNING}.get(session.verbosity, logging.INFO)
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)-7s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("aiohttp.access").setLevel(logging.WARNING)
    if session.verbosity <= 0:
        logging.getLogger("backstay.processes").setLevel(logging.ERROR)  # `_tell` says it, with the log's last line


async def serve(settings: "LocalSettings", session: Session) -> None:
    """Start, run until a signal or the reconciler's end, close. Raises Failed for what cannot start or go on."""
    from backstay.app import LocalOperator  # late: as above
    from backstay.cli.starting import EXPECTED, failure

    ending = _ending()
    try:
        operator = LocalOperator(settings)
    except EXPECTED as error:
        raise failure(error, settings) from error
    try:
        await operator.first_look()
        await operator.start()
        _welcome(session, operator)
        await _run(operator, session, ending)
    except EXPECTED as error:
        raise failure(error, settings) from error
    finally:
        if ending.is_set():
            session.say("stopping" + (", proxies and services stay" if settings.leave_running else ""))
        await operator.close()


def _ending() -> asyncio.Event:
    """Set by Ctrl-C, SIGTERM, or a terminal that is closed (unless `nohup` says to stay)."""
    ending = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
            asyncio.get_running_loop().add_signal_handler(number, ending.set)
    return ending


def _welcome(session: Session, operator: "LocalOperator") -> None:
    """Where it listens, and how to look at it: the folder has to be named only where it is not the usual one."""
    from backstay.cli.session import default_state_dir

    settings = operator.settings
    folder = "" if settings.state_dir == default_state_dir() else f" --state-dir {settings.state_dir}"
    port = operator.control.port if operator.control else 0
    session.say(f"mesh {settings.mesh} is up, proxies connect to {settings.host}:{port}")
    if settings.webhook_port:
        session.say(f"webhooks are taken at http://{settings.host}:{settings.webhook_port}/v1/hooks/{settings.mesh}")
    session.say(f"look around with: backstay{folder} status, backstay{folder} rollout watch; Ctrl-C ends it all")


async def _run(operator: "LocalOperator", session: Session, ending: asyncio.Event) -> None:
    running = spawn(operator.run(), name="operator")
    waiting = spawn(ending.wait(), name="signals")
    telling = spawn(_tell(operator, session), name="progress")
    try:
        await asyncio.wait({running, waiting, telling}, return_when=asyncio.FIRST_COMPLETED)
        for task in (running, telling):
            if task.done():
                task.result()
    finally:
        await stop(waiting, telling)


async def _tell(operator: "LocalOperator", session: Session) -> None:
    """What is new, twice a second, until cancelled."""
    from backstay.cli.progress import Look, news

    before = Look(at=time.monotonic())
    while True:
        lines, before = news(before, _look(operator))
        for line in lines:
            session.say(f"{time.strftime('%H:%M:%S')} {line}")
        await asyncio.sleep(LOOK_EVERY)


def _look(operator: "LocalOperator") -> "Look":
    from backstay.cli.progress import Look, Trouble, standing

    ready, total = operator.platform.counted()
    troubles = {
        instance: Trouble(problem=problem, ends=keeper.restarts, last_words=_last_words(keeper.log_file))
        for instance, (problem, keeper) in operator.platform.troubled().items()
    }
    told = standing(operator.reconciler.view()) if operator.reconciler else ""
    return Look(at=time.monotonic(), ready=ready, total=total, troubles=troubles, standing=told)


def _last_words(log: Path) -> str:
    """The last line of a log that says something; empty where there is none."""
    try:
        with log.open("rb") as file:
            file.seek(max(log.stat().st_size - LOG_END, 0))
            lines = file.read().decode("utf-8", "replace").splitlines()
    except OSError:  # not written yet
        return ""
    return next((clean(line.strip(), limit=200) for line in reversed(lines) if line.strip()), "")
