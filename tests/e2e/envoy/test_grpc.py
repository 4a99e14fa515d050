"""gRPC through two Envoys with mTLS between them: a real client and a real server, rules on methods, statuses as outcomes."""

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import grpc.aio
import pytest

from backstay.config.model import (
    Authorization,
    InboundPort,
    Operation,
    Policy,
    PolicyRule,
    Retry,
    Source,
)
from backstay.config.wire import Row
from e2e.engine.mesh import DOMAIN, LOCALHOST, Authority, backend, config, endpoint, listeners, routes, spiffe, to

from .world import Proxy, proxy

METHODS = Authorization(
    policies=(
        Policy(
            name="shop/methods",
            action="allow",
            rules=(
                PolicyRule(
                    sources=(Source(principals=(spiffe("client"),)),),
                    operations=(Operation(paths=("/shop.Echo/*",)),),
                ),
            ),
        ),
    )
)


class Server(grpc.GenericRpcHandler):  # type: ignore[misc]  # grpcio has no types
    """`/shop.Echo/Say` answers what it was told, `/shop.Echo/Fail` is unavailable twice and then answers, `/shop.Echo/Count`
    streams."""

    def __init__(self) -> None:
        self.failed = 0

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        kind = details.method.rpartition("/")[2]
        if kind == "Count":
            return grpc.unary_stream_rpc_method_handler(self._count)
        return grpc.unary_unary_rpc_method_handler(self._fail if kind == "Fail" else self._say)

    async def _say(self, request: bytes, context: grpc.aio.ServicerContext) -> bytes:
        return request

    async def _fail(self, request: bytes, context: grpc.aio.ServicerContext) -> bytes:
        self.failed += 1
        if self.failed % 3:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "not now")
        return request

    async def _count(self, request: bytes, context: grpc.aio.ServicerContext) -> AsyncIterator[bytes]:
        for number in range(int(request)):
            yield b"%d" % number


@contextlib.asynccontextmanager
async def server() -> AsyncIterator[int]:
    running = grpc.aio.server()
    running.add_generic_rpc_handlers((Server(),))
    port = running.add_insecure_port(f"{LOCALHOST}:0")
    await running.start()
    try:
        yield port
    finally:
        await running.stop(0)


async def connect(ca: Authority, client: Proxy, inner: Proxy, app: int, *, retry: Retry | None = None) -> None:
    for side, name in ((inner, "web"), (client, "client")):
        side.engine.identity(ca.issue(spiffe(name)))
        side.engine.trust({DOMAIN: ca.pem}, [])
    inbound = listeners("web", inbound=(InboundPort(port=app, mtls="strict"),))
    inner.engine.apply(config(inbound, METHODS, workload="shop/web"), None, 0)
    client.engine.apply(config(listeners(), routes(to("web.shop:80", retry=retry)), backend()), None, 0)
    client.engine.endpoints({"web.shop:80": [endpoint(inner.inbound[app], spiffe("web"))]}, full=True)
    await inner.engine.settled()
    await client.engine.settled()


def bad(rows: list[Row]) -> dict[str, int]:
    found: dict[str, int] = {}
    for row in rows:
        for reason, count in row.bad.items():
            found[reason] = found.get(reason, 0) + count
    return found


async def test_calls_streams_refusals_and_statuses(tmp_path: Path) -> None:
    async with server() as app, proxy(app) as inner, proxy(explicit=("web.shop", 80)) as client:
        await connect(Authority(tmp_path), client, inner, app)
        async with grpc.aio.insecure_channel(f"{LOCALHOST}:{client.explicit}") as channel:
            assert await channel.unary_unary("/shop.Echo/Say")(b"hello", timeout=20) == b"hello"
            stream = channel.unary_stream("/shop.Echo/Count")(b"3", timeout=20)
            assert [message async for message in stream] == [b"0", b"1", b"2"]
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await channel.unary_unary("/shop.Other/Say")(b"hello", timeout=20)
            assert refused.value.code() == grpc.StatusCode.PERMISSION_DENIED
            with pytest.raises(grpc.aio.AioRpcError) as failed:
                await channel.unary_unary("/shop.Echo/Fail")(b"hello", timeout=20)
            assert failed.value.code() == grpc.StatusCode.UNAVAILABLE
        rows = await client.counted(lambda rows: sum(row.total for row in rows) == 4)
        assert bad(rows) == {"5xx": 1}


async def test_what_is_unavailable_is_tried_again(tmp_path: Path) -> None:
    policy = Retry(attempts=3, retry_on=("gateway-error",), any_method=True, backoff_ms=1)
    async with server() as app, proxy(app) as inner, proxy(explicit=("web.shop", 80)) as client:
        await connect(Authority(tmp_path), client, inner, app, retry=policy)
        async with grpc.aio.insecure_channel(f"{LOCALHOST}:{client.explicit}") as channel:
            assert await channel.unary_unary("/shop.Echo/Fail")(b"again", timeout=20) == b"again"
        rows = await client.counted(lambda rows: sum(row.total for row in rows) == 1)
        assert (bad(rows), sum(row.attempts for row in rows)) == ({}, 3)
