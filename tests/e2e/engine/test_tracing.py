"""One request through two proxies is one trace, at a real collector's door."""

import asyncio
import json
from pathlib import Path
from typing import Any

from backstay.config.model import HeaderEdits, InboundPort, Tracing

from .mesh import (
    LOCALHOST,
    Authority,
    application,
    backend,
    config,
    endpoint,
    get,
    listeners,
    proxy,
    read_message,
    replying,
    routes,
    send,
    spiffe,
    to,
)

DOMAIN = "test.mesh"
WITHIN = 30.0


class Collector:
    """Takes batches, as OTLP over HTTP wants it."""

    def __init__(self) -> None:
        self.paths: list[bytes] = []
        self.spans: list[dict[str, Any]] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head, body = await read_message(reader)
        self.paths.append(head.split(b" ")[1])
        for resource in json.loads(body)["resourceSpans"]:
            (name, *_) = resource["resource"]["attributes"]
            for scope in resource["scopeSpans"]:
                self.spans += [span | {"service": name["value"]["stringValue"]} for span in scope["spans"]]
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}")
        await writer.drain()


def field(head: bytes, name: bytes) -> bytes:
    lines = (line.partition(b": ") for line in head.split(b"\r\n"))
    return next((value for key, _, value in lines if key.lower() == name), b"")


async def test_one_request_through_two_proxies_is_one_trace(tmp_path: Path) -> None:
    heads: list[bytes] = []
    authority = Authority(tmp_path)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            heads.append((await read_message(reader))[0])
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    collector = Collector()
    async with application(serve) as app, application(collector.serve) as door:
        tracing = Tracing(endpoint=f"http://{LOCALHOST}:{door}", percent=100.0)
        async with proxy(app) as server, proxy() as client:
            for each, name in ((server, "web"), (client, "client")):
                each.engine.trust({DOMAIN: authority.pem}, ())
                each.engine.identity(authority.issue(spiffe(name)))
            inbound = listeners("web", inbound=(InboundPort(port=app, mtls="strict"),), tracing=tracing)
            server.engine.apply(config(inbound, workload="shop/web"), None, 0)
            outbound = config(listeners(tracing=tracing, access_log="all"), routes(to("web.shop:80")), backend())
            client.engine.apply(outbound, None, 0)
            where = endpoint(server.inbound[app], identity=spiffe("web"))
            client.engine.endpoints({"web.shop:80": [where]}, full=True)
            answer = await send(client.outbound, get("/a", host="web.shop"))
            assert answer.status == 200
            metrics = client.engine.metrics(exemplars=True).decode()
            await server.engine.server.spans.finish(WITHIN)
            await client.engine.server.spans.finish(WITHIN)
            client.engine.server.log.flush()
            line = json.loads(client.lines)
    inner, outer = sorted(collector.spans, key=lambda span: span["service"], reverse=True)
    assert (inner["service"], outer["service"]) == ("web", "client")
    assert inner["traceId"] == outer["traceId"]
    assert inner["parentSpanId"] == outer["spanId"]
    assert "parentSpanId" not in outer
    assert (inner["kind"], outer["kind"]) == (2, 3)
    assert inner["name"] == f"GET inbound:{app}"
    assert set(collector.paths) == {b"/v1/traces"}
    assert field(heads[0], b"traceparent") == f"00-{inner['traceId']}-{inner['spanId']}-01".encode()
    assert line["traceparent"] == f"00-{outer['traceId']}-{outer['spanId']}-01"
    assert f'# {{trace_id="{outer["traceId"]}"}}' in metrics


async def test_header_edits_and_traces_go_together() -> None:
    heads: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append((await read_message(reader))[0])
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    async with application(serve) as app, proxy() as client:
        rule = to("web.shop:80", request_headers=HeaderEdits(set=(("x-added", "1"),)))
        tracing = Tracing(percent=0.0, b3=True)
        client.engine.apply(config(listeners(tracing=tracing), routes(rule), backend()), None, 0)
        client.engine.endpoints({"web.shop:80": [endpoint(app)]}, full=True)
        data = get("/a?b=c", host="web.shop", headers=("Content-Length: 2", "X-B3-Sampled: 0"), method="POST") + b"hi"
        assert (await send(client.outbound, data)).status == 200
        assert heads[0].startswith(b"POST /a?b=c HTTP/1.1\r\nHost: web.shop\r\n")
        assert field(heads[0], b"x-added") == b"1"
        assert field(heads[0], b"content-length") == b"2"
        assert field(heads[0], b"traceparent").endswith(b"-00")
        assert heads[0].lower().count(b"x-b3-sampled: 0\r\n") == 1
        assert client.engine.server.spans.dropped == 0


async def test_failures_are_logged_whatever_the_share() -> None:
    async with application(replying(b"ok")) as app, proxy() as client:
        inbound = listeners(access_log="all", log_percent=0.0)
        client.engine.apply(config(inbound, routes(to("web.shop:80")), backend()), None, 0)
        client.engine.endpoints({"web.shop:80": [endpoint(app)]}, full=True)
        for _ in range(5):
            assert (await send(client.outbound, get(host="web.shop"))).status == 200
        client.engine.endpoints({}, full=True)
        assert (await send(client.outbound, get(host="web.shop"))).status == 503
        client.engine.server.log.flush()
        assert [json.loads(line)["status"] for line in client.lines.splitlines()] == [503]
