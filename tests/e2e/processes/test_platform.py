"""The local platform with real processes: what comes, what stays, what goes, and what an operator's death leaves.

The applications here are outside the mesh (no operator is needed for that) or have a stand-in for their sidecar; the
real sidecar under this platform is in tests/e2e/processes/test_mesh.py.
"""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from backstay.adapters.processes import LocalPlatform, OperatorEndpoint, PortTaken, SupervisionSettings
from backstay.adapters.processes.platform import trim
from backstay.adapters.processes.process import start_time
from backstay.core.ports import StateUnavailable
from backstay.core.registry import Instance, Registry

OPERATOR = OperatorEndpoint(url="https://127.0.0.1:1", trust_file=Path("/nowhere.pem"))
QUICK = SupervisionSettings(first_pause=0.05, settle=0.05, grace=2.0)
SERVE = """
import http.server, json, os
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = json.dumps({"pid": os.getpid(), "env": dict(os.environ)}).encode()
        self.send_response(200); self.end_headers(); self.wfile.write(body)
    def log_message(self, *args): pass
print("started", flush=True)
http.server.ThreadingHTTPServer((os.environ["HOST"], int(os.environ["PORT"])), Handler).serve_forever()
"""


def workloads(folder: Path, *, replicas: int = 2, command: str = '["{python}", "{dir}/serve.py"]') -> Path:
    (folder / "serve.py").write_text(SERVE)
    file = folder / "workloads.yaml"
    file.write_text(
        textwrap.dedent(f"""
        namespace: shop
        services: [{{name: web, ports: [{{port: 80, targetPort: 5000}}]}}]
        workloads:
        - {{name: web, services: [web], replicas: {replicas}, sidecar: false, command: {command}, labels: {{v: one}}}}
        """)
    )
    return file


@asynccontextmanager
async def running(file: Path, state: Path, *, one_address: bool | None = None) -> AsyncIterator[LocalPlatform]:
    platform = LocalPlatform(file, state, settings=QUICK, one_address=one_address)
    try:
        await platform.start(OPERATOR)
        yield platform
    finally:
        await platform.close()


async def until(platform: LocalPlatform, condition: Callable[[Registry], bool], limit: float = 20.0) -> Registry:
    """The first registry for which this holds."""
    changes = platform.changes()
    async with asyncio.timeout(limit):
        while not condition(platform.current()):
            await anext(changes)
    return platform.current()


def ready(registry: Registry) -> set[str]:
    return {instance.id for instance in registry.instances.values() if instance.ready}


async def ask(instance: Instance) -> dict[str, dict[str, str]]:
    url = f"http://{instance.address}:{instance.inbound[5000]}/"
    async with aiohttp.ClientSession() as session, session.get(url) as answer:
        found: dict[str, dict[str, str]] = json.loads(await answer.text())
        return found


def pid_of(platform: LocalPlatform, instance: str) -> int:
    process = platform.keepers(instance)[1].process
    assert process is not None
    return process.pid


@pytest.mark.parametrize("one_address", [False, True], ids=["own-addresses", "one-address"])
async def test_processes_of_the_file_run_where_the_registry_says(tmp_path: Path, one_address: bool) -> None:
    async with running(workloads(tmp_path), tmp_path / "state", one_address=one_address) as platform:
        await platform.wait_ready(20)
        registry = await platform.registry()
        assert ready(registry) == {"web-0", "web-1"}
        assert list(registry.services) == ["web.shop"]
        first = registry.instances["web-0"]
        assert (first.workload, first.labels, first.meshed) == ("shop/web", {"v": "one"}, False)
        environments = [(await ask(instance))["env"] for instance in registry.instances.values()]
        assert [env["BACKSTAY_INSTANCE"] for env in environments] == ["web-0", "web-1"]
        assert "HTTP_PROXY" not in environments[0]


