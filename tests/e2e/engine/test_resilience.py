"""Endpoints that fail, hang or are full, on real sockets: who is left out, who comes back, what callers get."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator

from backstay.config.model import HashOn, HealthCheck, Outlier, Retry
from backstay.config.wire import Endpoint
from backstay.sidecar.engines.python.pool import Group, Pool, PoolKey

from .mesh import (
    LOCALHOST,
    Proxy,
    application,
    backend,
    config,
    get,
    listeners,
    proxy,
    read_message,
    routes,
    send,
    to,
    until,
)

CLIENT = listeners()


class Servers:
    """Applications whose status can be changed; each answers with its name."""

    def __init__(self) -> None:
        self.status: dict[str, int] = {}
        self.paths: list[tuple[str, bytes]] = []
        self.hold: asyncio.Event | None = None
        self.ports: dict[str, int] = {}

    def serve(self, name: str):  # type: ignore[no-untyped-def]  # an application as in mesh.py
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while True:
                head, _ = await read_message(reader)
                self.paths.append((name, head.split(b" ")[1]))
                if self.hold is not None:
                    await self.hold.wait()
                body = name.encode()
                writer.write(
                    b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n%b" % (self.status.get(name, 200), len(body), body)
                )
                await writer.drain()

        return answer

    def endpoints(self, **zones: str) -> list[Endpoint]:
        return [
            Endpoint(id=name, address=LOCALHOST, port=port, zone=zones.get(name, ""))
            for name, port in self.ports.items()
        ]


@contextlib.asynccontextmanager
async def servers(*names: str) -> AsyncIterator[Servers]:
    found = Servers()
    async with contextlib.AsyncExitStack() as stack:
        for name in names:
            found.ports[name] = await stack.enter_async_context(application(found.serve(name)))
        yield found


async def ask(client: Proxy, count: int = 1, path: str = "/", *headers: str) -> Counter[tuple[int, bytes]]:
    answers = [await send(client.outbound, get(path, headers=headers)) for _ in range(count)]
    return Counter((answer.status, answer.body) for answer in answers)


def out(client: Proxy) -> int:
    return client.engine.server.pools.count_out()


async def test_an_endpoint_that_keeps_failing_is_left_out_and_comes_back() -> None:
    async with servers("a", "b") as found, proxy() as client:
        rule = Outlier(consecutive_5xx=2, base_ms=700)
        client.engine.apply(
            config(CLIENT, routes(to("web.shop:80")), backend(outlier=rule, balance="round_robin")), None, 0
        )
        client.engine.endpoints({"web.shop:80": found.endpoints()}, full=True)
        found.status["a"] = 500
        await ask(client, 4)
        assert out(client) == 1
        found.status["a"] = 200
        await until(lambda: out(client) == 0)
        assert (await ask(client, 4)).keys() == {(200, b"a"), (200, b"b")}


async def test_the_last_endpoint_is_never_ejected_and_no_more_than_the_share() -> None:
    async with servers("a", "b", "c") as found, proxy() as client:
        rule = Outlier(consecutive_5xx=1, base_ms=60_000, max_percent=40)
        client.engine.apply(config(CLIENT, routes(to("web.shop:80")), backend(outlier=rule)), None, 0)
        client.engine.endpoints({"web.shop:80": found.endpoints()}, full=True)
        found.status = dict.fromkeys("abc", 503)
        assert {status for status, _ in await ask(client, 12)} == {503}
        assert out(client) == 1


async def test_tries_without_an_answer_count_as_failures_and_a_retry_goes_elsewhere() -> None:
    async with servers("a", "b") as found, proxy() as client:
        dead = Endpoint(id="dead", address=LOCALHOST, port=1)
        rule = Outlier(consecutive_5xx=0, consecutive_local=1, base_ms=60_000)
        retry = Retry(attempts=2, retry_on=("connect-failure",), backoff_ms=1)
        client.engine.apply(config(CLIENT, routes(to("web.shop:80", retry=retry)), backend(outlier=rule)), None, 0)
        client.engine.endpoints({"web.shop:80": [dead, *found.endpoints()]}, full=True)
        await until_ejected(client)
        assert {status for status, _ in await ask(client, 6)} == {200}


async def until_ejected(client: Proxy) -> None:
    async with asyncio.timeout(30):
        while not out(client):
            assert (await send(client.outbound, get())).status == 200


async def test_a_value_keeps_its_endpoint_whatever_the_policy_and_another_takes_over_when_it_goes() -> None:
    for policy in ("ring_hash", "maglev"):
        async with servers("a", "b", "c", "d") as found, proxy() as client:
            hashed = backend(balance=policy, hash_on=HashOn(kind="header", name="x-user"))
            client.engine.apply(config(CLIENT, routes(to("web.shop:80")), hashed), None, 0)
            client.engine.endpoints({"web.shop:80": found.endpoints()}, full=True)
            users = {user: await ask(client, 3, "/", f"X-User: {user}") for user in "abcdefghijkl"}
            assert all(len(answers) == 1 for answers in users.values())
            chosen = {user: next(iter(answers))[1].decode() for user, answers in users.items()}
            assert len(set(chosen.values())) > 1
            gone = chosen["a"]
            left = [endpoint for endpoint in found.endpoints() if endpoint.id != gone]
            client.engine.endpoints({"web.shop:80": left}, full=True)
            assert (await ask(client, 2, "/", "X-User: a")).keys().isdisjoint({(200, gone.encode())})


async def test_cookies_parameters_and_addresses_are_hashed_too() -> None:
    for hash_on, path, header in (
        (HashOn(kind="cookie", name="u"), "/", "Cookie: a=b; u=ann"),
        (HashOn(kind="query", name="u"), "/?u=ann", "X: y"),
        (HashOn(kind="source"), "/", "X: y"),
    ):
        async with servers("a", "b", "c", "d") as found, proxy() as client:
            client.engine.apply(
                config(CLIENT, routes(to("web.shop:80")), backend(balance="ring_hash", hash_on=hash_on)), None, 0
            )
            client.engine.endpoints({"web.shop:80": found.endpoints()}, full=True)
            assert len(await ask(client, 5, path, header)) == 1


async def test_one_request_more_than_may_be_under_way_is_refused_at_once() -> None:
    async with servers("a") as found, proxy() as client:
        client.engine.apply(config(CLIENT, routes(to("web.shop:80")), backend(max_requests=2)), None, 0)
        client.engine.endpoints({"web.shop:80": found.endpoints()}, full=True)
        found.hold = asyncio.Event()
        waiting = [asyncio.ensure_future(send(client.outbound, get())) for _ in range(2)]
        await until(lambda: len(found.paths) == 2)
        refused = await send(client.outbound, get())
        assert (refused.status, refused.body) == (503, b"overflow\n")
        found.hold.set()
        assert [(await each).status for each in waiting] == [200, 200]


async def test_checks_begin_with_the_first_request_and_find_who_is_unwell_and_who_is_well_again() -> None:
    async with servers("a", "b") as found, proxy() as client:
        check = HealthCheck(path="/healthz", interval_ms=500, timeout_ms=400, unhealthy=1)
        found.status["a"] = 500
        client.engine.apply(config(CLIENT, routes(to("web.shop:80")), backend(health=check)), None, 0)
        client.engine.endpoints({"web.shop:80": found.endpoints()}, full=True)
        await send(client.outbound, get())
        await until(lambda: out(client) == 1)
        assert await ask(client, 4) == {(200, b"b"): 4}
        found.status["a"] = 200
        await until(lambda: out(client) == 0)
        found.status = {"a": 503, "b": 503}
        await until(lambda: out(client) == 2)
        refused = await send(client.outbound, get())
        assert (refused.status, refused.body) == (503, b"no-healthy-upstream\n")
        rows = [row for row in client.rows() if row.backend]
        assert sum(row.total for row in rows) == 6, "checks are nobody's requests"


async def test_an_exchange_without_a_byte_ends_at_its_idle_limit() -> None:
    async with servers("a") as found, proxy() as client:
        client.engine.apply(config(CLIENT, routes(to("web.shop:80", idle_timeout_ms=300)), backend()), None, 0)
        client.engine.endpoints({"web.shop:80": found.endpoints()}, full=True)
        found.hold = asyncio.Event()
        late = await send(client.outbound, get())
        assert (late.status, late.body) == (504, b"timeout\n")
        found.hold.set()
        assert (await send(client.outbound, get())).status == 200


async def test_listed_statuses_and_409_are_retried_where_the_document_says_so() -> None:
    for retry_on, statuses, status, tries in (
        ("retriable-status-codes", (425,), 425, 3),
        ("retriable-status-codes", (425,), 426, 1),
        ("retriable-4xx", (), 409, 3),
        ("retriable-4xx", (), 404, 1),
        ("5xx", (), 409, 1),
    ):
        async with servers("a") as found, proxy() as client:
            retry = Retry(attempts=2, retry_on=(retry_on,), statuses=statuses, backoff_ms=1)  # type: ignore[arg-type]
            client.engine.apply(config(CLIENT, routes(to("web.shop:80", retry=retry)), backend()), None, 0)
            client.engine.endpoints({"web.shop:80": found.endpoints()}, full=True)
            found.status["a"] = status
            assert (await send(client.outbound, get())).status == status
            assert (retry_on, status, len(found.paths)) == (retry_on, status, tries)


async def test_endpoints_of_the_own_zone_come_first_until_none_of_them_is_well() -> None:
    async with servers("near", "far") as found, proxy() as client:
        rule = Outlier(consecutive_5xx=1, base_ms=60_000)
        client.engine.apply(
            config(CLIENT, routes(to("web.shop:80")), backend(outlier=rule, same_zone_first=True)), None, 0
        )
        client.engine.endpoints({"web.shop:80": found.endpoints(near="z1", far="z2")}, full=True)
        client.engine.place("z1")
        assert await ask(client, 4) == {(200, b"near"): 4}
        found.status["near"] = 500
        await ask(client, 1)
        assert await ask(client, 4) == {(200, b"far"): 4}


def test_a_new_endpoint_gets_less_than_its_share_at_first() -> None:
    now = 7200.0
    draws = iter([0.9, 0.5, 0.0, 0.9, 0.05])
    group = Group(backend(balance="random", slow_start_ms=3_600_000), (), lambda: next(draws), None, lambda: now)
    old, new = (Pool(PoolKey(name, LOCALHOST, 1, "")) for name in ("old", "new"))
    new.since = now
    group.everyone = (old, new)
    group.settle(now)
    # The first draw picks the new one, of whose share it gets a tenth: 0.5 is beyond, so the other one is asked.
    assert group.choose() is old
    # 0.9 picks it again, and 0.05 is within the tenth.
    assert group.choose() is new
