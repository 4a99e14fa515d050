"""Background tasks that cannot vanish: every task has a name, is referenced until it ends, and a crash is logged."""

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any, Final

_log: Final = logging.getLogger("backstay.tasks")
_running: Final[set[asyncio.Task[Any]]] = set()


def spawn(coroutine: Coroutine[Any, Any, Any], *, name: str) -> asyncio.Task[Any]:
    """Start a task; the loop itself keeps only weak references."""
    task = asyncio.get_running_loop().create_task(coroutine, name=name)
    _running.add(task)
    task.add_done_callback(_ended)
    return task


def _ended(task: asyncio.Task[Any]) -> None:
    _running.discard(task)
    if task.cancelled():
        return
    error = task.exception()
    if error is not None:
        _log.error("task.crashed name=%s error=%r", task.get_name(), error, exc_info=error)


async def stop(*tasks: "asyncio.Task[Any] | None") -> None:
    """Cancel tasks and wait until they are gone; their errors were logged already."""
    alive = [task for task in tasks if task is not None and not task.done()]
    for task in alive:
        task.cancel()
    await asyncio.gather(*alive, return_exceptions=True)


async def hinted(hint: asyncio.Event, seconds: float) -> None:
    """Wait for the hint, at most so long; afterwards there is none."""
    try:
        async with asyncio.timeout(seconds):
            await hint.wait()
    except TimeoutError:
        pass
    hint.clear()
