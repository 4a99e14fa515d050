"""An application for meshes under test: standard library only, up in a tenth of a second, one file for three roles.

APP_ROLE=backend (default) answers; `caller` asks CALL (a URL) once for each request it gets and answers the same; `client`
asks URLS (comma-separated, in turn) at RATE a second, open loop, and prints one line of JSON a second like
example-repo/apps/traffic.py, with how many good answers took longer than SLOW_MS, and when the first and
the last request ended that failed or was slow.

A backend does what BEHAVIOUR says, a JSON object: `fail` (percent answered with 500), `hang` (percent never answered),
`delay_ms`, `status`. A file `behaviour.json` in DATA, looked at ten times a second, is put on top of it while it exists, so
that a running backend can be made worse or well again from outside. Nothing here is random: of 100 requests exactly `fail`
fail, spread evenly.

Run as `python -E -S app.py`: it must not pay for anybody's site-packages.
"""

import asyncio
import json
import os
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

Headers = dict[str, str]
Message = tuple[str, Headers, bytes]
"""First line, headers (names in lower case), body."""
PASSED_ON = ("x-version", "x-canary", "x-request-id", "traceparent", "authorization")
CALL_TIMEOUT = 30.0
"""Seconds; longer than every timeout of a mesh under test, so that it is the mesh that gives up first."""
MOST_OPEN = int(os.environ.get("MOST_OPEN", "2000"))
"""Requests of a client that may hang at once; what is over it is counted as `overflow`."""


# --- HTTP/1.1, as little as these roles need --------------------------------------------------------------------------


