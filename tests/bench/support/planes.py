"""Data planes for `make bench-proxy`: ours, Envoy and nginx, set up to do the same.

Three paths each: one plaintext hop (plain proxy, application); the same with a token that every request must bring; and two
hops with mTLS between them (client proxy, server proxy, application; both ends check the other's SPIFFE ID). The client's
proxy routes by header and path with retries, the server's has an allow policy; all write an access log of the same fields to
/dev/null. nginx does the plaintext hop only.
"""

import json
import signal
import socket
import subprocess
import sys
import time
from base64 import urlsafe_b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final, NamedTuple

from bench.support.negotiated import agreed, overheard
from bench.support.serving import HOST, ISSUER, Ports, spiffe

START_SECONDS: Final = 60.0
SERVING: Final = Path(__file__).with_name("serving.py")


class Proxies(NamedTuple):
    """One data plane running all paths."""

    plain: subprocess.Popen[bytes]
    client: subprocess.Popen[bytes]
    server: subprocess.Popen[bytes]
    tokens: subprocess.Popen[bytes]
    ports: Ports


# --- certificates ----------------------------------------------------------------------------------------------------


def make_certificates(folder: Path) -> None:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID

    usage = x509.KeyUsage(True, *[False] * 8)  # digitalSignature alone
    purposes = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
    root_key, root_name = ec.generate_private_key(ec.SECP256R1()), x509.Name.from_rfc4514_string("CN=bench root")

    def certificate(name: x509.Name, key: ec.EllipticCurvePrivateKey, *, ca: bool, uri: str = "") -> x509.Certificate:
        now = datetime.now(UTC)
        builder = (
            x509.CertificateBuilder().subject_name(name).issuer_name(root_name).public_key(key.public_key())
            .serial_number(x509.random_serial_number()).not_valid_before(now - timedelta(hours=1))
            .not_valid_after(now + timedelta(days=1)).add_extension(x509.BasicConstraints(ca, None), True)
        )  # fmt: skip
        if uri:
            builder = builder.add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)]), True)
            builder = builder.add_extension(usage, True).add_extension(purposes, False)
        return builder.sign(root_key, hashes.SHA256())

    pem = serialization.Encoding.PEM
    (folder / "root.crt").write_bytes(certificate(root_name, root_key, ca=True).public_bytes(pem))
    for role in ("plain", "client", "server", "tokens"):
        key = ec.generate_private_key(ec.SECP256R1())
        leaf = certificate(x509.Name([]), key, ca=False, uri=spiffe(role))
        (folder / f"{role}.crt").write_bytes(leaf.public_bytes(pem))
        form, plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        (folder / f"{role}.key").write_bytes(key.private_bytes(pem, form, plain))


def make_token(folder: Path) -> str:
    """A token that is good for an hour; the key it is signed with is left in the folder as a key set."""
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import padding, rsa

    key = rsa.generate_private_key(65537, 2048)
    numbers = key.public_key().public_numbers()
    known = {
        "kty": "RSA",
        "kid": "bench",
        "alg": "RS256",
        "use": "sig",
        "n": _number(numbers.n),
        "e": _number(numbers.e),
    }
    (folder / "jwks.json").write_text(json.dumps({"keys": [known]}))
    head = {"alg": "RS256", "kid": "bench", "typ": "JWT"}
    claims = {"iss": ISSUER, "sub": "ann", "scope": "cart:read cart:write", "exp": int(time.time()) + 3600}
    signed = ".".join(_base64(json.dumps(part).encode()) for part in (head, claims))
    return f"{signed}.{_base64(key.sign(signed.encode(), padding.PKCS1v15(), hashes.SHA256()))}"


