"""git over https inside the cluster: `git http-backend` behind TLS, with basic authentication if a password is set.

Runs in a pod from a ConfigMap, so it uses the standard library alone. REPOSITORIES, CERTIFICATE, KEY and PASSWORD (the
user is `backstay`) come from the environment. Repositories below REPOSITORIES are made by whoever pushes: `init` in
gitserver.py.
"""

import base64
import hmac
import os
import ssl
import subprocess
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

REPOSITORIES = os.environ["REPOSITORIES"]
PASSWORD = os.environ.get("PASSWORD", "")
GIT = {
    "PATH": os.environ["PATH"],
    "GIT_PROJECT_ROOT": REPOSITORIES,
    "GIT_HTTP_EXPORT_ALL": "1",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_COUNT": "1",
    "GIT_CONFIG_KEY_0": "safe.directory",
    "GIT_CONFIG_VALUE_0": "*",
}


class Handler(BaseHTTPRequestHandler):
    """One request is one run of git."""

    protocol_version = "HTTP/1.1"
    timeout = 60

    def do_GET(self) -> None:
        self.serve(b"")

    def do_POST(self) -> None:
        self.serve(self.rfile.read(int(self.headers.get("Content-Length", "0"))))

    def serve(self, body: bytes) -> None:
        if self.path == "/healthz":
            self.answer(200, [], b"ok")
        elif PASSWORD and not self.is_admitted():
            self.answer(401, [("WWW-Authenticate", 'Basic realm="git"')], b"")
        else:
            self.backend(body)

    def is_admitted(self) -> bool:
        wanted = "Basic " + base64.b64encode(f"backstay:{PASSWORD}".encode()).decode()
        return hmac.compare_digest(self.headers.get("Authorization", ""), wanted)

    def backend(self, body: bytes) -> None:
        path, _, query = self.path.partition("?")
        environment = {
            "REQUEST_METHOD": self.command,
            "PATH_INFO": path,
            "QUERY_STRING": query,
            "CONTENT_TYPE": self.headers.get("Content-Type", ""),
            "CONTENT_LENGTH": str(len(body)),
            "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding", ""),
            "GIT_PROTOCOL": self.headers.get("Git-Protocol", ""),
        }
        done = subprocess.run(
            ("git", "http-backend"), input=body, capture_output=True, check=False, timeout=60, env=GIT | environment
        )
        head, _, content = done.stdout.partition(b"\r\n\r\n")
        fields = [(name, value) for name, _, value in (line.partition(": ") for line in head.decode().splitlines())]
        status = next((value for name, value in fields if name == "Status"), "200 OK" if head else "500 no answer")
        self.answer(int(status.split()[0]), [field for field in fields if field[0] != "Status"], content)

    def answer(self, status: int, fields: list[tuple[str, str]], content: bytes) -> None:
        self.send_response(status)
        for name, value in fields:
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


class Server(ThreadingHTTPServer):
    """TLS is agreed in the thread of the connection: a client that is slow there holds up nobody."""

    daemon_threads = True

    def __init__(self, port: int) -> None:
        super().__init__(("0.0.0.0", port), Handler)
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(os.environ["CERTIFICATE"], os.environ["KEY"])

    def finish_request(self, request: Any, client_address: Any) -> None:
        secured = self.context.wrap_socket(request, server_side=True)
        try:
            super().finish_request(secured, client_address)
        finally:
            secured.close()


if __name__ == "__main__":
    Server(8443).serve_forever()
