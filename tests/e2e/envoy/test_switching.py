"""A proxy that changes its engine while it is asked: to Envoy and back, and no request fails."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

import pytest

from backstay.config.model import Config, Listeners
from backstay.sidecar.engine import Address, ContentRefused, Engine, settled
from backstay.sidecar.engines.envoy import EnvoyEngine
from backstay.sidecar.engines.python import PythonEngine
from backstay.sidecar.switching import Switching
from e2e.engine.mesh import (
    LOCALHOST,
    application,
    backend,
    config,
    endpoint,
    free_port,
    get,
    listeners,
    replying,
    routes,
    send,
    to,
)

from .world import ENVIRONMENT, PATIENCE


def make(name: str, beside: bool) -> Engine:
    return EnvoyEngine(ENVIRONMENT, beside=beside) if name == "envoy" else PythonEngine(log=len, beside=beside)


def with_no_envoy(name: str, beside: bool) -> Engine:
    nowhere = {"PATH": "", "ENVOY_BIN": "/nonexistent/envoy"}
    return EnvoyEngine(nowhere, beside=beside) if name == "envoy" else PythonEngine(log=len, beside=beside)


def served_by(engine: str) -> Config:
    return config(listeners(engine=engine), routes(to("web.shop:80")), backend())


@dataclass
class Visitors:
    """Ask without a pause, each time over a new connection: those meet closing ports."""

    port: int
    statuses: list[int] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    async def ask(self) -> None:
        while True:
            try:
                async with asyncio.timeout(PATIENCE):
                    self.statuses.append((await send(self.port, get())).status)
            except (OSError, EOFError, TimeoutError) as error:
                self.failures.append(repr(error))
            await asyncio.sleep(0.005)

    async def more(self, count: int = 20) -> None:
        wanted = len(self.statuses) + count
        async with asyncio.timeout(PATIENCE):
            while len(self.statuses) < wanted:
                await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def proxy(app: int, making: Callable[[str, bool], Engine] = make) -> AsyncIterator[tuple[Switching, int]]:
    engine, port = Switching("python", making, drain_s=5), free_port()
    await engine.start(Address(host=LOCALHOST, inbound={}, outbound=port))
    engine.endpoints({"web.shop:80": [endpoint(app)]}, full=True)
    try:
        yield engine, port
    finally:
        await engine.drain(0)


@contextlib.asynccontextmanager
async def visited(port: int) -> AsyncIterator[Visitors]:
    visitors = Visitors(port)
    asking = [asyncio.create_task(visitors.ask()) for _ in range(2)]
    try:
        yield visitors
    finally:
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)


@pytest.mark.long
async def test_no_request_fails_while_a_proxy_changes_to_envoy_and_back() -> None:
    async with application(replying(b"hello")) as app, proxy(app) as (engine, port):
        engine.apply(served_by("python"), None, 0)
        async with visited(port) as visitors:
            await visitors.more()
            engine.apply(served_by("python"), served_by("envoy"), 0.25)
            await settled(engine)
            assert (engine.name, engine.capabilities) == ("envoy", ())
            await visitors.more()
            engine.apply(served_by("python"), None, 0)
            await settled(engine)
            assert engine.name == "python"
            await visitors.more()
        assert (set(visitors.statuses), visitors.failures) == ({200}, [])


async def test_an_engine_that_is_not_there_is_refused_and_the_other_one_goes_on() -> None:
    async with application(replying(b"hello")) as app, proxy(app, with_no_envoy) as (engine, port):
        engine.apply(served_by(""), None, 0)
        async with visited(port) as visitors:
            engine.apply(served_by(""), served_by("envoy"), 1)
            with pytest.raises(ContentRefused) as refused:
                await settled(engine)
            await visitors.more()
        assert refused.value.reason == "EngineUnavailable"
        assert "ENVOY_BIN" in str(refused.value)
        assert (engine.name, set(visitors.statuses), visitors.failures) == ("python", {200}, [])


def test_what_a_config_says_of_its_engine_is_in_its_listeners() -> None:
    part = served_by("envoy").parts["listeners"]
    assert isinstance(part, Listeners)
    assert part.engine == "envoy"
