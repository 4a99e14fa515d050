"""Starts the mesh that README.md describes around one proxy, and sends one case through it."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import yaml

from backstay.config.model import Config, assemble
from backstay.config.wire import Endpoint
from backstay.core.compile import compile_mesh
from backstay.core.live import endpoints
from backstay.core.registry import Instance, Registry, Service, ServicePort, Workload
from backstay.core.validate import validate
from backstay.sidecar.engine import Address, Engine, settled
from backstay.sidecar.engines.python import PythonEngine

LOCALHOST: Final = "127.0.0.1"
PATIENCE: Final = 20.0  # seconds for one answer on a busy machine
ENGINES: Final[Mapping[str, Callable[[], Engine]]] = {"python": lambda: PythonEngine(log=len, random=lambda: 0.25)}
"""Chance is fixed, so that shares can be asserted: what falls to a quarter."""
SERVICES: Final = {"web": (80,), "api": (80, 8080), "copy": (80,), "slow": (80,), "bad": (80,)}
INSTANCES: Final = {
    "web-v1": ("web", {"version": "v1"}),
    "web-v2": ("web", {"version": "v2"}),
    "api-1": ("api", {}),
    "copy-1": ("copy", {}),
    "slow-1": ("slow", {}),
    "bad-1": ("bad", {}),
}


@dataclass
class Request:
    line: str
    headers: list[tuple[str, str]]
    body: bytes

    def values(self, name: str) -> list[str]:
        return [value for key, value in self.headers if key.lower() == name.lower()]


@dataclass
class Answer:
    status: int
    headers: list[tuple[str, str]]
    body: bytes

    def value(self, name: str) -> str | None:
        return ", ".join(v for key, v in self.headers if key.lower() == name.lower()) if self.has(name) else None

    def has(self, name: str) -> bool:
        return any(key.lower() == name.lower() for key, _ in self.headers)


@dataclass
class Application:
    """One instance: keeps what it gets."""

    name: str
    got: list[Request] = field(default_factory=list)
    arrived: asyncio.Event = field(default_factory=asyncio.Event)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                self.got.append(await read_request(reader))
                self.arrived.set()
                if self.name.startswith("slow"):
                    await asyncio.sleep(60)
                status = b"503 Service Unavailable" if self.name.startswith("bad") else b"200 OK"
                head = b"HTTP/1.1 %b\r\nX-App: %b\r\nServer: app\r\nContent-Length: 2\r\n\r\n" % (
                    status, self.name.encode(),
                )  # fmt: skip
                writer.write(head if self.got[-1].line.startswith("HEAD ") else head + b"ok")
                await writer.drain()
        writer.close()


async def read_request(reader: asyncio.StreamReader) -> Request:
    line, headers = await _head(reader)
    return Request(line, headers, await _body(reader, headers, until_close=False))


async def read_answer(reader: asyncio.StreamReader, method: str) -> Answer:
    line, headers = await _head(reader)
    status = int(line.split(" ")[1])
    has_body = method != "HEAD" and status not in (204, 304)
    return Answer(status, headers, await _body(reader, headers, until_close=True) if has_body else b"")


async def _head(reader: asyncio.StreamReader) -> tuple[str, list[tuple[str, str]]]:
    block = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    pairs = (line.partition(": ") for line in block[1:] if line)
    return block[0], [(name, value) for name, _, value in pairs]


async def _body(reader: asyncio.StreamReader, headers: Sequence[tuple[str, str]], *, until_close: bool) -> bytes:
    lower = {name.lower(): value for name, value in headers}
    if lower.get("transfer-encoding") == "chunked":
        body = b""
        while size := int(await reader.readline(), 16):
            body += await reader.readexactly(size)
            await reader.readline()
        await reader.readline()
        return body
    if "content-length" in lower:
        return await reader.readexactly(int(lower["content-length"]))
    return await reader.read() if until_close else b""


def registry(ports: Mapping[str, int]) -> Registry:
    """`ports`: where each instance really listens."""
    workloads = {
        f"shop/{name}": Workload(name=name, namespace="shop", service_account=name, services=(f"{service}.shop",))
        for name, (service, _) in INSTANCES.items()
    }
    client = Workload(name="client", namespace="shop", service_account="client")
    return Registry(
        services={
            f"{name}.shop": Service(
                name=name, namespace="shop", ports=tuple(ServicePort(port=p, target_port=p) for p in numbers)
            )
            for name, numbers in SERVICES.items()
        },
        workloads={**workloads, client.key: client},
        instances={
            name: Instance(
                id=name,
                workload=f"shop/{name}",
                address=LOCALHOST,
                inbound=dict.fromkeys(SERVICES[service], ports[name]),
                labels=labels,
                meshed=False,
            )
            for name, (service, labels) in INSTANCES.items()
        },
    )


def documents(intents: str) -> bytes:
    """Whole documents from the short ones of a case file."""
    made = []
    for short in yaml.safe_load_all(intents):
        metadata = {"name": short.get("name", "a"), "namespace": "shop"}
        made.append(
            {
                "apiVersion": "backstay.dev/v1alpha1",
                "kind": short["kind"],
                "metadata": metadata,
                "spec": short["spec"],
            }
        )
    return yaml.safe_dump_all(made, sort_keys=False).encode()


def compiled(intents: str, known: Registry, workload: str = "shop/client") -> Config:
    """The config of one workload. Fails on a problem: a case must be about intents that are valid."""
    outcome = validate({"a.yaml": documents(intents)}, revision="main@sha1:0", registry=known)
    assert outcome.snapshot is not None, [str(problem) for problem in outcome.problems]
    assert not outcome.problems, [str(problem) for problem in outcome.problems]
    mesh = compile_mesh(outcome.snapshot, known)
    return assemble(mesh.manifests[workload], mesh.parts)


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind((LOCALHOST, 0))
        return int(sock.getsockname()[1])


@dataclass
class World:
    applications: dict[str, Application]
    port: int
    """Where the client finds its proxy."""


@contextlib.asynccontextmanager
async def world(intents: str, engine: Engine) -> AsyncIterator[World]:
    applications = {name: Application(name) for name in INSTANCES}
    async with contextlib.AsyncExitStack() as stack:
        ports = {}
        for name, application in applications.items():
            server = await asyncio.start_server(application.serve, LOCALHOST, 0)
            stack.callback(server.close)
            ports[name] = int(server.sockets[0].getsockname()[1])
        known = registry(ports)
        config = compiled(intents, known)
        outbound = free_port()
        await engine.start(Address(host=LOCALHOST, inbound={}, outbound=outbound))
        stack.push_async_callback(engine.drain, 0)
        engine.apply(config, None, 0)
        live: dict[str, list[Endpoint]] = endpoints(known, "backstay.local")
        engine.endpoints(live, full=True)
        await settled(engine)
        yield World(applications, outbound)


def raw_request(send: Mapping[str, Any]) -> bytes:
    body = str(send.get("body", "")).encode()
    fields = [["Host", send.get("host", "web")], *send.get("headers", [])]
    if body:
        fields.append(["Content-Length", str(len(body))])
    lines = [f"{send.get('method', 'GET')} {send.get('path', '/')} HTTP/1.1", *(f"{n}: {v}" for n, v in fields)]
    return "\r\n".join((*lines, "", "")).encode("latin-1") + body


async def ask(port: int, send: Mapping[str, Any]) -> Answer:
    reader, writer = await asyncio.open_connection(LOCALHOST, port)
    try:
        writer.write(raw_request(send))
        async with asyncio.timeout(PATIENCE):
            return await read_answer(reader, send.get("method", "GET"))
    finally:
        writer.close()
