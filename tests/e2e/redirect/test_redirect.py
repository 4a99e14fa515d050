"""Connections that the kernel redirects, in real network namespaces: two pods with proxies, and a node around them.

`10.1.0.1` is the node, outside of the mesh. Pod 2 calls; pod 3 has the applications, and insists on mTLS at some ports.
Virtual addresses exist in live data only, as a cluster's service IPs exist in kube-proxy's rules only.
"""

import contextlib
import json
import signal
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest

from backstay.config.model import Config, InboundPort
from backstay.config.wire import Endpoint
from e2e.engine.mesh import DOMAIN, Authority, backend, config, listeners, routes, spiffe, to

from .world import APP_UID, PROXY_UID, Namespace, Node, node, why_not

pytestmark = [
    pytest.mark.skipif(bool(why_not()), reason=why_not()),
    pytest.mark.xdist_group("redirect"),
]

WEB4, WEB6, DB, SELF = "10.96.0.10", "fd96::10", "10.96.0.11", "10.96.0.12"
ADDRESSES = {"web.shop": [WEB4, WEB6], "db.shop": [DB], "self.shop": [SELF]}
STRICT, PLAIN, TCP, TLS, EXCLUDED, UNNAMED = 8081, 8080, 5432, 8443, 2222, 7000
OUTSIDE = "10.1.0.1"
CUT = ("", "IncompleteReadError", "ConnectionResetError")
"""What a client sees whose connection is closed without an answer."""


def endpoints() -> dict[str, list[Endpoint]]:
    web = [Endpoint(id="web-1", address=address, port=STRICT, identity=spiffe("web")) for address in ("10.1.0.3",)]
    return {
        "web.shop:80": web,
        "db.shop:5432": [Endpoint(id="web-1", address="10.1.0.3", port=TCP, identity=spiffe("web"))],
        "self.shop:80": [Endpoint(id="client-1", address="10.1.0.2", port=STRICT, identity=spiffe("client"))],
    }


CALLER = config(
    listeners("client", inbound=(InboundPort(port=STRICT, mtls="strict"),)),
    routes(to("web.shop:80")),
    routes(to("self.shop:80"), host="self.shop"),
    backend(),
    backend("self.shop"),
    backend("db.shop", 5432, protocol="tcp"),
)
CALLED = config(
    listeners(
        "web",
        inbound=(
            InboundPort(port=STRICT, mtls="strict"),
            InboundPort(port=PLAIN),
            InboundPort(port=TCP, protocol="tcp", mtls="strict"),
            InboundPort(port=TLS),
        ),
    )
)


@dataclass
class Mesh:
    node: Node
    caller: Namespace
    called: Namespace
    caller_told: Path
    engine: str

    def http(self, host: str, name: str, port: int = 80, *, by: Namespace | None = None) -> Mapping[str, str]:
        status, _, body = (by or self.caller).ask("http", host, str(port), name).partition(" ")
        return json.loads(body) if status == "200" else {"status": status or "closed"}


def told(folder: Path, ca: Authority, name: str, served: Config) -> Path:
    files = ca.issue(spiffe(name))
    for path in (files.certificate, files.key):
        path.chmod(0o644)  # read by the proxy's user
    found: dict[str, Any] = {
        "addresses": ADDRESSES,
        "endpoints": msgspec.to_builtins(endpoints()),
        "trust": {DOMAIN: ca.pem},
        "certificate": str(files.certificate),
        "key": str(files.key),
        "config": msgspec.to_builtins(served),
    }
    path = folder / f"{name}.json"
    path.write_text(json.dumps(found))
    return path


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    with meshed(tmp_path_factory.mktemp("mesh"), "python") as found:
        yield found


@contextlib.contextmanager
def meshed(folder: Path, engine: str) -> Iterator[Mesh]:
    """Both pods behind proxies of one engine."""
    ca = Authority(folder)
    own = ca.issue("https://the-application")
    with node() as around:
        around.start("serve", "http:80", "echo:9000", "banner:3306", "http:9090", uid=APP_UID)
        caller, called = around.pod(2), around.pod(3)
        caller.start("serve", f"http:{STRICT}", uid=APP_UID)
        served = ("http", STRICT), ("http", PLAIN), ("banner", TCP), ("echo", EXCLUDED), ("echo", UNNAMED)
        tls = f"tls:{TLS}:{own.certificate}:{own.key}"
        called.start("serve", *(f"{kind}:{port}" for kind, port in served), tls, uid=APP_UID)
        for pod, name, config_ in ((caller, "client", CALLER), (called, "web", CALLED)):
            pod.start("proxy", str(told(folder, ca, name, config_)), engine, uid=PROXY_UID)
        caller.redirect("--exclude-outbound-ports", "9090", "--exclude-cidr", "10.99.0.0/16")
        called.redirect("--exclude-inbound", str(EXCLUDED))
        yield Mesh(around, caller, called, folder / "client.json", engine)


