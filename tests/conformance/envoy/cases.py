"""The cases of the other folders, a whole group through one Envoy, and the differences that are known (differences.yaml)."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final, TypeAlias

import yaml

from backstay.config.model import Part
from backstay.config.wire import Endpoint
from backstay.sidecar.engine import Address, settled
from backstay.sidecar.engines.envoy import EnvoyEngine
from e2e.engine.mesh import LOCALHOST, config, free_port

Serve: TypeAlias = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

HERE: Final = Path(__file__).parent
FOLDERS: Final = HERE.parent
CONCURRENCY: Final = {"BACKSTAY_ENVOY_CONCURRENCY": "1", "PATH": "/usr/bin:/bin"}


def engine() -> EnvoyEngine:
    return EnvoyEngine(CONCURRENCY)


@contextlib.asynccontextmanager
async def before(serve: Serve, parts: Iterable[Part]) -> AsyncIterator[tuple[EnvoyEngine, int]]:
    """An Envoy that serves these parts before an application of `web.shop`, and the port it listens at."""
    running, port = engine(), free_port()
    server = await asyncio.start_server(serve, LOCALHOST, 0)
    await running.start(Address(host=LOCALHOST, inbound={}, outbound=port))
    try:
        running.apply(config(*parts), None, 0)
        endpoint = Endpoint(id="app", address=LOCALHOST, port=server.sockets[0].getsockname()[1])
        running.endpoints({"web.shop:80": [endpoint]}, full=True)
        await settled(running)
        yield running, port
    finally:
        await running.drain(0)
        server.close()


def groups(file: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = yaml.safe_load((FOLDERS / file).read_text(encoding="utf-8"))
    return found


def known(file: str) -> Mapping[str, str]:
    """Case -> why Envoy does otherwise."""
    every: dict[str, dict[str, str]] = yaml.safe_load((HERE / "differences.yaml").read_text(encoding="utf-8"))
    return every.get(file, {})
