"""Where each verb runs, and how the plugin ends."""

import re
from collections.abc import Sequence

import pytest

from backstay.cli.exits import Exit, Failed
from backstay.cli.kubectl import plugin
from backstay.cli.main import COMMANDS


def ended(arguments: Sequence[str]) -> int:
    with pytest.raises(SystemExit) as end:
        plugin.main(arguments)
    return int(end.value.code or 0)


@pytest.mark.parametrize("verb", sorted(set(COMMANDS) - set(plugin.NOT_HERE)))
def test_every_verb_of_the_program_has_its_place(verb: str) -> None:
    expected = plugin._check if verb == "check" else plugin._here if verb in plugin.HERE else None
    expected = expected or (plugin._tunnel if verb in plugin.TUNNEL else plugin._in_the_pod)
    assert plugin.runner(verb) is expected


def test_help_lists_the_verbs_for_clusters(capsys: pytest.CaptureFixture[str]) -> None:
    assert ended([]) == ended(["--help"]) == Exit.OK
    shown = capsys.readouterr().out
    listed = set(re.findall(r"^  ([a-z-]+)  ", shown.partition("Commands:")[2], re.MULTILINE))
    assert listed == set(COMMANDS) - set(plugin.NOT_HERE)


@pytest.mark.parametrize(
    ("verb", "message"),
    [("up", "`up` is not for clusters"), ("stauts", "no command 'stauts'; did you mean 'status'?")],
)
def test_verbs_that_are_none_here(verb: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(Failed) as failed:
        plugin.runner(verb)
    assert failed.value.message == message
    assert ended([verb]) == Exit.TROUBLE
    assert message in capsys.readouterr().err


def test_a_verb_that_needs_no_operator_runs_without_a_cluster(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", "/nonexistent")
    assert ended(["-n", "shop", "explain", "RevisionHeld"]) == Exit.OK
    assert "BS" in capsys.readouterr().out


def test_without_a_cluster_a_verb_for_one_says_so(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", "/nonexistent")
    assert ended(["status"]) == Exit.TROUBLE
    assert "no way to the API server" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "option", "knows"),
    [(("plan",), "-n", True), (("rollout", "watch"), "-n", False), (("get", "proxies"), "-o", True)],
)
def test_options_of_verbs_are_known(words: Sequence[str], option: str, knows: bool) -> None:
    assert plugin.knows_option(words, option) is knows


@pytest.mark.parametrize(
    ("typed", "run"),
    [
        (("plan", "mesh"), ("plan", "--namespace", "shop", "mesh")),
        (("plan", "-n", "other"), ("plan", "--namespace", "shop", "-n", "other")),
        (("auth", "can-i", "x"), ("auth", "can-i", "--namespace", "shop", "x")),
        (("support-bundle",), ("support-bundle",)),
    ],
)
def test_names_without_a_namespace_are_of_the_repositorys(typed: Sequence[str], run: Sequence[str]) -> None:
    assert plugin.in_namespace(typed, "shop") == run
