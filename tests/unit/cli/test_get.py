"""`get` lists every kind in every form."""

import json
from pathlib import Path

import pytest

from backstay.cli.exits import Exit
from support import views
from support.commands import backstay


def table(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines()]


def test_get_intents(state_dir: Path) -> None:
    assert table(backstay("get", "intents", state_dir=state_dir).out) == [
        ["NAMESPACE", "KIND", "NAME", "STATE", "PROXIES", "PROVEN", "PLACE"],
        ["shop", "Route", "b", "rolling-out", "1/2", "Unknown", "b.yaml:1"],
    ]


def test_get_proxies_wide(state_dir: Path) -> None:
    lines = table(backstay("get", "proxies", "-o", "wide", state_dir=state_dir).out)
    candidate = views.WANTED_CONFIGS.digests["shop/a"][:12]
    assert lines[1][:7] == [
        "a-0",
        "shop/a",
        "splitting",
        views.STABLE_CONFIGS.digests["shop/a"][:12],
        candidate,
        "100",
        "%",
    ]


@pytest.mark.parametrize("kind", ["intents", "workloads", "proxies", "revisions", "rollouts"])
@pytest.mark.parametrize("form", ["table", "wide", "json", "yaml"])
def test_every_kind_has_every_form(state_dir: Path, kind: str, form: str) -> None:
    ran = backstay("get", kind, "-o", form, state_dir=state_dir)
    assert (ran.code, ran.err) == (Exit.OK, "")
    assert ran.out.strip()


def test_get_one_by_name(state_dir: Path) -> None:
    for name in ("a", "shop/a"):
        found = json.loads(backstay("get", "workload", name, "-o", "json", state_dir=state_dir).out)
        assert [item["metadata"]["name"] for item in found["items"]] == ["a"]


def test_get_a_revision_by_the_start_of_its_sha(state_dir: Path) -> None:
    found = json.loads(backstay("get", "revisions", "bbbb", "-o", "json", state_dir=state_dir).out)
    assert [item["metadata"]["name"] for item in found["items"]] == [views.NEW]


def test_get_what_is_not_there(state_dir: Path) -> None:
    ran = backstay("get", "intents", "zzz", state_dir=state_dir)
    assert (ran.code, ran.out) == (Exit.NO, "")
    assert ran.err == "error: no 'zzz' among intents\nhint: `backstay get intents` lists them\n"


def test_get_without_headers(state_dir: Path) -> None:
    assert table(backstay("get", "revisions", "--no-headers", state_dir=state_dir).out)[0][:2] == [
        "bbbbbbbb",
        "rolling-out",
    ]


def test_get_what_is_almost_there(state_dir: Path) -> None:
    ran = backstay("get", "proxies", "a-00", state_dir=state_dir)
    assert ran.err.splitlines()[0] == "error: no 'a-00' among proxies; did you mean 'a-0'?"
