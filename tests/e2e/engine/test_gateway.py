"""A gateway on real sockets: hosts, certificates by SNI, redirects, passed-through TLS, ports that come and go."""

import asyncio
import contextlib
import logging
import socket
import ssl
import struct
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from time import monotonic

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from backstay.config.model import Authorization, GatewayListener, HostRoutes, Match, PathMatch, Policy, Rule
from backstay.sidecar.engine import ContentRefused
from backstay.sidecar.engines.python import ingress
from backstay.sidecar.engines.python.hello import server_name

from .mesh import (
    LOCALHOST,
    Answer,
    Application,
    application,
    backend,
    config,
    endpoint,
    free_port,
    get,
    listeners,
    proxy,
    receive,
    replying,
    send,
    to,
)

WEB = backend()
PATIENCE = 60.0  # seconds, on a machine that is busy with other tests


def at_gateway(port: int, *rules: Rule, host: str = "shop.example.com") -> HostRoutes:
    return HostRoutes(host=host, port=port, rules=rules or (to("web.shop:80"),), gateway=True)


def gateway(*entries: GatewayListener) -> tuple[GatewayListener, ...]:
    return entries


def listener(port: int, protocol: str = "http", **kwargs: object) -> GatewayListener:
    return GatewayListener(name=f"edge/public/{protocol}-{port}", port=port, protocol=protocol, **kwargs)  # type: ignore[arg-type]


