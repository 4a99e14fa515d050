"""`backstay completion SHELL`: the script a shell loads; names of intents and workloads come from the operator."""

import click
from click.shell_completion import CompletionItem, get_completion_class

from backstay.cli.client import Client
from backstay.cli.exits import Failed
from backstay.cli.session import default_state_dir

ANSWER_WITHIN = 0.5
"""Seconds: a Tab key that blocks longer is worse than none."""
KIND_PATHS = {
    "intents": "/v1/meshintents",
    "workloads": "/v1/workloads",
    "proxies": "/v1/proxies",
    "revisions": "/v1/revisions",
    "rollouts": "/v1/meshrollouts",
}
"""Kind as typed -> where its list is."""


@click.command
@click.argument("shell", type=click.Choice(("bash", "zsh", "fish")))
def completion(shell: str) -> None:
    """Print the completion script for SHELL.

    \b
    bash: echo 'eval "$(backstay completion bash)"' >> ~/.bashrc
    zsh:  echo 'eval "$(backstay completion zsh)"' >> ~/.zshrc
    fish: backstay completion fish > ~/.config/fish/completions/backstay.fish
    """
    from backstay.cli.main import cli  # main imports this module by name

    kind = get_completion_class(shell)
    if kind is None:
        raise Failed(f"no completion for {shell!r}")
    click.echo(kind(cli, {}, "backstay", "_BACKSTAY_COMPLETE").source())


def complete_names(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Names of the kind given before (`get`, `describe`), or of workloads; nothing when no operator answers."""
    kind = kind_of(str(ctx.params.get("kind") or "workloads"))
    folder = ctx.find_root().params.get("state_dir") or default_state_dir()  # while completing, no callback has run
    try:
        items = Client(folder, timeout=ANSWER_WITHIN).items(KIND_PATHS[kind])
    except (Failed, KeyError):
        return []
    names = (qualified(kind, item) for item in items)
    return [CompletionItem(name) for name in names if name.startswith(incomplete)]


def kind_of(text: str) -> str:
    """`intent`, `intents`, `MeshIntent` -> `intents`; unknown text comes back as it is."""
    word = text.lower().removeprefix("mesh")
    plural = {"proxy": "proxies"}.get(word, word if word.endswith("s") else word + "s")
    return plural if plural in KIND_PATHS else text


def qualified(kind: str, item: dict[str, object]) -> str:
    """The name that is unique within its kind: `Route/shop/sa-logic`, `shop/sa-logic`, `r7`, a sha."""
    metadata, spec, status = (dict(item.get(part) or {}) for part in ("metadata", "spec", "status"))  # type: ignore[call-overload]
    match kind:
        case "intents":
            return f"{spec['kind']}/{metadata['namespace']}/{spec['name']}"
        case "workloads":
            return f"{metadata['namespace']}/{metadata['name']}"
        case "rollouts":
            return str(status["id"])
        case _:
            return str(metadata["name"])
