"""An issuer changes its key: the first token of the new one makes the operator ask again, and no commit is needed.

Real: the reconciler, the control server, the fetch over HTTP, a sidecar process, every socket between them. Only git, the disk
and the clock's 30 seconds between fetches are not.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

from backstay.adapters.keysets import HttpKeySets
from backstay.reconciler.keys import ASKED_SECONDS
from backstay.reconciler.loop import LoopSettings, Ports, Reconciler
from backstay.tasks import spawn, stop
from conformance.security import signing
from e2e.engine.mesh import application, free_port, get, replying, send
from ports.fakes import FakeDisk, FakeRepo, FakeStore
from support.control_world import World
from support.meshes import registry, workload
from support.world import FakePlatform

WITHIN = 60.0  # seconds; it takes two

DOCUMENTS = """
apiVersion: backstay.dev/v1alpha1
kind: Mesh
metadata: {name: mesh}
spec: {}
---
apiVersion: backstay.dev/v1alpha1
kind: Authentication
metadata: {name: users, namespace: shop}
spec: {jwt: {providers: [{issuer: "https://issuer.example", jwksUri: "ADDRESS"}]}}
"""


class Clock:
    """The machine's, some seconds ahead."""

    ahead = 0.0

    def monotonic(self) -> float:
        return time.monotonic() + self.ahead

    def wall(self) -> float:
        return time.time() + self.ahead


class Issuer:
    """Serves its keys, and counts who asks."""

    def __init__(self) -> None:
        self.keys = ["ec"]
        self.asked = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        self.asked += 1
        body = signing.key_set(list(self.keys)).encode()
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%b" % (len(body), body))
        await writer.drain()


@contextlib.asynccontextmanager
async def operator(world: World, clock: Clock, jwks: int, inbound: int) -> AsyncIterator[Reconciler]:
    server = (await world.operator()).server
    repo, store = FakeRepo(), FakeStore(FakeDisk())
    repo.commit({"mesh.yaml": DOCUMENTS.replace("ADDRESS", f"http://127.0.0.1:{jwks}/keys").encode()}, "first")
    found = registry(("logic",), [workload("logic", "logic")])
    here = replace(found.instances["logic-0"], id="logic-1", address="127.0.0.1", inbound={8080: inbound})
    ports = Ports(
        source=repo,
        store=store,
        fleet=server,
        platform=FakePlatform(replace(found, instances={here.id: here})),
        authority=world.operators[0].ca,
        clock=clock,
        key_sources=HttpKeySets(),
    )
    mesh = Reconciler(LoopSettings(mesh="m", url="repo", default_namespace="shop"), ports, await store.claim())
    server.wake = mesh.wake
    await mesh.start()
    running = spawn(mesh.run(), name="reconciler")
    try:
        yield mesh
    finally:
        await stop(running)
        await mesh.close()


async def until_answered(port: int, key: str, status: int) -> None:
    """Ask with a token by this key until it is answered so."""
    token = signing.token({"by": key})
    async with asyncio.timeout(WITHIN):
        while True:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):  # until there is a proxy
                if (await send(port, get(headers=[f"Authorization: Bearer {token}"]))).status == status:
                    return
            await asyncio.sleep(0.05)


async def test_a_token_by_a_new_key_is_believed_without_a_commit(tmp_path: Path) -> None:
    issuer, clock, world, inbound = Issuer(), Clock(), World(tmp_path), free_port()
    async with application(issuer.serve) as jwks, application(replying(b"hello")) as app:
        flags = ("--engine", "python", "--outbound", "0", "--inbound", f"8080={inbound}", "--app-ports", f"8080={app}")
        try:
            async with operator(world, clock, jwks, inbound) as mesh:
                await world.sidecar("logic-1", *flags)
                await until_answered(inbound, "ec", 200)
                await until_answered(inbound, "ed", 401)
                asked = issuer.asked
                issuer.keys = ["ec", "ed"]
                clock.ahead = ASKED_SECONDS
                revisions = [record.sha for record in mesh.view().state.revisions]
                await until_answered(inbound, "ed", 200)
                assert issuer.asked == asked + 1  # not once a token
                assert [record.sha for record in mesh.view().state.revisions] == revisions
                await until_answered(inbound, "ec", 200)
        finally:
            await world.close()
