"""`python -m backstay.sidecar`: reads settings, sets up log and loop, and turns signals into events."""

import asyncio
import importlib
import logging
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Final

from backstay.redact import clean
from backstay.sidecar.settings import Settings, parse

PROGRAMS: Final = {"redirect": "backstay.sidecar.redirect", "wait": "backstay.sidecar.waiting"}
"""What else a pod runs of this image, by its first argument: before the proxy, and beside it."""


def main(arguments: Sequence[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments and arguments[0] in PROGRAMS:
        return _other_program(arguments[0], arguments[1:])
    settings = parse(arguments)
    logging.basicConfig(
        level=settings.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s %(message)s", stream=sys.stderr
    )
    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(_run(settings))
    except (OSError, ValueError) as error:
        print(f"backstay sidecar: {clean(str(error))}", file=sys.stderr)
        return 1
    return 0


def _other_program(name: str, arguments: Sequence[str]) -> int:
    program: Callable[[Sequence[str]], int] = importlib.import_module(PROGRAMS[name]).main
    return program(arguments)


def _loop_factory() -> type[asyncio.AbstractEventLoop] | None:
    try:
        import uvloop  # noqa: PLC0415 - not everywhere
    except ImportError:
        return None
    return uvloop.Loop


async def _run(settings: Settings) -> None:
    # Settings errors must not wait for these imports.
    from backstay.sidecar.heap import settle  # noqa: PLC0415
    from backstay.sidecar.program import Events, run  # noqa: PLC0415

    settle()
    loop = asyncio.get_running_loop()
    events = Events()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, events.stopping.set)
    loop.add_signal_handler(signal.SIGHUP, events.reload.set)
    loop.add_signal_handler(signal.SIGUSR2, events.replace.set)
    await run(settings, events)


if __name__ == "__main__":
    sys.exit(main())
