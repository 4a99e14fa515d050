"""The kubelet's questions, asked of real applications by way of the health port of a real sidecar process."""

import asyncio
import contextlib
import json
import os
import ssl
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent import futures
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import msgspec

from backstay.config.model import InboundPort
from e2e.engine.mesh import LOCALHOST, Authority, config, free_port, listeners, read_head

START_SECONDS = 30.0  # for a process on a busy machine; a start takes half a second


@dataclass
class Sidecar:
    health: int

    async def get(self, path: str) -> tuple[int, bytes]:
        reader, writer = await asyncio.open_connection(LOCALHOST, self.health)
        writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        async with asyncio.timeout(20):
            head, _, body = (await reader.read()).partition(b"\r\n\r\n")
        writer.close()
        return int(head.split(b" ")[1]), body


@contextlib.asynccontextmanager
async def sidecar(folder: Path, questions: dict[str, Any], **more: str) -> AsyncIterator[Sidecar]:
    """A sidecar process without an operator, whose health port asks these questions."""
    path, health = folder / "config.json", free_port()
    served = config(listeners("web", inbound=(InboundPort(port=80, mtls="strict"),)))
    path.write_bytes(msgspec.json.encode({"config": served}))
    settings = {
        "PROXY": "web-1",
        "STATE": str(folder / "state"),
        "CONFIG": str(path),
        "OUTBOUND": "0",
        "ADMIN_PORT": "0",
        "PROMETHEUS_PORT": "0",
        "HEALTH_PORT": str(health),
        "APP_PROBES": json.dumps(questions),
        **more,
    }
    environment = os.environ | {f"BACKSTAY_SIDECAR_{key}": value for key, value in settings.items()}
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", "backstay.sidecar", env=environment)
    running = Sidecar(health)
    try:
        async with asyncio.timeout(START_SECONDS):
            while not await is_up(running):
                await asyncio.sleep(0.02)
        yield running
    finally:
        process.kill()
        await process.wait()


async def is_up(running: Sidecar) -> bool:
    try:
        return (await running.get("/healthz/ready"))[0] == 200
    except ConnectionError:
        return False


@contextlib.asynccontextmanager
async def application(
    serve: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
    context: ssl.SSLContext | None = None,
) -> AsyncIterator[int]:
    server = await asyncio.start_server(serve, LOCALHOST, 0, ssl=context)
    try:
        yield int(server.sockets[0].getsockname()[1])
    finally:
        server.close()


def saying(
    answer: bytes, heads: list[bytes]
) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await read_head(reader))
        writer.write(answer)
        writer.close()

    return serve


@contextlib.contextmanager
def grpc_health(statuses: dict[bytes, bytes]) -> Iterator[int]:
    """A real gRPC server whose health service answers these messages."""

    def check(asked: bytes, context: grpc.ServicerContext) -> bytes:
        if asked not in statuses:
            context.abort(grpc.StatusCode.NOT_FOUND, "unknown service")
        return statuses[asked]

    handler = grpc.unary_unary_rpc_method_handler(check)
    server = grpc.server(futures.ThreadPoolExecutor(2))
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("grpc.health.v1.Health", {"Check": handler}),)
    )
    port = server.add_insecure_port(f"{LOCALHOST}:0")
    server.start()
    try:
        yield port
    finally:
        server.stop(None).wait()


async def test_http_probes_are_answered_as_the_application_answers(tmp_path: Path) -> None:
    heads: list[bytes] = []
    good = saying(b"HTTP/1.1 204 No Content\r\n\r\n", heads)
    bad = saying(b"HTTP/1.1 500 Oh\r\nContent-Length: 9\r\n\r\nno memory", heads)
    async with application(good) as well, application(bad) as ill:
        questions = {
            "/app-health/web/livez": {"type": "http", "port": well, "path": "/live", "headers": [["X-A", "b"]]},
            "/app-health/web/readyz": {"type": "http", "port": ill, "path": "/ready"},
        }
        async with sidecar(tmp_path, questions) as running:
            assert await running.get("/app-health/web/livez") == (204, b"")
            assert await running.get("/app-health/web/readyz") == (500, b"no memory")
            assert (await running.get("/app-health/other/livez"))[0] == 404
            assert heads[0].startswith(b"GET /live HTTP/1.1\r\n")
            assert b"\r\nX-A: b\r\n" in heads[0]


