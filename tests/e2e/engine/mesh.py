"""A small mesh in one process for the tests of the Python engine: engines on real sockets, certificates, applications."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import random as system_random
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from backstay.config.model import (
    Authorization,
    Backend,
    Config,
    HostRoutes,
    InboundPort,
    Listeners,
    Manifest,
    Part,
    Rule,
    WeightedBackend,
    digest_of,
    encode_part,
)
from backstay.config.wire import Endpoint, Row
from backstay.sidecar.engine import Address, ExplicitListener, IdentityFiles
from backstay.sidecar.engines.python import PythonEngine

DOMAIN = "test.mesh"
LOCALHOST = "127.0.0.1"


def spiffe(name: str, namespace: str = "shop", domain: str = DOMAIN) -> str:
    return f"spiffe://{domain}/ns/{namespace}/sa/{name}"


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind((LOCALHOST, 0))
        return int(sock.getsockname()[1])


class Authority:
    """A root that issues leaves, as the operator's does."""

    def __init__(self, folder: Path, domain: str = DOMAIN) -> None:
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"root {domain} {id(self)}")])
        builder = self._builder(self._name, self._key).add_extension(
            x509.BasicConstraints(ca=True, path_length=0), True
        )
        (usage,) = leaf_extensions(usage="key_cert_sign crl_sign", purposes=())
        self._root = builder.add_extension(usage, True).sign(self._key, hashes.SHA256())
        self.pem = self._root.public_bytes(serialization.Encoding.PEM).decode()

    def _builder(self, subject: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        now = datetime.now(UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(minutes=1))
            .not_valid_after(now + timedelta(hours=1))
        )

    def issue(self, *identities: str, **changed: Any) -> IdentityFiles:
        """A workload's leaf; `ca`, `usage` and `purposes` make one that no authority of ours would."""
        key = ec.generate_private_key(ec.SECP256R1())
        uris = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(identity) for identity in identities])
        builder = self._builder(x509.Name([]), key).add_extension(uris, True)
        for extension in leaf_extensions(**changed):
            builder = builder.add_extension(extension, isinstance(extension, x509.KeyUsage))
        leaf = builder.sign(self._key, hashes.SHA256())
        stem = self._folder / f"{id(self)}-{leaf.serial_number}"
        files = IdentityFiles(certificate=stem.with_suffix(".crt"), key=stem.with_suffix(".key"))
        files.certificate.write_bytes(leaf.public_bytes(serialization.Encoding.PEM))
        plain = serialization.NoEncryption()
        files.key.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain))
        return files


BOTH = (ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH)


def leaf_extensions(
    *, ca: bool = False, usage: str | None = "digital_signature", purposes: Sequence[x509.ObjectIdentifier] = BOTH
) -> list[x509.ExtensionType]:
    """`usage` names key usages separated by blanks; None or nothing leaves an extension out."""
    found: list[x509.ExtensionType] = []
    if ca:
        found.append(x509.BasicConstraints(ca=True, path_length=0))
    if usage is not None:
        found.append(x509.KeyUsage(**{**dict.fromkeys(_USAGES, False), **dict.fromkeys(usage.split(), True)}))
    if purposes:
        found.append(x509.ExtendedKeyUsage(purposes))
    return found


_USAGES = (
    "digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement",
    "key_cert_sign", "crl_sign", "encipher_only", "decipher_only",
)  # fmt: skip


def config(*parts: Part, workload: str = "shop/client") -> Config:
    named = {part.key: part for part in parts}
    digests = {key: digest_of(encode_part(part)) for key, part in named.items()}
    return Config(manifest=Manifest(workload=workload, parts=digests), parts=named)


def listeners(name: str = "client", **kwargs: Any) -> Listeners:
    return Listeners(namespace="shop", identity=spiffe(name), trust_domain=DOMAIN, **kwargs)


def routes(*rules: Rule, host: str = "web.shop", port: int = 80) -> HostRoutes:
    return HostRoutes(host=host, port=port, rules=rules)


def to(*backends: str, name: str = "rule-0", **kwargs: Any) -> Rule:
    """A rule that sends to `service:port` or `service:port/subset`, each with weight 1."""
    targets = tuple(
        WeightedBackend(backend=backend.partition("/")[0], subset=backend.partition("/")[2]) for backend in backends
    )
    return Rule(name=name, backends=targets, **kwargs)


def backend(service: str = "web.shop", port: int = 80, **kwargs: Any) -> Backend:
    return Backend(service=service, port=port, **kwargs)


def endpoint(port: int, identity: str = "", id: str = "", **labels: str) -> Endpoint:
    return Endpoint(id=id or f"ep-{port}", address=LOCALHOST, port=port, identity=identity, labels=labels)


