"""Which way a redirected connection goes, by where it was going. The kernel's side is in tests/e2e/redirect."""

from collections.abc import AsyncIterator

import pytest

from backstay.config.model import (
    Backend,
    Config,
    HostRoutes,
    InboundPort,
    Listeners,
    Manifest,
    Part,
    Rule,
    WeightedBackend,
    digest_of,
    encode_part,
)
from backstay.config.wire import Endpoint
from backstay.sidecar.engine import Address, Redirected
from backstay.sidecar.engines.python.accesslog import AccessLog
from backstay.sidecar.engines.python.listeners import Refused
from backstay.sidecar.engines.python.pool import PoolKey
from backstay.sidecar.engines.python.redirected import (
    Origin,
    RedirectedInbound,
    RedirectedOutbound,
    hello_size,
    speaks_http,
)
from backstay.sidecar.engines.python.runtime import MAX_PORTS, Lane, Runtime
from backstay.sidecar.engines.python.server import Server

IDENTITY = "spiffe://td/ns/shop/sa/web"
WEB, DB = "10.96.0.10", "10.96.0.11"


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    made = Server(Address(host="127.0.0.1", inbound={}, redirected=Redirected()), AccessLog(len), lambda: 0.5)
    made.services = {WEB: "web.shop", DB: "db.shop", "10.96.0.99": "elsewhere.other"}
    made.pools.update(
        {
            "web.shop:80": [Endpoint(id="web-1", address="10.0.0.3", port=8080, identity=IDENTITY)],
            "db.shop:5432": [Endpoint(id="db-1", address="10.0.0.4", port=5432, identity=IDENTITY)],
        },
        full=True,
    )
    yield made
    made.stop()


def serving(server: Server, **changed: object) -> Runtime:
    own = Listeners(namespace="shop", identity=IDENTITY, trust_domain="td", **changed)  # type: ignore[arg-type]
    rule = Rule(name="r", backends=(WeightedBackend(backend="web.shop:80"),))
    parts: tuple[Part, ...] = (
        own,
        HostRoutes(host="web.shop", port=80, rules=(rule,)),
        Backend(service="web.shop", port=80),
        Backend(service="db.shop", port=5432, protocol="tcp"),
    )
    named = {part.key: part for part in parts}
    digests = {key: digest_of(encode_part(part)) for key, part in named.items()}
    made = Config(manifest=Manifest(workload="shop/web", parts=digests), parts=named)
    server.stable = Runtime(made, made.digest, server)
    return server.stable


def whole(server: Server, address: str, port: int) -> Lane | Refused | None:
    """What becomes of the connection as a whole; None: its requests are read."""
    assert server.stable is not None
    return RedirectedOutbound(server, Origin(address, port))._whole(server.stable)


def reached(chosen: Lane | Refused | None) -> list[PoolKey]:
    assert isinstance(chosen, Lane)
    return [pool.key for pool in chosen.group.members]


async def test_the_protocol_is_that_of_the_service_whose_address_was_asked(server: Server) -> None:
    serving(server)
    assert whole(server, WEB, 80) is None
    assert reached(whole(server, DB, 5432)) == [("db-1", "10.0.0.4", 5432, IDENTITY)]


async def test_whole_connections_to_a_service_share_one_lane_and_are_counted_as_its_own(server: Server) -> None:
    serving(server)
    first, second = whole(server, DB, 5432), whole(server, DB, 5432)
    assert first is second
    assert isinstance(first, Lane)
    assert server.ledger.counters(first.digest, "out", "routes/db.shop:5432#default", "db.shop:5432/") is first.counters


async def test_an_endpoint_that_was_asked_itself_is_the_only_one_reached(server: Server) -> None:
    serving(server)
    assert whole(server, "10.0.0.3", 8080) is None
    assert reached(whole(server, "10.0.0.4", 5432)) == [("db-1", "10.0.0.4", 5432, IDENTITY)]


