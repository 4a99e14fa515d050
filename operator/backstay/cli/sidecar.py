"""`backstay sidecar`: becomes the sidecar program, so that a proxy does not carry the command line in its memory."""

import os
import sys

import click


@click.command(context_settings={"ignore_unknown_options": True, "allow_extra_args": True}, add_help_option=False)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def sidecar(arguments: tuple[str, ...]) -> None:
    """Run one proxy beside one workload instance; its own --help lists the flags."""
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", "backstay.sidecar", *arguments])  # noqa: S606 - our own interpreter
