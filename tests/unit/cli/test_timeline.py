"""`timeline` keeps the order of things."""

import time
from pathlib import Path

from backstay.cli.exits import Exit
from backstay.core.ports import Event
from support import views
from support.commands import backstay


def test_timeline_is_in_order_and_knows_hosts_as_words(state_dir: Path, operator: views.ShowingOperator) -> None:
    now = time.time()
    operator.told = [
        Event(
            number=1,
            at=now - 3,
            kind="commit",
            reason="RevisionSeen",
            message="Tune b",
            revision=views.named(views.NEW),
        ),
        Event(number=2, at=now - 2, kind="endpoints", reason="EndpointAdded", message="up", subject="sa-logic.shop"),
        Event(number=3, at=now - 1, kind="endpoints", reason="EndpointAdded", message="up", subject="sa-logic-v2.shop"),
    ]
    ran = backstay("timeline", state_dir=state_dir)
    assert [line.split()[2] for line in ran.out.splitlines()] == ["commit", "endpoints", "endpoints"]
    only = backstay("timeline", "sa-logic", state_dir=state_dir).out.splitlines()
    assert [line.rpartition("  ")[2] for line in only] == ["(sa-logic.shop)"]


def test_timeline_wants_a_duration(state_dir: Path) -> None:
    ran = backstay("timeline", "--since", "yesterday", state_dir=state_dir)
    assert ran.code == Exit.TROUBLE
    assert "'yesterday' is not a duration" in ran.err
