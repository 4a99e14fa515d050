"""Several processes that are one sidecar: they share ports, counters and configs, and none of them is missed when it goes."""

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest

from backstay.config.model import Config, GatewayListener
from backstay.config.standalone import ConfigFile
from backstay.sidecar.engine import Address, ContentRefused, Engine, deaths, settled
from backstay.sidecar.engines.python import PythonEngine, new_event_loop
from backstay.sidecar.switching import Switching
from backstay.sidecar.workers.parent import Workers
from e2e.engine.mesh import (
    LOCALHOST,
    application,
    backend,
    config,
    endpoint,
    free_port,
    get,
    listeners,
    read_message,
    replying,
    routes,
    send,
    to,
    until,
)

WITHIN = 60.0  # seconds; processes start in half of one, on a busy machine in ten


@dataclass
class Sidecar:
    engine: Workers
    outbound: int

    def counts(self) -> dict[str, int]:
        """Requests by process, as each one's own metrics have it."""
        found = {}
        for slot in self.engine._slots:
            assert slot.worker is not None
            text = slot.worker.ask("metrics", False).text
            found[str(slot.worker.process.pid)] = requests_in(text)
        return found

    @property
    def total(self) -> int:
        return requests_in(self.engine.metrics().decode())

    def reported(self) -> int:
        return sum(row.total for row in self.engine.collect().rows)


def requests_in(text: str) -> int:
    lines = (line for line in text.splitlines() if line.startswith("istio_requests_total{"))
    return sum(int(line.rsplit(" ", 1)[1]) for line in lines)


@contextlib.asynccontextmanager
async def sidecar(count: int = 2) -> AsyncIterator[Sidecar]:
    running = Sidecar(Workers(count), free_port())
    await running.engine.start(Address(host=LOCALHOST, inbound={}, outbound=running.outbound))
    try:
        yield running
    finally:
        await running.engine.drain(0)


def serving(app: int) -> Config:
    return config(listeners(), routes(to("web.shop:80")), backend())


def ready(running: Sidecar, app: int) -> None:
    running.engine.apply(serving(app), None, 0.0)
    running.engine.endpoints({"web.shop:80": [endpoint(app)]}, full=True)


async def ask(running: Sidecar) -> int:
    """One request on a connection of its own, which may have to wait for a process to start."""
    reader, writer = await asyncio.open_connection(LOCALHOST, running.outbound)
    try:
        writer.write(get(host="web.shop"))
        async with asyncio.timeout(WITHIN):
            head, _ = await read_message(reader)
    finally:
        writer.close()
    return int(head.split(b" ")[1])


async def test_all_processes_take_traffic_and_their_counters_are_one() -> None:
    async with application(replying(b"hello")) as app, sidecar() as running:
        ready(running, app)
        asked = 0
        async with asyncio.timeout(WITHIN):
            while min(running.counts().values()) == 0:  # the kernel spreads connections by their ports
                assert await ask(running) == 200
                asked += 1
        assert len(running.counts()) == 2
        assert running.total == asked
        assert running.reported() == asked
        assert running.reported() == 0


async def test_a_process_that_dies_has_a_successor_and_its_counts_stay() -> None:
    async with application(replying(b"hello")) as app, sidecar() as running:
        ready(running, app)
        for _ in range(20):
            assert await ask(running) == 200
        assert running.total == 20
        victim, other = running.engine.processes
        os.kill(victim, signal.SIGKILL)
        await until(lambda: victim not in running.engine.processes)
        # What is in the queue of the one that died waits for its successor: nobody is refused.
        assert await asyncio.gather(*(ask(running) for _ in range(20))) == [200] * 20
        await until(lambda: len(running.engine.processes) == 2)
        assert other in running.engine.processes
        assert victim not in running.engine.processes
        assert (running.engine.restarts, deaths(running.engine), running.total) == (1, 1, 40)


