"""One workload's proxy on real sockets, with the policies of a case, and callers of all kinds."""

import asyncio
import contextlib
import json
import random
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from backstay.config.model import Config, assemble
from backstay.core.compile import compile_mesh
from backstay.core.problems import Severity
from backstay.core.registry import Registry, Service, ServicePort, Workload
from backstay.core.validate import validate
from backstay.sidecar.engine import Address, Engine, IdentityFiles
from backstay.sidecar.engines.python import PythonEngine

DOMAIN: Final = "backstay.local"
LOCALHOST: Final = "127.0.0.1"
PATIENCE: Final = 20.0  # seconds for one answer on a busy machine
PORTS: Final = ((7070, "tcp"), (8080, "http"), (9090, "http"))
SERVER: Final = Workload(
    name="server",
    namespace="shop",
    service_account="server",
    services=("server.shop",),
    ports=PORTS,
)
REGISTRY: Final = Registry(
    services={
        "server.shop": Service(
            name="server", namespace="shop", ports=tuple(ServicePort(port=p, target_port=p) for p, _ in PORTS)
        )
    },
    workloads={SERVER.key: SERVER},
)
ENGINES: Final[Mapping[str, Callable[[Callable[[bytes], int | None]], Engine]]] = {
    "python": lambda log: PythonEngine(log=log)
}
LOGS: Final = "kind: Mesh\nname: mesh\nspec: {accessLog: {mode: all}}\n---\n"


def spiffe(who: str) -> str:
    """`bank/bob` or `ann` of namespace `shop`."""
    namespace, _, name = who.rpartition("/")
    return f"spiffe://{DOMAIN}/ns/{namespace or 'shop'}/sa/{name}"


class Authority:
    """Issues what callers show; kept for all cases, since keys take time."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "root")])
        self._issued: dict[str, IdentityFiles] = {}
        root = self._builder(self._name, self._key.public_key())
        root = root.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        self.pem = root.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()

    def _builder(self, subject: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
        now = datetime.now(UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(minutes=1))
            .not_valid_after(now + timedelta(hours=1))
        )

    def of(self, who: str) -> IdentityFiles:
        if who not in self._issued:
            self._issued[who] = self._issue(who)
        return self._issued[who]

    def _issue(self, who: str) -> IdentityFiles:
        key = ec.generate_private_key(ec.SECP256R1())
        usage = dict.fromkeys(
            ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "key_cert_sign", "crl_sign",
             "encipher_only", "decipher_only"), False,
        )  # fmt: skip
        leaf = (
            self._builder(x509.Name([]), key.public_key())
            .add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(spiffe(who))]), critical=True)
            .add_extension(x509.KeyUsage(digital_signature=True, **usage), critical=True)
            .add_extension(
                x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]),
                critical=False,
            )
            .sign(self._key, hashes.SHA256())
        )
        stem = self._folder / who.replace("/", "-")
        files = IdentityFiles(certificate=stem.with_suffix(".crt"), key=stem.with_suffix(".key"))
        files.certificate.write_bytes(leaf.public_bytes(serialization.Encoding.PEM))
        plain = serialization.NoEncryption()
        files.key.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain))
        return files

    def context(self, who: str) -> ssl.SSLContext:
        """What a caller's proxy connects with."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        files = self.of(who)
        context.load_cert_chain(files.certificate, files.key)
        context.load_verify_locations(cadata=self.pem)
        return context


@dataclass
class Answer:
    status: int
    """0: the connection was closed without an answer."""
    headers: dict[str, str]
    body: str


@dataclass
class Application:
    """What stands behind the proxy: keeps the heads it gets."""

    got: list[tuple[str, dict[str, str]]] = field(default_factory=list)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                line, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
                self.got.append((line, {n.lower(): v for n, _, v in (text.partition(": ") for text in lines if text)}))
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
                await writer.drain()
        writer.close()


