"""`describe` shows one object and what happened to it."""

import time
from pathlib import Path

from backstay.cli.exits import Exit
from backstay.core.ports import Event
from support import views
from support.commands import backstay


def test_describe_shows_conditions_and_events(state_dir: Path, operator: views.ShowingOperator) -> None:
    now = time.time()
    operator.told = [
        Event(number=1, at=now, kind="rollout", reason="WaveStarted", message="wave 1", subject="shop/a"),
        Event(number=2, at=now, kind="rollout", reason="WaveStarted", message="wave 1", subject="shop/other"),
    ]
    out = backstay("describe", "workload", "shop/a", state_dir=state_dir).out
    assert "    Ready         True     Synced: 2 proxies (since 2023-11-14T22:13:20Z)" in out.splitlines()
    assert out.splitlines()[-2] == "events:"
    assert "WaveStarted        wave 1  (shop/a)" in out.splitlines()[-1]


def test_describe_wants_a_name_that_is_clear(state_dir: Path) -> None:
    ran = backstay("describe", "proxy", "zzz", state_dir=state_dir)
    assert (ran.code, ran.err.splitlines()[0]) == (Exit.NO, "error: no 'zzz' among proxies")