async def test_what_the_mesh_does_not_know_goes_where_it_was_going(server: Server) -> None:
    serving(server)
    assert reached(whole(server, "192.0.2.1", 9000)) == [("", "192.0.2.1", 9000, "")]
    assert reached(whole(server, "2001:db8::1", 443)) == [("", "2001:db8::1", 443, "")]
    assert reached(whole(server, "10.96.0.99", 80)) == [("", "10.96.0.99", 80, "")]


async def test_or_nowhere_where_only_what_is_registered_may_be_called(server: Server) -> None:
    serving(server, egress="registry_only")
    chosen = whole(server, "192.0.2.1", 9000)
    assert isinstance(chosen, Refused)
    assert chosen.reason == "unknown-host"
    assert reached(whole(server, DB, 5432)) == [("db-1", "10.0.0.4", 5432, IDENTITY)]


@pytest.mark.parametrize(
    ("address", "port", "looks"),
    [
        (WEB, 80, False),
        (DB, 5432, False),
        ("10.0.0.3", 8080, False),
        ("192.0.2.1", 80, True),
        ("192.0.2.1", 443, False),
    ],
)
async def test_first_bytes_matter_only_at_unknown_destinations_where_there_are_http_hosts(
    server: Server, address: str, port: int, looks: bool
) -> None:
    serving(server)
    assert RedirectedOutbound(server, Origin(address, port)).looks is looks


async def test_an_endpoint_that_has_gone_is_not_known_any_more(server: Server) -> None:
    assert server.pools.endpoint_at("10.0.0.4", 5432) is not None
    server.pools.update({"db.shop:5432": []}, full=False)
    assert server.pools.endpoint_at("10.0.0.4", 5432) is None
    server.pools.update({}, full=True)
    assert server.pools.endpoint_at("10.0.0.3", 8080) is None


async def test_an_endpoint_of_two_services_is_known_until_both_have_lost_it(server: Server) -> None:
    both = [Endpoint(id="x", address="10.0.0.9", port=1)]
    server.pools.update({"a.shop:80": both, "b.shop:80": both}, full=False)
    server.pools.update({"a.shop:80": []}, full=False)
    assert server.pools.endpoint_at("10.0.0.9", 1) == ("b.shop:80", both[0])


async def test_a_port_of_the_application_keeps_its_mode_and_others_have_that_of_all(server: Server) -> None:
    named = InboundPort(port=8080, mtls="permissive")
    runtime = serving(server, inbound=(named,), other_ports="strict")
    assert [runtime.mtls_of(port) for port in (8080, 9999)] == ["permissive", "strict"]
    found = RedirectedInbound(server, Origin("10.0.0.2", 8080)).port_of(runtime)
    assert (found.mtls, found.protocol, found.counters) == ("permissive", "http", runtime.ports[8080].counters)
    (pool,) = found.lane.group.members
    assert (tuple(pool.key), pool.source) == (("", "10.0.0.2", 8080, ""), "127.0.0.6")
    other = RedirectedInbound(server, Origin("fd00::2", 9999)).port_of(runtime)
    assert (other.mtls, other.protocol) == ("strict", "tcp")
    assert other.lane.group.members[0].source == "::6"


async def test_who_tries_all_ports_fills_no_memory(server: Server) -> None:
    runtime = serving(server)
    for port in range(1, 3 * MAX_PORTS):
        runtime.port_at("10.0.0.2", port)
    assert len(runtime._at) <= MAX_PORTS
    assert len(server._external) <= MAX_PORTS


@pytest.mark.parametrize(
    ("first", "is_http"),
    [
        (b"GET / HT", True),
        (b"G", True),
        (b"OPTIONS ", True),
        (b"\x16\x03\x01\x02\x00\x01", False),
        (b"SSH-2.0-", False),
        (b"PRI * HT", False),
        (b"GETX / H", False),
        (b"", False),
    ],
)
def test_requests_are_told_by_their_first_bytes(first: bytes, is_http: bool) -> None:
    assert speaks_http(first) is is_http


def test_a_client_hello_says_how_long_it_is() -> None:
    assert [hello_size(b"\x16\x03"), hello_size(b"\x16\x03\x01\x02\x00rest")] == [5, 517]
