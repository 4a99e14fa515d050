"""What the evaluator says is what real sidecars do: random repositories and requests over real sockets, mTLS included.

A client's proxy and the proxies of four workloads run the compiled configs; every application answers with its name. The
proxies' draws are fixed, so that a weighted choice has one right answer as well.
"""

import asyncio
import contextlib
import json
import ssl
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from backstay.config.gateways import https_port, to_https
from backstay.config.match import host_of
from backstay.config.model import assemble
from backstay.config.wire import Endpoint
from backstay.core import live
from backstay.core.evaluate import Asked, Destination, Request, Trace, World, forwarded_as, location_of
from backstay.core.evaluate import asked as asked_for
from backstay.core.registry import Registry
from backstay.sidecar.engine import Address
from backstay.sidecar.engines.python import PythonEngine, new_event_loop
from support.policy import (
    GATEWAY,
    PLAIN,
    PORT,
    SECURE,
    Json,
    compiled,
    gateway_repositories,
    outside_requests,
    repositories,
    requests,
    with_gateway,
)

from .mesh import LOCALHOST, Answer, Application, Authority, application, free_port, read_message, receive, send

DOMAIN = "backstay.local"
CALLER = "shop/client"
SERVERS = ("shop/web-v1", "shop/web-v2", "shop/api-v1", "shop/api-v2")
REFUSED = {"no-route": 404, "no-backend": 503, "unknown-host": 502, "bad-request": 400}


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"), DOMAIN)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    documents=repositories(patterns=True),
    asked=st.lists(requests(), min_size=1, max_size=10),
    draw=st.sampled_from((0.0, 0.45, 0.92, 0.99)),
)
def test_the_evaluator_says_what_sidecars_do(
    authority: Authority, documents: list[Json], asked: list[Request], draw: float
) -> None:
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(_compare(authority, compiled(documents), asked, draw))


async def _compare(authority: Authority, world: World, asked: list[Request], draw: float) -> None:
    async with _mesh(authority, world, draw) as outbound:
        for request in asked:
            trace = world.trace(CALLER, request)
            if trace.sent.kind == "pass-through":
                continue  # nothing of the mesh is asked, and the name would have to be looked up
            answer = await send(outbound, _bytes(request))
            place = _field(answer, b"location")
            said = (answer.status, answer.body.decode() if answer.status in (200, 410) else place)
            assert said in _expected(trace, draw), (str(request), request.headers, trace)


EDGE = f"shop/{GATEWAY}"


@settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    documents=gateway_repositories(passed=False),
    asked=st.lists(outside_requests(), min_size=1, max_size=8),
    draw=st.sampled_from((0.0, 0.45, 0.92, 0.99)),
)
def test_the_evaluator_says_what_gateways_do(
    authority: Authority, documents: list[Json], asked: list[Request], draw: float
) -> None:
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(_compare_outside(authority, documents, asked, draw))


async def _compare_outside(authority: Authority, documents: list[Json], asked: list[Request], draw: float) -> None:
    """Each request in plain text at the one port, and by TLS at the other if that is open."""
    plain, secure = free_port(), free_port()
    text = json.dumps(documents).replace(str(PLAIN), str(plain)).replace(str(SECURE), str(secure))
    world = compiled(json.loads(text), with_gateway())
    async with _mesh(authority, world, draw, EDGE):
        for request in (replace(item, address=LOCALHOST) for item in asked):
            await _same(await send(plain, _bytes(request)), world, plain, request, draw)
            if world.entries(EDGE, secure) is not None:
                await _same(await _send_tls(secure, request), world, secure, request, draw)


async def _same(answer: Answer | None, world: World, port: int, request: Request, draw: float) -> None:
    trace = world.trace_outside(EDGE, port, request)
    if answer is None:
        assert not world.entrance(EDGE, port, _host(request)).secret, str(request)
        return
    place = _field(answer, b"location")
    said = (answer.status, answer.body.decode() if answer.status in (200, 410) else place)
    assert said in _expected_outside(trace, world, port, draw), (str(request), request.headers, trace)


def _host(request: Request) -> bytes:
    return host_of(request.authority.encode())


async def _send_tls(port: int, request: Request) -> Answer | None:
    """None where the gateway has no certificate for the name."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    name = _host(request).decode()
    try:
        reader, writer = await asyncio.open_connection(LOCALHOST, port, ssl=context, server_hostname=name)
    except OSError:  # the alert, or the end of the connection
        return None
    writer.write(_bytes(request))
    try:
        return await receive(reader)
    finally:
        writer.close()


def _expected_outside(trace: Trace, world: World, port: int, draw: float) -> set[tuple[int, str]]:
    """Policies of the gateway, then its listener's redirect, then what holds in the mesh as well."""
    question, entries = asked_for(trace.request), world.entries(EDGE, port)
    assert question is not None
    assert entries is not None
    assert trace.admitted is not None
    if not trace.admitted.allowed:
        return {(403, "")}
    listener = entries.find(host_of(question.authority))
    if listener is None or not listener.redirect_port:
        return _expected(trace, draw, secure=entries.protocol == "https")
    rule = to_https(port, https_port(listener, question.authority)).rules[0]
    return {(301, location_of(replace(trace.sent, rule=rule), question))}


def _field(answer: Answer, name: bytes) -> str:
    lines = answer.head.split(b"\r\n")
    return next((line.partition(b": ")[2].decode() for line in lines if line.lower().startswith(name + b":")), "")


