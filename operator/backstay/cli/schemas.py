"""`backstay schemas`: the generated files (JSON Schemas, reference pages, CRDs) written to disk, or compared with it."""

from collections.abc import Mapping
from pathlib import Path

import click

from backstay.cli.exits import Exit
from backstay.core.validate.reference import codes_page, intents_page
from backstay.core.validate.schema import generated


def docs() -> Mapping[str, str]:
    """File name -> text of the generated reference pages."""
    return {"intents.md": intents_page(), "codes.md": codes_page()}


def crds() -> Mapping[str, str]:
    """File name -> text of bootstrap/crds."""
    from backstay.adapters.kubernetes.crds import generated as definitions

    return definitions()


def differing(folder: Path, files: Mapping[str, str]) -> list[str]:
    """What is wrong on disk, one line a file; empty when all is as generated."""
    found = []
    for name, text in sorted(files.items()):
        path = folder / name
        if not path.is_file():
            found.append(f"{path}: is missing")
        elif path.read_text(encoding="utf-8") != text:
            found.append(f"{path}: differs from what the types say")
    known = {Path(name).suffix for name in files}
    extra = (path for path in sorted(folder.glob("*")) if path.suffix in known and path.name not in files)
    return [*found, *(f"{path}: is not generated (any more)" for path in extra if path.name != "README.md")]


def _write(folder: Path, files: Mapping[str, str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False), default=Path("schemas"))
@click.option("--docs", "docs_folder", type=click.Path(path_type=Path, file_okay=False), help="Reference pages too.")
@click.option(
    "--crds", "crds_folder", type=click.Path(path_type=Path, file_okay=False), help="CustomResourceDefinitions too."
)
@click.option("--check", is_flag=True, help="Write nothing; exit 1 if a file differs.")
@click.pass_context
def schemas(ctx: click.Context, folder: Path, docs_folder: Path | None, crds_folder: Path | None, check: bool) -> None:
    """Write the JSON Schemas of the intents into FOLDER, for editors and other tools."""
    wanted = [(folder, generated())] + ([(docs_folder, docs())] if docs_folder else [])
    wanted += [(crds_folder, crds())] if crds_folder else []
    if not check:
        for place, files in wanted:
            _write(place, files)
        return
    wrong = [line for place, files in wanted for line in differing(place, files)]
    for line in wrong:
        click.echo(line)
    if wrong:
        click.echo("run `backstay schemas` (with the same arguments, without --check) to write them", err=True)
        ctx.exit(Exit.NO)


if __name__ == "__main__":
    schemas()
