"""`make soak`: half an hour of traffic, hostile callers and a reload every second through one proxy; is it as it was?

Good callers (keep-alive, new connections, bodies both ways) and every hostile request of tests/conformance/http go through
one engine, whose config is replaced each second. Memory (PSS), descriptors and tasks are looked at all the while.

memory_growth_percent   median of the last quarter over that of the second: at most LIMIT_PERCENT
descriptors_growth, tasks_growth   between the same quarters: none but what chance makes
failed                  good requests that were not answered 200: none
SHORT=1 takes two minutes, MINUTES=n others. Ends with 1 if anything grew or failed, and with one line of JSON as benchmarks do.
"""

import argparse
import asyncio
import contextlib
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.support.planes import free_ports, running
from bench.support.results import finish, say
from bench.support.serving import HOST, serve_app

SHORT: Final = bool(os.environ.get("SHORT"))
SECONDS: Final = 120 if SHORT else int(os.environ.get("MINUTES") or 30) * 60
LOOK_SECONDS: Final = 1.0
CALLERS: Final = 8
LIMIT_PERCENT: Final = 5.0 if SECONDS < 1800 else 2.0
"""A quarter of half an hour is 7.5 minutes: a leak of 100 bytes per request would be 30 % at 500 requests/s. Short runs are
still filling caches in their second quarter."""
LIMIT_COUNT: Final = 8  # descriptors and tasks: medians of moments under load
PATIENCE: Final = 30.0
HOSTILE: Final = [
    case["send"].encode("latin-1")
    for case in yaml.safe_load(
        (Path(__file__).parents[1] / "conformance" / "http" / "requests.yaml").read_text(encoding="utf-8")
    )
]
GET: Final = b"GET /path HTTP/1.1\r\nHost: web.shop\r\n\r\n"
POST: Final = b"POST /path HTTP/1.1\r\nHost: web.shop\r\nTransfer-Encoding: chunked\r\n\r\n1000\r\n%b\r\n0\r\n\r\n" % (
    b"x" * 4096
)


# --- the proxy -------------------------------------------------------------------------------------------------------


async def serve(app: int, listening: int) -> None:
    """An engine with another config every second; says on standard output how many tasks there are."""
    from backstay.config.model import (
        Backend,
        Config,
        HostRoutes,
        Listeners,
        Manifest,
        Rule,
        WeightedBackend,
        digest_of,
        encode_part,
    )
    from backstay.config.wire import Endpoint
    from backstay.sidecar.engine import Address
    from backstay.sidecar.engines.python import PythonEngine

    engine = PythonEngine(log=len)
    await engine.start(Address(host=HOST, inbound={}, outbound=listening))
    number = 0
    while True:
        number += 1
        rule = Rule(name="all", backends=(WeightedBackend(backend="web.shop:80"),), timeout_ms=10_000 + number)
        parts = (
            Listeners(namespace="shop", identity="spiffe://a/ns/shop/sa/a", trust_domain="a", access_log="failures"),
            HostRoutes(host="web.shop", port=80, rules=(rule,)),
            Backend(service="web.shop", port=80),
        )
        digests = {part.key: digest_of(encode_part(part)) for part in parts}
        config = Config(manifest=Manifest(workload="shop/a", parts=digests), parts={part.key: part for part in parts})
        engine.apply(config, None, 0)
        engine.endpoints({"web.shop:80": [Endpoint(id="app", address=HOST, port=app)]}, full=True)
        engine.collect()
        print(len(asyncio.all_tasks()), flush=True)
        await asyncio.sleep(LOOK_SECONDS)


# --- callers ---------------------------------------------------------------------------------------------------------


@dataclass
class Traffic:
    port: int
    ends: float
    good: int = 0
    failed: int = 0
    hostile: int = 0

    @property
    def is_over(self) -> bool:
        return time.monotonic() > self.ends

    async def keep_asking(self) -> None:
        """Good requests: a hundred on a connection, then a new one."""
        while not self.is_over:
            reader, writer = await asyncio.open_connection(HOST, self.port)
            for number in range(100):
                await self._ask(reader, writer, POST if number % 5 == 0 else GET)
            writer.close()

    async def _ask(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, data: bytes) -> None:
        async with asyncio.timeout(PATIENCE):
            writer.write(data)
            head = await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(int(re.findall(rb"(?i)content-length: (\d+)", head)[0]))
        self.good += 1
        self.failed += not head.startswith(b"HTTP/1.1 200 ")

    async def keep_attacking(self) -> None:
        while not self.is_over:
            for data in HOSTILE:
                with contextlib.suppress(OSError, TimeoutError):
                    reader, writer = await asyncio.open_connection(HOST, self.port)
                    writer.write(data)
                    async with asyncio.timeout(PATIENCE):
                        await reader.read(1024)
                    writer.transport.abort()
                self.hostile += 1


