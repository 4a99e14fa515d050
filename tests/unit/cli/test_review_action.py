"""The action and the pipelines to copy: nothing of a pull request can become part of a script, and the commands exist."""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from backstay.cli.main import cli

ROOT = Path(__file__).parents[3]
ACTION: dict[str, Any] = yaml.safe_load((ROOT / ".github" / "actions" / "review" / "action.yml").read_text())
PIPELINES = sorted((ROOT / "example-repo" / "ci").glob("*.yml"))


def test_inputs_reach_scripts_through_the_environment_only() -> None:
    scripts = [step["run"] for step in ACTION["runs"]["steps"]]
    assert len(scripts) == 2
    assert not any("${{" in script for script in scripts)


def test_every_input_is_used_and_every_used_one_is_declared() -> None:
    used = set(re.findall(r"\$\{\{ inputs\.([a-z-]+) \}\}", str(ACTION["runs"])))
    assert used == set(ACTION["inputs"])


@pytest.mark.parametrize("inputs", [{}, {"WORKLOADS": "a b", "SARIF": "s", "COMMENT": "true", "BASE": "x; rm -rf y"}])
def test_the_script_passes_inputs_as_they_are(tmp_path: Path, inputs: dict[str, str]) -> None:
    fake = tmp_path / "backstay" / "bin" / "backstay"
    fake.parent.mkdir(parents=True)
    fake.write_text('#!/bin/sh\nfor word in "$@"; do echo "[$word]"; done\n')
    fake.chmod(0o755)
    names = ("DIR", "WORKLOADS", "REGISTRY", "BASE", "FAIL_ON", "COMMENT", "SARIF")
    environment = {f"REVIEW_{name}": inputs.get(name, "") for name in names}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", ACTION["runs"]["steps"][1]["run"]],
        env={"PATH": "/usr/bin:/bin", "RUNNER_TEMP": str(tmp_path), **environment},
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    words = done.stdout.splitlines()
    assert words[:1] == ["[review]"]
    assert ("[--comment]" in words) == bool(inputs)
    if inputs:
        assert words[-1] == "[x; rm -rf y..HEAD]"
        assert "[a b]" in words


@pytest.mark.parametrize("path", PIPELINES, ids=[path.name for path in PIPELINES])
def test_pipelines_to_copy_are_yaml_and_use_options_that_exist(path: Path) -> None:
    text = path.read_text()
    assert yaml.safe_load(text)
    known = CliRunner().invoke(cli, ["review", "--help"]).output
    for command in re.findall(r"backstay review (.*)", text):
        assert [word for word in re.findall(r"--[a-z-]+", command) if word not in known] == []


def test_every_pipeline_is_listed() -> None:
    listed = (ROOT / "example-repo" / "ci" / "README.md").read_text()
    assert [path.name for path in PIPELINES if f"| {path.name} |" not in listed] == []
