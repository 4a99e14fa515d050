"""What two proxies agree upon in a TLS 1.3 handshake: it is in the server's first, plain record."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from bench.support.serving import HOST

SUITES: Final = {
    0x1301: "TLS_AES_128_GCM_SHA256",
    0x1302: "TLS_AES_256_GCM_SHA384",
    0x1303: "TLS_CHACHA20_POLY1305_SHA256",
}
GROUPS: Final = {0x0017: "P-256", 0x0018: "P-384", 0x001D: "X25519", 0x11EC: "X25519MLKEM768"}
KEY_SHARE: Final = 51
_BEFORE_SESSION: Final = 5 + 4 + 2 + 32  # record and handshake headers, version, random


class Overheard:
    """A relay to `target` that keeps what the server says first."""

    def __init__(self, listening: socket.socket, target: int) -> None:
        self._listening, self._target = listening, target
        self.port: int = listening.getsockname()[1]
        self.hello = b""

    def run(self) -> None:
        while True:
            try:
                client, _ = self._listening.accept()
            except OSError:
                return  # closed: nobody listens any more
            server = socket.create_connection((HOST, self._target))
            threading.Thread(target=self._pass_on, args=(client, server, False), daemon=True).start()
            threading.Thread(target=self._pass_on, args=(server, client, True), daemon=True).start()

    def _pass_on(self, source: socket.socket, target: socket.socket, is_server: bool) -> None:
        try:
            while data := source.recv(65536):
                if is_server and not self.hello:
                    self.hello = data
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)
        except OSError:
            target.close()  # one of the two is gone


@contextmanager
def overheard(target: int) -> Iterator[Overheard]:
    with socket.create_server((HOST, 0)) as listening:
        relay = Overheard(listening, target)
        threading.Thread(target=relay.run, daemon=True).start()
        yield relay
        listening.shutdown(socket.SHUT_RDWR)


def agreed(hello: bytes) -> tuple[str, str]:
    """Cipher suite and group in a ServerHello (RFC 8446, 4.1.3), by name or number."""
    at = _BEFORE_SESSION
    at += 1 + hello[at]
    suite = int.from_bytes(hello[at : at + 2])
    at += 3  # suite, compression
    end = at + 2 + int.from_bytes(hello[at : at + 2])
    at += 2
    group = 0
    while at < end:
        kind, length = int.from_bytes(hello[at : at + 2]), int.from_bytes(hello[at + 2 : at + 4])
        if kind == KEY_SHARE:
            group = int.from_bytes(hello[at + 4 : at + 6])
        at += 4 + length
    return SUITES.get(suite, hex(suite)), GROUPS.get(group, hex(group))
