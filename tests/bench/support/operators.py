"""An operator as a process of its own, and when the API says that a commit is live."""

import asyncio
import contextlib
import os
import sysconfig
import time
from pathlib import Path
from typing import Any

import psutil

from backstay.adapters.kubernetes.client import ApiClient
from backstay.core.resources import MESH_REPOSITORY
from backstay.settings import KubernetesSettings
from bench.support.image import ROOT, interpreter


class OperatorProcess:
    """`backstay operator` with these settings, by an interpreter that is built like its image's: with optimization."""

    def __init__(self, settings: KubernetesSettings, log: Path) -> None:
        self.settings = settings
        self.log = log
        self.process: psutil.Process | None = None

    async def start(self) -> None:
        found = self.settings
        ports = {
            "control": found.control_port, "injection": found.injection_port, "metrics": found.metrics_port,
            "hooks": found.hooks_port,
        }  # fmt: skip
        process = await asyncio.create_subprocess_exec(
            *(
                interpreter(),
                "-m",
                "backstay.cli.main",
                "operator",
                "--pod",
                found.pod,
                "--namespace",
                found.namespace,
            ),
            *("--operator-class", found.operator_class, "--kubeconfig", str(found.kubeconfig)),
            *("--cache-dir", str(found.cache_dir), "--run-dir", str(found.run_dir)),
            *("--host", found.host, "--log-level", "warning"),
            *(text for name, port in ports.items() for text in (f"--{name}-port", str(port))),
            stderr=self.log.open("wb"),
            env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT / "operator"), sysconfig.get_path("purelib")])},
        )
        self.process = psutil.Process(process.pid)

    def stop(self) -> None:
        if self.process is not None and self.process.is_running():
            self.process.terminate()
            with contextlib.suppress(psutil.TimeoutExpired):
                self.process.wait(30)


async def until_live(client: ApiClient, namespace: str, sha: str, patience: float) -> float:
    """When the API first said that this commit is live and Ready."""
    path = MESH_REPOSITORY.path(namespace)
    ends = time.monotonic() + patience
    while time.monotonic() < ends:
        listed = await client.list(path)
        if any(_is_live(item, sha) for item in listed.items):
            return time.monotonic()
        version = listed.resource_version
        async with contextlib.aclosing(client.watch(path, resource_version=version, seconds=5)) as changes:
            async for change in changes:
                if change.kind != "BOOKMARK" and _is_live(change.object, sha):
                    return time.monotonic()
    said = [(item.get("status") or {}).get("conditions") for item in (await client.list(path)).items]
    raise SystemExit(f"bench-kubernetes: {sha[:12]} was not Ready after {patience:.0f} s: {said}")


def _is_live(found: dict[str, Any], sha: str) -> bool:
    status = found.get("status") or {}
    ready: dict[str, Any] = next((item for item in status.get("conditions") or () if item["type"] == "Ready"), {})
    return ready.get("status") == "True" and str(status.get("lastAppliedRevision", "")).endswith(sha)