def _bytes(request: Request) -> bytes:
    target = request.path + (f"?{request.query}" if request.query else "")
    lines = [f"{request.method} {target} HTTP/1.1", f"Host: {request.authority}", "Content-Length: 0"]
    return "\r\n".join([*lines, *(f"{name}: {value}" for name, value in request.headers), "", ""]).encode()


def _expected(trace: Trace, draw: float, *, secure: bool = False) -> set[tuple[int, str]]:
    """(status, who answers) that the evaluation allows, at this draw: one for each instance that may answer."""
    question, rule = asked_for(trace.request), trace.sent.rule
    assert question is not None
    if rule is None:
        return {(REFUSED[trace.sent.kind], "")}
    if rule.fault is not None and rule.redirect is None and rule.direct is None and trace.sent.kind == "route":
        return {(rule.fault.abort_status, "")}
    if rule.redirect is not None:
        return {(rule.redirect.status, location_of(trace.sent, question, secure=secure))}
    if rule.direct is not None:
        return {(rule.direct.status, rule.direct.body)}
    forwarded = forwarded_as(trace.sent, question)
    if forwarded is None:
        return {(400, "")}
    seen = _seen(forwarded)
    found = set()
    for item in trace.answerers:
        assert item.received is not None
        if item.destination == _chosen(trace, draw):
            refused = (401 if item.received.reason == "no-token" else 403, "")
            found.add((200, f"{item.reach.workload} {seen}") if item.received.allowed else refused)
    return found


def _seen(question: Asked) -> str:
    """What an application of this test answers with, of the request it gets."""
    target = question.path + (b"?" + question.query if question.query else b"")
    edited = [value for name, value in question.fields if name.lower() == b"x-a"]
    return f"{target.decode()} {b','.join(edited).decode()}"


def _chosen(trace: Trace, draw: float) -> Destination | None:
    """The destination of a rule that this draw falls upon."""
    edge = Fraction(0)
    for destination in trace.sent.destinations:
        edge += destination.share
        if draw < edge:
            return destination
    return None


def echoing(key: str) -> Application:
    """An application that answers with its name and what it got."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head, _ = await read_message(reader)
            first, *lines = head.split(b"\r\n")
            fields = [line.partition(b": ") for line in lines if line.lower().startswith(b"x-a:")]
            target, edited = first.split(b" ")[1], b",".join(value for _, _, value in fields)
            body = b"%b %b %b" % (key.encode(), target, edited)
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
            await writer.drain()

    return serve


# --- a mesh of one machine --------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def _mesh(authority: Authority, world: World, draw: float, caller: str = CALLER) -> AsyncIterator[int]:
    """The caller's proxy: its outbound port."""
    async with contextlib.AsyncExitStack() as stack:
        inbound: dict[str, int] = {}
        engines: dict[str, PythonEngine] = {}
        for key in SERVERS:
            app = await stack.enter_async_context(application(echoing(key)))
            inbound[key] = free_port()
            address = Address(host=LOCALHOST, inbound={PORT: inbound[key]}, app_ports={PORT: app}, outbound=0)
            engines[key] = await stack.enter_async_context(_engine(authority, world, key, address, draw))
        outbound = free_port()
        address = Address(host=LOCALHOST, inbound={}, outbound=outbound)
        client = await stack.enter_async_context(_engine(authority, world, caller, address, draw))
        shown = {listener.secret for listener in world.listeners(caller).gateway if listener.secret}
        client.secrets(dict.fromkeys(shown, _shown(authority)))
        client.endpoints(_endpoints(world.registry, inbound), full=True)
        yield outbound


def _shown(authority: Authority) -> Path:
    """Certificate and key in one file, as a gateway shows them."""
    files = authority.issue("spiffe://anybody")
    together = files.key.with_name("shown.pem")
    together.write_bytes(files.key.read_bytes() + files.certificate.read_bytes())
    return together


@contextlib.asynccontextmanager
async def _engine(
    authority: Authority, world: World, key: str, address: Address, draw: float
) -> AsyncIterator[PythonEngine]:
    engine = PythonEngine(log=len, random=lambda: draw)
    await engine.start(address)
    try:
        engine.identity(authority.issue(world.listeners(key).identity))
        engine.trust({DOMAIN: authority.pem}, [])
        engine.apply(assemble(world.manifest(key), world.compiled.parts), None, 0)
        yield engine
    finally:
        await engine.drain(0)


def _endpoints(known: Registry, inbound: Mapping[str, int]) -> dict[str, list[Endpoint]]:
    """Live data as the operator makes it, at the ports of this test."""
    found = live.endpoints(known, DOMAIN)
    by_id = {item.id: inbound[item.workload] for item in known.instances.values() if item.workload in inbound}
    return {
        service: [
            Endpoint(id=e.id, address=LOCALHOST, port=by_id[e.id], identity=e.identity, labels=e.labels)
            for e in endpoints
        ]
        for service, endpoints in found.items()
    }


def test_strategies_reach_every_kind_of_answer() -> None:
    """The property above would hold of requests that all end in 404 as well. The rarest answer is one in forty, so what is
    drawn is the same each time."""
    seen: set[str] = set()

    @settings(max_examples=100, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(documents=repositories(), request=requests())
    def look(documents: list[Json], request: Request) -> None:
        trace = compiled(documents).trace(CALLER, request)
        seen.add("denied" if trace.is_denied else trace.sent.kind)

    look()
    assert {"route", "no-route", "denied", "pass-through"} <= seen
