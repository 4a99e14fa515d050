"""`backstay schemas` writes what is generated, and with --check says what differs."""

from pathlib import Path

from click.testing import CliRunner

from backstay.cli.schemas import docs, schemas
from backstay.core.validate.schema import generated


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(schemas, arguments)
    return result.exit_code, result.stdout


def test_what_was_written_passes_the_check(tmp_path: Path) -> None:
    folders = (str(tmp_path / "schemas"), "--docs", str(tmp_path / "docs"))
    assert run(*folders) == (0, "")
    assert run(*folders, "--check") == (0, "")
    assert {path.name for path in (tmp_path / "schemas").iterdir()} == set(generated())
    assert {path.name for path in (tmp_path / "docs").iterdir()} == set(docs())


def test_a_missing_file_fails_the_check_and_nothing_is_written(tmp_path: Path) -> None:
    run(str(tmp_path))
    (tmp_path / "mesh.json").unlink()
    assert run(str(tmp_path), "--check") == (1, f"{tmp_path / 'mesh.json'}: is missing\n")
    assert not (tmp_path / "mesh.json").exists()
