import ipaddress
import os
import socket
from pathlib import Path

import pytest

from backstay.adapters.processes.addresses import (
    Place,
    has_many_loopbacks,
    holder_of,
    is_free,
    own_address,
    shared_address,
)

needs_many = pytest.mark.skipif(not has_many_loopbacks(), reason="this system has one loopback address only")
on_linux = pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="holders are only known on Linux")


@needs_many
def test_an_instance_has_an_address_of_its_own_with_the_ports_it_declared(tmp_path: Path) -> None:
    place = own_address(tmp_path, [5000, 9000], [81], [])
    assert ipaddress.ip_address(place.address).is_loopback
    assert place == Place(
        address=place.address,
        app_ports={5000: 5000, 9000: 9000},
        inbound={5000: 15006, 9000: 15007},
        outbound=15001,
        admin=15000,
        listeners={81: 81},
    )


@needs_many
def test_no_address_is_given_twice(tmp_path: Path) -> None:
    taken: list[str] = []
    for _ in range(3):
        taken.append(own_address(tmp_path, [5000], [], taken).address)
    assert len(set(taken)) == 3


@needs_many
def test_the_sidecar_makes_room_for_an_application_that_wants_its_ports(tmp_path: Path) -> None:
    place = own_address(tmp_path, [15001], [15006], [])
    assert (place.app_ports, place.outbound, place.inbound) == ({15001: 15001}, 15101, {15001: 15106})


@needs_many
def test_an_address_that_somebody_uses_is_passed_over(tmp_path: Path) -> None:
    first = own_address(tmp_path, [5000], [], [])
    with socket.create_server((first.address, first.outbound)):
        second = own_address(tmp_path, [5000], [], [])
    assert second.address != first.address


@needs_many
def test_operators_spread_over_the_loopback_network(tmp_path: Path) -> None:
    blocks = {own_address(tmp_path / str(n), [5000], [], []).address.rpartition(".")[0] for n in range(8)}
    assert len(blocks) > 1


def test_on_one_address_every_port_is_another(tmp_path: Path) -> None:
    first = shared_address([5000, 9000], [81], [])
    second = shared_address([5000, 9000], [81], first.ports())
    assert first.address == second.address == "127.0.0.1"
    assert list(first.app_ports) == list(first.inbound) == [5000, 9000]
    assert len({*first.ports(), *second.ports()}) == 14


def test_a_listener_makes_its_port_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert not is_free("127.0.0.1", port)
    assert is_free("127.0.0.1", port)


@on_linux
def test_the_holder_of_a_port_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        holder = holder_of(server.getsockname()[1])
    assert holder.startswith(f"pid {os.getpid()} (")
    assert holder_of(server_port_nobody_has()) == ""


def server_port_nobody_has() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])
