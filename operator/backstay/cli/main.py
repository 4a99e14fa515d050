"""`backstay`: one verb per module, imported only when it is called.

The table below is all that `backstay --help` needs, so neither it nor `backstay version` pays for what other verbs
import (a test keeps the table and the modules together; tests/bench/startup.py measures).
"""

import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NoReturn

import click

from backstay.cli.exits import Exit, Failed
from backstay.cli.session import Session, default_state_dir

COMMANDS: Final[dict[str, tuple[str, str]]] = {
    "init": ("init", "Write a small commented mesh repository to begin with."),
    "up": ("up", "Run the operator, sidecars and services on this machine."),
    "validate": ("validate", "Check a folder of documents as the operator would."),
    "plan": ("plan", "Show which workloads a change would touch, and in which waves."),
    "review": ("review", "What a change does: to which requests, to whose access, by which line."),
    "test": ("test", "Check the Expectations of a repository, or record some."),
    "replay": ("replay", "Recorded traffic put through two revisions."),
    "route": ("route", "Which route and which policies decide one request."),
    "auth": ("auth", "Who may ask what of whom."),
    "status": ("status", "What is live, and whether all is well."),
    "get": ("get", "List intents, workloads, proxies, revisions or rollouts."),
    "describe": ("describe", "Everything about one object, with its events."),
    "history": ("history", "Past rollouts and how they ended."),
    "timeline": ("timeline", "Commits, waves, endpoints and certificates in one order."),
    "rollout": ("rollout", "See and steer the running rollout."),
    "rollback": ("orders", "Make an earlier revision live without git."),
    "reconcile": ("orders", "Look at git now."),
    "suspend": ("orders", "Stop following git."),
    "revoke": ("orders", "Cut an identity off."),
    "resume": ("orders", "Follow git again."),
    "wait": ("wait", "Block until a revision is live everywhere."),
    "proxy": ("proxy", "Proxies and the configs they serve."),
    "check": ("check", "Find out what is wrong with an installation."),
    "support-bundle": ("support_bundle", "Collect what helps others to help, without secrets."),
    "explain": ("explain", "What a message code or reason means, and how to mend it."),
    "schemas": ("schemas", "Write the JSON Schemas of the intents."),
    "inject": ("inject", "Put the sidecar into Kubernetes manifests, without a cluster."),
    "completion": ("completion", "Print the completion script for a shell."),
    "version": ("version", "Print the version."),
    "operator": ("operator", "Run the operator in a Kubernetes cluster."),
    "sidecar": ("sidecar", "Run one proxy beside one workload instance."),
}
"""Verb -> module of backstay.cli, help line. The module holds a click command of the verb's name, `-` as `_`."""


class LazyGroup(click.Group):
    """Knows its verbs from COMMANDS and imports the module of the one that is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"backstay.cli.{COMMANDS[cmd_name][0]}")
        command: click.Command = getattr(module, cmd_name.replace("-", "_"))
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Say which verb was meant; while completing (resilient parsing) a slip is no error."""
        if args and args[0] not in COMMANDS and not args[0].startswith("-") and not ctx.resilient_parsing:
            from backstay.core.suggest import did_you_mean  # late: only after a slip

            ctx.fail(f"no command {args[0]!r}{did_you_mean(args[0], COMMANDS)}")
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """A reader that has seen enough (head, less) is no error; click alone would make it exit code 1."""
        try:
            try:
                return super().invoke(ctx)
            finally:
                sys.stdout.flush()
        except BrokenPipeError:
            # What is still buffered must go somewhere, or Python complains about it while it ends.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise click.exceptions.Exit(Exit.OK) from None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--state-dir",
    type=click.Path(path_type=Path, file_okay=False),
    envvar="BACKSTAY_STATE_DIR",
    show_envvar=True,
    help="Folder of the operator's state and socket.",
)
@click.option("--color", type=click.Choice(("auto", "always", "never")), default="auto", help="NO_COLOR works as well.")
@click.option("--actor", default="", hidden=True, help="Who gives orders, where another program knows better.")
@click.option("-q", "--quiet", is_flag=True, help="Say nothing but what was asked for.")
@click.option("-v", "--verbose", is_flag=True, help="Say more.")
@click.pass_context
def cli(ctx: click.Context, state_dir: Path | None, color: str, actor: str, quiet: bool, verbose: bool) -> None:
    """A service mesh operated with `git push`: changes go out in waves and come back by themselves."""
    ctx.color = _color(color)
    verbosity = int(verbose) - int(quiet)
    ctx.obj = Session(state_dir=state_dir or default_state_dir(), verbosity=verbosity, actor=actor)


def _color(wanted: str) -> bool | None:
    """None leaves it to click: colours on a terminal only."""
    if wanted != "auto":
        return wanted == "always"
    return False if os.environ.get("NO_COLOR") else None


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Entry point: every way to end becomes an exit code of the one table."""
    try:
        code = cli.main(arguments, standalone_mode=False, prog_name="backstay")
        sys.exit(code if isinstance(code, int) else Exit.OK)
    except click.exceptions.Exit as done:
        sys.exit(done.exit_code)
    except click.UsageError as error:
        where = error.ctx.command_path if error.ctx else "backstay"
        Failed(error.format_message(), hint=f"`{where} --help` says what is expected").show()
        sys.exit(Exit.TROUBLE)
    except click.ClickException as error:
        error.show()
        sys.exit(error.code if isinstance(error, Failed) else Exit.TROUBLE)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(Exit.INTERRUPTED)


if __name__ == "__main__":
    main()
