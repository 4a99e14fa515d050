"""Options about where may stand anywhere, unless the verb has that option itself."""

from collections.abc import Sequence

import pytest

from backstay.cli.exits import Failed
from backstay.cli.kubectl.calls import Call, Where, parse


def nothing_own(_arguments: Sequence[str], _option: str) -> bool:
    return False


def plan_has_n(arguments: Sequence[str], option: str) -> bool:
    return arguments[0] == "plan" and option == "-n"


@pytest.mark.parametrize(
    "typed",
    [
        ("-n", "shop", "rollout", "watch"),
        ("rollout", "-n", "shop", "watch"),
        ("rollout", "watch", "-n", "shop"),
        ("rollout", "watch", "--namespace=shop"),
    ],
)
def test_the_namespace_may_stand_anywhere(typed: Sequence[str]) -> None:
    assert parse(typed, nothing_own) == Call(where=Where(namespace="shop"), arguments=("rollout", "watch"))


def test_all_options_of_a_call() -> None:
    typed = ["--context", "prod", "--kubeconfig=/k", "--repository", "shop", "--operator-namespace", "mesh", "status"]
    where = Where(context="prod", kubeconfig="/k", repository="shop", system="mesh")
    assert parse([*typed, "-o", "json"], nothing_own) == Call(where=where, arguments=("status", "-o", "json"))


def test_an_option_that_the_verb_has_is_the_verbs() -> None:
    assert parse(["-n", "a", "plan", ".", "-n", "b"], plan_has_n) == Call(
        where=Where(namespace="a"), arguments=("plan", ".", "-n", "b")
    )


def test_after_two_dashes_everything_is_the_verbs() -> None:
    assert parse(["status", "--", "-n", "a"], nothing_own).arguments == ("status", "--", "-n", "a")


def test_help_before_a_verb_is_ours_and_after_it_the_verbs() -> None:
    assert parse(["--help"], nothing_own) == Call(wants_help=True)
    assert parse(["status", "--help"], nothing_own) == Call(arguments=("status", "--help"))


@pytest.mark.parametrize(
    ("typed", "said"),
    [(["-n"], "-n needs a value"), (["--verbose", "status"], "no option '--verbose'")],
)
def test_what_cannot_be_understood_is_said(typed: Sequence[str], said: str) -> None:
    with pytest.raises(Failed) as failed:
        parse(typed, nothing_own)
    assert failed.value.message == said