# --- looking ---------------------------------------------------------------------------------------------------------


@dataclass
class Seen:
    pss_kib: list[float] = field(default_factory=list)
    descriptors: list[float] = field(default_factory=list)
    tasks: list[float] = field(default_factory=list)

    def look(self, pid: int, tasks: int) -> None:
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
        self.pss_kib.append(float(re.findall(r"^Pss:\s+(\d+)", rollup, re.MULTILINE)[0]))
        self.descriptors.append(len(os.listdir(f"/proc/{pid}/fd")))
        self.tasks.append(tasks)


def quarters(values: Sequence[float]) -> tuple[float, float]:
    """Medians of the second and of the last quarter."""
    size = len(values) // 4
    return statistics.median(values[size : 2 * size]), statistics.median(values[-size:])


async def soak(process: subprocess.Popen[bytes], port: int, said: Path) -> tuple[Traffic, Seen]:
    traffic, seen = Traffic(port, time.monotonic() + SECONDS), Seen()
    async with asyncio.TaskGroup() as group:
        for _ in range(CALLERS):
            group.create_task(traffic.keep_asking())
        group.create_task(traffic.keep_attacking())
        while not traffic.is_over:
            await asyncio.sleep(LOOK_SECONDS)
            seen.look(process.pid, int(said.read_text().splitlines()[-1]))
            if len(seen.tasks) % 30 == 0:
                say(f"{len(seen.tasks)} s: {seen.pss_kib[-1]:.0f} KiB, {seen.descriptors[-1]:.0f} descriptors, "
                    f"{seen.tasks[-1]:.0f} tasks, {traffic.good} good, {traffic.hostile} hostile")  # fmt: skip
    return traffic, seen


def main() -> None:
    started = time.monotonic()
    app, port = free_ports(2)
    with tempfile.TemporaryDirectory() as folder:
        said = Path(folder) / "said"
        command = [sys.executable, __file__, "--serve", "proxy", "--ports", f"{app},{port}", "--said", str(said)]
        with (
            running([sys.executable, __file__, "--serve", "app", "--ports", str(app)], app),
            running(command, port) as process,
        ):
            traffic, seen = asyncio.run(soak(process, port, said))
    memory, descriptors, tasks = (quarters(values) for values in (seen.pss_kib, seen.descriptors, seen.tasks))
    figures = {
        "memory_growth_percent": round((memory[1] / memory[0] - 1) * 100, 2),
        "memory_kib": memory[1],
        "descriptors_growth": descriptors[1] - descriptors[0],
        "tasks_growth": tasks[1] - tasks[0],
        "good": traffic.good,
        "hostile": traffic.hostile,
        "failed": traffic.failed,
    }
    if SECONDS < 1800:
        say(json.dumps({"name": "soak", "figures": figures}))
    else:
        finish("soak", figures, started, packages=("httptools", "uvloop"), seen={"pss_kib": seen.pss_kib[::30]})
    grew = max(figures["descriptors_growth"], figures["tasks_growth"]) > LIMIT_COUNT
    if grew or figures["memory_growth_percent"] > LIMIT_PERCENT or traffic.failed:
        raise SystemExit(1)


def serving(role: str, ports: Sequence[int], said: Path) -> None:
    from backstay.sidecar.engines.python import new_event_loop
    from backstay.sidecar.heap import settle

    settle()
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        if role == "app":
            runner.run(serve_app(ports[0]))
        else:
            sys.stdout = said.open("w", encoding="utf-8")
            runner.run(serve(*ports))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--serve", default="")
    parser.add_argument("--ports", default="")
    parser.add_argument("--said", type=Path, default=Path(os.devnull))
    arguments = parser.parse_args()
    if arguments.serve:
        serving(arguments.serve, [int(port) for port in arguments.ports.split(",")], arguments.said)
    else:
        main()