PATIENCE = 60.0  # seconds, on a machine that is busy with other tests


async def until(condition: Callable[[], bool]) -> None:
    """For what no event tells of."""
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0.005)


Application = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@dataclass
class Proxy:
    """A started engine and where it listens."""

    engine: PythonEngine
    outbound: int
    inbound: dict[int, int]
    explicit: int = 0
    lines: bytearray = field(default_factory=bytearray)

    def rows(self) -> list[Row]:
        return list(self.engine.collect().rows)


@contextlib.asynccontextmanager
async def proxy(
    *app_ports: int, random: Callable[[], float] | None = None, explicit: tuple[str, int] | None = None
) -> AsyncIterator[Proxy]:
    lines = bytearray()

    def keep(data: bytes) -> int:
        lines.extend(data)
        return len(data)

    engine = PythonEngine(log=keep, random=random or system_random)
    fixed = free_port() if explicit else 0
    running = Proxy(
        engine=engine,
        outbound=free_port(),
        inbound={port: free_port() for port in app_ports},
        explicit=fixed,
        lines=lines,
    )
    listener = (ExplicitListener(listen=fixed, host=explicit[0], port=explicit[1]),) if explicit else ()
    await engine.start(Address(host=LOCALHOST, inbound=running.inbound, outbound=running.outbound, explicit=listener))
    try:
        yield running
    finally:
        await engine.drain(0)


def serve_web(client: Proxy, app: int) -> None:
    """`web.shop` is this application, for whoever asks through that proxy."""
    client.engine.apply(config(listeners(), routes(to("web.shop:80")), backend()), None, 0)
    client.engine.endpoints({"web.shop:80": [endpoint(app)]}, full=True)


@contextlib.asynccontextmanager
async def application(serve: Application) -> AsyncIterator[int]:
    async def guarded(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            await serve(reader, writer)
        writer.close()

    server = await asyncio.start_server(guarded, LOCALHOST, 0)
    try:
        yield int(server.sockets[0].getsockname()[1])
    finally:
        server.close()


async def read_head(reader: asyncio.StreamReader) -> bytes:
    return await reader.readuntil(b"\r\n\r\n")


async def read_message(reader: asyncio.StreamReader, *, is_head: bool = False) -> tuple[bytes, bytes]:
    """(head, body) of one HTTP/1.1 message."""
    head = await read_head(reader)
    lower = head.lower()
    if is_head or lower.startswith((b"http/1.1 204", b"http/1.1 304", b"http/1.1 1")):
        return head, b""
    if b"transfer-encoding: chunked" in lower:
        return head, await _chunks(reader)
    if b"content-length:" in lower:
        length = int(lower.split(b"content-length:")[1].split(b"\r\n")[0])
        return head, await reader.readexactly(length)
    return head, b"" if not lower.startswith(b"http/") else await reader.read()


async def _chunks(reader: asyncio.StreamReader) -> bytes:
    body = b""
    while size := int((await reader.readline()).split(b";")[0], 16):
        body += await reader.readexactly(size)
        await reader.readline()
    while await reader.readline() != b"\r\n":
        pass
    return body


def replying(body: bytes = b"ok", status: str = "200 OK", seen: list[bytes] | None = None) -> Application:
    """An application that answers every request the same."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head, sent = await read_message(reader)
            if seen is not None:
                seen.append(head + sent)
            answer = b"HTTP/1.1 %b\r\nContent-Length: %d\r\nX-App: yes\r\n\r\n" % (status.encode(), len(body))
            writer.write(answer if head.startswith(b"HEAD ") else answer + body)
            await writer.drain()

    return serve


@dataclass
class Answer:
    status: int
    head: bytes
    body: bytes


async def send(port: int, data: bytes, *, is_head: bool = False) -> Answer:
    """One request on its own connection."""
    reader, writer = await asyncio.open_connection(LOCALHOST, port)
    try:
        writer.write(data)
        return await receive(reader, is_head=is_head)
    finally:
        writer.close()


async def receive(reader: asyncio.StreamReader, *, is_head: bool = False) -> Answer:
    async with asyncio.timeout(10):
        head, body = await read_message(reader, is_head=is_head)
    return Answer(int(head.split(b" ")[1]), head, body)


def get(path: str = "/", host: str = "web.shop", headers: Sequence[str] = (), method: str = "GET") -> bytes:
    return "\r\n".join((f"{method} {path} HTTP/1.1", f"Host: {host}", *headers, "", "")).encode()


ALLOW_ALL = Authorization()
INBOUND = InboundPort
