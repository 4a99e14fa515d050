"""Endpoints follow the registry, ready ones only, reachable as callers reach them."""

import dataclasses

from backstay.config.wire import Endpoint
from backstay.core.live import addresses, changed, endpoints
from support.meshes import registry


def test_an_endpoint_is_the_proxys_port_with_its_identity() -> None:
    found = endpoints(registry(("a",), labels={"a": {"version": "v1"}}), "td")
    assert found == {
        "a.shop:80": [
            Endpoint(
                id="a-0",
                address="127.1.0.1",
                port=18080,
                identity="spiffe://td/ns/shop/sa/a",
                labels={"version": "v1"},
                workload="shop/a",
            )
        ]
    }


def test_an_instance_that_is_not_ready_is_no_endpoint() -> None:
    found = registry(("a",))
    away = dataclasses.replace(found.instances["a-0"], ready=False)
    assert endpoints(dataclasses.replace(found, instances={"a-0": away}), "td") == {"a.shop:80": []}


def test_outside_the_mesh_there_is_no_identity() -> None:
    found = registry(("a",))
    bare = dataclasses.replace(found.instances["a-0"], meshed=False, inbound={})
    (only,) = endpoints(dataclasses.replace(found, instances={"a-0": bare}), "td")["a.shop:80"]
    assert (only.port, only.identity) == (8080, "")


def test_only_services_that_changed_are_sent_and_gone_ones_emptied() -> None:
    old = endpoints(registry(("a", "b")), "td")
    new = endpoints(registry(("a",)), "td")
    assert changed(old, new) == {"b.shop:80": []}


def test_services_without_virtual_addresses_are_not_named() -> None:
    found = registry(("a", "b"))
    virtual = dataclasses.replace(found.services["a.shop"], addresses=("10.96.0.1", "fd00::1"))
    assert addresses(dataclasses.replace(found, services={**found.services, "a.shop": virtual})) == {
        "a.shop": ["10.96.0.1", "fd00::1"]
    }
