"""The local platform under a real operator: real sidecars enrol, carry requests, and outlive both of us."""

import asyncio
import json
import subprocess
import textwrap
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from backstay.adapters.processes import LocalPlatform
from backstay.app import LocalOperator
from backstay.settings import LocalSettings, SourceSettings
from backstay.tasks import spawn, stop

SERVE = """
import http.server, json, os
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = json.dumps({"pid": os.getpid(), "instance": os.environ["BACKSTAY_INSTANCE"]}).encode()
        self.send_response(200); self.send_header("Content-Length", str(len(body))); self.end_headers()
        self.wfile.write(body)
    def log_message(self, *args): pass
http.server.ThreadingHTTPServer((os.environ["HOST"], int(os.environ["PORT"])), Handler).serve_forever()
"""
WORKLOADS = """
namespace: shop
services: [{name: web, ports: [{port: 80, targetPort: 5000}]}]
workloads:
- {name: web, services: [web], command: ["{python}", "{dir}/serve.py"], reaches: []}
- {name: client, command: [sleep, "1000"], reaches: [web], listen: [{localPort: 8181, host: web}]}
"""
INTENTS = """
apiVersion: backstay.dev/v1alpha1
kind: Authentication
metadata: {name: everybody, namespace: shop}
spec: {mtls: {mode: STRICT}}
"""


@pytest.fixture
def settings(tmp_path: Path) -> LocalSettings:
    repository = tmp_path / "mesh"
    repository.mkdir()
    (repository / "intents.yaml").write_text(textwrap.dedent(INTENTS))
    (tmp_path / "serve.py").write_text(SERVE)
    (tmp_path / "workloads.yaml").write_text(WORKLOADS)
    git = ["git", "-C", str(repository), "-c", "user.name=T", "-c", "user.email=t@example.com"]
    environment = {"PATH": "/usr/bin:/bin", "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_NOSYSTEM": "1"}
    for command in (["init", "-q", "-b", "main"], ["add", "-A"], ["commit", "-q", "-m", "first"]):
        subprocess.run([*git, *command], check=True, env=environment)
    return LocalSettings(
        source=SourceSettings(url=str(repository)),
        workloads=tmp_path / "workloads.yaml",
        state_dir=tmp_path / "state",
        leave_running=True,
    )


@asynccontextmanager
async def operating(settings: LocalSettings, *, one_address: bool = False) -> AsyncIterator[LocalPlatform]:
    """A whole operator; at its end the processes stay, as after a crash."""
    operator = LocalOperator(settings)
    operator.platform = LocalPlatform(settings.workloads, settings.state_dir / "p", one_address=one_address or None)
    task = None
    try:
        await operator.start()
        task = spawn(operator.run(), name="operator")
        yield operator.platform
    finally:
        await stop(task)
        await operator.close()


async def ended(settings: LocalSettings, *, one_address: bool = False) -> None:
    async with operating(settings, one_address=one_address) as platform:
        await platform.close()


async def asked(platform: LocalPlatform, *, limit: float = 30.0) -> dict[str, str | int]:
    """What `web` answers to a client that uses its proxy; asks again until it answers 200."""
    place = platform.place("client-0")
    proxy = f"http://{place.address}:{place.outbound}"
    async with asyncio.timeout(limit), aiohttp.ClientSession() as session:
        while True:
            async with session.get("http://web/", proxy=proxy) as answer:
                if answer.status == 200:
                    found: dict[str, str | int] = json.loads(await answer.text())
                    return found
            await asyncio.sleep(0.05)


def pids(platform: LocalPlatform, instance: str) -> tuple[int, int]:
    sidecar, app = platform.keepers(instance)
    assert sidecar is not None
    assert sidecar.process is not None
    assert app.process is not None
    return sidecar.process.pid, app.process.pid


@pytest.mark.parametrize("one_address", [False, True], ids=["own-addresses", "one-address"])
async def test_requests_go_through_two_sidecars_with_mutual_tls(settings: LocalSettings, one_address: bool) -> None:
    try:
        async with operating(settings, one_address=one_address) as platform:
            await platform.wait_ready(60)
            assert (await asked(platform))["instance"] == "web-0"
            client, web = platform.place("client-0"), platform.place("web-0")
            explicit = f"http://{client.address}:{client.listeners[8181]}/"
            async with aiohttp.ClientSession() as session:
                async with session.get(explicit) as answer:
                    assert answer.status == 200
                with pytest.raises(aiohttp.ClientError):  # STRICT: no plaintext at the front door
                    await session.get(f"http://{web.address}:{web.inbound[5000]}/")
            tokens = list((settings.state_dir / "p" / "instances").glob("*/token*"))
            assert tokens == [], "no token is left once everybody has enrolled"
    finally:
        await ended(settings, one_address=one_address)


async def test_a_killed_sidecar_comes_back_under_its_running_application(settings: LocalSettings) -> None:
    try:
        async with operating(settings) as platform:
            await platform.wait_ready(60)
            sidecar, app = pids(platform, "web-0")
            platform.kill_instance("web-0", app=False)
            changes = platform.changes()
            async with asyncio.timeout(30):
                while platform.current().instances["web-0"].ready:
                    await anext(changes)
                while not platform.current().instances["web-0"].ready:
                    await anext(changes)
            assert (pids(platform, "web-0")[0] != sidecar, pids(platform, "web-0")[1]) == (True, app)
            assert (await asked(platform))["pid"] == app
    finally:
        await ended(settings)


async def test_the_mesh_carries_on_without_its_operator_and_the_next_one_takes_over(settings: LocalSettings) -> None:
    try:
        async with operating(settings) as platform:
            await platform.wait_ready(60)
            assert (await asked(platform))["instance"] == "web-0"
            before = {instance: pids(platform, instance) for instance in ("web-0", "client-0")}
        assert (await asked(platform))["instance"] == "web-0", "nobody operates now"
        async with operating(settings) as platform:
            await platform.wait_ready(60)
            assert {instance: pids(platform, instance) for instance in ("web-0", "client-0")} == before
            assert (await asked(platform))["instance"] == "web-0"
    finally:
        await ended(settings)
