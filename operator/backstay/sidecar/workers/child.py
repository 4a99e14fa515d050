"""One worker: `python -m backstay.sidecar.workers.child DESCRIPTOR`. Does what its parent calls for, and serves traffic.

Ends when it has drained, and at once when its parent is gone.
"""

import asyncio
import logging
import os
import signal
import socket
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, Final

import msgspec

from backstay.redact import clean
from backstay.sidecar.engine import ContentRefused, IdentityFiles
from backstay.sidecar.engines.python import PythonEngine, new_event_loop
from backstay.sidecar.engines.python.sink import StdoutSink
from backstay.sidecar.heap import settle
from backstay.sidecar.workers import calls
from backstay.sidecar.workers.calls import Answer, Last
from backstay.tasks import spawn

CALL_WITHIN: Final = 30.0  # seconds for a frame of the parent to be there whole; it writes in one go

_log: Final = logging.getLogger("backstay.sidecar.worker")


class Sockets:
    """Listening sockets that the parent has opened for this worker."""

    def __init__(self) -> None:
        self._given: dict[tuple[str, int], socket.socket] = {}

    def take(self, places: list[tuple[str, int]], descriptors: list[int]) -> None:
        for place, descriptor in zip(places, descriptors, strict=True):
            former = self._given.pop(place, None)
            if former is not None:
                former.close()
            self._given[place] = socket.socket(fileno=descriptor)

    def open(self, host: str, port: int) -> socket.socket:
        """The socket of a place, as `accept.bind` would make it. Raises OSError."""
        found = self._given.pop((host, port), None)
        if found is None:
            raise OSError(99, f"cannot listen on {host}:{port}: not given to this worker")  # EADDRNOTAVAIL
        found.setblocking(False)
        return found


class Worker:
    def __init__(self, parent: socket.socket) -> None:
        self._parent = parent
        self._sockets = Sockets()
        self._ended = asyncio.Event()
        self.engine = PythonEngine(log=StdoutSink(shared=True), open_port=self._sockets.open)

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        self._parent.settimeout(CALL_WITHIN)
        loop.add_reader(self._parent.fileno(), self._hear)
        await self._ended.wait()
        loop.remove_reader(self._parent.fileno())

    def _hear(self) -> None:
        try:
            data, descriptors = calls.receive(self._parent)
        except (EOFError, OSError) as error:
            _log.error("worker.orphaned error=%s", error)
            os._exit(1)  # nobody is left to tell what to serve, or to count for
        calls.send(self._parent, calls.encode(self._answered(data, descriptors)))

    def _answered(self, data: bytes, descriptors: list[int]) -> Answer:
        name = ""
        try:
            name, arguments = calls.decode_call(data)
            if name == "ports":
                self._sockets.take(arguments[0], descriptors)
                return Answer()
            if name == "begin":
                return self._begin(arguments[0])
            return self._act(name, arguments)
        except ContentRefused as error:
            return Answer(refused=error.reason, text=str(error))
        except OSError as error:
            return Answer(failed=clean(str(error)))
        except Exception as error:
            _log.exception("worker.mistake call=%s", name)
            why = clean(repr(error))
            # A config that breaks the engine is the config's fault, as it is in a sidecar of one process.
            return Answer(refused="EngineFailed", text=why) if name == "apply" else Answer(failed=why)

    def _begin(self, frames: list[msgspec.Raw]) -> Answer:
        """All at once: no request is answered by a proxy that was not told everything yet."""
        for frame in frames:
            answer = self._answered(bytes(frame), [])
            if answer.failed or answer.refused:
                return answer
        return Answer()

    def _act(self, name: str, arguments: tuple[Any, ...]) -> Answer:
        engine = self.engine
        match name:
            case "start":
                _at_once(engine.start(arguments[0]))
            case "collect":
                return Answer(observed=engine.collect())
            case "metrics":
                return Answer(text=engine.metrics(exemplars=arguments[0]).decode())
            case "clusters":
                return Answer(text=engine.clusters())
            case "endpoints":
                engine.endpoints(arguments[0], full=arguments[1])
            case "identity":
                engine.identity(IdentityFiles(certificate=Path(arguments[0]), key=Path(arguments[1])))
            case "secrets":
                engine.secrets({secret: Path(path) for secret, path in arguments[0].items()})
            case "level":
                logging.getLogger().setLevel(arguments[0])
            case "drain":
                spawn(self._drain(arguments[0]), name="worker-drain")
            case "apply" | "place" | "key_sets" | "addresses" | "trust" | "sample":
                getattr(engine, name)(*arguments)
            case _:
                raise ValueError(f"no call {name!r}")
        return Answer()

    async def _drain(self, timeout: float) -> None:
        await self.engine.drain(timeout)
        last = Last(self.engine.collect(), self.engine.metrics().decode())
        asyncio.get_running_loop().remove_reader(self._parent.fileno())
        calls.send(self._parent, calls.encode(last))
        self._ended.set()


def _at_once(coroutine: Coroutine[Any, Any, None]) -> None:
    """Run what needs no waiting for without giving the loop a turn."""
    try:
        coroutine.send(None)
    except StopIteration:
        return
    coroutine.close()
    raise RuntimeError("the engine waits while it starts")


def main() -> int:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)  # a terminal tells the whole group; the parent says what to do
    logging.basicConfig(
        level=sys.argv[2].upper(),
        format=f"%(asctime)s %(levelname)s %(name)s[{os.getpid()}] %(message)s",
        stream=sys.stderr,
    )
    settle()
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(_run(int(sys.argv[1])))
    return 0


async def _run(descriptor: int) -> None:
    await Worker(socket.socket(fileno=descriptor)).run()


if __name__ == "__main__":
    sys.exit(main())
