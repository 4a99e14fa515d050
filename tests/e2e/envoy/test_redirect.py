"""Connections that the kernel redirects, before Envoys: the same claims as for the bundled engine, in the same two pods; and a pod
whose proxy changes its engine."""

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from backstay.config.model import Config
from backstay.config.wire import Endpoint
from e2e.engine.mesh import backend, config, listeners, routes, to
from e2e.redirect.test_redirect import (
    ADDRESSES,
    CUT,
    OUTSIDE,
    PLAIN,
    WEB4,
    Mesh,
    meshed,
    test_a_connection_to_where_inbound_ones_are_redirected_leads_nowhere,
    test_a_pod_may_call_itself_through_its_service,
    test_a_pod_may_call_itself_without_the_mesh,
    test_a_server_that_speaks_first_is_passed_on_as_well,
    test_a_virtual_address_means_its_service_and_the_way_there_is_mtls,
    test_an_endpoint_that_was_asked_itself_is_reached_by_mtls,
    test_an_excluded_port_is_reached_without_the_proxy,
    test_an_unknown_destination_is_passed_on_to_with_its_http_untouched,
    test_an_unknown_port_is_passed_on_unread,
    test_one_to_where_outbound_ones_are_is_for_the_http_proxy_there_and_never_for_itself,
    test_plaintext_from_outside_is_closed_where_a_port_is_strict,
    test_plaintext_from_outside_is_taken_where_a_port_permits_it,
    test_ports_that_the_config_does_not_name_are_passed_on_to,
    test_so_it_is_with_ipv6,
    test_tcp_to_a_virtual_address_goes_to_its_service_by_mtls_and_the_server_may_speak_first,
    test_the_applications_own_tls_is_left_alone,
    test_the_host_header_comes_first_whatever_the_address,
    test_what_the_host_header_does_not_say_the_address_does,
)
from e2e.redirect.world import PROXY_UID, Namespace, why_not

__all__ = [
    "test_a_connection_to_where_inbound_ones_are_redirected_leads_nowhere",
    "test_a_pod_may_call_itself_through_its_service",
    "test_a_pod_may_call_itself_without_the_mesh",
    "test_a_server_that_speaks_first_is_passed_on_as_well",
    "test_a_virtual_address_means_its_service_and_the_way_there_is_mtls",
    "test_an_endpoint_that_was_asked_itself_is_reached_by_mtls",
    "test_an_excluded_port_is_reached_without_the_proxy",
    "test_an_unknown_destination_is_passed_on_to_with_its_http_untouched",
    "test_an_unknown_port_is_passed_on_unread",
    "test_one_to_where_outbound_ones_are_is_for_the_http_proxy_there_and_never_for_itself",
    "test_plaintext_from_outside_is_closed_where_a_port_is_strict",
    "test_plaintext_from_outside_is_taken_where_a_port_permits_it",
    "test_ports_that_the_config_does_not_name_are_passed_on_to",
    "test_so_it_is_with_ipv6",
    "test_tcp_to_a_virtual_address_goes_to_its_service_by_mtls_and_the_server_may_speak_first",
    "test_the_applications_own_tls_is_left_alone",
    "test_the_host_header_comes_first_whatever_the_address",
    "test_what_the_host_header_does_not_say_the_address_does",
]
pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(bool(why_not()), reason=why_not()),
    pytest.mark.xdist_group("redirect"),
]


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    with meshed(tmp_path_factory.mktemp("mesh"), "envoy") as found:
        yield found


PATIENCE = 60.0  # seconds, for a process of 100 MB to start and to be asked, on a machine that is busy


@contextlib.contextmanager
def governed(mesh: Mesh, folder: Path, number: int, served: Config) -> Iterator[tuple[Namespace, Path]]:
    """A pod with the sidecar's own program, and the file that governs it."""
    state = folder / "state"
    state.mkdir(mode=0o777)
    state.chmod(0o777)
    file = folder / "config.json"
    write(file, served)
    with contextlib.ExitStack() as stack:
        pod = mesh.node.pod(number, stack)
        pod.redirect()
        host = f"10.1.0.{number}"
        pod.program("--proxy", "client-1", "--state", str(state), "--config", str(file), "--intercept", "true",
                    "--health-host", host, uid=PROXY_UID)  # fmt: skip
        assert pod.wait_ready(host) == ""
        yield pod, file


def write(file: Path, served: Config) -> None:
    plain = {"web.shop:80": [Endpoint(id="web-1", address="10.1.0.3", port=PLAIN)]}
    beside = file.with_suffix(".new")
    beside.write_bytes(msgspec.json.encode({"config": served, "endpoints": plain, "addresses": ADDRESSES}))
    beside.chmod(0o644)
    beside.replace(file)


def envoys(pod: Namespace) -> int:
    """How many run in this pod."""
    inside, found = os.readlink(f"/proc/{pod.pid}/ns/net"), 0
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended
            is_one = (process / "cmdline").read_bytes().split(b"\0")[0].endswith(b"envoy")
            found += is_one and os.readlink(process / "ns/net") == inside
    return found


def eventually(pod: Namespace, wanted: int) -> int:
    ends = time.monotonic() + PATIENCE
    while envoys(pod) != wanted and time.monotonic() < ends:
        time.sleep(0.05)
    return envoys(pod)


def reached(mesh: Mesh, pod: Namespace) -> str:
    """Where the service is found from here. A connection that meets an engine's very end may be closed."""
    ends = time.monotonic() + PATIENCE
    while "at" not in (found := mesh.http(WEB4, "web.shop", by=pod)) and time.monotonic() < ends:
        time.sleep(0.05)
    return found.get("at", str(found))


def test_a_pods_proxy_changes_its_engine_as_its_config_says(mesh: Mesh, tmp_path: Path) -> None:
    def served(engine: str) -> Config:
        return config(listeners("client", engine=engine), routes(to("web.shop:80")), backend(tls="disable"))

    with governed(mesh, tmp_path, 6, served("python")) as (pod, file):
        seen = [(envoys(pod), reached(mesh, pod))]
        for engine, wanted in (("envoy", 1), ("python", 0)):
            write(file, served(engine))
            seen.append((eventually(pod, wanted), reached(mesh, pod)))
        assert seen == [(0, "10.1.0.3"), (1, "10.1.0.3"), (0, "10.1.0.3")]
        assert mesh.node.ask("http", "10.1.0.6", "15021", "kubelet").startswith("404 ")


def test_a_closed_mesh_passes_on_only_what_it_lets_out(mesh: Mesh, tmp_path: Path) -> None:
    own = listeners(
        "client", engine="envoy", egress="registry_only", egress_hosts=(f"{OUTSIDE}:9000", "example.org:80")
    )
    served = config(own, routes(to("web.shop:80")), backend(tls="disable"))
    with governed(mesh, tmp_path, 7, served) as (pod, _):
        assert envoys(pod) == 1
        assert mesh.http(WEB4, "no.such.name", by=pod)["at"] == "10.1.0.3"
        assert mesh.http(OUTSIDE, "example.org", by=pod)["at"] == OUTSIDE
        assert pod.ask("http", OUTSIDE, "80", "example.com") == "502 unknown-host\n"
        assert pod.ask("raw", OUTSIDE, "9000", "hello\n") == "10.1.0.7 hello\n"
        assert pod.ask("raw", OUTSIDE, "3306", "hello\n") in CUT
        assert pod.ask("raw", OUTSIDE, "80", "\x16\x03\x01 not HTTP\r\n\r\n") in CUT