def _number(value: int) -> str:
    return _base64(value.to_bytes((value.bit_length() + 7) // 8, "big"))


def _base64(data: bytes) -> str:
    return urlsafe_b64encode(data).rstrip(b"=").decode()


# --- Envoy -----------------------------------------------------------------------------------------------------------

_TYPE: Final = "type.googleapis.com/envoy.extensions"
_LOG_FIELDS: Final = {
    "time": "%START_TIME%", "method": "%REQ(:METHOD)%", "authority": "%REQ(:AUTHORITY)%", "path": "%REQ(:PATH)%",
    "status": "%RESPONSE_CODE%", "flags": "%RESPONSE_FLAGS%", "duration_ms": "%DURATION%", "bytes_in": "%BYTES_RECEIVED%",
    "bytes_out": "%BYTES_SENT%", "tries": "%UPSTREAM_REQUEST_ATTEMPT_COUNT%", "route": "%ROUTE_NAME%",
    "backend": "%UPSTREAM_CLUSTER%", "upstream": "%UPSTREAM_HOST%", "source": "%DOWNSTREAM_PEER_URI_SAN%",
    "traceparent": "%REQ(TRACEPARENT)%",
}  # fmt: skip


_INTRODUCING: Final = {
    "forward_client_cert_details": "APPEND_FORWARD",
    "set_current_client_cert_details": {"subject": True, "uri": True, "dns": True},
}
"""What our proxies tell applications of callers by mTLS unless a document says otherwise."""


def envoy_config(role: str, ports: Ports, folder: Path, hosts: int) -> dict[str, Any]:
    listening = getattr(ports, role)
    target = ports.server if role == "client" else ports.app
    chain: dict[str, Any] = {"filters": [{"name": "http", "typed_config": _manager(role, hosts, folder)}]}
    clusters = [_cluster("web", target)]
    if role == "server":
        chain["transport_socket"] = _envoy_tls("Downstream", role, "client", folder)
    else:
        clusters += [_cluster(f"s{number}", target) for number in range(hosts)]
    if role == "client":
        for cluster in clusters:
            cluster["transport_socket"] = _envoy_tls("Upstream", role, "server", folder)
    listener = {"name": "in", "address": _address(listening), "filter_chains": [chain]}
    return {"static_resources": {"listeners": [listener], "clusters": clusters}}


def _manager(role: str, hosts: int, folder: Path) -> dict[str, Any]:
    router = {"name": "router", "typed_config": {"@type": f"{_TYPE}.filters.http.router.v3.Router"}}
    names = ["web", *(f"s{number}" for number in range(hosts if role in ("plain", "client") else 0))]
    asked = {"server": [_allow()], "tokens": [_believe((folder / "jwks.json").read_text())] if role == "tokens" else []}
    log = {
        "@type": f"{_TYPE}.access_loggers.file.v3.FileAccessLog", "path": "/dev/null",
        "log_format": {"json_format": _LOG_FIELDS},
    }  # fmt: skip
    return {
        "@type": f"{_TYPE}.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": role,
        "generate_request_id": False,
        "access_log": [{"name": "file", "typed_config": log}],
        "http_filters": [*asked.get(role, []), router],
        "route_config": {"virtual_hosts": [_virtual_host(name, role) for name in names]},
        **(_INTRODUCING if role == "server" else {}),
    }


def _virtual_host(name: str, role: str) -> dict[str, Any]:
    action = {"cluster": name, "timeout": "15s"}
    if role in ("server", "tokens"):
        return {"name": name, "domains": ["*"], "routes": [{"match": {"prefix": "/"}, "route": action}]}
    action["retry_policy"] = {"retry_on": "connect-failure,gateway-error", "num_retries": 2}  # type: ignore[assignment]
    canary = {"name": "x-canary", "string_match": {"exact": "yes"}}
    matches: list[dict[str, Any]] = [
        {"prefix": "/", "headers": [canary]}, {"path_separated_prefix": "/api"}, {"prefix": "/"}
    ]  # fmt: skip
    routes = [{"match": match, "route": action} for match in matches]
    return {"name": name, "domains": [f"{name}.shop"], "routes": routes}


def _allow() -> dict[str, Any]:
    path = [{"url_path": {"path": kind}} for kind in ({"prefix": "/path"}, {"exact": "/large"})]
    method = {"header": {"name": ":method", "string_match": {"exact": "GET"}}}
    policy = {
        "permissions": [{"and_rules": {"rules": [method, {"or_rules": {"rules": path}}]}}],
        "principals": [{"authenticated": {"principal_name": {"exact": spiffe("client")}}}],
    }
    rules = {"action": "ALLOW", "policies": {"web": policy}}
    return {"name": "rbac", "typed_config": {"@type": f"{_TYPE}.filters.http.rbac.v3.RBAC", "rules": rules}}


def _believe(keys: str) -> dict[str, Any]:
    """Tokens of one issuer, remembered once they were found good, as ours are."""
    provider = {
        "issuer": ISSUER, "local_jwks": {"inline_string": keys}, "forward": True, "jwt_cache_config": {"jwt_cache_size": 256},
    }  # fmt: skip
    rule = {"match": {"prefix": "/"}, "requires": {"provider_name": "issuer"}}
    return {
        "name": "jwt",
        "typed_config": {
            "@type": f"{_TYPE}.filters.http.jwt_authn.v3.JwtAuthentication",
            "providers": {"issuer": provider},
            "rules": [rule],
        },
    }


def _cluster(name: str, target: int) -> dict[str, Any]:
    endpoints = [{"lb_endpoints": [{"endpoint": {"address": _address(target)}}]}]
    return {
        "name": name,
        "type": "STATIC",
        "connect_timeout": "5s",
        "lb_policy": "LEAST_REQUEST",
        "load_assignment": {"cluster_name": name, "endpoints": endpoints},
    }


def _address(port: int) -> dict[str, Any]:
    return {"socket_address": {"address": HOST, "port_value": port}}


def _envoy_tls(side: str, role: str, peer: str, folder: Path) -> dict[str, Any]:
    files = {
        "certificate_chain": {"filename": f"{folder}/{role}.crt"},
        "private_key": {"filename": f"{folder}/{role}.key"},
    }
    check = {
        "trusted_ca": {"filename": f"{folder}/root.crt"},
        "match_typed_subject_alt_names": [{"san_type": "URI", "matcher": {"exact": spiffe(peer)}}],
    }
    agreeing = {  # left alone, Envoy speaks 1.2 as a client, and agrees with itself upon a group that OpenSSL 3.0 has not
        "tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3", "ecdh_curves": ["X25519"],
    }  # fmt: skip
    context = {"tls_certificates": [files], "validation_context": check, "tls_params": agreeing}
    config: dict[str, Any] = {
        "@type": f"{_TYPE}.transport_sockets.tls.v3.{side}TlsContext",
        "common_tls_context": context,
    }
    if side == "Downstream":
        config["require_client_certificate"] = True
    return {"name": "tls", "typed_config": config}


def envoy_binary() -> str:
    import envoy  # type: ignore[import-untyped]

    return str(Path(envoy.__file__).parent / "_bin" / "envoy")


# --- nginx -----------------------------------------------------------------------------------------------------------


def nginx_command(port: int, app: int, folder: Path) -> list[str]:
    """A reverse proxy for the plaintext hop: what one core can do."""
    path = folder / "nginx.conf"
    path.write_text(
        f"""daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log /dev/null;
events {{ worker_connections 4096; }}
http {{ access_log /dev/null; keepalive_requests 1000000;
  upstream app {{ server {HOST}:{app}; keepalive 512; keepalive_requests 1000000; }}
  server {{ listen {HOST}:{port} reuseport; location / {{
    proxy_pass http://app; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_set_header Host $host; }} }} }}
"""
    )
    return ["nginx", "-c", str(path), "-p", str(folder)]


# --- running -----------------------------------------------------------------------------------------------------------


def free_ports(count: int) -> list[int]:
    socks = [socket.create_server((HOST, 0)) for _ in range(count)]
    ports = [sock.getsockname()[1] for sock in socks]
    for sock in socks:
        sock.close()
    return ports


@contextmanager
def running(command: list[str], port: int) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(port, process)
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    ends = time.monotonic() + START_SECONDS
    while time.monotonic() < ends:
        if process.poll() is not None:
            raise SystemExit(f"{process.args!r} ended with {process.returncode}")
        try:
            socket.create_connection((HOST, port), 1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise SystemExit(f"{process.args!r} does not listen on {port}")


ENVOYS_CIPHER: Final = """
openssl_conf = default_conf
[default_conf]
ssl_conf = ssl_sect
[ssl_sect]
system_default = system_default_sect
[system_default_sect]
Ciphersuites = TLS_AES_128_GCM_SHA256
"""
"""The one that Envoys agree upon; two OpenSSLs would choose AES-256, and Python's ssl has no word for suites of TLS 1.3."""


def own_command(python: Path) -> "Command":
    """Proxies of ours that this interpreter runs, with its own packages and nothing of the benchmark's environment."""

    def command(role: str, ports: Ports, folder: Path, hosts: int) -> list[str]:
        library = folder / "openssl.cnf"
        library.write_text(ENVOYS_CIPHER)
        asked = [str(python), "-I", str(SERVING), role, ",".join(map(str, ports)), str(folder), str(hosts)]
        return ["env", f"OPENSSL_CONF={library}", *asked]

    return command


def app_command(port: int) -> list[str]:
    return [sys.executable, str(SERVING), "app", str(port), "-", "0"]


def envoy_command(role: str, ports: Ports, folder: Path, hosts: int) -> list[str]:
    path = folder / f"envoy-{role}.json"
    path.write_text(json.dumps(envoy_config(role, ports, folder, hosts)))
    return [envoy_binary(), "-c", str(path), "--concurrency", "1", "--disable-hot-restart", "-l", "off"]


Command = Callable[[str, Ports, Path, int], list[str]]


def negotiation(command: Command, app: int, folder: Path) -> str:
    """Cipher suite and group that the client's and the server's proxy agree upon between themselves."""
    ports = Ports(app, *free_ports(4))
    with running(command("server", ports, folder, 0), ports.server), overheard(ports.server) as relay:
        aside = ports._replace(server=relay.port)
        with running(command("client", aside, folder, 0), ports.client):
            with socket.create_connection((HOST, ports.client), START_SECONDS) as asking:
                asking.sendall(b"GET /path HTTP/1.1\r\nHost: web.shop\r\n\r\n")
                answer = asking.recv(64)
    if not answer.startswith(b"HTTP/1.1 200 "):
        raise SystemExit(f"a request failed: {answer!r}")
    return " ".join(agreed(relay.hello))


@contextmanager
def proxies(command: Command, app: int, folder: Path, hosts: int = 0) -> Iterator[Proxies]:
    ports = Ports(app, *free_ports(4))
    with (
        running(command("plain", ports, folder, hosts), ports.plain) as plain,
        running(command("server", ports, folder, hosts), ports.server) as server,
        running(command("client", ports, folder, hosts), ports.client) as client,
        running(command("tokens", ports, folder, 0), ports.tokens) as tokens,
    ):
        yield Proxies(plain, client, server, tokens, ports)