async def read_message(reader: asyncio.StreamReader) -> Message:
    """One request or answer. Raises EOFError when the other side has closed."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    first, _, rest = head.partition("\r\n")
    headers = {}
    for line in rest.splitlines():
        name, colon, value = line.partition(":")
        if colon:
            headers[name.lower()] = value.strip()
    return first, headers, await _body(reader, first, headers)


async def _body(reader: asyncio.StreamReader, first: str, headers: Headers) -> bytes:
    if headers.get("transfer-encoding", "").lower() == "chunked":
        return await _chunks(reader)
    if "content-length" in headers:
        return await reader.readexactly(int(headers["content-length"]))
    bodiless = first.split(" ", 2)[1] in ("204", "304") or not first.startswith("HTTP/")
    return b"" if bodiless else await reader.read()


async def _chunks(reader: asyncio.StreamReader) -> bytes:
    found = b""
    while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
        found += await reader.readexactly(size)
        await reader.readexactly(2)
    await reader.readuntil(b"\r\n")
    return found


def message(first: str, headers: Headers, body: bytes = b"") -> bytes:
    lines = [first, *(f"{name}: {value}" for name, value in headers.items()), f"content-length: {len(body)}"]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


class Caller:
    """Asks URLs through HTTP_PROXY (directly where there is none) over kept-alive connections."""

    def __init__(self) -> None:
        proxy = urlsplit(os.environ.get("HTTP_PROXY", ""))
        self._proxy = (proxy.hostname, proxy.port or 80) if proxy.hostname else None
        self._idle: dict[tuple[str, int], list[tuple[asyncio.StreamReader, asyncio.StreamWriter]]] = {}

    async def ask(self, method: str, url: str, headers: Headers, body: bytes = b"") -> Message:
        """The answer. Raises ConnectionRefusedError and other OSError, EOFError, TimeoutError."""
        parts = urlsplit(url)
        where = self._proxy or (parts.hostname or "", parts.port or 80)
        target = url if self._proxy else parts.path or "/"
        connection = await self._connection(where)
        try:
            connection[1].write(message(f"{method} {target} HTTP/1.1", {"host": parts.netloc, **headers}, body))
            async with asyncio.timeout(CALL_TIMEOUT):
                answer = await read_message(connection[0])
        except BaseException:
            connection[1].close()
            raise
        if answer[1].get("connection", "").lower() == "close":
            connection[1].close()
        else:
            self._idle.setdefault(where, []).append(connection)
        return answer

    async def _connection(self, where: tuple[str, int]) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        idle = self._idle.get(where, [])
        while idle:
            reader, writer = idle.pop()
            if not reader.at_eof() and not writer.is_closing():
                return reader, writer
            writer.close()
        return await asyncio.open_connection(*where, limit=2**20)


# --- backend and caller -----------------------------------------------------------------------------------------------


class Behaviour:
    """What this backend does now."""

    def __init__(self) -> None:
        self._given: dict[str, float] = json.loads(os.environ.get("BEHAVIOUR", "{}"))
        self._file = Path(os.environ["DATA"]) / "behaviour.json" if "DATA" in os.environ else None
        self._seen = 0
        self._owed: Counter[str] = Counter()
        self.now = dict(self._given)

    async def watch(self) -> None:
        while self._file is not None:
            try:
                seen = self._file.stat().st_mtime_ns
                if seen != self._seen:
                    self.now = {**self._given, **json.loads(self._file.read_text())}
            except FileNotFoundError:
                seen, self.now = 0, dict(self._given)
            except ValueError:  # half written: the next look sees it whole
                seen = self._seen
            self._seen = seen
            await asyncio.sleep(0.1)

    def is_due(self, what: str) -> bool:
        """Whether this request is one of the `what` percent."""
        self._owed[what] += int(self.now.get(what, 0) * 100)
        if self._owed[what] < 100_00:
            return False
        self._owed[what] -= 100_00
        return True


Answer = tuple[int, str, bytes]
"""Status, version, body."""
Answerer = Callable[[Message], Awaitable[Answer]]


def backend(behaviour: Behaviour) -> Answerer:
    version = os.environ.get("VERSION", "")

    async def answer(request: Message) -> Answer:
        delay = behaviour.now.get("delay_ms", 0) / 1000
        if behaviour.is_due("hang"):
            delay = 3600.0
        if delay:
            await asyncio.sleep(delay)
        if behaviour.is_due("fail"):
            return 500, version, b"failed on purpose"
        return int(behaviour.now.get("status", 200)), version, request[2] or b"ok"

    return answer


def relay(caller: Caller, url: str) -> Answerer:
    async def answer(request: Message) -> Answer:
        method, path, _ = request[0].split(" ", 2)
        headers = {name: request[1][name] for name in PASSED_ON if name in request[1]}
        try:
            first, said, body = await caller.ask(method, url + path, headers, request[2])
        except TimeoutError:
            return 504, "", b"timeout"
        except (OSError, EOFError) as error:
            return 502, "", repr(error).encode()
        return int(first.split(" ")[1]), said.get("x-version", ""), body

    return answer


async def serve(answerer: Answerer) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(EOFError, OSError):
            while True:
                request = await read_message(reader)
                status, version, body = await answerer(request)
                writer.write(message(f"HTTP/1.1 {status} Said", {"x-version": version}, body))
                await writer.drain()
        writer.close()

    server = await asyncio.start_server(talk, os.environ["HOST"], int(os.environ["PORT"]), limit=2**20, backlog=512)
    await server.serve_forever()


# --- client -----------------------------------------------------------------------------------------------------------


class Client:
    """Constant open-loop traffic and its count by the second."""

    def __init__(self) -> None:
        self._caller = Caller()
        self._urls = os.environ["URLS"].split(",")
        self._rate = float(os.environ.get("RATE", "50"))
        self._method = os.environ.get("METHOD", "GET")
        self._slow_ms = float(os.environ.get("SLOW_MS", "0"))
        self._headers = dict(pair.split("=", 1) for pair in os.environ.get("HEADERS", "").split(",") if pair)
        self._open: set[asyncio.Task[None]] = set()
        self._begin()

    def _begin(self) -> None:
        self._sent = 0
        self._outcomes: Counter[str] = Counter()
        self._versions: Counter[str] = Counter()
        self._latencies: list[float] = []
        self._slow = 0
        self._harmed_at: list[float] = []

    async def run(self) -> None:
        start, number, second = time.monotonic(), 0, 1
        while True:
            due = start + number / self._rate
            while due >= start + second:
                await self._until(start + second)
                self._report(second)
                second += 1
            await self._until(due)
            self._dispatch(number)
            number += 1

    async def _until(self, due: float) -> None:
        await asyncio.sleep(max(0.0, due - time.monotonic()))

    def _dispatch(self, number: int) -> None:
        self._sent += 1
        if len(self._open) >= MOST_OPEN:
            self._outcomes["overflow"] += 1
            return
        task = asyncio.get_running_loop().create_task(self._ask(self._urls[number % len(self._urls)]))
        self._open.add(task)
        task.add_done_callback(self._open.discard)

    async def _ask(self, url: str) -> None:
        began = time.monotonic()
        outcome = await self._outcome(url)
        took_ms = (time.monotonic() - began) * 1000
        self._outcomes[outcome] += 1
        self._latencies.append(took_ms)
        is_slow = outcome.startswith("2") and 0 < self._slow_ms < took_ms
        self._slow += is_slow
        if is_slow or not outcome.startswith("2"):
            self._harmed_at.append(round(time.time(), 3))

    async def _outcome(self, url: str) -> str:
        try:
            first, headers, _ = await self._caller.ask(self._method, url, self._headers)
        except TimeoutError:
            return "timeout"
        except ConnectionRefusedError:
            return "connect"
        except (OSError, EOFError):
            return "reset"
        self._versions[headers.get("x-version", "")] += 1
        return first.split(" ")[1]

    def _report(self, second: int) -> None:
        ordered = sorted(self._latencies)
        line = {
            "second": second,
            "at": round(time.time(), 3),
            "sent": self._sent,
            "outcomes": dict(self._outcomes),
            "versions": dict(self._versions),
            "p50_ms": _quantile(ordered, 0.5),
            "p99_ms": _quantile(ordered, 0.99),
            "open": len(self._open),
            "slow": self._slow,
            "harmed_at": [self._harmed_at[0], self._harmed_at[-1]] if self._harmed_at else [],
        }
        self._begin()
        print(json.dumps(line), flush=True)


def _quantile(ordered: list[float], share: float) -> float | None:
    return round(ordered[min(int(share * len(ordered)), len(ordered) - 1)], 2) if ordered else None


async def main() -> None:
    role = os.environ.get("APP_ROLE", "backend")
    if role == "client":
        work: Awaitable[None] = Client().run()
    elif role == "caller":
        work = serve(relay(Caller(), os.environ["CALL"].rstrip("/")))
    else:
        behaviour = Behaviour()
        work = _both(serve(backend(behaviour)), behaviour.watch())
    task = asyncio.ensure_future(work)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    with suppress(asyncio.CancelledError):
        await task


async def _both(*works: Awaitable[None]) -> None:
    await asyncio.gather(*works)


if __name__ == "__main__":
    asyncio.run(main())
