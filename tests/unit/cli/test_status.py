"""`status` says what is live and why."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from backstay.cli.exits import Exit
from support import views
from support.commands import backstay


def test_status_says_what_is_live_and_why(state_dir: Path, operator: views.ShowingOperator) -> None:
    operator.shown = views.held()
    ran = backstay("status", state_dir=state_dir)
    partly = f"main@sha1:bbbbbbbb is partly live: 1 document of bbbbbbbb held. {views.SENTENCE}"
    assert ran.code == Exit.OK
    assert ran.out.splitlines() == [
        "mesh       shop  https://git.example/mesh.git main",
        f"Ready      False  RevisionHeld: {partly}",
        f"Stalled    True  RevisionHeld: {partly}",
        "Validated  True  Valid: main@sha1:bbbbbbbb is valid",
        f"RolledBack True  VerdictFail: bbbbbbbb (Route/shop/b): {views.SENTENCE}",
        "desired    main@sha1:bbbbbbbb",
        "active     main@sha1:bbbbbbbb",
        "proxies    4: 4 synced",
        "intents    1: 1 held",
        "held       bbbbbbbb: Route/shop/b",
        f"           {views.SENTENCE}",
    ]


def test_status_shows_problems_with_their_place(state_dir: Path, operator: views.ShowingOperator) -> None:
    operator.shown = views.invalid()
    ran = backstay("status", state_dir=state_dir)
    assert ran.out.splitlines()[-1] == f"error      {views.PROBLEM}"


@pytest.mark.parametrize(("form", "load"), [("json", json.loads), ("yaml", yaml.safe_load)])
def test_status_as_data_is_the_crd(state_dir: Path, form: str, load: Any) -> None:
    found = load(backstay("status", "-o", form, state_dir=state_dir).out)
    assert (found["kind"], found["metadata"]["name"]) == ("MeshRepository", "shop")
