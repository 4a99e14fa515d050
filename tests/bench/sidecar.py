"""What a sidecar costs before it carries anything: from start to ready, idle memory, and a swap at 1,000 routes.

start_cpu_s        user and system time of `python -m backstay.sidecar` until its health port says ready
idle_rss_kib       resident memory then; idle_pss_kib counts what it shares with other processes in parts
first_apply_ms     CPU time of the first config with ROUTES hosts and backends
change_apply_ms    CPU time of a candidate that differs in one weight: aim 3 ms

The last line is one JSON object; full runs keep it in docs/benchmarks/. Run: `.venv/bin/python tests/bench/sidecar.py`.
"""

import asyncio
import os
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Final

import msgspec

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from backstay.config.model import (
    Backend,
    Config,
    HostRoutes,
    Listeners,
    Manifest,
    Part,
    Rule,
    WeightedBackend,
    digest_of,
    encode_part,
)
from backstay.sidecar.engine import Address
from backstay.sidecar.engines.python import PythonEngine, new_event_loop
from bench.support.results import finish, say

ROUTES: Final = 1000
STARTS: Final = 5
CHANGES: Final = 15
HOST: Final = "127.0.0.1"
LISTENERS: Final = Listeners(namespace="shop", identity="spiffe://bench.local/ns/shop/sa/s", trust_domain="bench.local")


def host(number: int, weight: int = 1) -> HostRoutes:
    target = WeightedBackend(backend=f"s{number}.shop:80", weight=weight)
    return HostRoutes(host=f"s{number}.shop", port=80, rules=(Rule(name="r", backends=(target,)),))


def config(parts: dict[str, Part], digests: dict[str, str]) -> Config:
    return Config(manifest=Manifest(workload="shop/s", parts=digests), parts=parts)


def with_part(former: Config, part: Part) -> Config:
    """As the agent makes them: unchanged parts are the same objects."""
    digests = former.manifest.parts | {part.key: digest_of(encode_part(part))}
    return config(former.parts | {part.key: part}, digests)


def large() -> Config:
    made: list[Part] = [LISTENERS]
    for number in range(ROUTES):
        made += (host(number), Backend(service=f"s{number}.shop", port=80))
    return config({part.key: part for part in made}, {part.key: digest_of(encode_part(part)) for part in made})


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind((HOST, 0))
        return int(sock.getsockname()[1])


async def applying() -> dict[str, float]:
    """CPU milliseconds: other processes of the machine do not count."""
    engine = PythonEngine()
    await engine.start(Address(host=HOST, inbound={}, outbound=free_port()))
    stable = large()
    first = cost(engine, stable, None)
    changes: list[float] = []
    for number in range(CHANGES):
        candidate = with_part(stable, host(number, weight=2 + number))
        changes.append(cost(engine, stable, candidate))
        engine.apply(candidate, None, 0.0)
        stable = candidate
    await engine.drain(0)
    return {"first_apply_ms": round(first, 2), "change_apply_ms": round(statistics.median(changes), 2)}


def cost(engine: PythonEngine, stable: Config, candidate: Config | None) -> float:
    began = time.process_time()
    engine.apply(stable, candidate, 0.05 if candidate is not None else 0.0)
    return (time.process_time() - began) * 1000


def start_once(folder: Path) -> tuple[float, int, int]:
    """(CPU seconds, RSS, PSS in KiB) at the moment it is ready."""
    health, admin, outbound = free_port(), free_port(), free_port()
    command = [
        sys.executable, "-m", "backstay.sidecar", "--proxy", "bench", "--state", str(folder), "--prometheus-port", "0",
        "--config", str(folder / "config.json"), "--health-port", str(health), "--admin-port", str(admin),
        "--outbound", str(outbound),
    ]  # fmt: skip
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        wait_until_ready(health, process)
        fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
        ticks = int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK"), memory(process.pid, "Rss"), memory(process.pid, "Pss")
    finally:
        process.terminate()
        process.wait(10)


def wait_until_ready(port: int, process: subprocess.Popen[bytes]) -> None:
    ends = time.monotonic() + 30
    while time.monotonic() < ends and process.poll() is None:
        try:
            urllib.request.urlopen(f"http://{HOST}:{port}/healthz/ready", timeout=1).close()
        except OSError:
            time.sleep(0.01)
        else:
            return
    raise SystemExit(f"{process.args!r} did not become ready")


def memory(pid: int, kind: str) -> int:
    found = re.search(rf"^{kind}:\s+(\d+)", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)
    return int(found[1]) if found else 0


def starting() -> dict[str, float]:
    with tempfile.TemporaryDirectory() as name:
        served = config({LISTENERS.key: LISTENERS}, {LISTENERS.key: digest_of(encode_part(LISTENERS))})
        (Path(name) / "config.json").write_bytes(msgspec.json.encode({"config": served}))
        cpu, rss, pss = (
            statistics.median(values) for values in zip(*(start_once(Path(name)) for _ in range(STARTS)), strict=True)
        )
    return {"start_cpu_s": round(cpu, 2), "idle_rss_kib": rss, "idle_pss_kib": pss}


def main() -> None:
    began = time.monotonic()
    figures = starting()
    say(f"start: {figures}")
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        figures |= runner.run(applying())
    finish("bench-sidecar", figures, began, packages=("msgspec", "uvloop", "websockets"))


if __name__ == "__main__":
    main()
