"""`backstay init [DIR]`: a small commented mesh repository to begin with. Never overwrites anything."""

from collections.abc import Iterator
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

import click

from backstay.cli.exits import Exit, Failed
from backstay.cli.session import Session, pass_session


@click.command
@click.argument("folder", metavar="[DIR]", type=click.Path(path_type=Path, file_okay=False), default=".")
@pass_session
def init(session: Session, folder: Path) -> None:
    """Write a small commented mesh repository to begin with, and a workloads file beside it."""
    files = dict(templates())
    taken = sorted(name for name in files if (folder / name).exists())
    if taken:
        hint = "choose an empty folder; nothing was written"
        raise Failed(f"{folder} already holds {', '.join(taken)}", hint=hint, code=Exit.NO)
    try:
        for name, body in sorted(files.items()):
            _write(folder / name, body)
            click.echo(folder / name)
    except OSError as error:
        raise Failed(f"{error.filename}: {error.strerror}") from error
    session.say(_next_steps(folder))


def templates() -> Iterator[tuple[str, bytes]]:
    """Relative path and content of every template."""
    yield from _below(resources.files("backstay") / "templates" / "init", "")


def _below(folder: Traversable, prefix: str) -> Iterator[tuple[str, bytes]]:
    for item in folder.iterdir():
        if item.is_dir():
            yield from _below(item, f"{prefix}{item.name}/")
        else:
            yield f"{prefix}{item.name}", item.read_bytes()


def _write(path: Path, body: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("xb") as file:
        file.write(body)


def _next_steps(folder: Path) -> str:
    steps = (
        f"cd {folder}",
        "git init -b main mesh && git -C mesh add . && git -C mesh commit -m 'First mesh'",
        "backstay validate mesh --workloads workloads.yaml",
        "backstay up mesh --workloads workloads.yaml",
    )
    return "next:\n" + "\n".join(f"  {step}" for step in steps)
