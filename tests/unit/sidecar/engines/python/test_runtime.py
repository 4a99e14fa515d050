"""What a swap takes over from the config before, and what it refuses."""

from collections.abc import AsyncIterator

import pytest

from backstay.config.model import (
    Authorization,
    Backend,
    Config,
    HostRoutes,
    Listeners,
    Manifest,
    Part,
    Policy,
    Rule,
    Subset,
    WeightedBackend,
    digest_of,
    encode_part,
)
from backstay.sidecar.engine import Address, ContentRefused
from backstay.sidecar.engines.python.accesslog import AccessLog
from backstay.sidecar.engines.python.runtime import Runtime
from backstay.sidecar.engines.python.server import Server

LISTENERS = Listeners(namespace="shop", identity="spiffe://td/ns/shop/sa/web", trust_domain="td")
ALLOW = Authorization(policies=(Policy(name="shop/a", action="allow"),))


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    made = Server(Address(host="127.0.0.1", inbound={}), AccessLog(len), lambda: 0.5)
    yield made
    made.stop()


def host(name: str, *targets: str, timeout_ms: int = 1000) -> HostRoutes:
    backends = tuple(
        WeightedBackend(backend=target.partition("/")[0], subset=target.partition("/")[2]) for target in targets
    )
    return HostRoutes(host=name, port=80, rules=(Rule(name="r", backends=backends, timeout_ms=timeout_ms),))


def backend(name: str, **kwargs: object) -> Backend:
    return Backend(service=name, port=80, **kwargs)  # type: ignore[arg-type]


def config(*parts: Part) -> Config:
    """Decoded anew, as from disk: equal parts are not the same objects."""
    named = {part.key: part for part in parts}
    digests = {key: digest_of(encode_part(part)) for key, part in named.items()}
    return Config(manifest=Manifest(workload="shop/web", parts=digests), parts=named)


def runtime(server: Server, *parts: Part, former: tuple[Runtime, ...] = ()) -> Runtime:
    made = config(LISTENERS, *parts)
    return Runtime(made, made.digest, server, former)


async def test_parts_that_did_not_change_keep_tables_and_groups(server: Server) -> None:
    web, api = backend("web.shop"), backend("api.shop")
    before = runtime(server, host("web.shop", "web.shop:80"), host("api.shop", "api.shop:80"), web, api, ALLOW)
    after = runtime(
        server, host("web.shop", "web.shop:80"), host("api.shop", "api.shop:80", timeout_ms=2000),
        backend("web.shop"), backend("api.shop", connect_timeout_ms=1), ALLOW, former=(before,),
    )  # fmt: skip
    kept, changed = (after.hosts.of_key(f"routes/{name}.shop:80") for name in ("web", "api"))
    assert kept is before.hosts.of_key("routes/web.shop:80")
    assert changed is not before.hosts.of_key("routes/api.shop:80")
    assert after.authorization is before.authorization
    assert kept is not None
    assert changed is not None
    former, now = (made.host(kept).rules[0].lanes[0] for made in (before, after))
    assert now.group is former.group
    assert (former.counters.config, now.counters.config) == (before.digest, after.digest)
    assert after.host(changed).rules[0].lanes[0].group.connect_seconds == 0.001


async def test_lanes_of_a_host_are_made_once_and_only_when_asked_for(server: Server) -> None:
    made = runtime(server, host("web.shop", "web.shop:80"), backend("web.shop"))
    assert server.ledger.collect([], 0.0, (made.digest,)) == ([], [])
    table = made.hosts.tables[0]
    assert made.host(table) is made.host(table)


async def test_a_config_wants_the_groups_that_its_backends_define(server: Server) -> None:
    labels = (("version", "v1"),)
    with_subset = backend("web.shop", subsets=(Subset(name="v1", labels=labels),))
    made = runtime(server, with_subset)
    groups = [
        server.pools.group(with_subset, ()),
        server.pools.group(with_subset, labels),
        server.pools.group(with_subset, (("version", "v2"),)),
        server.pools.group(backend("web.shop", max_connections=1), ()),
        server.pools.group(backend("api.shop"), ()),
    ]
    assert [made.wants(group) for group in groups] == [True, True, False, False, False]


@pytest.mark.parametrize(
    ("parts", "reason", "message"),
    [
        ((), "MissingBackend", "routes/web.shop:80#r sends to 'web.shop:80', which is not in this config"),
        (
            (backend("web.shop"),),
            "UnknownSubset",
            "routes/web.shop:80#r sends to subset 'v1', which backend/web.shop:80 does not define",
        ),
    ],
)
async def test_a_backend_that_went_away_is_noticed_though_the_routes_did_not_change(
    server: Server, parts: tuple[Part, ...], reason: str, message: str
) -> None:
    with_subset = backend("web.shop", subsets=(Subset(name="v1", labels=(("version", "v1"),)),))
    before = runtime(server, host("web.shop", "web.shop:80/v1"), with_subset)
    with pytest.raises(ContentRefused, match="^" + message.replace("/", "/") + "$") as refused:
        runtime(server, host("web.shop", "web.shop:80/v1"), *parts, former=(before,))
    assert refused.value.reason == reason
