"""Entry point of the plugin: decides where a verb runs, and runs it there. What it says and how it ends is as for
`backstay` itself: the same exit codes, data on stdout, talk on stderr."""

import asyncio
import sys
from collections.abc import Callable, Sequence
from typing import Final, NoReturn, TypeAlias

import click

from backstay.cli import main as program
from backstay.cli.exits import Exit, Failed
from backstay.cli.kubectl.calls import Call, parse

HERE: Final = frozenset(
    {"init", "validate", "test", "review", "replay", "explain", "schemas", "completion", "version", "inject"}
)
"""Verbs that ask no operator."""
TUNNEL: Final = frozenset({"plan", "route", "auth", "support-bundle"})
"""Verbs that ask the operator and read or write files of this machine."""
NOT_HERE: Final = {
    "up": "`kubectl apply -k bootstrap/` starts the operator of a cluster",
    "operator": "the Deployment backstay-operator runs it",
    "sidecar": "the webhook puts it into pods",
}

HELP: Final = """\
Usage: kubectl backstay [-n NAMESPACE] [--repository NAME] COMMAND [ARGS]...

  The mesh of a cluster: what `backstay` says and does on one machine, for the mesh of one MeshRepository.

Options:
  -n, --namespace NAME         Of the MeshRepository, or one that it is in charge of. Default: the context's.
  --repository NAME            Which MeshRepository, where there are several.
  --context NAME               Of the kubeconfig.
  --kubeconfig FILE
  --operator-namespace NAME    Where the operator runs.  [default: backstay-system]
  -h, --help                   Show this.

Commands:
"""

Runner: TypeAlias = Callable[[Call], int]


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Every way to end is an exit code of the one table."""
    try:
        call = parse(sys.argv[1:] if arguments is None else arguments, knows_option)
        if call.wants_help or not call.arguments:
            click.echo(HELP + "\n".join(command_lines()))
            sys.exit(Exit.OK)
        sys.exit(runner(call.verb)(call))
    except Failed as error:
        error.show()
        sys.exit(error.code)
    except KeyboardInterrupt:
        sys.exit(Exit.INTERRUPTED)


def runner(verb: str) -> Runner:
    """What runs that verb. Raises Failed for a verb that is none."""
    if verb == "check":
        return _check
    if verb in NOT_HERE:
        raise Failed(f"`{verb}` is not for clusters", hint=NOT_HERE[verb])
    if verb not in program.COMMANDS:
        from backstay.core.suggest import did_you_mean  # late: only after a slip

        hint = "`kubectl backstay --help` lists them"
        raise Failed(f"no command {verb!r}{did_you_mean(verb, program.COMMANDS)}", hint=hint)
    if verb in HERE:
        return _here
    return _tunnel if verb in TUNNEL else _in_the_pod


def command_lines() -> list[str]:
    known = [(name, text) for name, (_, text) in program.COMMANDS.items() if name not in NOT_HERE]
    width = max(len(name) for name, _ in known)
    return [f"  {name:<{width}}  {text}" for name, text in known]


def knows_option(arguments: Sequence[str], option: str) -> bool:
    """Whether the command that these words name has that option itself."""
    command, _ = _command(arguments)
    return any(option in parameter.opts for parameter in command.params)


def in_namespace(arguments: Sequence[str], namespace: str) -> tuple[str, ...]:
    """These words, with the repository's namespace for names that come without one; a person's own `-n` comes later and
    wins."""
    _, words = _command(arguments)
    if not knows_option(arguments, "--namespace"):
        return tuple(arguments)
    return (*arguments[:words], "--namespace", namespace, *arguments[words:])


def _command(arguments: Sequence[str]) -> tuple[click.Command, int]:
    """The command that these words name, and how many of them do."""
    command: click.Command = program.cli
    context = click.Context(program.cli)
    for number, word in enumerate(arguments):
        if not isinstance(command, click.Group):
            return command, number
        if (found := command.get_command(context, word)) is None:
            return command, number
        command = found
    return command, len(arguments)


# --- where it runs ----------------------------------------------------------------------------------------------------


def _here(call: Call) -> int:
    program.main(call.arguments)


def _check(call: Call) -> int:
    from backstay.cli.kubectl import check  # late: clients of the API server cost a second

    return check.run(call.where, call.arguments[1:])


def _tunnel(call: Call) -> int:
    from backstay.cli.kubectl import cluster, tunnel  # late: as above

    target = asyncio.run(cluster.find(call.where))
    with tunnel.opened(target) as state_dir:
        arguments = in_namespace(call.arguments, target.namespace)
        program.main(("--state-dir", str(state_dir), "--actor", target.user, *arguments))


def _in_the_pod(call: Call) -> int:
    from backstay.cli.kubectl import cluster, remote  # late: as above

    target = asyncio.run(cluster.find(call.where))
    return remote.run(target, call.arguments, has_terminal=sys.stdin.isatty() and sys.stdout.isatty())