# --- outbound -----------------------------------------------------------------------------------------------------


def test_a_virtual_address_means_its_service_and_the_way_there_is_mtls(mesh: Mesh) -> None:
    """The application's port is STRICT: an answer proves mTLS. It sees the proxy's own source, at the pod's address."""
    assert mesh.http(WEB4, "web.shop") == {"from": "127.0.0.6", "at": "10.1.0.3", "host": "web.shop"}


def test_so_it_is_with_ipv6(mesh: Mesh) -> None:
    assert mesh.http(WEB6, "web.shop") == {"from": "127.0.0.6", "at": "10.1.0.3", "host": "web.shop"}


def test_what_the_host_header_does_not_say_the_address_does(mesh: Mesh) -> None:
    assert mesh.http(WEB4, WEB4)["at"] == "10.1.0.3"
    assert mesh.http(WEB4, "no.such.name")["at"] == "10.1.0.3"


def test_the_host_header_comes_first_whatever_the_address(mesh: Mesh) -> None:
    assert mesh.http(OUTSIDE, "web.shop")["at"] == "10.1.0.3"


def test_an_unknown_destination_is_passed_on_to_with_its_http_untouched(mesh: Mesh) -> None:
    """The node's port 80 is one at which the mesh has hosts as well, so its first bytes were looked at."""
    assert mesh.http(OUTSIDE, "example.org") == {"from": "10.1.0.2", "at": OUTSIDE, "host": "example.org"}


def test_an_unknown_port_is_passed_on_unread(mesh: Mesh) -> None:
    assert mesh.caller.ask("raw", OUTSIDE, "9000", "hello\n") == "10.1.0.2 hello\n"


def test_a_server_that_speaks_first_is_passed_on_as_well(mesh: Mesh) -> None:
    assert mesh.caller.ask("raw", OUTSIDE, "3306", "thanks\n") == "220 ready\nyou said thanks\n"


def test_an_endpoint_that_was_asked_itself_is_reached_by_mtls(mesh: Mesh) -> None:
    assert mesh.http("10.1.0.3", "10.1.0.3:8081", STRICT)["from"] == "127.0.0.6"


def test_tcp_to_a_virtual_address_goes_to_its_service_by_mtls_and_the_server_may_speak_first(mesh: Mesh) -> None:
    assert mesh.caller.ask("raw", DB, "5432", "thanks\n") == "220 ready\nyou said thanks\n"


def test_a_pod_may_call_itself_through_its_service(mesh: Mesh) -> None:
    assert mesh.http(SELF, "self.shop") == {"from": "127.0.0.6", "at": "10.1.0.2", "host": "self.shop"}


def test_a_pod_may_call_itself_without_the_mesh(mesh: Mesh) -> None:
    assert mesh.http("10.1.0.2", "me", STRICT) == {"from": "10.1.0.2", "at": "10.1.0.2", "host": "me"}
    assert mesh.http("127.0.0.1", "me", STRICT) == {"from": "127.0.0.1", "at": "127.0.0.1", "host": "me"}


# --- inbound ------------------------------------------------------------------------------------------------------


def test_plaintext_from_outside_is_taken_where_a_port_permits_it(mesh: Mesh) -> None:
    for address in ("10.1.0.3", "fd01::3"):
        found = mesh.http(address, "me", PLAIN, by=mesh.node)
        assert (found["at"], found["from"]) == (address, "::6" if ":" in address else "127.0.0.6")


def test_plaintext_from_outside_is_closed_where_a_port_is_strict(mesh: Mesh) -> None:
    for address in ("10.1.0.3", "fd01::3"):
        assert mesh.node.ask("http", address, str(STRICT), "me") in CUT
    assert mesh.node.ask("raw", "10.1.0.3", str(TCP), "me\n") in CUT


def test_ports_that_the_config_does_not_name_are_passed_on_to(mesh: Mesh) -> None:
    assert mesh.node.ask("raw", "10.1.0.3", str(UNNAMED), "hello\n") == "127.0.0.6 hello\n"