async def test_processes_are_replaced_under_traffic_and_no_request_fails() -> None:
    async with application(replying(b"hello")) as app, sidecar() as running:
        ready(running, app)
        done, answers = asyncio.Event(), Counter[int]()

        async def client() -> None:
            while not done.is_set():
                answers[await ask(running)] += 1

        clients = [asyncio.ensure_future(client()) for _ in range(4)]
        before = set(running.engine.processes)
        await running.engine.replace(WITHIN)
        assert not before & set(running.engine.processes)
        await until(lambda: not running.engine._leaving)
        done.set()
        await asyncio.gather(*clients)
        assert answers.keys() == {200}
        assert running.total == answers[200]
        assert running.reported() == answers[200]


async def test_a_config_that_cannot_be_served_is_refused_by_all_and_changes_nothing() -> None:
    async with application(replying(b"hello")) as app, sidecar() as running:
        ready(running, app)
        wrong = config(listeners(), routes(to("gone.shop:80")))
        with pytest.raises(ContentRefused) as refused:
            running.engine.apply(wrong, None, 0.0)
        assert refused.value.reason == "MissingBackend"
        assert [await ask(running) for _ in range(10)] == [200] * 10
        assert running.engine.restarts == 0


async def test_a_gateways_port_is_opened_in_all_and_closed_again() -> None:
    async with application(replying(b"hello")) as app, sidecar() as running:
        port = free_port()
        gateway = listeners(gateway=(GatewayListener(name="shop/gw/http", port=port),))
        ingress = msgspec.structs.replace(routes(to("web.shop:80"), host="*", port=port), gateway=True)
        running.engine.apply(config(gateway, ingress, backend()), None, 0.0)
        running.engine.endpoints({"web.shop:80": [endpoint(app)]}, full=True)
        assert [(await send(port, get(host="any.example"))).status for _ in range(10)] == [200] * 10
        running.engine.apply(serving(app), None, 0.0)
        with pytest.raises(ConnectionError):
            await send(port, get(host="any.example"))


@pytest.mark.skipif(sys.platform != "linux", reason="ports are shared on Linux only")
async def test_another_engine_and_workers_take_over_from_each_other_under_traffic() -> None:
    def make(name: str, beside: bool) -> Engine:
        return Workers(2, beside=beside) if name == "python" else PythonEngine(log=len, beside=beside)

    engine, outbound, gateway = Switching("python", make, drain_s=WITHIN), free_port(), free_port()
    ingress = msgspec.structs.replace(routes(to("web.shop:80"), host="*", port=gateway), gateway=True)

    def asking(name: str) -> Config:
        listening = listeners(engine=name, gateway=(GatewayListener(name="shop/gw/http", port=gateway),))
        return config(listening, ingress, routes(to("web.shop:80")), backend())

    done, answers = asyncio.Event(), Counter[int]()

    async def client(port: int) -> None:
        while not done.is_set():
            answers[(await send(port, get(host="web.shop"))).status] += 1

    async with application(replying(b"hello")) as app:
        await engine.start(Address(host=LOCALHOST, inbound={}, outbound=outbound))
        try:
            engine.endpoints({"web.shop:80": [endpoint(app)]}, full=True)
            engine.apply(asking("python"), None, 0.0)
            clients = [asyncio.ensure_future(client(port)) for port in (outbound, gateway)]
            kinds = []
            for name in ("envoy", "python"):
                engine.apply(asking(name), None, 0.0)
                await settled(engine)
                kinds.append(type(engine.current))
            done.set()
            await asyncio.gather(*clients)
        finally:
            await engine.drain(0)
    assert (kinds, set(answers)) == ([PythonEngine, Workers], {200})


