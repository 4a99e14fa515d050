"""What the engine tells of refusals, audits and limits, and that connections of every kind outlive swaps and leave nothing."""

import asyncio
import contextlib
import json
import os
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from cryptography.x509.oid import ExtendedKeyUsageOID

from backstay.config.model import (
    Authorization,
    InboundPort,
    Operation,
    Policy,
    PolicyRule,
    Retry,
    Rule,
    Subset,
    WeightedBackend,
)
from backstay.sidecar.engines.python.server import close_all

from .mesh import (
    DOMAIN,
    LOCALHOST,
    Application,
    Authority,
    Proxy,
    application,
    backend,
    config,
    endpoint,
    get,
    listeners,
    proxy,
    read_head,
    receive,
    replying,
    routes,
    send,
    spiffe,
    to,
    until,
)

WITHIN = 20.0
CLIENT = listeners()
WEB = (routes(to("web.shop:80")), backend())
AUDIT = Authorization(
    policies=(Policy(name="shop/watch", action="audit", rules=(PolicyRule(operations=(Operation(paths=("/x*",)),)),)),)
)
AUDIT_PORT = Authorization(policies=(Policy(name="shop/watch", action="audit", rules=(PolicyRule(),)),))


def lines(running: Proxy) -> list[dict[str, Any]]:
    running.engine.server.log.flush()
    return [json.loads(line) for line in running.lines.splitlines()]


def figures(running: Proxy, name: str) -> dict[str, float]:
    """Values of one metric by what its labels say beyond whose proxy it is."""
    found = {}
    for line in running.engine.metrics().decode().splitlines():
        if line.startswith(f"{name}{{"):
            labels, _, value = line.removeprefix(f"{name}{{").partition("} ")
            found[",".join(label for label in labels.split(",") if "workload" not in label)] = float(value)
    return found


def trust(ca: Authority, *proxies: tuple[Proxy, str]) -> None:
    for running, name in proxies:
        running.engine.identity(ca.issue(spiffe(name)))
        running.engine.trust({DOMAIN: ca.pem}, [])


@contextlib.asynccontextmanager
async def pair(
    folder: Path, serve: Application, *client_parts: object, protocol: str = "http", mtls: str = "strict"
) -> AsyncIterator[tuple[Proxy, Proxy, int, Authority]]:
    """(client, server, application port, authority): two proxies with mTLS between them."""
    ca = Authority(folder)
    async with application(serve) as app, proxy(app) as server, proxy() as client:
        trust(ca, (server, "web"), (client, "client"))
        port = InboundPort(port=app, mtls=mtls, protocol=protocol)  # type: ignore[arg-type]
        server.engine.apply(config(listeners("web", inbound=(port,))), None, 0)
        client.engine.apply(config(CLIENT, *(client_parts or WEB)), None, 0)  # type: ignore[arg-type]
        client.engine.endpoints({"web.shop:80": [endpoint(server.inbound[app], spiffe("web"), id="web-0")]}, full=True)
        yield client, server, app, ca


# --- audit -----------------------------------------------------------------------------------------------------------


async def test_audited_requests_are_logged_in_every_mode_and_counted() -> None:
    async with application(replying()) as app, proxy(app) as server:
        inbound = listeners("web", inbound=(InboundPort(port=app),), access_log="off")
        server.engine.apply(config(inbound, AUDIT), None, 0)
        for path in ("/x1", "/other", "/x2"):
            assert (await send(server.inbound[app], get(path))).status == 200
        logged = [(line["path"], line["audited"], line["status"]) for line in lines(server)]
        assert logged == [("/x1", ["shop/watch#0"], 200), ("/x2", ["shop/watch#0"], 200)]
        assert figures(server, "backstay_audited_requests_total") == {'rule="shop/watch#0"': 2}


async def test_a_refusal_is_audited_too() -> None:
    nobody = Policy(name="shop/nobody", action="allow")
    async with application(replying()) as app, proxy(app) as server:
        both = Authorization(policies=(*AUDIT.policies, nobody))
        server.engine.apply(config(listeners("web", inbound=(InboundPort(port=app),)), both), None, 0)
        assert (await send(server.inbound[app], get("/x"))).status == 403
        ((line),) = lines(server)
        assert (line["audited"], line["reason"], line["status"]) == (["shop/watch#0"], "denied", 403)


