import asyncio

import pytest

from backstay.cli import operator


def test_a_task_that_survives_its_cancellation_does_not_keep_the_operator_from_ending(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(operator, "LEAVE_WITHIN", 0.01)
    tasks: list[asyncio.Task[None]] = []

    async def stubborn() -> None:
        for _ in range(3):
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                continue

    async def main() -> None:
        tasks.append(asyncio.create_task(stubborn(), name="stubborn"))
        await asyncio.sleep(0)

    with caplog.at_level("INFO", "backstay.cli"):
        operator._run(main())
    assert [record.getMessage() for record in caplog.records] == ["operator.left tasks=['stubborn']"]


def test_what_the_operator_fails_with_is_raised_and_leftovers_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operator, "LEAVE_WITHIN", 0.01)
    tasks: list[asyncio.Task[bool]] = []

    async def main() -> None:
        tasks.append(asyncio.create_task(asyncio.Event().wait()))
        raise OSError("port 1 is in use")

    with pytest.raises(OSError, match="port 1"):
        operator._run(main())
    assert tasks[0].cancelled()
