"""`backstay version`: answers within milliseconds, so it imports nothing but what it prints."""

import platform

import click

import backstay
from backstay.cli.output import emit
from backstay.cli.session import output_option


@click.command
@output_option()
def version(output: str) -> None:
    """Print the version."""
    data = {"version": backstay.__version__, "python": platform.python_version()}
    emit(output, data, lambda wide: f"backstay {data['version']}" + (f" (Python {data['python']})" if wide else ""))