async def test_connections_of_a_tcp_port_are_audited(tmp_path: Path) -> None:
    async with application(replying()) as app, proxy(app) as server:
        inbound = listeners("web", inbound=(InboundPort(port=app, protocol="tcp"),))
        server.engine.apply(config(inbound, AUDIT_PORT), None, 0)
        assert (await send(server.inbound[app], get())).status == 200
        ((line),) = lines(server)
        assert (line["audited"], line["route"]) == (["shop/watch#0"], f"inbound:{app}")
        assert figures(server, "backstay_audited_requests_total") == {'rule="shop/watch#0"': 1}


# --- refused connections ---------------------------------------------------------------------------------------------


async def test_plaintext_at_a_strict_port_is_closed_unanswered_counted_and_logged_with_its_caller() -> None:
    async with application(replying()) as app, proxy(app) as server:
        permissive = config(listeners("web", inbound=(InboundPort(port=app),), access_log="failures"))
        strict = config(listeners("web", inbound=(InboundPort(port=app, mtls="strict"),), access_log="failures"))
        for stable, candidate in ((permissive, strict), (strict, None)):
            server.engine.apply(stable, candidate, 1.0 if candidate else 0.0)
            reader, writer = await asyncio.open_connection(LOCALHOST, server.inbound[app])
            writer.write(get())
            with contextlib.suppress(ConnectionError):
                assert await reader.read() == b""
            writer.close()
        assert [(row.config, row.total, row.bad, row.excused) for row in server.rows()] == [
            (strict.digest, 2, {"plaintext-refused": 1}, 1)
        ]
        assert [
            {key: line[key] for key in ("reason", "source", "route", "config", "flags")} for line in lines(server)
        ] == [
            {
                "reason": "plaintext-refused", "source": LOCALHOST, "route": f"inbound:{app}",
                "config": strict.digest[:12], "flags": "DC",
            }
        ] * 2  # fmt: skip
        assert figures(server, "backstay_refused_connections_total") == {
            f'route="inbound:{app}",reason="plaintext-refused"': 2
        }


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_a_server_that_refuses_our_certificate_is_a_failed_connect_to_that_peer(
    tmp_path: Path, version: ssl.TLSVersion, method: str
) -> None:
    """With TLS 1.3 the client is told after its handshake: the request may be written already, but nobody has read it, so
    that even a POST is sent again. The other endpoint answers; without one the failure is that of a connect."""
    ca, foreign = Authority(tmp_path), Authority(tmp_path)
    rule = to("web.shop:80", retry=Retry(attempts=2, retry_on=("connect-failure",), backoff_ms=1))
    request = get(method=method, headers=("Content-Length: 3",)) + b"abc"
    async with application(replying()) as app, proxy(app) as refuses, proxy(app) as takes, proxy() as client:
        trust(ca, (refuses, "web"), (takes, "web"), (client, "client"))
        refuses.engine.trust({DOMAIN: foreign.pem}, [])
        contexts = refuses.engine.server.contexts
        assert contexts is not None
        contexts.server.maximum_version = version
        for server in (refuses, takes):
            server.engine.apply(config(listeners("web", inbound=(InboundPort(port=app),))), None, 0)
        client.engine.apply(config(CLIENT, routes(rule), backend(balance="round_robin")), None, 0)
        bad, good = (
            endpoint(server.inbound[app], spiffe("web"), id=f"{server.inbound[app]}") for server in (refuses, takes)
        )
        client.engine.endpoints({"web.shop:80": [bad, good]}, full=True)
        assert [(await send(client.outbound, request)).status for _ in range(4)] == [200] * 4
        observed = client.engine.collect()
        assert [row.bad for row in observed.rows] == [{}]
        went = {row.peer: (row.attempts, row.failures) for row in observed.peers}
        tries = went[bad.id][0]  # which endpoint is first is drawn
        assert went == {bad.id: (tries, tries), good.id: (1, 0)}
        client.engine.endpoints({"web.shop:80": [bad]}, full=True)
        assert (await send(client.outbound, request)).status == 503
        observed = client.engine.collect()
        assert [(row.bad, row.attempts) for row in observed.rows] == [({"connect-failure": 1}, 3)]
        assert [(row.peer, row.attempts, row.failures) for row in observed.peers] == [(bad.id, 3, 3)]


