"""Steady traffic: asks one URL at a fixed rate, whatever happens, and says each second what came back.

Open loop: requests leave on time even while earlier ones hang (a closed loop would hide an outage by waiting for it),
up to a bound; what is over it is counted as `overflow`. One JSON object a second on standard output, by the second in
which requests *finished*:

    {"second": 12, "sent": 50, "outcomes": {"200": 48, "500": 2}, "versions": {"v1": 43, "v2": 5}, "p50_ms": 4.1,
     "p99_ms": 9.8, "open": 1, "oldest_ms": 3.0}

An outcome is a status, or `connect`, `reset`, `timeout`, `overflow`, `abandoned`; `oldest_ms` is the age of the oldest
request that is still open. SIGTERM ends it within a second: what is still open then is abandoned.
"""

import argparse
import asyncio
import json
import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import aiohttp

SENTENCES = (
    "I love sailing.",
    "The harbour was terrible and crowded.",
    "We arrived at noon.",
    "What a wonderful view! The food was bad, though.",
    "This is the worst rope I have ever bought.",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """What to send."""

    url: str
    rate: float = 50.0
    """Requests per second."""
    duration: float = 0.0
    """Seconds; 0 is until SIGTERM."""
    timeout: float = 20.0
    """Longer than the mesh's default timeout (15 s), so that it is the mesh that gives up first."""
    max_open: int = 2000
    """At 50 a second, forty seconds of a total outage."""
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class Second:
    """What finished within one second."""

    sent: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    versions: Counter[str] = field(default_factory=Counter)
    latencies_ms: list[float] = field(default_factory=list)

    def line(self, number: int, began: list[float], now: float) -> dict[str, Any]:
        ordered = sorted(self.latencies_ms)
        return {
            "second": number,
            "sent": self.sent,
            "outcomes": dict(self.outcomes),
            "versions": dict(self.versions),
            "p50_ms": quantile(ordered, 0.5),
            "p99_ms": quantile(ordered, 0.99),
            "open": len(began),
            "oldest_ms": round((now - min(began, default=now)) * 1000, 2),
        }


def quantile(ordered: list[float], share: float) -> float | None:
    return round(ordered[min(int(share * len(ordered)), len(ordered) - 1)], 2) if ordered else None


class Generator:
    """Sends one Traffic and hands each second's line to `emit`."""

    def __init__(self, traffic: Traffic, emit: Callable[[dict[str, Any]], None]) -> None:
        self._traffic = traffic
        self._emit = emit
        self._now = Second()
        self._began: dict[object, float] = {}
        """Of requests that are open."""
        self._stop = asyncio.Event()

    def stop(self) -> None:
        self._stop.set()

    async def run(self) -> None:
        """Until the duration is over or `stop`; then waits for what is open."""
        connector = aiohttp.TCPConnector(limit=0, ttl_dns_cache=3600)  # a Service keeps its address while it exists
        timeout = aiohttp.ClientTimeout(total=self._traffic.timeout)
        async with (
            aiohttp.ClientSession(trust_env=True, connector=connector, timeout=timeout) as session,
            asyncio.TaskGroup() as group,
        ):
            ticker = group.create_task(self._tick())
            asked = await self._send(session, group)
            await self._finish(asked)
            ticker.cancel()
        self._report(-1)

    async def _send(self, session: aiohttp.ClientSession, group: asyncio.TaskGroup) -> set[asyncio.Task[None]]:
        start, number = time.monotonic(), 0
        asked: set[asyncio.Task[None]] = set()
        while not self._stop.is_set() and not self._is_over(number):
            await self._until(start + number / self._traffic.rate)
            self._dispatch(group, session, number, asked)
            number += 1
        return asked

    async def _finish(self, asked: set[asyncio.Task[None]]) -> None:
        """All of them after a full run; those of the next second after `stop`."""
        if asked:
            _, abandoned = await asyncio.wait(asked, timeout=1.0 if self._stop.is_set() else None)
            self._now.outcomes["abandoned"] += len(abandoned)
            for task in abandoned:
                task.cancel()

    def _is_over(self, number: int) -> bool:
        return 0 < self._traffic.duration <= number / self._traffic.rate

    async def _until(self, due: float) -> None:
        """Sleeps, but wakes at once for `stop`."""
        left = due - time.monotonic()
        if left > 0:
            try:
                async with asyncio.timeout(left):
                    await self._stop.wait()
            except TimeoutError:
                return

    def _dispatch(
        self, group: asyncio.TaskGroup, session: aiohttp.ClientSession, number: int, asked: set[asyncio.Task[None]]
    ) -> None:
        self._now.sent += 1
        if len(asked) >= self._traffic.max_open:
            self._now.outcomes["overflow"] += 1
            return
        task = group.create_task(self._ask(session, SENTENCES[number % len(SENTENCES)]))
        asked.add(task)
        task.add_done_callback(asked.discard)

    async def _ask(self, session: aiohttp.ClientSession, sentence: str) -> None:
        began, key = time.monotonic(), object()
        self._began[key] = began
        try:
            outcome, version = await self._outcome(session, sentence)
        finally:
            del self._began[key]
        self._now.outcomes[outcome] += 1
        self._now.latencies_ms.append((time.monotonic() - began) * 1000)
        if version:
            self._now.versions[version] += 1

    async def _outcome(self, session: aiohttp.ClientSession, sentence: str) -> tuple[str, str]:
        call = session.post(self._traffic.url, json={"sentence": sentence}, headers=self._traffic.headers)
        try:
            async with call as answer:
                await answer.read()
                return str(answer.status), answer.headers.get("x-version", "")
        except aiohttp.ClientConnectorError:
            return "connect", ""
        except TimeoutError:
            return "timeout", ""
        except (aiohttp.ClientError, OSError):
            return "reset", ""

    async def _tick(self) -> None:
        start, number = time.monotonic(), 0
        while True:
            number += 1
            await asyncio.sleep(max(0.0, start + number - time.monotonic()))
            self._report(number)

    def _report(self, number: int) -> None:
        finished, self._now = self._now, Second()
        self._emit(finished.line(number, list(self._began.values()), time.monotonic()))


def parsed() -> Traffic:
    parser = argparse.ArgumentParser(description="Steady traffic with one line of JSON a second.")
    parser.add_argument("--url", default=os.environ.get("TRAFFIC_URL", "http://sa-webapp/sentiment"))
    parser.add_argument("--rate", type=float, default=float(os.environ.get("TRAFFIC_RATE", "50")))
    parser.add_argument("--duration", type=float, default=0.0, help="seconds; 0 is until SIGTERM")
    parser.add_argument("--timeout", type=float, default=20.0)
    parser.add_argument("--max-open", type=int, default=2000)
    parser.add_argument("--header", action="append", default=[], metavar="NAME=VALUE")
    found = parser.parse_args()
    return Traffic(
        url=found.url,
        rate=found.rate,
        duration=found.duration,
        timeout=found.timeout,
        max_open=found.max_open,
        headers=dict(header.split("=", 1) for header in found.header),
    )


async def main(traffic: Traffic) -> None:
    generator = Generator(traffic, lambda line: print(json.dumps(line), flush=True))
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, generator.stop)
    await generator.run()


if __name__ == "__main__":
    asyncio.run(main(parsed()))