def self_signed(folder: Path, name: str, file: str) -> Path:
    """Key and certificate for a name, in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, file)])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), False)
        .sign(key, hashes.SHA256())
    )
    path = folder / f"{file}.pem"
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.write_bytes(private + certificate.public_bytes(serialization.Encoding.PEM))
    return path


def trusting(*files: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    for file in files:
        context.load_verify_locations(cadata=file.read_text().partition("-----END PRIVATE KEY-----")[2])
    return context


async def ask_tls(port: int, context: ssl.SSLContext, name: str, data: bytes) -> tuple[Answer, str]:
    """The answer, and the common name of the certificate."""
    reader, writer = await asyncio.open_connection(LOCALHOST, port, ssl=context, server_hostname=name)
    shown = writer.get_extra_info("peercert")["subject"][0][0][1]
    writer.write(data)
    try:
        return await receive(reader), shown
    finally:
        writer.close()


async def test_hosts_are_told_apart_whatever_their_port_and_unknown_ones_find_nothing() -> None:
    port = free_port()
    seen: list[bytes] = []
    async with application(replying(b"web", seen=seen)) as web, application(replying(b"any")) as other, proxy() as edge:
        edge.engine.apply(
            config(
                listeners("edge", gateway=gateway(listener(port, hosts=("shop.example.com", "*.example.org")))),
                at_gateway(port),
                at_gateway(port, to("any.shop:80"), host="*.example.org"),
                WEB,
                backend("any.shop"),
            ),
            None,
            0,
        )
        edge.engine.endpoints({"web.shop:80": [endpoint(web)], "any.shop:80": [endpoint(other)]}, full=True)
        asked = {
            host: (await send(port, get(host=host))).body
            for host in (
                "shop.example.com", f"SHOP.example.com:{port}", "shop.example.com.", "a.example.org", "a.b.example.org",
                "example.org", "web.shop", "other.example.com",
            )
        }  # fmt: skip
        assert asked == {
            "shop.example.com": b"web",
            f"SHOP.example.com:{port}": b"web",
            "shop.example.com.": b"web",
            "a.example.org": b"any",
            "a.b.example.org": b"any",
            "example.org": b"no-route\n",
            "web.shop": b"no-route\n",
            "other.example.com": b"no-route\n",
        }
        assert b"X-Forwarded-For: 127.0.0.1\r\nX-Forwarded-Proto: http\r\n" in seen[0]


async def test_what_a_caller_says_of_the_scheme_counts_for_nothing_and_addresses_are_appended() -> None:
    port = free_port()
    seen: list[bytes] = []
    async with application(replying(seen=seen)) as web, proxy() as edge:
        edge.engine.apply(config(listeners("edge", gateway=gateway(listener(port))), at_gateway(port), WEB), None, 0)
        edge.engine.endpoints({"web.shop:80": [endpoint(web)]}, full=True)
        fields = ["X-Forwarded-For: 1.2.3.4", "x-forwarded-proto: https", "X-Forwarded-Client-Cert: By=me"]
        assert (await send(port, get(host="shop.example.com", headers=fields))).status == 200
        assert seen == [
            b"GET / HTTP/1.1\r\nHost: shop.example.com\r\nX-Forwarded-For: 1.2.3.4, 127.0.0.1\r\nX-Forwarded-Proto: http\r\n\r\n"
        ]


async def test_rules_policies_and_timeouts_hold_at_a_gateway() -> None:
    port = free_port()
    only_v1 = Rule(
        name="v1", matches=(Match(path=PathMatch(kind="prefix", value="/v1")),), backends=to("web.shop:80").backends
    )
    async with application(replying()) as web, proxy() as edge:
        parts = (listeners("edge", gateway=gateway(listener(port))), at_gateway(port, only_v1), WEB)
        edge.engine.apply(config(*parts), None, 0)
        edge.engine.endpoints({"web.shop:80": [endpoint(web)]}, full=True)
        assert (await send(port, get("/v1/x", host="shop.example.com"))).status == 200
        assert (await send(port, get("/v2", host="shop.example.com"))).status == 404
        nobody = Authorization(policies=(Policy(name="edge/nobody", action="allow"),))
        edge.engine.apply(config(*parts, nobody), None, 0)
        assert (await send(port, get("/v1", host="shop.example.com"))).status == 403


async def test_certificates_go_by_name_and_are_replaced_while_it_runs(tmp_path: Path) -> None:
    port = free_port()
    shop, org = self_signed(tmp_path, "shop.example.com", "shop"), self_signed(tmp_path, "*.example.org", "org")
    renewed = self_signed(tmp_path, "shop.example.com", "renewed")
    entries = gateway(
        listener(port, "https", hosts=("shop.example.com",), secret="edge/shop"),
        listener(port, "https", hosts=("*.example.org",), secret="edge/org"),
    )
    async with application(replying(b"web")) as web, proxy() as edge:
        edge.engine.apply(
            config(listeners("edge", gateway=entries), at_gateway(port), at_gateway(port, host="*.example.org"), WEB),
            None,
            0,
        )
        edge.engine.endpoints({"web.shop:80": [endpoint(web)]}, full=True)
        with pytest.raises((ssl.SSLError, ConnectionError)):  # no secret is there yet
            await ask_tls(port, trusting(shop), "shop.example.com", get(host="shop.example.com"))
        edge.engine.secrets({"edge/shop": shop, "edge/org": org})
        first = await ask_tls(port, trusting(shop), "shop.example.com", get(host="shop.example.com"))
        second = await ask_tls(port, trusting(org), "a.example.org", get(host="a.example.org"))
        assert [(answer.body, shown) for answer, shown in (first, second)] == [(b"web", "shop"), (b"web", "org")]
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await ask_tls(port, trusting(shop), "nobody.example.com", get())

        edge.engine.secrets({"edge/shop": renewed, "edge/org": org})
        _, shown = await ask_tls(port, trusting(renewed), "shop.example.com", get(host="shop.example.com"))
        assert shown == "renewed"
        (tmp_path / "broken.pem").write_text("no key")
        edge.engine.secrets({"edge/shop": tmp_path / "broken.pem", "edge/org": org})
        _, shown = await ask_tls(port, trusting(renewed), "shop.example.com", get(host="shop.example.com"))
        assert shown == "renewed"
        # Trust in the mesh is another matter: its bundles come and go, callers from outside stay.
        reader, writer = await asyncio.open_connection(
            LOCALHOST, port, ssl=trusting(renewed), server_hostname="shop.example.com"
        )
        edge.engine.trust({}, [])
        writer.write(get(host="shop.example.com"))
        assert (await receive(reader)).body == b"web"
        writer.close()


async def test_a_listener_that_wants_tls_1_3_takes_nothing_less(tmp_path: Path) -> None:
    port = free_port()
    shop = self_signed(tmp_path, "shop.example.com", "shop")
    async with application(replying(b"web")) as web, proxy() as edge:
        entry = listener(port, "https", secret="edge/shop", min_tls="1.3")
        edge.engine.apply(config(listeners("edge", gateway=(entry,)), at_gateway(port), WEB), None, 0)
        edge.engine.endpoints({"web.shop:80": [endpoint(web)]}, full=True)
        edge.engine.secrets({"edge/shop": shop})
        old = trusting(shop)
        old.maximum_version = ssl.TLSVersion.TLSv1_2
        with pytest.raises((ssl.SSLError, ConnectionError, asyncio.IncompleteReadError)):
            await ask_tls(port, old, "shop.example.com", get(host="shop.example.com"))
        answer, _ = await ask_tls(port, trusting(shop), "shop.example.com", get(host="shop.example.com"))
        assert answer.body == b"web"


async def test_plaintext_is_sent_to_https() -> None:
    port = free_port()
    async with proxy() as edge:
        edge.engine.apply(config(listeners("edge", gateway=(listener(port, redirect_port=8443),))), None, 0)
        seen = await send(port, get("/a?b=c", host=f"shop.example.com:{port}"))
        unseen = await send(port, get("/a", host="shop.example.com"))
        assert (seen.status, unseen.status) == (301, 301)
        assert b"Location: https://shop.example.com:8443/a?b=c\r\n" in seen.head
        assert b"Location: https://shop.example.com/a\r\n" in unseen.head


async def test_tls_passes_through_to_the_service_that_the_name_says(tmp_path: Path) -> None:
    port = free_port()
    inner = self_signed(tmp_path, "bank.example.com", "inner")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(inner)
    server = await asyncio.start_server(_polite(replying(b"bank")), LOCALHOST, 0, ssl=context)
    async with server, proxy() as edge:
        bank = HostRoutes(host="bank.example.com", port=port, rules=(to("bank.shop:443"),), gateway=True)
        edge.engine.apply(
            config(
                listeners("edge", gateway=(listener(port, "tls"),)), bank, backend("bank.shop", 443, protocol="tcp")
            ),
            None,
            0,
        )
        edge.engine.endpoints({"bank.shop:443": [endpoint(server.sockets[0].getsockname()[1])]}, full=True)
        answer, shown = await ask_tls(port, trusting(inner), "bank.example.com", get(host="bank.example.com"))
        assert (answer.body, shown) == (b"bank", "inner")
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await ask_tls(port, trusting(inner), "other.example.com", get())
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await send(port, get())


def _polite(serve: Application) -> Application:
    async def guarded(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await serve(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            writer.close()

    return guarded


async def test_ports_open_and_close_with_the_configs() -> None:
    first, second = free_port(), free_port()
    async with application(replying()) as web, proxy() as edge:
        one = config(listeners("edge", gateway=(listener(first),)), at_gateway(first), WEB)
        both = config(
            listeners("edge", gateway=(listener(first), listener(second))), at_gateway(first), at_gateway(second), WEB
        )
        edge.engine.apply(one, None, 0)
        edge.engine.endpoints({"web.shop:80": [endpoint(web)]}, full=True)
        edge.engine.apply(one, both, 1.0)
        assert (await send(second, get(host="shop.example.com"))).status == 200
        edge.engine.apply(one, None, 0)
        with pytest.raises(ConnectionRefusedError):
            await send(second, get(host="shop.example.com"))
        assert (await send(first, get(host="shop.example.com"))).status == 200


async def test_a_port_that_is_taken_refuses_the_config_and_changes_nothing() -> None:
    good, free = free_port(), free_port()
    async with application(replying()) as web, proxy() as edge:
        edge.engine.apply(config(listeners("edge", gateway=(listener(good),)), at_gateway(good), WEB), None, 0)
        edge.engine.endpoints({"web.shop:80": [endpoint(web)]}, full=True)
        with socket.socket() as taken:
            taken.bind((LOCALHOST, 0))
            taken.listen()
            port = taken.getsockname()[1]
            with pytest.raises(ContentRefused) as refused:
                edge.engine.apply(config(listeners("edge", gateway=(listener(free), listener(port)))), None, 0)
            assert refused.value.reason == "PortUnavailable"
        assert (await send(good, get(host="shop.example.com"))).status == 200
        with pytest.raises(ConnectionRefusedError):
            await send(free, get())


async def test_callers_who_reset_before_a_handshake_are_counted_and_the_log_does_not_fill(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    port, pem = free_port(), self_signed(tmp_path, "shop.example.com", "shop")
    caplog.set_level(logging.INFO)
    async with application(replying(b"shop")) as app, proxy() as edge, asyncio.timeout(PATIENCE):
        https = listener(port, "https", hosts=("shop.example.com",), secret="edge/shop")
        edge.engine.secrets({"edge/shop": pem})
        edge.engine.apply(config(listeners("edge", gateway=gateway(https)), at_gateway(port), WEB), None, 0)
        edge.engine.endpoints({"web.shop:80": [endpoint(app)]}, full=True)
        refused = edge.engine.server.ledger.refused
        reset(port, 100)  # all of them wait to be accepted before the first one is
        while refused.get((port, "handshake-refused"), 0) < 100:
            await asyncio.sleep(0.01)
        assert (await ask_tls(port, trusting(pem), "shop.example.com", get(host="shop.example.com")))[0].body == b"shop"
    lines = [record for record in caplog.records if record.name == "backstay.sidecar.python"]
    assert 0 < len(lines) < 100
    assert [record for record in caplog.records if record.levelno > logging.INFO] == []


def reset(port: int, times: int) -> None:
    """Connections that are gone, some with bytes unread, before anybody looks at them."""
    for number in range(times):
        with socket.create_connection((LOCALHOST, port)) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            if number % 2:
                sock.sendall(b"\x16\x03\x01\x02\x00")


async def test_half_a_greeting_is_looked_at_seldom_and_none_not_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[float] = []

    def look(hello: bytes) -> bytes | None:
        looked.append(monotonic())
        return server_name(hello)

    monkeypatch.setattr(ingress, "server_name", look)
    port = free_port()
    async with proxy() as edge, asyncio.timeout(PATIENCE):
        bank = HostRoutes(host="bank.example.com", port=port, rules=(to("bank.shop:443"),), gateway=True)
        parts = (bank, backend("bank.shop", 443, protocol="tcp"))
        edge.engine.apply(config(listeners("edge", gateway=gateway(listener(port, "tls"))), *parts), None, 0)
        silent = await asyncio.open_connection(LOCALHOST, port)
        _, half = await asyncio.open_connection(LOCALHOST, port)
        half.write(b"\x16\x03\x01\x02\x00\x01")
        while len(looked) < 5:
            await asyncio.sleep(0.01)
        gaps = [after - before for before, after in pairwise(looked)]
        assert all(gap > least for gap, least in zip(gaps, (0.008, 0.018, 0.038, 0.078), strict=False))
        silent[1].write(b"no greeting at all")
        with contextlib.suppress(ConnectionResetError):  # closed with bytes unread
            assert await silent[0].read() == b""
        half.close()
