"""What is rendered is what golden/ says, and Envoy itself takes every file of it."""

import subprocess
from pathlib import Path

import pytest

from backstay.sidecar.engines.envoy.process import find_binary

from .golden import FOLDER, text, worlds

FILES = sorted(FOLDER.glob("*.json"))


def test_every_file_is_of_a_config() -> None:
    assert {file.stem for file in FILES} == worlds().keys()


@pytest.mark.parametrize("name", worlds())
def test_what_is_rendered_is_what_is_kept(name: str) -> None:
    assert text(worlds()[name]) == (FOLDER / f"{name}.json").read_text(encoding="utf-8")


@pytest.mark.parametrize("file", FILES, ids=[file.stem for file in FILES])
def test_envoy_takes_it(file: Path) -> None:
    done = subprocess.run(
        [find_binary(), "--mode", "validate", "--config-path", str(file), "--log-level", "warning"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr.count("error")) == (0, 0), done.stderr
