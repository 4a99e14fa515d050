"""A gateway of a mesh on one machine: from a Gateway, a Route and a folder of PEM files to a caller outside."""

import http.client
import socket
import ssl
import urllib.error
import urllib.request
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from support.live import LiveMesh, backend, document, mesh_document, workloads_file

pytestmark = pytest.mark.xdist_group("mesh-b")


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def write_secret(folder: Path, common_name: str) -> None:
    """A certificate for localhost, replaced as a person or a tool would: two files, one after the other."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), False)
        .sign(key, hashes.SHA256())
    )
    folder.mkdir(parents=True, exist_ok=True)
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (folder / "tls.key").write_bytes(private)
    (folder / "tls.crt").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))


def shown_by(port: int) -> str:
    """The name in the certificate that a caller sees; empty while there is none."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        with (
            socket.create_connection(("127.0.0.1", port), timeout=5) as plain,
            context.wrap_socket(plain, server_hostname="localhost") as sock,
        ):
            der = sock.getpeercert(binary_form=True) or b""
    except OSError:
        return ""
    return str(x509.load_der_x509_certificate(der).subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value)


def asked(port: int) -> tuple[int, str]:
    """Status and Location, without going there."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("GET", "/shop", headers={"Host": f"localhost:{port}"})
    answer = connection.getresponse()
    connection.close()
    return answer.status, answer.getheader("Location") or ""


def fetch(url: str) -> tuple[int, bytes]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context))
    try:
        with opener.open(url, timeout=10) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()
    except urllib.error.URLError:
        return 0, b""  # nobody listens yet


def test_callers_from_outside_reach_a_service_and_certificates_are_replaced_while_it_runs() -> None:
    plain, secure = free_port(), free_port()
    gateway = document(
        "Gateway",
        "public",
        {
            "selector": {"workloads": ["edge"]},
            "listeners": [
                {"name": "http", "port": plain},
                {"name": "https", "port": secure, "protocol": "HTTPS", "tls": {"secretRef": {"name": "web"}}},
            ],
        },
    )
    to_api = {
        "parentRefs": [{"name": "public"}],
        "hosts": ["localhost"],
        "rules": [{"matches": [{"path": {"value": "/shop"}}], "backendRefs": [{"name": "api"}]}],
    }
    documents = {
        "mesh.yaml": mesh_document(),
        "gateway.yaml": gateway,
        "route.yaml": document("Route", "public", to_api),
    }
    workloads = workloads_file(["api"], [backend("api", "api"), {"name": "edge", "gateway": True}])
    with LiveMesh(workloads, documents) as mesh:
        secret = mesh.folder_state / "secrets" / "shop" / "web"
        mesh.until(lambda: "SecretMissing" in mesh.reasons(), "the missing secret to be told", 60)
        mesh.until(lambda: fetch(f"http://localhost:{plain}/shop")[0] == 200, "plaintext to be served", 120)
        assert fetch(f"http://localhost:{plain}/elsewhere") == (404, b"no-route\n")
        assert shown_by(secure) == ""

        write_secret(secret, "first")
        mesh.until(lambda: shown_by(secure) == "first", "the certificate to be shown", 60)
        assert fetch(f"https://localhost:{secure}/shop")[0] == 200
        write_secret(secret, "second")
        mesh.until(lambda: shown_by(secure) == "second", "the new certificate to be shown", 60)

        kept = list((mesh.folder_state).rglob("secrets/shop/web.pem"))
        assert [path.stat().st_mode & 0o777 for path in kept] == [0o600], "one proxy has it, privately"

        redirecting = gateway.replace(f"port: {plain}", f"port: {plain}\n    redirectToHttps: true")
        redirecting += "  rollout: {strategy: Immediate}\n"  # no traffic proves it: waves would wait for their deadline
        mesh.push({"gateway.yaml": redirecting})
        mesh.until(lambda: asked(plain) == (301, f"https://localhost:{secure}/shop"), "plaintext to be redirected", 60)
