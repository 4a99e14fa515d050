"""Ways out of the mesh: what is let out, and TLS that the proxy begins, against real servers."""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from backstay.config.model import assemble
from backstay.sidecar.engine import Address
from backstay.sidecar.engines.python import PythonEngine
from support.policy import compiled, document

from .mesh import LOCALHOST, Answer, Application, application, free_port, read_message, send

CALLER = "shop/client"
ONLY = document("Mesh", "mesh", {"egress": "REGISTRY_ONLY"})


class Issuer:
    """A public authority, and a server with its certificate."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "public")])
        builder = self._builder(self._name, self._key).add_extension(x509.BasicConstraints(True, None), True)
        usage = dict.fromkeys(
            ("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement",
             "encipher_only", "decipher_only"), False,
        )  # fmt: skip
        builder = builder.add_extension(x509.KeyUsage(key_cert_sign=True, crl_sign=True, **usage), True)
        root = builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()
        self.pem = " ".join(root.split("\n"))
        """As a folded text of YAML gives it."""

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

    def context(self, *names: str) -> ssl.SSLContext:
        key = ec.generate_private_key(ec.SECP256R1())
        alternatives = x509.SubjectAlternativeName([x509.DNSName(name) for name in names])
        leaf = self._builder(x509.Name([]), key).add_extension(alternatives, True).sign(self._key, hashes.SHA256())
        path = self._folder / f"{leaf.serial_number}.pem"
        plain = serialization.NoEncryption()
        path.write_bytes(
            key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
            + leaf.public_bytes(serialization.Encoding.PEM)
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(path)
        return context


@pytest.fixture(scope="module")
def issuer(tmp_path_factory: pytest.TempPathFactory) -> Issuer:
    return Issuer(tmp_path_factory.mktemp("issuer"))


@contextlib.asynccontextmanager
async def tls_server(context: ssl.SSLContext) -> AsyncIterator[tuple[int, list[str]]]:
    """Answers with the request's Host; its port, and the names that its callers ask for."""
    asked: list[str] = []
    context.sni_callback = lambda _, name, __: asked.append(name or "")

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, ssl.SSLError):
            while True:
                await hosts(reader, writer)
        writer.close()

    server = await asyncio.start_server(serve, LOCALHOST, 0, ssl=context)
    async with server:
        yield int(server.sockets[0].getsockname()[1]), asked


