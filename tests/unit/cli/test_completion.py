"""Verbs and names complete, and an operator that is away makes no noise."""

import subprocess
import sys
from pathlib import Path

import click
import pytest

from backstay.cli.completion import complete_names
from support.commands import backstay


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(shell: str) -> None:
    assert f"_BACKSTAY_COMPLETE={shell}_complete" in backstay("completion", shell).out


def completed(words: str, state_dir: Path) -> list[str]:
    """What bash would offer for the last of the words."""
    count = len(words.split(" ")) - 1
    environment = {
        "PATH": "/usr/bin:/bin",
        "COMP_WORDS": words,
        "COMP_CWORD": str(count),
        "_BACKSTAY_COMPLETE": "bash_complete",
        "BACKSTAY_STATE_DIR": str(state_dir),
    }
    command = [sys.executable, "-m", "backstay.cli.main"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=True)
    return [line.partition(",")[2] for line in done.stdout.splitlines()]


def test_verbs_complete(tmp_path: Path) -> None:
    assert completed("backstay rol", tmp_path) == ["rollout", "rollback"]
    assert completed("backstay rollout p", tmp_path) == ["pause", "promote"]
    assert completed("backstay get in", tmp_path) == ["intents"]


def test_names_complete_while_an_operator_answers(state_dir: Path) -> None:
    assert completed("backstay describe intents Rou", state_dir) == ["Route/shop/b"]
    assert completed("backstay proxy config shop/", state_dir) == ["shop/a", "shop/b"]


def test_no_operator_means_no_names_and_no_noise(tmp_path: Path) -> None:
    context = click.Context(click.Command("x"))
    context.params["state_dir"] = tmp_path
    assert complete_names(context, click.Argument(["name"]), "") == []
