"""`backstay up`: the operator, one sidecar per instance, and the services themselves, on this machine."""

import asyncio
import contextlib
import logging
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import click

from backstay.cli.session import Session, pass_session
from backstay.tasks import spawn

if TYPE_CHECKING:
    from backstay.app import LocalOperator


@click.command()
@click.argument("repository")
@click.option("--workloads", type=click.Path(path_type=Path, exists=True, dir_okay=False), required=True,
              help="What runs: services, workloads, commands (see docs/local.md).")  # fmt: skip
@click.option("--branch", default="", help="Branch to follow; default: the repository's own HEAD.")
@click.option("--tag", default="", help="Tag to follow.")
@click.option("--semver", default="", help="Range of version tags to follow, the newest wins.")
@click.option("--commit", default="", help="One commit, pinned.")
@click.option("--path", default="", help="Folder inside the repository that holds the documents.")
@click.option("--interval", default="30s", show_default=True, help="Time between looks at a remote repository.")
@click.option("--mesh", default="default", show_default=True, help="Name of the mesh in status.")
@click.option("--trust-domain", default="backstay.local", show_default=True, help="SPIFFE trust domain.")
@click.option("--control-port", default=0, help="Where sidecars connect; default: a free port, kept.")
@click.option("--webhook-port", default=0, help="Where a forge may announce pushes; default: nowhere.")
@click.option("--webhook-secret-file", type=click.Path(path_type=Path, exists=True), help="Shared secret of webhooks.")
@click.option("--username", default="", help="For https repositories.")
@click.option("--password-file", type=click.Path(path_type=Path, exists=True), help="Password or access token.")
@click.option("--bearer-file", type=click.Path(path_type=Path, exists=True), help="Bearer token, instead.")
@click.option("--ca-file", type=click.Path(path_type=Path, exists=True), help="PEM bundle to trust for https.")
@click.option("--ssh-identity", type=click.Path(path_type=Path, exists=True), help="Private key for ssh repositories.")
@click.option("--ssh-known-hosts", type=click.Path(path_type=Path, exists=True), help="Host keys of the ssh server.")
@click.option("--leave-running", is_flag=True, help="Leave proxies and services running when the operator ends.")
@pass_session
def up(session: Session, /, repository: str, workloads: Path, interval: str, **options: object) -> None:
    """Run the mesh of REPOSITORY (a folder, or an https or ssh URL) on this machine.

    Starts the operator, one sidecar per instance, and the services of the workloads file; Ctrl-C ends all of it.
    From then on `git push` (or a commit in a local repository) is all it takes.
    """
    from backstay.app import LocalOperator
    from backstay.core.durations import seconds
    from backstay.core.ports import SourceRefused, StateUnavailable
    from backstay.settings import LocalSettings, SourceSettings

    names = ("branch", "tag", "semver", "commit", "path", "username", "password_file", "bearer_file", "ca_file",
             "ssh_identity", "ssh_known_hosts")  # fmt: skip
    source = {name: options.pop(name) for name in names}
    try:
        operator = LocalOperator(
            LocalSettings(
                source=SourceSettings(url=repository, interval=seconds(interval), **source),  # type: ignore[arg-type]
                workloads=workloads,
                state_dir=session.state_dir,
                **options,  # type: ignore[arg-type]
            )
        )
    except (SourceRefused, StateUnavailable, ValueError, OSError) as error:
        raise click.ClickException(str(error)) from error
    _log_to(session)
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(serve(operator, session))


def _log_to(session: Session) -> None:
    level = {-1: logging.WARNING, 0: logging.INFO, 1: logging.DEBUG}.get(session.verbosity, logging.INFO)
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)-7s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("aiohttp.access").setLevel(logging.WARNING)


async def serve(operator: "LocalOperator", session: Session) -> None:
    """Start, run until a signal or the reconciler's end, close. Raises ClickException for what cannot start."""
    from backstay.core.ports import Fenced, StateUnavailable

    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopping.set)
    try:
        await operator.start()
        session.say(f"mesh {operator.settings.mesh} is up; look around with: backstay status, backstay rollout watch")
        running = spawn(operator.run(), name="operator")
        waiting = spawn(stopping.wait(), name="signals")
        await asyncio.wait({running, waiting}, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        if running.done():
            running.result()
    except (StateUnavailable, Fenced, OSError) as error:
        raise click.ClickException(str(error)) from error
    finally:
        session.say("stopping")
        await operator.close()