async def test_a_killed_process_comes_back_and_the_registry_says_both(tmp_path: Path) -> None:
    async with running(workloads(tmp_path), tmp_path / "state") as platform:
        await platform.wait_ready(20)
        before = platform.current().instances["web-0"]
        old = pid_of(platform, "web-0")
        platform.kill_instance("web-0")
        await until(platform, lambda registry: ready(registry) == {"web-1"})
        registry = await until(platform, lambda registry: ready(registry) == {"web-0", "web-1"})
        assert pid_of(platform, "web-0") != old
        assert registry.instances["web-0"].address == before.address
        assert registry.instances["web-0"].started_at > before.started_at
        assert platform.keepers("web-0")[1].restarts == 1


async def test_a_process_that_cannot_run_is_named_and_tried_again(tmp_path: Path) -> None:
    file = workloads(tmp_path, replicas=1, command='["{dir}/missing"]')
    async with running(file, tmp_path / "state") as platform:
        with pytest.raises(TimeoutError) as caught:
            await platform.wait_ready(0.5)
        assert str(caught.value) == (
            f"not ready after 0.5 s: web-0: application cannot run '{tmp_path}/missing': No such file or directory"
        )
        (tmp_path / "missing").write_text(f"#!/bin/sh\nexec {sys.executable} {tmp_path}/serve.py\n")
        (tmp_path / "missing").chmod(0o755)
        await platform.wait_ready(20)


async def test_scale_adds_and_takes_the_highest_and_is_remembered(tmp_path: Path) -> None:
    file, state = workloads(tmp_path), tmp_path / "state"
    async with running(file, state) as platform:
        await platform.scale("shop/web", 3)
        await until(platform, lambda registry: ready(registry) == {"web-0", "web-1", "web-2"})
        await platform.scale("shop/web", 1)
        assert set(platform.current().instances) == {"web-0"}
        with pytest.raises(KeyError):
            await platform.scale("shop/nobody", 1)
    async with running(file, state) as platform:
        assert set(platform.current().instances) == {"web-0"}


async def test_a_stopped_instance_stays_away_until_it_is_wanted(tmp_path: Path) -> None:
    file, state = workloads(tmp_path), tmp_path / "state"
    async with running(file, state) as platform:
        await platform.wait_ready(20)
        await platform.stop_instance("web-0")
        assert set(platform.current().instances) == {"web-1"}
    async with running(file, state) as platform:
        assert set(platform.current().instances) == {"web-1"}
        await platform.start_instance("web-0")
        await until(platform, lambda registry: ready(registry) == {"web-0", "web-1"})


async def test_the_next_operator_adopts_what_runs_and_ends_it_in_the_end(tmp_path: Path) -> None:
    file, state = workloads(tmp_path), tmp_path / "state"
    first = LocalPlatform(file, state, settings=QUICK)
    await first.start(OPERATOR)
    await first.wait_ready(20)
    pids = [pid_of(first, instance) for instance in ("web-0", "web-1")]
    await first.detach()
    second = LocalPlatform(file, state, settings=QUICK)
    await second.start(OPERATOR)
    assert ready(second.current()) == {"web-0", "web-1"}, "the first registry after a restart is a whole one"
    assert [pid_of(second, instance) for instance in ("web-0", "web-1")] == pids
    second.kill_instance("web-0")
    await until(second, lambda registry: ready(registry) == {"web-1"})
    await until(second, lambda registry: ready(registry) == {"web-0", "web-1"})
    last = [pid_of(second, instance) for instance in ("web-0", "web-1")]
    await second.close()
    assert [start_time(pid) for pid in (*pids, *last)] == ["", "", "", ""]


KILLED = """
import asyncio, sys
from pathlib import Path
from backstay.adapters.processes import LocalPlatform, OperatorEndpoint
async def main():
    platform = LocalPlatform(Path(sys.argv[1]), Path(sys.argv[2]))
    await platform.start(OperatorEndpoint(url="https://127.0.0.1:1", trust_file=Path("/nowhere.pem")))
    await platform.wait_ready(20)
    print("ready", flush=True)
    await asyncio.sleep(60)
asyncio.run(main())
"""


