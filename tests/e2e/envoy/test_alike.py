"""Random rules and random requests through both engines: the same upstream request, the same class of answer.

Rule: what is drawn are intents' parts as the compiler makes them, and requests that no RFC lets a proxy refuse; hostile bytes
are tests/conformance/http. Longer: `make fuzz-engines SECONDS=600`.
"""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from time import monotonic

import pytest
from hypothesis import HealthCheck, Phase, find, settings
from hypothesis import strategies as st
from hypothesis.errors import NoSuchExample

from backstay.config.model import (
    AuthorityMatch,
    DirectResponse,
    HeaderEdits,
    HostRoutes,
    Match,
    PathMatch,
    PathRewrite,
    Redirect,
    Rewrite,
    Rule,
    ValueMatch,
)
from backstay.sidecar.engine import Address, Engine, settled
from backstay.sidecar.engines.envoy import EnvoyEngine
from backstay.sidecar.engines.python import PythonEngine
from e2e.engine.mesh import LOCALHOST, Answer, backend, config, endpoint, free_port, listeners, receive, to

from .world import ENVIRONMENT

pytestmark = pytest.mark.long
SECONDS = float(os.environ.get("ALIKE_SECONDS", "30"))
MADE = ("x-forwarded-proto",)  # what Envoy adds, as proxies may
WORDS = st.sampled_from(("a", "b", "ab", "v1", "x-y"))
PATHS = st.lists(WORDS, max_size=3).map(lambda parts: "/" + "/".join(parts))
NAMES = st.sampled_from(("x-a", "x-b", "user-agent"))
METHODS = st.sampled_from(("GET", "PUT", "DELETE", "HEAD"))
path_matches = st.one_of(
    st.builds(PathMatch, kind=st.just("exact"), value=PATHS),
    st.builds(PathMatch, kind=st.just("prefix"), value=PATHS),
    st.builds(PathMatch, kind=st.just("regex"), value=WORDS.map(lambda word: f"/{word}[a-z0-9]*(/.*)?")),
)
value_matches = st.builds(
    ValueMatch, name=NAMES, kind=st.sampled_from(("exact", "prefix", "regex", "present", "absent")), value=WORDS
)
query_matches = st.builds(
    ValueMatch,
    name=st.sampled_from(("q", "r")),
    kind=st.sampled_from(("exact", "prefix", "present", "absent")),
    value=WORDS,
)
matches = st.builds(
    Match,
    path=st.none() | path_matches,
    method=st.just("") | METHODS,
    headers=st.lists(value_matches, max_size=2, unique_by=lambda each: each.name).map(tuple),
    query=st.lists(query_matches, max_size=1).map(tuple),
    authority=st.none() | st.builds(AuthorityMatch, kind=st.just("prefix"), value=st.just("web")),
)
edits = st.builds(
    HeaderEdits,
    set=st.lists(st.tuples(NAMES, WORDS), max_size=1).map(tuple),
    add=st.lists(st.tuples(NAMES, st.sampled_from(("50%", "%REQ(x)%"))), max_size=1).map(tuple),
    remove=st.lists(NAMES, max_size=1).map(tuple),
)
rewrites = st.builds(
    Rewrite,
    host=st.sampled_from(("", "other.example")),
    path=st.none() | st.builds(PathRewrite, kind=st.just("full"), value=PATHS),
)
actions = st.one_of(
    st.fixed_dictionaries({"request_headers": st.none() | edits, "rewrite": st.none() | rewrites}),
    st.fixed_dictionaries({"direct": st.builds(DirectResponse, status=st.sampled_from((200, 404, 503)), body=WORDS)}),
    st.fixed_dictionaries({"redirect": st.builds(Redirect, status=st.sampled_from((301, 307)), host=st.just("new.example"))}),
)  # fmt: skip
rules = st.lists(st.tuples(st.lists(matches, min_size=1, max_size=2).map(tuple), actions), min_size=1, max_size=4)
requests = st.builds(
    lambda method, path, query, fields: (method, path + query, tuple(fields)),
    METHODS,
    PATHS,
    st.sampled_from(("", "?q=a", "?q=ab&r=b", "?r")),
    st.lists(st.tuples(NAMES, WORDS), max_size=3),
)
cases = st.tuples(rules, st.lists(requests, min_size=1, max_size=6))


