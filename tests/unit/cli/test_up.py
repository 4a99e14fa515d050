"""What `backstay up` refuses before anything starts."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from backstay.cli.main import cli


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--reviews"], "--reviews needs --commit-status: it names the forge that has the pull requests"),
        (["--commit-status", "gitea", "https://f/api/v1", "o/r"], "--commit-status needs --commit-status-token-file"),
        (["--commit-status", "svn", "https://f", "o/r"], "unknown forge 'svn', expected github, gitea or gitlab"),
        (["--webhook-port", "1"], "an unsigned knock is never answered"),
    ],
)
def test_options_that_need_each_other_say_so(options: list[str], sentence: str, tmp_path: Path) -> None:
    workloads = tmp_path / "workloads.yaml"
    workloads.write_text("namespace: shop\n", encoding="utf-8")
    done = CliRunner().invoke(cli, ["--state-dir", str(tmp_path), "up", str(tmp_path), "-w", str(workloads), *options])
    assert (done.exit_code, sentence in " ".join(done.output.split())) == (2, True), done.output