async def test_a_peer_that_takes_the_handshake_and_hangs_up_is_charged_with_it(tmp_path: Path) -> None:
    async with pair(tmp_path, replying()) as (client, server, _, ca):
        server.engine.trust({DOMAIN: ca.pem}, [spiffe("client")])  # revoked: found out after the handshake
        assert (await send(client.outbound, get())).status == 503
        observed = client.engine.collect()
        assert [(row.peer, row.failures) for row in observed.peers] == [("web-0", 1)]
        assert figures(server, "backstay_refused_connections_total") != {}


@pytest.mark.parametrize(
    "changed",
    [
        {"ca": True},
        {"usage": "digital_signature key_cert_sign"},
        {"usage": "digital_signature crl_sign"},
        {"usage": "key_encipherment"},
        {"usage": None},
        {"purposes": ()},
        {"purposes": (ExtendedKeyUsageOID.CLIENT_AUTH,)},
        {"purposes": (ExtendedKeyUsageOID.SERVER_AUTH,)},
    ],
    ids=str,
)
async def test_a_certificate_that_is_no_leaf_of_a_workload_is_refused_on_both_sides(
    tmp_path: Path, changed: dict[str, Any]
) -> None:
    async with pair(tmp_path, replying()) as (client, server, _, ca):
        client.engine.identity(ca.issue(spiffe("client"), **changed))
        assert (await send(client.outbound, get())).status == 503
        client.engine.identity(ca.issue(spiffe("client")))
        assert (await send(client.outbound, get())).status == 200
        close_all([upstream for pool in client.engine.server.every_pool() for upstream in pool.retire()])
        server.engine.identity(ca.issue(spiffe("web"), **changed))
        assert (await send(client.outbound, get())).status == 503


# --- limits ----------------------------------------------------------------------------------------------------------


async def test_the_connection_limit_is_the_services_not_each_subsets() -> None:
    """Two subsets, a limit of two: never more than two connections, and everybody is served."""
    now = most = 0

    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal now, most
        now += 1
        most = max(most, now)
        try:
            while True:
                await read_head(reader)
                await asyncio.sleep(0.005)
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        finally:
            now -= 1

    subsets = tuple(Subset(name=name, labels=(("version", name),)) for name in ("v1", "v2"))
    split = Rule(
        name="rule-0",
        backends=tuple(WeightedBackend(backend="web.shop:80", subset=subset.name) for subset in subsets),
    )
    limited = backend(max_connections=2, subsets=subsets)
    async with application(slow) as one, application(slow) as two, proxy() as client:
        client.engine.apply(config(CLIENT, routes(split), limited), None, 0)
        client.engine.endpoints({"web.shop:80": [endpoint(one, version="v1"), endpoint(two, version="v2")]}, full=True)
        async with asyncio.timeout(WITHIN):
            answers = await asyncio.gather(*(send(client.outbound, get()) for _ in range(40)))
        assert {answer.status for answer in answers} == {200}
        assert most == 2
        assert sorted(row.backend for row in client.rows() if row.total) == ["web.shop:80/v1", "web.shop:80/v2"]


