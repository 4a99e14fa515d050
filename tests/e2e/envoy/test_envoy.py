"""Envoy under the engine's port: traffic over mTLS, updates by file, refusals, counters, and its death."""

import asyncio
import os
import signal
from pathlib import Path
from time import monotonic

import pytest

from backstay.config.model import (
    Authorization,
    Config,
    DirectResponse,
    InboundPort,
    Jwt,
    JwtProvider,
    Operation,
    Policy,
    PolicyRule,
    Rule,
    Source,
)
from backstay.config.wire import RefusalExpected
from backstay.sidecar.engine import ContentRefused, settled
from conformance.security import signing
from e2e.engine.mesh import (
    DOMAIN,
    LOCALHOST,
    Authority,
    application,
    backend,
    config,
    endpoint,
    get,
    listeners,
    receive,
    replying,
    routes,
    send,
    spiffe,
    to,
)

from .world import eventually, proxy

ONLY_CLIENT = Authorization(
    policies=(
        Policy(
            name="shop/client-only",
            action="allow",
            rules=(
                PolicyRule(
                    sources=(Source(principals=(spiffe("client"),)),), operations=(Operation(paths=("/open*",)),)
                ),
            ),
        ),
    )
)
PLAIN = (listeners(), routes(to("web.shop:80")), backend())


async def test_traffic_over_mtls_is_checked_by_identity_and_counted_on_both_sides(tmp_path: Path) -> None:
    ca, seen = Authority(tmp_path), list[bytes]()
    async with application(replying(b"hello", seen=seen)) as app, proxy(app) as server, proxy() as client:
        for side, name in ((server, "web"), (client, "client")):
            side.engine.identity(ca.issue(spiffe(name)))
            side.engine.trust({DOMAIN: ca.pem}, [])
        inbound = (InboundPort(port=app, mtls="strict"),)
        served = config(listeners("web", inbound=inbound), ONLY_CLIENT, workload="shop/web")
        server.engine.apply(served, None, 0)
        asked = config(*PLAIN)
        client.engine.apply(asked, None, 0)
        client.engine.endpoints({"web.shop:80": [endpoint(server.inbound[app], spiffe("web"))]}, full=True)
        await settled(server.engine)
        await client.engine.settled()

        opened = await send(client.outbound, get("/open/a"))
        closed = await send(client.outbound, get("/closed"))
        assert (opened.status, opened.body, closed.status) == (200, b"hello", 403)
        assert [request.split(b"\r\n")[0] for request in seen] == [b"GET /open/a HTTP/1.1"]
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):  # plaintext, where it is STRICT
            await send(server.inbound[app], get("/open/a"))

        out = await client.counted(lambda rows: sum(row.total for row in rows) == 2)
        into = await server.counted(lambda rows: sum(row.total for row in rows) == 2)
        assert {(row.config, row.direction, row.route, row.backend) for row in out} == {
            (asked.digest, "out", "routes/web.shop:80#rule-0", "web.shop:80/")
        }
        assert {(row.config, row.direction, row.route, row.backend) for row in into} == {
            (served.digest, "in", f"inbound:{app}", "")
        }
        assert (sum(row.attempts for row in out), [row.bad for row in out if row.bad]) == (2, [])
        assert (sum(row.excused for row in into), [row.bad for row in into if row.bad]) == (1, [])


async def test_refusals_that_were_announced_are_no_evidence(tmp_path: Path) -> None:
    ca = Authority(tmp_path)
    everybody = Policy(name="shop/closed", action="deny", rules=(PolicyRule(),))
    async with application(replying()) as app, proxy(app) as server, proxy() as client:
        for side, name in ((server, "web"), (client, "client")):
            side.engine.identity(ca.issue(spiffe(name)))
            side.engine.trust({DOMAIN: ca.pem}, [])
        own = listeners("web", inbound=(InboundPort(port=app),))
        open_ = config(own, workload="shop/web")
        closed = config(own, Authorization(policies=(everybody,)), workload="shop/web")
        announced = [
            RefusalExpected(source=spiffe("client"), host="web.shop", path="/a*"),
            RefusalExpected(source="127.0.0.0/8", path="/b"),
        ]
        server.engine.apply(open_, closed, 1.0, announced)
        client.engine.apply(config(*PLAIN), None, 0)
        client.engine.endpoints({"web.shop:80": [endpoint(server.inbound[app], spiffe("web"))]}, full=True)
        await settled(server.engine)
        await settled(client.engine)
        asked = [
            (client.outbound, "/a1"),
            (client.outbound, "/c"),
            (server.inbound[app], "/b"),
            (server.inbound[app], "/a1"),
        ]
        answers = [await send(port, get(path)) for port, path in asked]
        assert [answer.status for answer in answers] == [403] * 4
        rows = await server.counted(lambda rows: sum(row.total for row in rows) == 4)
        assert (sum(row.excused for row in rows), sum(row.bad.get("denied", 0) for row in rows)) == (2, 2)


