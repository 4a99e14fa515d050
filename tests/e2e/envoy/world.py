"""Envoy engines on real sockets, with certificates, beside applications of this process."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

from backstay.config.wire import Row
from backstay.sidecar.engine import Address, ExplicitListener
from backstay.sidecar.engines.envoy import EnvoyEngine
from backstay.sidecar.engines.envoy.admin import Admin
from e2e.engine.mesh import LOCALHOST, free_port

PATIENCE = 30.0  # seconds for what a busy machine may take long over
ENVIRONMENT = {"BACKSTAY_ENVOY_CONCURRENCY": "1", "PATH": "/usr/bin:/bin"}


@dataclass
class Proxy:
    """A started engine, where it listens, and the rows it has reported so far."""

    engine: EnvoyEngine
    outbound: int
    inbound: dict[int, int]
    explicit: int = 0
    rows: list[Row] = field(default_factory=list)

    async def asked(self, path: str) -> str:
        """What Envoy's admin interface says."""
        return await Admin(self.engine.world.folder.admin).get(path)

    async def counted(self, wanted: Callable[[list[Row]], bool]) -> list[Row]:
        """Rows once they are what is waited for."""
        async with asyncio.timeout(PATIENCE):
            while not wanted(self.rows):
                await asyncio.sleep(0.05)
                self.rows += self.engine.collect().rows
        return self.rows


@contextlib.asynccontextmanager
async def proxy(*app_ports: int, explicit: tuple[str, int] | None = None) -> AsyncIterator[Proxy]:
    engine = EnvoyEngine(ENVIRONMENT)
    fixed = free_port() if explicit else 0
    running = Proxy(engine, free_port(), {port: free_port() for port in app_ports}, fixed)
    listener = (ExplicitListener(listen=fixed, host=explicit[0], port=explicit[1]),) if explicit else ()
    address = Address(host=LOCALHOST, inbound=running.inbound, outbound=running.outbound, explicit=listener)
    await engine.start(address)
    try:
        yield running
    finally:
        await engine.drain(0)


async def eventually(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not holds():
            await asyncio.sleep(0.05)