# --- swaps and leaks -------------------------------------------------------------------------------------------------


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """HTTP requests are answered; an upgrade or anything else is echoed from then on."""
    head = await read_head(reader)
    while head.lower().find(b"upgrade: websocket") < 0:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        head = await read_head(reader)
    writer.write(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
    while data := await reader.read(4096):
        writer.write(data)


UPGRADE = get(headers=("Connection: Upgrade", "Upgrade: websocket"))


async def websocket(port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection(LOCALHOST, port)
    writer.write(UPGRADE)
    assert (await read_head(reader)).startswith(b"HTTP/1.1 101 ")
    return reader, writer


async def test_kept_connections_outlive_swaps_renewals_and_rotations_under_load(tmp_path: Path) -> None:
    async with pair(tmp_path, echo) as (client, server, app, old):
        new = Authority(tmp_path)
        statuses: list[int] = []
        echoed = 0
        stop = asyncio.Event()

        async def caller() -> None:
            reader, writer = await asyncio.open_connection(LOCALHOST, client.outbound)
            while not stop.is_set():
                writer.write(get(method="POST", headers=("Content-Length: 0",)))
                statuses.append((await receive(reader)).status)
            writer.close()

        async def talker() -> None:
            nonlocal echoed
            reader, writer = await websocket(client.outbound)
            while not stop.is_set():
                writer.write(b"ping")
                assert await reader.readexactly(4) == b"ping"
                echoed += 1
            writer.close()

        users = [asyncio.ensure_future(work()) for work in (caller,) * 6 + (talker,) * 2]
        strict = InboundPort(port=app, mtls="strict")
        both = (client, "client"), (server, "web")

        def swap(turn: int) -> None:
            changed = config(CLIENT, routes(to("web.shop:80", timeout_ms=10_000 + turn)), backend())
            client.engine.apply(config(CLIENT, *WEB), changed, 0.5)
            logs = "failures" if turn % 2 else "off"
            server.engine.apply(config(listeners("web", inbound=(strict,), access_log=logs)), None, 0)

        def went_on(seen: int, talked: int) -> bool:
            return len(statuses) > seen + 12 and echoed > talked + 4

        steps: list[Callable[[], object]] = [
            *(lambda running=running: running.engine.trust({DOMAIN: old.pem + new.pem}, []) for running, _ in both),
            *(lambda r=running, n=name: r.engine.identity(new.issue(spiffe(n))) for running, name in both),
            *(lambda running=running: running.engine.trust({DOMAIN: new.pem}, []) for running, _ in both),
            *(lambda r=running, n=name: r.engine.identity(new.issue(spiffe(n))) for running, name in both),
        ]  # fmt: skip
        for turn, step in enumerate(steps):
            seen, talked = len(statuses), echoed
            step()
            swap(turn)
            await until(partial(went_on, seen, talked))
        stop.set()
        async with asyncio.timeout(WITHIN):
            await asyncio.gather(*users)
        assert set(statuses) == {200}
        assert {line.get("reason") for line in lines(server)} <= {None}


def descriptors() -> int:
    """Open ones of this process; 0 where the system does not show them."""
    return len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 0


async def leaves_nothing(running: tuple[Proxy, ...], before: int) -> None:
    servers = [one.engine.server for one in running]
    await until(lambda: not any(server.downstreams or server.tunnels for server in servers))
    for server in servers:
        close_all([upstream for pool in server.every_pool() for upstream in pool.retire()])
    await until(lambda: not any(server.upstreams or server.downstreams for server in servers))
    assert [pool.open for server in servers for pool in server.every_pool() if pool.open or pool.active] == []
    assert [group.quota.open for server in servers for group in server.app_groups.values() if group.quota.open] == []
    assert sum(one.engine.collect().open_requests for one in running) == 0
    await until(lambda: descriptors() <= before + 5)  # the test's own ends close a little later


async def test_websockets_leave_nothing_behind_however_they_end(tmp_path: Path) -> None:
    async with pair(tmp_path, echo) as (client, server, _, _ca):
        assert (await send(client.outbound, get())).status == 200
        before = descriptors()
        for _ in range(5):
            opened = await asyncio.gather(*(websocket(client.outbound) for _ in range(10)))
            for number, (_reader, writer) in enumerate(opened):
                if number % 3 == 0:
                    linger = b"\x01\x00\x00\x00\x00\x00\x00\x00"
                    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                if number % 3 == 1:
                    writer.write(b"last words")
                writer.close()
        await leaves_nothing((client, server), before)


async def test_connections_of_a_tcp_port_leave_nothing_behind_and_give_their_place_back(tmp_path: Path) -> None:
    parts = (routes(to("web.shop:80")), backend(protocol="tcp", max_connections=3))

    async def shout(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(100):
            writer.write(data.upper())

    async def speak(port: int) -> bytes:
        reader, writer = await asyncio.open_connection(LOCALHOST, port)
        writer.write(b"CONNECT web.shop:80 HTTP/1.1\r\nHost: web.shop:80\r\n\r\n")
        assert b" 200 " in await read_head(reader)
        writer.write(b"hello")
        said = await reader.readexactly(5)
        writer.close()
        return said

    async with pair(tmp_path, shout, *parts, protocol="tcp") as (client, server, _, _ca):
        before = descriptors()
        async with asyncio.timeout(WITHIN):
            said = await asyncio.gather(*(speak(client.outbound) for _ in range(30)))
        assert said == [b"HELLO"] * 30
        await leaves_nothing((client, server), before)
