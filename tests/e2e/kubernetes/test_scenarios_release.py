"""Another release is rolled out under sidecars that stay."""

import asyncio
from collections.abc import Iterator
from typing import Final

import pytest

from backstay import __version__
from cluster import builds
from e2e.kubernetes.stage import LIVE, OPERATOR, Shop, install, wait_operator

pytestmark = [pytest.mark.long, pytest.mark.timeout(900, func_only=True)]
LONGER: Final = 240.0
NEXT: Final = "0.2.0"
CONNECT: Final = "milliseconds(spec.connections.connect_timeout)"
EDITS: Final = (
    ("__init__.py", f'"{__version__}"', f'"{NEXT}"'),
    # Another compiler: each way to a service gets a millisecond more.
    ("core/compile/outbound.py", CONNECT, f"1 + {CONNECT}"),
)


@pytest.fixture
def another_release(mesh: Shop) -> Iterator[str]:
    """The image of another release on the node; afterwards the operator is this checkout's again."""
    if mesh.stage.reach.ours is None:
        pytest.skip("how an image gets on the nodes of this cluster is between its owner and a registry")
    mesh.stage.reach.ours.load(builds.edition("operator", "next", EDITS, print))
    yield "backstay-operator:next"
    install(mesh.stage.reach)


async def test_another_compiler_goes_out_in_waves_while_old_sidecars_stay(mesh: Shop, another_release: str) -> None:
    pods = await proxies(mesh)
    mark, commit = mesh.mark(), mesh.stage.clone.git("rev-parse", "HEAD")
    mesh.system(f"set image {OPERATOR} operator={another_release}")
    await asyncio.to_thread(wait_operator, mesh.stage.reach)
    steps = await mesh.steps_until(lambda step: step.object["status"].get("operator", {}).get("version") == NEXT)
    steps += await mesh.steps_until(lambda step: step.seen.get("Reconciling"))
    steps += await mesh.steps_until(lambda step: step.seen.get("Ready") == "True/Succeeded", LONGER)
    seen = {step.object["status"].get("phase", "") for step in steps}
    assert any({f"wave {n + 1}/{last}" for n in range(last)} <= seen for last in (2, 3)), seen
    ended = await mesh.until_rollout(commit, lambda status: status["phase"] in LIVE)
    assert ended["spec"]["cause"]["kind"] == "upgrade"
    await mesh.until_programmed()
    assert await proxies(mesh) == pods, "no sidecar was restarted"
    mesh.nobody_harmed_since(mark)


async def proxies(mesh: Shop) -> dict[str, int]:
    """Pod -> how often its sidecar was restarted."""
    labels = "app in (sa-webapp,sa-logic,visitors)"
    listed = await mesh.client.list(f"/api/v1/namespaces/{mesh.name}/pods", labels=labels)
    return {
        each["metadata"]["name"]: sum(
            status["restartCount"]
            for status in each["status"].get("initContainerStatuses", ())
            if status["name"] == "backstay-proxy"
        )
        for each in listed.items
    }
