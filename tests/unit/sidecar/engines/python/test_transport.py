"""The TLS transport over real sockets: everything that was sent is read, whatever the records and however it ends."""

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from backstay.sidecar.engines.python.transport import MOST_RECORDS, READ_BYTES, TlsTransport

WITHIN = 20.0


class Reader(asyncio.Protocol):
    """Keeps what it is given, in the pieces it was given."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self.ended = asyncio.get_running_loop().create_future()

    def data_received(self, data: bytes) -> None:
        self.pieces.append(data)

    def connection_lost(self, error: Exception | None) -> None:
        self.ended.set_result(error)


@pytest.fixture(scope="module")
def contexts(tmp_path_factory: pytest.TempPathFactory) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """(server's, client's)"""
    folder = tmp_path_factory.mktemp("certificate")
    key, name, now = (
        ec.generate_private_key(ec.SECP256R1()),
        x509.Name.from_rfc4514_string("CN=peer"),
        datetime.now(UTC),
    )
    made = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(1).not_valid_before(now - timedelta(hours=1)).not_valid_after(now + timedelta(hours=1))
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    path: Path = folder / "both.pem"
    path.write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain) + made.public_bytes(pem))
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    server.load_cert_chain(path)
    client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
    return server, client


@pytest.fixture
def sockets() -> Iterator[tuple[socket.socket, socket.socket]]:
    one, other = socket.socketpair()
    one.setblocking(False)
    yield one, other
    one.close()
    other.close()


async def receive(
    contexts: tuple[ssl.SSLContext, ssl.SSLContext],
    sockets: tuple[socket.socket, socket.socket],
    sent: list[bytes],
    *,
    politely: bool = True,
) -> tuple[Reader, Exception | None]:
    """What a transport's protocol reads of a peer that sends these pieces, and what it is told at the end."""
    loop, (server, client) = asyncio.get_running_loop(), contexts

    def send() -> None:
        with client.wrap_socket(sockets[1]) as peer:
            for piece in sent:
                peer.sendall(piece)
            peer.setblocking(False)
            with contextlib.suppress(ssl.SSLWantReadError):  # the other's goodbye is not waited for
                if politely:
                    peer._sslobj.shutdown()  # type: ignore[attr-defined]

    shaken = loop.create_future()
    wrapped = server.wrap_socket(sockets[0], server_side=True, do_handshake_on_connect=False)
    transport = TlsTransport(loop, wrapped, lambda _, error: shaken.set_result(error))
    async with asyncio.timeout(WITHIN):
        sending = asyncio.ensure_future(asyncio.to_thread(send))
        transport.start()
        assert await shaken is None
        if sum(map(len, sent)) < READ_BYTES * 4:
            await sending  # what fits into the socket is there at once
        reader = Reader()
        transport.begin(reader)
        ended = await reader.ended
        await sending
    return reader, ended


@pytest.mark.parametrize(
    "sizes", [[1], [READ_BYTES], [READ_BYTES * 3], [100, READ_BYTES * 2, 7], [3_000_000], [5] * 50]
)
async def test_all_that_is_sent_is_read(
    contexts: tuple[ssl.SSLContext, ssl.SSLContext], sockets: tuple[socket.socket, socket.socket], sizes: list[int]
) -> None:
    sent = [bytes((place + at) % 251 for at in range(size)) for place, size in enumerate(sizes)]
    reader, error = await receive(contexts, sockets, sent)
    assert (b"".join(reader.pieces) == b"".join(sent), error) == (True, None)
    assert max(map(len, reader.pieces)) <= READ_BYTES * MOST_RECORDS


async def test_full_records_that_are_there_are_read_in_one_piece(
    contexts: tuple[ssl.SSLContext, ssl.SSLContext], sockets: tuple[socket.socket, socket.socket]
) -> None:
    reader, _ = await receive(contexts, sockets, [b"x" * READ_BYTES * 3])
    assert [len(piece) for piece in reader.pieces] == [READ_BYTES * 3]


async def test_what_came_before_an_abrupt_end_is_read(
    contexts: tuple[ssl.SSLContext, ssl.SSLContext], sockets: tuple[socket.socket, socket.socket]
) -> None:
    reader, error = await receive(contexts, sockets, [b"x" * READ_BYTES], politely=False)
    assert (b"".join(reader.pieces) == b"x" * READ_BYTES, error) == (True, None)