async def test_keys_and_rules_of_tokens_change_while_connections_stay() -> None:
    """No listener is changed: one that is closes its connections within some seconds."""

    def served(*required: str) -> Config:
        provider = JwtProvider(issuer=signing.ISSUER, jwks_uri="https://keys.example")
        own = listeners("web", inbound=(InboundPort(port=app),), jwt=Jwt(providers=(provider,), required=required))
        return config(own, workload="shop/web")

    old, new = signing.token({"by": "ec"}), signing.token({"by": "ec2"})
    async with application(replying()) as app, proxy(app) as server:
        server.engine.apply(served(), None, 0)
        await server.engine.settled()
        modified = await server.asked("/stats?filter=listener_manager.listener_modified")
        reader, writer = await asyncio.open_connection(LOCALHOST, server.inbound[app])
        statuses = []
        for key, required in (("ec", ()), ("ec2", ()), ("ec2", ("/*",))):
            server.engine.key_sets({"https://keys.example": signing.key_set([key])})
            server.engine.apply(served(*required), None, 0)
            await server.engine.settled()
            for fields in ([f"Authorization: Bearer {old}"], [f"Authorization: Bearer {new}"], []):
                writer.write(get(headers=fields))
                statuses.append((await receive(reader)).status)
        assert statuses == [200, 401, 200, 401, 200, 200, 401, 200, 401]
        assert await server.asked("/stats?filter=listener_manager.listener_modified") == modified
        writer.close()


async def test_an_endpoint_with_another_identity_is_not_asked(tmp_path: Path) -> None:
    ca, seen = Authority(tmp_path), list[bytes]()
    async with application(replying(seen=seen)) as app, proxy(app) as server, proxy() as client:
        for side, name in ((server, "web"), (client, "client")):
            side.engine.identity(ca.issue(spiffe(name)))
            side.engine.trust({DOMAIN: ca.pem}, [])
        server.engine.apply(config(listeners("web", inbound=(InboundPort(port=app),)), workload="shop/web"), None, 0)
        client.engine.apply(config(*PLAIN), None, 0)
        client.engine.endpoints({"web.shop:80": [endpoint(server.inbound[app], spiffe("other"))]}, full=True)
        await server.engine.settled()
        await client.engine.settled()
        answer = await send(client.outbound, get())
        assert (answer.status, seen) == (503, [])
        rows = await client.counted(lambda rows: any(row.bad for row in rows))
        assert [row.bad for row in rows] == [{"connect-failure": 1}]


async def test_updates_drop_no_request_and_keep_the_connection() -> None:
    async with application(replying(b"one")) as one, application(replying(b"two")) as two, proxy() as client:
        client.engine.endpoints({"web.shop:80": [endpoint(one)], "api.shop:80": [endpoint(two)]}, full=True)
        configs = [
            config(listeners(), routes(to(target, name=name)), backend(), backend("api.shop"))
            for target, name in (("web.shop:80", "a"), ("api.shop:80", "b"))
        ]
        client.engine.apply(configs[0], None, 0)
        await client.engine.settled()
        reader, writer = await asyncio.open_connection(LOCALHOST, client.outbound)
        bodies = []
        for turn in range(10):
            client.engine.apply(configs[turn % 2], None, 0)
            await client.engine.settled()
            writer.write(get())
            bodies.append((await receive(reader)).body)
        writer.close()
        assert bodies == [b"one", b"two"] * 5
        rows = await client.counted(lambda rows: sum(row.total for row in rows) == 10)
        by_config = {each.digest: sum(row.total for row in rows if row.config == each.digest) for each in configs}
        assert by_config == {configs[0].digest: 5, configs[1].digest: 5}


async def test_what_envoy_refuses_is_said_in_its_words_and_the_former_config_goes_on() -> None:
    bad = Rule(name="bad", direct=DirectResponse(status=42))  # no status that Envoy takes
    async with application(replying(b"fine")) as app, proxy() as client:
        client.engine.endpoints({"web.shop:80": [endpoint(app)]}, full=True)
        good = config(*PLAIN)
        client.engine.apply(good, None, 0)
        await client.engine.settled()
        took = list[float]()
        while len(took) < 5 and min(took, default=1) >= 1:  # 0.08 s; once in five tries the core is ours
            client.engine.apply(good, config(listeners(), routes(bad), backend()), 1.0)
            began = monotonic()
            with pytest.raises(ContentRefused) as refused:
                await client.engine.settled()
            took.append(monotonic() - began)
            assert refused.value.reason == "EnvoyRefused"
            assert "DirectResponseActionValidationError.Status" in str(refused.value)
            client.engine.apply(good, None, 0)
            await client.engine.settled()  # what was served before is not refused with it
        assert min(took) < 1
        assert (await send(client.outbound, get())).body == b"fine"
        rows = await client.counted(bool)
        assert {row.config for row in rows} == {good.digest}


async def test_envoy_is_started_again_and_serves_what_it_served() -> None:
    async with application(replying(b"fine")) as app, proxy() as client:
        client.engine.endpoints({"web.shop:80": [endpoint(app)]}, full=True)
        client.engine.apply(config(*PLAIN), None, 0)
        await client.engine.settled()
        assert (await send(client.outbound, get())).status == 200
        first = client.engine.pid
        os.kill(first, signal.SIGKILL)
        await eventually(lambda: client.engine.pid not in (0, first))
        await client.engine.alive()
        assert (await send(client.outbound, get())).body == b"fine"
        assert client.engine.deaths == 1  # the agent tells: tests/e2e/control/test_stream.py


async def test_a_missing_backend_is_refused_before_anything_changes() -> None:
    async with application(replying(b"fine")) as app, proxy() as client:
        client.engine.endpoints({"web.shop:80": [endpoint(app)]}, full=True)
        client.engine.apply(config(*PLAIN), None, 0)
        with pytest.raises(ContentRefused) as refused:
            client.engine.apply(config(listeners(), routes(to("none.shop:80"))), None, 0)
        assert refused.value.reason == "MissingBackend"
        await client.engine.settled()
        assert (await send(client.outbound, get())).body == b"fine"
