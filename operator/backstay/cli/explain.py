"""`backstay explain BSnnnn|Reason`: cause, example and mend of a message."""

import click

from backstay.cli.exits import Exit, Failed
from backstay.cli.output import emit
from backstay.cli.session import output_option
from backstay.core.codes import Explanation, suggestions
from backstay.core.codes import explain as look_up

SUGGESTED = 5  # more would be a list to read, not a hint


@click.command
@click.argument("code", metavar="BSnnnn|REASON")
@output_option()
def explain(code: str, output: str) -> None:
    """What a message code or reason means, and how to mend it."""
    found = look_up(code)
    if found is None:
        raise Failed(f"nothing is known about {code!r}", hint=_hint(code), code=Exit.NO)
    emit(output, _object(found), lambda _: _text(found))


def _hint(code: str) -> str:
    near = suggestions(code)[:SUGGESTED]
    if near:
        return f"did you mean {', '.join(near)}?"
    return "codes are `BS` and four digits, reasons are CamelCase; both stand in brackets at a message's end"


def _object(found: Explanation) -> dict[str, str]:
    return {
        "code": found.code,
        "reason": found.reason,
        "title": found.title,
        "cause": found.cause,
        "example": found.example,
        "mend": found.mend,
    }


def _text(found: Explanation) -> str:
    parts = [f"{found.code} {found.reason}: {found.title}", found.cause]
    if found.example:
        parts.append("Example:\n" + "\n".join(f"  {line}" for line in found.example.splitlines()))
    return "\n\n".join([*parts, f"Mend: {found.mend}"])