@dataclass
class Side:
    """One engine before an application of its own."""

    engine: Engine
    port: int
    app: int
    seen: list[bytes] = field(default_factory=list)

    async def ask(self, request: tuple[str, str, tuple[tuple[str, str], ...]]) -> tuple[object, ...]:
        method, target, fields = request
        self.seen.clear()
        lines = (f"{method} {target} HTTP/1.1", "Host: web.shop", *(f"{name}: {value}" for name, value in fields))
        reader, writer = await asyncio.open_connection(LOCALHOST, self.port)
        try:
            writer.write(("\r\n".join(lines) + "\r\n\r\n").encode())
            answer = await receive(reader, is_head=method == "HEAD")
        finally:
            writer.close()
        return _class(answer), [_as_message(head) for head in self.seen]


def _class(answer: Answer) -> tuple[int, bytes]:
    location = next((line for line in answer.head.split(b"\r\n") if line.lower().startswith(b"location:")), b"")
    return answer.status, location.partition(b":")[2].strip()


def _as_message(head: bytes) -> tuple[bytes, dict[bytes, bytes]]:
    """Fields of one name are one list (RFC 9110, 5.3)."""
    line, *lines = head.split(b"\r\n\r\n")[0].split(b"\r\n")
    fields: dict[bytes, bytes] = {}
    for name, _, value in (each.partition(b":") for each in lines):
        key = name.lower()
        if key.decode() not in MADE:
            fields[key] = b",".join((fields[key], value.strip())) if key in fields else value.strip()
    return line, fields


@contextlib.asynccontextmanager
async def side(engine: Engine) -> AsyncIterator[Side]:
    seen: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                seen.append(await reader.readuntil(b"\r\n\r\n"))
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    server, port = await asyncio.start_server(serve, LOCALHOST, 0), free_port()
    await engine.start(Address(host=LOCALHOST, inbound={}, outbound=port))
    app = int(server.sockets[0].getsockname()[1])
    engine.endpoints({"web.shop:80": [endpoint(app)]}, full=True)
    try:
        yield Side(engine, port, app, seen)
    finally:
        await engine.drain(0)
        server.close()


def served(drawn: list[tuple[tuple[Match, ...], dict[str, object]]]) -> HostRoutes:
    every = []
    for number, (found, action) in enumerate(drawn):
        forwards = "direct" not in action and "redirect" not in action
        targets = to("web.shop:80").backends if forwards else ()
        every.append(Rule(name=f"r{number}", matches=found, backends=targets, **action))  # type: ignore[arg-type]
    return HostRoutes(host="web.shop", port=80, rules=(*every, to("web.shop:80", name="rest")))


async def compared(sides: tuple[Side, Side], case: tuple[list[object], list[object]]) -> str:
    """Where the two engines differ; empty: nowhere."""
    drawn, asked = case
    made = config(listeners(), served(drawn), backend())  # type: ignore[arg-type]
    for each in sides:
        each.engine.apply(made, None, 0)
        await settled(each.engine)
    for request in asked:
        one, other = [await each.ask(request) for each in sides]  # type: ignore[arg-type]
        if one != other:
            return f"{request}: python {one}, envoy {other}"
    return ""


def test_random_rules_and_requests_end_alike_on_both_engines() -> None:
    with asyncio.Runner() as runner:
        stack = contextlib.AsyncExitStack()
        engines = (PythonEngine(log=len), EnvoyEngine(ENVIRONMENT))
        try:
            sides = tuple(runner.run(stack.enter_async_context(side(engine))) for engine in engines)
            ends, told, count = monotonic() + SECONDS, list[str](), 0

            def differs(case: tuple[list[object], list[object]]) -> bool:
                nonlocal count
                if monotonic() > ends:
                    return False
                count += 1
                found = runner.run(compared((sides[0], sides[1]), case))
                if found:
                    told.append(found)
                return bool(found)

            wanted = settings(
                max_examples=100_000 if SECONDS > 60 else 300,
                deadline=None,
                derandomize=SECONDS <= 60,
                database=None,
                phases=(Phase.generate,),
                suppress_health_check=list(HealthCheck),
            )
            with contextlib.suppress(NoSuchExample):
                find(cases, differs, settings=wanted)
            assert told == []
            assert count >= 3
        finally:
            runner.run(stack.aclose())