async def test_processes_outlive_a_killed_operator(tmp_path: Path) -> None:
    file, state = workloads(tmp_path), tmp_path / "state"
    operator = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(file), str(state)], stdout=subprocess.PIPE, start_new_session=True
    )
    assert operator.stdout is not None
    assert await asyncio.to_thread(operator.stdout.readline) == b"ready\n"
    os.killpg(operator.pid, signal.SIGKILL)
    operator.wait()
    operator.stdout.close()
    pids = [json.loads((state / "instances" / name / "app.pid").read_bytes())["pid"] for name in ("web-0", "web-1")]
    assert all(start_time(pid) for pid in pids)
    async with running(file, state) as platform:
        assert ready(platform.current()) == {"web-0", "web-1"}
        assert [pid_of(platform, instance) for instance in ("web-0", "web-1")] == pids
    assert [start_time(pid) for pid in pids] == ["", ""]


async def test_what_the_file_no_longer_names_is_ended_and_what_changed_is_replaced(tmp_path: Path) -> None:
    state = tmp_path / "state"
    first = LocalPlatform(workloads(tmp_path), state, settings=QUICK)
    await first.start(OPERATOR)
    await first.wait_ready(20)
    old, gone = pid_of(first, "web-0"), pid_of(first, "web-1")
    await first.detach()
    changed = workloads(tmp_path, replicas=1, command='["{python}", "{dir}/serve.py", "now"]')
    async with running(changed, state) as platform:
        await platform.wait_ready(20)
        assert start_time(gone) == ""
        assert start_time(old) == ""
        assert set(platform.current().instances) == {"web-0"}


async def test_a_foreign_process_with_a_remembered_number_is_left_alone(tmp_path: Path) -> None:
    file, state = workloads(tmp_path, replicas=1), tmp_path / "state"
    async with running(file, state) as platform:
        await platform.wait_ready(20)
    bystander = subprocess.Popen(["sleep", "60"], start_new_session=True)
    try:
        pid_file = state / "instances" / "web-0" / "app.pid"
        written = json.loads(pid_file.read_bytes())
        pid_file.write_text(json.dumps({**written, "pid": bystander.pid}))
        async with running(file, state) as platform:
            await platform.wait_ready(20)
            assert pid_of(platform, "web-0") != bystander.pid
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="strays are only known on Linux")
async def test_a_process_that_was_never_written_down_is_ended(tmp_path: Path) -> None:
    """An operator that is killed between starting a process and writing its pid file."""
    file, state = workloads(tmp_path, replicas=1), tmp_path / "state"
    first = LocalPlatform(file, state, settings=QUICK)
    await first.start(OPERATOR)
    await first.wait_ready(20)
    stray, address = pid_of(first, "web-0"), first.place("web-0").address
    await first.detach()
    (state / "instances" / "web-0" / "app.pid").unlink()
    async with running(file, state) as platform:
        await platform.wait_ready(20)
        assert start_time(stray) == ""
        assert pid_of(platform, "web-0") != stray
        assert platform.place("web-0").address == address


async def test_children_of_an_application_go_with_it(tmp_path: Path) -> None:
    command = '["sh", "-c", "sleep 300 & echo $! > {data}/child; exec {python} {dir}/serve.py"]'
    async with running(workloads(tmp_path, replicas=1, command=command), tmp_path / "state") as platform:
        await platform.wait_ready(20)
        child = int((tmp_path / "state" / "instances" / "web-0" / "data" / "child").read_text())
        assert start_time(child)
    async with asyncio.timeout(5):  # SIGKILL was sent, but nobody waits for a grandchild
        while start_time(child):
            await asyncio.sleep(0.01)


async def test_a_stubborn_application_is_killed_after_its_grace(tmp_path: Path) -> None:
    command = '["sh", "-c", "trap : TERM; while :; do sleep 0.1; done"]'
    file = tmp_path / "workloads.yaml"
    file.write_text(f"workloads: [{{name: deaf, sidecar: false, command: {command}}}]")
    platform = LocalPlatform(file, tmp_path / "state", settings=SupervisionSettings(grace=0.5, settle=0))
    await platform.start(OPERATOR)
    await platform.wait_ready(20)
    pid = pid_of(platform, "deaf-0")
    await asyncio.wait_for(platform.close(), 10)
    assert start_time(pid) == ""