async def hosts(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    head, _ = await read_message(reader)
    body = next(line for line in head.split(b"\r\n") if line.lower().startswith(b"host: "))[6:]
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
    await writer.drain()


def answering() -> Application:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await hosts(reader, writer)

    return serve


def external(host: str, *ports: tuple[int, str], **spec: Any) -> dict[str, Any]:
    listed = [{"port": port, "protocol": protocol} for port, protocol in ports]
    return document("ExternalService", "outside", {"hosts": [host], "ports": listed, **spec})


@contextlib.asynccontextmanager
async def caller(*documents: dict[str, Any]) -> AsyncIterator[int]:
    """A workload's proxy under these documents: its outbound port."""
    world = compiled(list(documents))
    engine = PythonEngine(log=len)
    outbound = free_port()
    await engine.start(Address(host=LOCALHOST, inbound={}, outbound=outbound))
    try:
        engine.apply(assemble(world.manifest(CALLER), world.compiled.parts), None, 0)
        yield outbound
    finally:
        await engine.drain(0)


async def ask(outbound: int, host: str, method: str = "GET", target: str = "/") -> Answer:
    return await send(outbound, f"{method} {target} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())


# --- TLS that the proxy begins ----------------------------------------------------------------------------------------


async def test_plain_requests_leave_in_tls_with_the_name_checked(issuer: Issuer) -> None:
    async with tls_server(issuer.context("pay.example")) as (port, asked):
        tls = {"port": port, "sni": "pay.example", "caCertificates": issuer.pem}
        async with caller(ONLY, external(LOCALHOST, (80, "HTTP"), tls=tls)) as outbound:
            answers = [await ask(outbound, LOCALHOST) for _ in range(2)]
    assert [(answer.status, answer.body) for answer in answers] == [(200, LOCALHOST.encode())] * 2
    assert asked == ["pay.example"]


@pytest.mark.parametrize(
    ("shown", "changes"),
    [
        (("other.example",), {}),
        (("pay.example",), {"subjectAltNames": ["billing.example"]}),
        (("*.example",), {"subjectAltNames": ["a.b.example"]}),
        (("pay.example",), {"caCertificates": ""}),
    ],
    ids=["another name", "none of the names", "two labels for one star", "an authority that the system does not know"],
)
async def test_a_certificate_that_is_not_the_hosts_is_refused(
    issuer: Issuer, shown: tuple[str, ...], changes: dict[str, Any]
) -> None:
    async with tls_server(issuer.context(*shown)) as (port, _):
        tls = {"port": port, "sni": "pay.example", "caCertificates": issuer.pem} | changes
        async with caller(external(LOCALHOST, (80, "HTTP"), tls=tls)) as outbound:
            answer = await ask(outbound, LOCALHOST)
    assert (answer.status, answer.body) == (503, b"connect-failure\n")


async def test_a_certificate_may_have_one_of_the_listed_names(issuer: Issuer) -> None:
    async with tls_server(issuer.context("*.example")) as (port, _):
        names = ["billing.test", "billing.example"]
        tls = {"port": port, "sni": "pay.test", "caCertificates": issuer.pem, "subjectAltNames": names}
        async with caller(external(LOCALHOST, (80, "HTTP"), tls=tls)) as outbound:
            assert (await ask(outbound, LOCALHOST)).status == 200


async def test_routes_hold_for_hosts_outside(issuer: Issuer) -> None:
    rules = [
        {
            "matches": [{"path": {"value": "/no"}}],
            "filters": [{"type": "DirectResponse", "directResponse": {"status": 410}}],
        },
        {
            "backendRefs": [{"name": LOCALHOST, "port": 80}],
            "filters": [{"type": "URLRewrite", "urlRewrite": {"hostname": "pay.example"}}],
        },
    ]
    route = document("Route", "out", {"hosts": [LOCALHOST], "rules": rules})
    async with tls_server(issuer.context("pay.example")) as (port, _):
        tls = {"port": port, "sni": "pay.example", "caCertificates": issuer.pem}
        async with caller(ONLY, route, external(LOCALHOST, (80, "HTTP"), tls=tls)) as outbound:
            refused, passed = await ask(outbound, LOCALHOST, target="/no"), await ask(outbound, LOCALHOST)
    assert (refused.status, passed.status, passed.body) == (410, 200, b"pay.example")


# --- what is let out --------------------------------------------------------------------------------------------------


async def test_without_tls_a_host_outside_is_asked_in_plain_text() -> None:
    async with application(answering()) as port, caller(ONLY, external(LOCALHOST, (port, "HTTP"))) as outbound:
        assert (await ask(outbound, f"{LOCALHOST}:{port}")).status == 200
        assert (await ask(outbound, f"{LOCALHOST}:{port + 1}")).status == 502


async def test_only_tunnels_to_known_hosts_are_dug() -> None:
    async with application(answering()) as port:
        async with caller(ONLY, external(LOCALHOST, (port, "TLS"))) as outbound:
            reader, writer = await asyncio.open_connection(LOCALHOST, outbound)
            name = f"{LOCALHOST}:{port}".encode()
            writer.write(b"CONNECT %b HTTP/1.1\r\nHost: %b\r\n\r\n" % (name, name))
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
            writer.write(b"GET / HTTP/1.1\r\nHost: inside\r\n\r\n")
            assert b"inside" in await reader.readuntil(b"inside")
            writer.close()
            refused = await ask(outbound, "elsewhere.example:443", "CONNECT", "elsewhere.example:443")
            assert (refused.status, refused.body) == (502, b"unknown-host\n")


async def test_allow_any_lets_everything_out() -> None:
    async with application(answering()) as port, caller() as outbound:
        assert (await ask(outbound, f"{LOCALHOST}:{port}")).status == 200