def test_the_applications_own_tls_is_left_alone(mesh: Mesh) -> None:
    certificate = mesh.node.ask("tls", "10.1.0.3", str(TLS))
    from cryptography import x509

    names = x509.load_pem_x509_certificate(certificate.encode()).extensions.get_extension_for_class(
        x509.SubjectAlternativeName
    )
    assert names.value.get_values_for_type(x509.UniformResourceIdentifier) == ["https://the-application"]


def test_an_excluded_port_is_reached_without_the_proxy(mesh: Mesh) -> None:
    assert mesh.node.ask("raw", "10.1.0.3", str(EXCLUDED), "hello\n") == "10.1.0.1 hello\n"


# --- loops --------------------------------------------------------------------------------------------------------


def test_a_connection_to_where_inbound_ones_are_redirected_leads_nowhere(mesh: Mesh) -> None:
    for host in ("127.0.0.1", "10.1.0.2", "10.1.0.3"):
        assert mesh.caller.ask("http", host, "15006", "x") in CUT
    assert mesh.node.ask("http", "10.1.0.3", "15006", "x") in CUT


def test_one_to_where_outbound_ones_are_is_for_the_http_proxy_there_and_never_for_itself(mesh: Mesh) -> None:
    assert mesh.http("127.0.0.1", "web.shop", 15001)["at"] == "10.1.0.3"
    for name in ("127.0.0.1:15001", "localhost:15001"):
        assert mesh.caller.ask("http", "127.0.0.1", "15001", name) == "508 loop\n"
    assert mesh.caller.ask("http", "10.1.0.2", "15001", "x") == "ConnectionRefusedError"
    assert mesh.node.ask("http", "10.1.0.3", "15001", "x") in CUT


# --- the program itself -------------------------------------------------------------------------------------------


def test_the_program_serves_redirected_connections_and_is_ready_when_it_does(mesh: Mesh, tmp_path: Path) -> None:
    """Standalone, from one file: virtual addresses are part of it."""
    file, state = tmp_path / "config.json", tmp_path / "state"
    state.mkdir(mode=0o777)
    state.chmod(0o777)
    plain = {"web.shop:80": [Endpoint(id="web-1", address="10.1.0.3", port=PLAIN)]}
    served = config(listeners("client"), routes(to("web.shop:80")), backend(tls="disable"))
    file.write_bytes(msgspec.json.encode({"config": served, "endpoints": plain, "addresses": ADDRESSES}))
    with contextlib.ExitStack() as stack:
        pod = mesh.node.pod(5, stack)
        pod.redirect()
        pod.program("--proxy", "client-1", "--state", str(state), "--config", str(file), "--intercept", "true",
                    "--health-host", "10.1.0.5", uid=PROXY_UID)  # fmt: skip
        pod.redirect("--exclude-inbound", "1")
        assert pod.wait_ready("10.1.0.5") == ""
        assert mesh.http(WEB4, "web.shop", by=pod)["at"] == "10.1.0.3"
        assert mesh.node.ask("http", "10.1.0.5", "15021", "kubelet").startswith("404 ")


# --- exclusions and removal ---------------------------------------------------------------------------------------


def test_without_its_proxy_only_what_is_excluded_works_and_all_of_it_after_removal(mesh: Mesh) -> None:
    with contextlib.ExitStack() as stack:
        pod = mesh.node.pod(4, stack)
        proxy = pod.start("proxy", str(mesh.caller_told), mesh.engine, uid=PROXY_UID)
        mesh.node.run("ip", "address", "add", "10.99.0.1/32", "dev", "lo")
        for _ in range(2):  # the second time changes nothing
            pod.redirect("--exclude-outbound-ports", "9090", "--exclude-cidr", "10.99.0.0/16,fd99::/16")
        assert pod.ask("raw", OUTSIDE, "9000", "a\n") == "10.1.0.4 a\n"
        proxy.send_signal(signal.SIGKILL)
        proxy.wait()
        assert pod.ask("raw", OUTSIDE, "9000", "b\n") == "ConnectionRefusedError"
        assert mesh.http(OUTSIDE, "me", 9090, by=pod)["from"] == "10.1.0.4"
        assert pod.ask("raw", "10.99.0.1", "9000", "c\n") == "10.1.0.4 c\n"
        assert pod.ask("raw", OUTSIDE, "9000", "d\n", uid=PROXY_UID) == "10.1.0.4 d\n"
        pod.redirect("--remove")
        assert pod.ask("raw", OUTSIDE, "9000", "e\n") == "10.1.0.4 e\n"
        assert "BACKSTAY" not in pod.run("iptables-nft-save") + pod.run("ip6tables-nft-save")