def compiled(intents: str) -> Config:
    """The server's config. Fails on an error: a case must be about intents that are valid."""
    made = [
        {
            "apiVersion": "backstay.dev/v1alpha1",
            "kind": short["kind"],
            "metadata": {"name": short.get("name", f"p{number}"), "namespace": "shop"},
            "spec": short["spec"],
        }
        for number, short in enumerate(yaml.safe_load_all(intents if "kind: Mesh" in intents else LOGS + intents))
    ]
    text = yaml.safe_dump_all(made, sort_keys=False).encode()
    outcome = validate({"a.yaml": text}, revision="main@sha1:0", registry=REGISTRY)
    errors = [str(problem) for problem in outcome.problems if problem.severity is Severity.ERROR]
    assert outcome.snapshot is not None, errors
    mesh = compile_mesh(outcome.snapshot, REGISTRY)
    return assemble(mesh.manifests[SERVER.key], mesh.parts)


def own_address() -> str:
    """An address for one proxy: at 127.0.0.1 a port that was free may be somebody's outgoing one a moment later."""
    return f"127.88.{random.randrange(256)}.{random.randrange(1, 255)}"


def free_port(host: str) -> int:
    with socket.socket() as sock:
        sock.bind((host, 0))
        return int(sock.getsockname()[1])


@dataclass
class World:
    host: str
    application: Application
    engine: Engine
    inbound: Mapping[int, int]
    authority: Authority
    log: list[dict[str, Any]]

    async def ask(self, send: Mapping[str, Any]) -> Answer:
        """One request on a connection of its own. `who` is an identity or `plaintext`, `from` the address it comes from."""
        who = send.get("who", "ann")
        reader, writer = await asyncio.open_connection(
            self.host,
            self.inbound[send.get("port", 8080)],
            ssl=None if who == "plaintext" else self.authority.context(who),
            local_addr=(send.get("from", LOCALHOST), 0),
        )
        try:
            writer.write(_raw(send))
            async with asyncio.timeout(PATIENCE):
                return await _read(reader)
        finally:
            writer.close()

    async def lines(self) -> list[dict[str, Any]]:
        """What the access log says, once the engine has written it."""
        await self.engine.drain(0)
        return self.log


def _raw(send: Mapping[str, Any]) -> bytes:
    fields = [("Host", send.get("host", "server")), *send.get("headers", ())]
    lines = [f"{send.get('method', 'GET')} {send.get('path', '/')} HTTP/1.1", *(f"{n}: {v}" for n, v in fields)]
    return "\r\n".join((*lines, "", "")).encode("latin-1")


async def _read(reader: asyncio.StreamReader) -> Answer:
    try:
        line, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    except (asyncio.IncompleteReadError, ConnectionError):
        return Answer(0, {}, "")
    headers = {name.lower(): value for name, _, value in (text.partition(": ") for text in lines if text)}
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    return Answer(int(line.split(" ")[1]), headers, body.decode())


@contextlib.asynccontextmanager
async def world(
    intents: str, authority: Authority, engine: str, *, prepare: Callable[[Engine], None] = lambda _: None
) -> AsyncIterator[World]:
    """`prepare` gives the engine what is live besides trust and identity."""
    log: list[dict[str, Any]] = []

    def keep(text: bytes) -> int:
        log.extend(json.loads(line) for line in text.splitlines())
        return len(text)

    application = Application()
    async with contextlib.AsyncExitStack() as stack:
        server = await asyncio.start_server(application.serve, LOCALHOST, 0)
        stack.callback(server.close)
        app = int(server.sockets[0].getsockname()[1])
        host = own_address()
        inbound = {port: free_port(host) for port, _ in PORTS}
        running = ENGINES[engine](keep)
        await running.start(Address(host=host, inbound=inbound, app_ports={port: app for port, _ in PORTS}, outbound=0))
        stack.push_async_callback(running.drain, 0)
        running.trust({DOMAIN: authority.pem}, [])
        running.identity(authority.of("server"))
        prepare(running)
        running.apply(compiled(intents), None, 0)
        yield World(host, application, running, inbound, authority, log)


def groups(path: Path) -> Sequence[dict[str, Any]]:
    found: Sequence[dict[str, Any]] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return found