async def test_https_probes_take_any_certificate(tmp_path: Path) -> None:
    files = Authority(tmp_path).issue("https://the-application")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(files.certificate, files.key)
    async with application(saying(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", []), context) as port:
        questions = {"/app-health/web/livez": {"type": "http", "port": port, "scheme": "HTTPS", "timeoutSeconds": 10}}
        async with sidecar(tmp_path, questions) as running:
            assert await running.get("/app-health/web/livez") == (200, b"")


async def test_what_does_not_answer_is_unwell_and_the_answer_says_why(tmp_path: Path) -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    gone = free_port()
    async with application(silent) as port, application(saying(b"SSH-2.0-x\r\n\r\n", [])) as other:
        questions = {
            "/slow": {"type": "http", "port": port, "timeoutSeconds": 0.2},
            "/gone": {"type": "tcp", "port": gone},
            "/there": {"type": "tcp", "port": port, "timeoutSeconds": 10},
            "/other": {"type": "http", "port": other, "timeoutSeconds": 10},
        }
        async with sidecar(tmp_path, questions) as running:
            assert await running.get("/slow") == (
                503, f"port {port} of the application: no answer within 0.2 s\n".encode(),
            )  # fmt: skip
            status, why = await running.get("/gone")
            assert (status, f"port {gone} of the application: ".encode() in why) == (503, True)
            assert await running.get("/there") == (200, b"connected\n")
            assert (await running.get("/other"))[1].endswith(b"'SSH-2.0-x' is no HTTP/1 response\n")


async def test_grpc_probes_ask_the_health_service(tmp_path: Path) -> None:
    serving, not_serving = b"\x08\x01", b"\x08\x02"
    async with application(saying(b"", [])) as silent:
        with grpc_health({b"": serving, b"\x0a\x02db": not_serving}) as port:
            questions = {
                "/own": {"type": "grpc", "port": port, "timeoutSeconds": 10},
                "/db": {"type": "grpc", "port": port, "service": "db", "timeoutSeconds": 10},
                "/unknown": {"type": "grpc", "port": port, "service": "other", "timeoutSeconds": 10},
                "/no-grpc": {"type": "grpc", "port": silent, "timeoutSeconds": 10},
            }
            async with sidecar(tmp_path, questions) as running:
                assert await running.get("/own") == (200, b"serving\n")
                assert [(await running.get(path))[0] for path in ("/db", "/unknown", "/no-grpc")] == [503, 503, 503]
                assert b"gRPC health is 2, expected 1 (SERVING)" in (await running.get("/db"))[1]


async def test_probes_that_cannot_be_read_keep_the_sidecar_from_starting(tmp_path: Path) -> None:
    environment = os.environ | {
        "BACKSTAY_SIDECAR_PROXY": "web-1",
        "BACKSTAY_SIDECAR_STATE": str(tmp_path),
        "BACKSTAY_SIDECAR_CONFIG": str(tmp_path / "config.json"),
        "BACKSTAY_SIDECAR_OUTBOUND": "0",
        "BACKSTAY_SIDECAR_ADMIN_PORT": "0",
        "BACKSTAY_SIDECAR_APP_PROBES": "[]",
    }
    (tmp_path / "config.json").write_bytes(msgspec.json.encode({"config": config(listeners("web"))}))
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "backstay.sidecar", env=environment, stderr=asyncio.subprocess.PIPE
    )
    _, error = await process.communicate()
    assert process.returncode == 1
    assert error.decode().splitlines()[-1] == "backstay sidecar: --app-probes: Expected `object`, got `array`"
