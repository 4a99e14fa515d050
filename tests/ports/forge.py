"""A small forge: real git (http-backend) over TLS with basic or bearer authentication, on a loopback port of its own."""

import base64
import datetime
import ipaddress
import os
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


class Forge:
    """What a test may change while it runs."""

    def __init__(self, root: Path, url: str, ca_file: Path) -> None:
        self.root = root
        self.url = url
        """Without a path; repositories are below it by their folder's name."""
        self.ca_file = ca_file
        self.accepted: set[str] = set()
        """Values of the Authorization header that are let in; empty: everybody."""
        self.redirect_to = ""
        self.stall = threading.Event()
        """Set: requests are taken and never answered."""
        self.seen: list[tuple[str, str]] = []
        """Path and Authorization header of every request."""

    def accept_basic(self, username: str, password: str) -> None:
        self.accepted.add("Basic " + base64.b64encode(f"{username}:{password}".encode()).decode())


@contextmanager
def forge(root: Path, scratch: Path) -> Iterator[Forge]:
    """Serves the repositories below `root` until the end of the block."""
    scratch.mkdir(parents=True, exist_ok=True)
    certificate, key = loopback_certificate(scratch)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    running = Forge(root, f"https://127.0.0.1:{server.server_port}", certificate)
    server.forge = running  # type: ignore[attr-defined]  # how BaseHTTPRequestHandler finds what it serves
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield running
    finally:
        running.stall.clear()
        server.shutdown()
        server.server_close()
        thread.join(timeout=5)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._serve(b"")

    def do_POST(self) -> None:
        self._serve(self.rfile.read(int(self.headers.get("Content-Length", "0"))))

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: the test says what it wants to know."""

    def _serve(self, body: bytes) -> None:
        forge: Forge = self.server.forge  # type: ignore[attr-defined]  # see above
        given = self.headers.get("Authorization", "")
        forge.seen.append((self.path, given))
        deadline = time.monotonic() + 60
        while forge.stall.is_set() and time.monotonic() < deadline:
            time.sleep(0.02)
        if forge.redirect_to:
            self._answer(302, [("Location", forge.redirect_to + self.path)], b"")
        elif forge.accepted and given not in forge.accepted:
            self._answer(401, [("WWW-Authenticate", 'Basic realm="forge"')], f"you sent {given}".encode())
        else:
            self._backend(forge, body)

    def _answer(self, status: int, fields: list[tuple[str, str]], content: bytes) -> None:
        self.send_response(status)
        for name, value in fields:
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _backend(self, forge: Forge, body: bytes) -> None:
        path, _, query = self.path.partition("?")
        done = subprocess.run(
            ("git", "http-backend"),
            input=body,
            capture_output=True,
            check=False,
            timeout=60,
            env={
                "PATH": os.environ["PATH"],
                "GIT_CONFIG_GLOBAL": os.devnull,
                "GIT_CONFIG_NOSYSTEM": "1",
                "GIT_CONFIG_COUNT": "1",
                "GIT_CONFIG_KEY_0": "safe.directory",
                "GIT_CONFIG_VALUE_0": "*",
                "GIT_PROJECT_ROOT": str(forge.root),
                "GIT_HTTP_EXPORT_ALL": "1",
                "GIT_PROTOCOL": self.headers.get("Git-Protocol", ""),
                "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding", ""),
                "CONTENT_TYPE": self.headers.get("Content-Type", ""),
                "CONTENT_LENGTH": str(len(body)),
                "REQUEST_METHOD": self.command,
                "PATH_INFO": path,
                "QUERY_STRING": query,
            },
        )
        head, _, content = done.stdout.partition(b"\r\n\r\n")
        fields = [(name, value) for name, _, value in (line.partition(": ") for line in head.decode().splitlines())]
        status = next((value for name, value in fields if name == "Status"), "200 OK")
        self._answer(int(status.split()[0]), [field for field in fields if field[0] != "Status"], content)


def loopback_certificate(scratch: Path) -> tuple[Path, Path]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "forge")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    certificate_file, key_file = scratch / "forge.pem", scratch / "forge.key"
    certificate_file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    key_file.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return certificate_file, key_file
