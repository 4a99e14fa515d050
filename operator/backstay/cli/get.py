"""`backstay get KIND [NAME]`: lists, as kubectl would show them."""

from typing import Any

import click

from backstay.cli.completion import KIND_PATHS, complete_names, kind_of
from backstay.cli.output import emit, table
from backstay.cli.session import Session, output_option, pass_session
from backstay.cli.shown import COLUMNS, as_list, listed, matches, nothing_named
from backstay.core.suggest import did_you_mean


class Kind(click.ParamType[str]):
    """Singular, plural and the objects' own kinds are all understood."""

    name = "kind"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        kind = kind_of(str(value))
        if kind not in KIND_PATHS:
            near = did_you_mean(value, KIND_PATHS)
            self.fail(f"{value!r} is not one of {', '.join(KIND_PATHS)}{near}", param, ctx)
        return kind

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[Any]:
        from click.shell_completion import CompletionItem  # late: only while completing

        return [CompletionItem(kind) for kind in KIND_PATHS if kind.startswith(incomplete)]


@click.command
@click.argument("kind", type=Kind())
@click.argument("name", default="", shell_complete=complete_names)
@click.option("-n", "--namespace", default="", help="Only this namespace.")
@click.option("--no-headers", is_flag=True, help="No first line.")
@output_option()
@pass_session
def get(session: Session, kind: str, name: str, namespace: str, no_headers: bool, output: str) -> None:
    """List intents, workloads, proxies, revisions or rollouts."""
    known = listed(session, kind)
    items = [item for item in known if not name or matches(kind, item, name)]
    if namespace:
        items = [item for item in items if item["metadata"].get("namespace", "") == namespace]
    if name and not items:
        raise nothing_named(kind, known, name)
    if not items:
        session.say(f"no {kind}")
    columns = COLUMNS[kind]
    emit(
        output,
        as_list(kind, items),
        lambda wide: table(columns, items, wide=wide, headers=not no_headers and bool(items)),
    )