async def test_a_taken_port_is_refused_with_its_holder_before_anything_starts(tmp_path: Path) -> None:
    with socket.create_server(("0.0.0.0", 0)) as server:
        port = server.getsockname()[1]
        file = workloads(tmp_path, replicas=1)
        file.write_text(file.read_text().replace("5000", str(port)))
        platform = LocalPlatform(file, tmp_path / "state", settings=QUICK)
        with pytest.raises(PortTaken) as caught:
            await platform.start(OPERATOR)
    holder = f"pid {os.getpid()} (" if Path("/proc").exists() else "another process"
    assert str(caught.value).startswith(f"web-0: port {port} at {platform.place('web-0').address} is taken by {holder}")
    assert not (tmp_path / "state" / "instances").exists()


async def test_an_unreadable_memory_is_said_and_not_overwritten(tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir()
    (state / "platform.json").write_text("{half")
    platform = LocalPlatform(workloads(tmp_path), state)
    with pytest.raises(StateUnavailable) as caught:
        await platform.start(OPERATOR)
    assert str(caught.value).startswith(f"{state}/platform.json cannot be read (")
    assert (state / "platform.json").read_text() == "{half"


async def test_output_is_kept_and_its_file_starts_again_when_it_is_too_long(tmp_path: Path) -> None:
    command = '["sh", "-c", "while :; do echo tick; sleep 0.02; done"]'
    file = tmp_path / "workloads.yaml"
    file.write_text(f"workloads: [{{name: clock, sidecar: false, command: {command}}}]")
    log = tmp_path / "state" / "instances" / "clock-0" / "app.log"
    async with running(file, tmp_path / "state"):
        async with asyncio.timeout(20):
            while not log.exists() or log.stat().st_size < 50:
                await asyncio.sleep(0.02)
            trim(log, 20)
            while log.stat().st_size < 10:
                await asyncio.sleep(0.02)
        assert log.with_suffix(".log.1").read_text() == "tick\n" * 4
        assert set(log.read_text().split()) == {"tick"}


async def test_only_the_instance_itself_can_enrol_and_only_once(tmp_path: Path) -> None:
    """The sidecar never gets ready (nobody answers at the operator's address), so its token stays good."""
    file = workloads(tmp_path, replicas=1)
    file.write_text(file.read_text().replace("sidecar: false", "serviceAccount: web-account"))
    async with running(file, tmp_path / "state") as platform:
        token_file = tmp_path / "state" / "instances" / "web-0" / "token"
        async with asyncio.timeout(10):
            while not token_file.exists():
                await asyncio.sleep(0.02)
        token = token_file.read_text()
        for proxy, brought, ip, complaint in (
            ("web-9", token, "127.0.0.1", "no instance 'web-9' with a sidecar runs here"),
            ("web-0", token, "192.0.2.1", "'web-0' asked from 192.0.2.1, local instances ask from this machine only"),
            ("web-0", "guess", "127.0.0.1", "'web-0' brought a token that was not issued to it or was used already"),
        ):
            with pytest.raises(PermissionError) as caught:
                await platform.by_token(proxy, brought, ip)
            assert str(caught.value) == complaint
        identity = await platform.by_token("web-0", token, "127.0.0.1")
        spiffe_id = "spiffe://backstay.local/ns/shop/sa/web-account"
        assert (identity.proxy, identity.workload, identity.spiffe_id) == ("web-0", "shop/web", spiffe_id)
        with pytest.raises(PermissionError):
            await platform.by_token("web-0", token, "127.0.0.1")
        assert await platform.by_certificate("web-0", spiffe_id) == identity
        with pytest.raises(PermissionError):
            await platform.by_certificate("web-0", "spiffe://backstay.local/ns/shop/sa/other")
        assert ready(platform.current()) == set(), "the application waits for its sidecar"
        assert not (tmp_path / "state" / "instances" / "web-0" / "app.pid").exists()
