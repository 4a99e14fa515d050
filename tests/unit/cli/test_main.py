"""The table of verbs is true, and every way to end has its exit code."""

import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest

import backstay as package
from backstay.cli import main as module
from backstay.cli.exits import Exit
from support import views
from support.commands import backstay

DOCS = Path(__file__).parents[3] / "docs" / "cli.md"


@pytest.mark.parametrize("verb", module.COMMANDS)
def test_every_verb_has_its_module_and_command(verb: str) -> None:
    name, _ = module.COMMANDS[verb]
    command = getattr(importlib.import_module(f"backstay.cli.{name}"), verb.replace("-", "_"))
    assert isinstance(command, click.Command)
    assert command.name == verb


def test_help_lists_every_verb() -> None:
    shown = backstay("--help").out
    assert [verb for verb in module.COMMANDS if not re.search(rf"^  {verb} ", shown, re.MULTILINE)] == []


def test_no_arguments_show_the_help() -> None:
    """A usage error all the same: a script that forgot its verb must not believe that something was done."""
    command = [sys.executable, "-m", "backstay.cli.main"]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (ran.returncode, ran.stdout) == (Exit.TROUBLE, "")
    assert "Commands:" in ran.stderr


@pytest.mark.parametrize("arguments", [["version", "--nope"], ["frobnicate"], ["get"], ["get", "cats"], ["rollback"]])
def test_wrong_use_is_trouble(arguments: list[str]) -> None:
    ran = backstay(*arguments)
    assert (ran.code, ran.out) == (Exit.TROUBLE, "")
    assert ran.err.startswith("error: ")


def test_version() -> None:
    assert backstay("version").out == f"backstay {package.__version__}\n"
    assert json.loads(backstay("version", "-o", "json").out)["version"] == package.__version__


def test_nothing_heavy_is_imported_for_version_and_help() -> None:
    """The start-up budget, by its cause rather than by a clock."""
    heavy = ["aiohttp", "rich", "git", "jsonschema", "cryptography", "yaml", "msgspec", "asyncio", "http.client"]
    for arguments in (["version"], ["--help"]):
        code = (
            "import sys\nfrom backstay.cli.main import main\n"
            f"try:\n    main({arguments!r})\nexcept SystemExit:\n    pass\n"
            f"print([name for name in {heavy!r} if name in sys.modules], file=sys.stderr)"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
        assert done.stderr.strip() == "[]"


def test_status_needs_no_aiohttp(state_dir: Path) -> None:
    code = (
        "import sys\nfrom backstay.cli.main import main\n"
        f"try:\n    main(['--state-dir', {str(state_dir)!r}, 'status'])\nexcept SystemExit:\n    pass\n"
        "print([name for name in ('aiohttp', 'rich', 'jsonschema') if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stderr.strip() == "[]"


def test_an_interrupt_is_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module.cli, "main", interrupted)
    assert backstay("version").code == Exit.INTERRUPTED


def test_a_reader_that_has_seen_enough_is_no_error(tmp_path: Path) -> None:
    command = f"'{sys.executable}' -m backstay.cli.main completion bash | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60, check=True)
    assert (done.stdout, done.stderr) == ("0\n", "")


def test_the_documented_exit_codes_are_the_real_ones() -> None:
    rows = re.findall(r"^\| (\d+) \| (.+) \|$", DOCS.read_text(), re.MULTILINE)
    assert rows == [(str(int(code)), code.meaning) for code in Exit]


def test_every_verb_is_documented() -> None:
    text = DOCS.read_text()
    assert [verb for verb in module.COMMANDS if f"`backstay {verb}" not in text] == []


def test_colours_follow_the_flag(state_dir: Path, operator: views.ShowingOperator) -> None:
    operator.shown = views.live()
    assert "\x1b[" in backstay("--color", "always", "status", state_dir=state_dir).out
    assert "\x1b[" not in backstay("status", state_dir=state_dir).out


def test_no_color_is_honoured(state_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    assert module._color("auto") is False
    assert module._color("always") is True


def test_the_state_folder_may_come_from_the_environment(state_dir: Path) -> None:
    command = [sys.executable, "-m", "backstay.cli.main", "get", "revisions"]
    environment = {**os.environ, "BACKSTAY_STATE_DIR": str(state_dir)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout.splitlines()[0].split()) == (0, ["COMMIT", "STATE", "AUTHOR", "SUBJECT"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["staus"], "no command 'staus'; did you mean 'status'?"),
        (
            ["get", "intnts"],
            "'intnts' is not one of intents, workloads, proxies, revisions, rollouts; did you mean 'intents'?",
        ),
        (["rollout", "prmote"], "No such command 'prmote'. Did you mean 'promote'?"),
        (["wait", "--fr", "live"], "No such option '--fr'. Did you mean '--for'?"),
    ],
)
def test_a_slip_is_answered_with_what_was_meant(arguments: list[str], said: str) -> None:
    ran = backstay(*arguments)
    first, hint = ran.err.splitlines()
    assert (ran.code, ran.out, hint.split(":")[0]) == (Exit.TROUBLE, "", "hint")
    assert first.startswith("error: ")
    assert first.endswith(said)