async def test_a_port_of_another_process_is_not_shared_with_it() -> None:
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind((LOCALHOST, 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(OSError, match=f"cannot listen on {LOCALHOST}:{port}"):
            await Workers(2).start(Address(host=LOCALHOST, inbound={}, outbound=port))


async def test_the_program_runs_with_workers_and_ends_with_them(tmp_path: Path) -> None:
    async with application(replying(b"hello")) as app:
        path, outbound, admin = tmp_path / "config.json", free_port(), free_port()
        found = ConfigFile(
            workload="shop/client",
            parts=[listeners(), routes(to("web.shop:80")), backend()],
            endpoints={"web.shop:80": [endpoint(app)]},
        )
        path.write_bytes(msgspec.json.encode(found))
        flags = {
            "proxy": "client-1", "state": str(tmp_path / "state"), "config": str(path), "concurrency": "2",
            "outbound": str(outbound), "admin-port": str(admin), "health-port": "0", "prometheus-port": "0",
        }  # fmt: skip
        command = [part for name, value in flags.items() for part in (f"--{name}", value)]
        process = await asyncio.create_subprocess_exec(sys.executable, "-m", "backstay.sidecar", *command)
        try:
            await until(lambda: is_open(admin))
            assert (await send(outbound, get(host="web.shop"))).status == 200
            metrics = (await send(admin, b"GET /metrics HTTP/1.1\r\n\r\n")).body.decode()
            assert requests_in(metrics) == 1
            assert "backstay_workers 2\n" in metrics
            process.send_signal(signal.SIGUSR2)
            process.send_signal(signal.SIGTERM)
            async with asyncio.timeout(WITHIN):
                assert await process.wait() == 0
            with pytest.raises(ConnectionError):
                await send(outbound, get(host="web.shop"))
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()


async def test_one_process_hands_its_sockets_over_under_traffic_and_no_request_fails(tmp_path: Path) -> None:
    """By SIGUSR2, twice: what was one process is a parent and its only worker, and then another worker."""
    async with application(replying(b"hello")) as app:
        path, gateway, outbound, admin = tmp_path / "config.json", free_port(), free_port(), free_port()
        ingress = msgspec.structs.replace(routes(to("web.shop:80"), host="*", port=gateway), gateway=True)
        listening = listeners(gateway=(GatewayListener(name="shop/gw/http", port=gateway),))
        found = ConfigFile(
            workload="shop/client",
            parts=[listening, ingress, routes(to("web.shop:80")), backend()],
            endpoints={"web.shop:80": [endpoint(app)]},
        )
        path.write_bytes(msgspec.json.encode(found))
        command = [
            *("--config", str(path), "--outbound", str(outbound), "--admin-port", str(admin)),
            *("--health-port", "0", "--prometheus-port", "0"),
        ]
        process = await asyncio.create_subprocess_exec(sys.executable, "-m", "backstay.sidecar", *command)
        done, answers = asyncio.Event(), Counter[int]()

        async def client(port: int) -> None:
            while not done.is_set():  # each time over a new connection: those meet the handover
                answers[(await send(port, get(host="web.shop"))).status] += 1

        async def worker(*, other_than: str = "") -> str:
            async with asyncio.timeout(WITHIN):
                while True:
                    line = (await send(admin, get("/clusters"))).body.decode().partition("\n")[0]
                    if line.startswith("worker::") and line != other_than:
                        return line
                    await asyncio.sleep(0.02)

        try:
            await until(lambda: is_open(admin))
            clients = [asyncio.ensure_future(client(port)) for port in (gateway, outbound)]
            process.send_signal(signal.SIGUSR2)
            first = await worker()
            process.send_signal(signal.SIGUSR2)
            await worker(other_than=first)
            done.set()
            await asyncio.gather(*clients)
            assert answers.keys() == {200}
            path.write_bytes(msgspec.json.encode(msgspec.structs.replace(found, endpoints={})))
            async with asyncio.timeout(WITHIN):
                while (await send(outbound, get(host="web.shop"))).status != 503:
                    await asyncio.sleep(0.02)
            process.terminate()
            async with asyncio.timeout(WITHIN):
                assert await process.wait() == 0
            assert not is_open(outbound)
            assert not is_open(gateway)
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()


def is_open(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex((LOCALHOST, port)) == 0


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {"best": new_event_loop}
