"""Releases come and go: another one is rolled out under sidecars that stay, one that cannot speak with them, and none."""

import asyncio
import json
import time
from collections.abc import Iterator
from typing import Final

import pytest

from backstay import __version__
from backstay.adapters.kubernetes.client import ApiError
from backstay.core.resources import RESOURCES
from cluster import builds
from e2e.kubernetes.stage import LIVE, OPERATOR, STARTS, Shop, install, manifest, until, wait_operator
from support.bootstrap import BOOTSTRAP, SYSTEM

pytestmark = [pytest.mark.long, pytest.mark.timeout(900, func_only=True)]
LONGER: Final = 240.0
NEXT: Final = "0.2.0"
CONNECT: Final = "milliseconds(spec.connections.connect_timeout)"
PROTOCOL: Final = 'int(__import__("os").environ.get("TEST_PROTOCOL", "1"))'
EDITS: Final = (
    ("__init__.py", f'"{__version__}"', f'"{NEXT}"'),
    # Another compiler: each way to a service gets a millisecond more.
    ("core/compile/outbound.py", CONNECT, f"1 + {CONNECT}"),
    *(
        ("config/wire.py", f"{name}: Final = 1\n", f"{name}: Final = {PROTOCOL}\n")
        for name in ("PROTOCOL_MIN", "PROTOCOL_MAX")
    ),
)
"""The release to come, and with TEST_PROTOCOL=9 one far ahead."""
GONE_S: Final = 90.0
"""Seconds for `kubectl delete -k`: namespaces take ten of them."""


@pytest.fixture
def another_release(mesh: Shop) -> Iterator[str]:
    """The image of another release on the node; afterwards the operator is this checkout's again."""
    if mesh.stage.reach.ours is None:
        pytest.skip("how an image gets on the nodes of this cluster is between its owner and a registry")
    mesh.stage.reach.ours.load(builds.edition("operator", "next", EDITS, print))
    yield "backstay-operator:next"
    install(mesh.stage.reach)


async def upgraded(mesh: Shop, image: str, protocol: int = 1) -> None:
    """One update of the Deployment; this checkout's image does not read the variable."""
    variable = {"name": "TEST_PROTOCOL", "value": str(protocol)}
    container = {"name": "operator", "image": image, "env": [variable]}
    patch = {"spec": {"template": {"spec": {"containers": [container]}}}}
    mesh.stage.reach.kubectl("-n", SYSTEM, "patch", OPERATOR, "-p", json.dumps(patch))
    await asyncio.to_thread(wait_operator, mesh.stage.reach)


async def test_another_compiler_goes_out_in_waves_while_old_sidecars_stay(mesh: Shop, another_release: str) -> None:
    pods = await proxies(mesh)
    mark, commit = mesh.mark(), mesh.stage.clone.git("rev-parse", "HEAD")
    await upgraded(mesh, another_release)
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


async def test_a_release_that_cannot_speak_with_old_sidecars_says_so_and_they_serve(
    mesh: Shop, another_release: str
) -> None:
    mark = mesh.mark()
    await upgraded(mesh, another_release, protocol=9)
    expected = "the proxy speaks protocol 1-1, this operator 9-9"
    found = await mesh.until_repository(lambda _, status: status.get("turnedAway"))
    told = found["status"]["turnedAway"][0]
    assert told["message"] == f"ProtocolMismatch: {expected}"
    assert [text for kind, reason, text in await mesh.events() if (kind, reason) == ("Warning", "ProtocolMismatch")]
    install(mesh.stage.reach)
    await mesh.until_repository(lambda _, status: not status.get("turnedAway"))
    await mesh.until_live(mesh.push_other_version(), LONGER)
    mesh.nobody_harmed_since(mark)


async def test_backstay_is_removed_and_installed_again_with_its_ca_and_no_pod_is_restarted(mesh: Shop) -> None:
    pods, reach = await proxies(mesh), mesh.stage.reach
    secret = await mesh.client.get(f"/api/v1/namespaces/{SYSTEM}/secrets/backstay-ca")
    kept = {"metadata": {"name": "backstay-ca"}, "type": secret["type"], "data": secret["data"]}
    mark, began = mesh.mark(), time.monotonic()
    reach.kubectl("delete", "-k", str(BOOTSTRAP), f"--timeout={GONE_S:.0f}s", timeout=GONE_S + 10)
    took = time.monotonic() - began
    await until(lambda: is_gone(mesh), lambda: "something of Backstay is left", GONE_S)
    assert took < GONE_S, f"removal took {took:.0f} s"
    assert await mesh.versions_from_now() == {mesh.stage.routed}
    mesh.nobody_harmed_since(mark)
    reach.kubectl("create", "namespace", SYSTEM)
    await mesh.client.create(f"/api/v1/namespaces/{SYSTEM}/secrets", kept)
    install(reach)
    mesh.kubectl("apply -f -", stdin=manifest(mesh.stage.server.url("shop")))
    await mesh.until_live(mesh.stage.clone.git("rev-parse", "HEAD"), STARTS)
    await mesh.until_programmed()
    await mesh.until_live(mesh.push_other_version(), LONGER)
    assert await proxies(mesh) == pods
    mesh.nobody_harmed_since(mark)


async def is_gone(mesh: Shop) -> bool:
    """Nothing of bootstrap/ is left, and nothing waits for a finalizer."""
    paths = [
        f"/api/v1/namespaces/{SYSTEM}",
        *(f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{kind.resource}" for kind in RESOURCES.values()),
        "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/backstay-injector",
        "/apis/rbac.authorization.k8s.io/v1/clusterroles/backstay-operator",
        "/apis/scheduling.k8s.io/v1/priorityclasses/backstay-operator",
    ]
    for path in paths:
        try:
            await mesh.client.get(path)
        except ApiError as error:
            if not error.is_missing:
                raise
        else:
            return False
    return True


async def proxies(mesh: Shop) -> dict[str, int]:
    """Pod -> how often its sidecar was restarted."""
    listed = await mesh.client.list(
        f"/api/v1/namespaces/{mesh.name}/pods", labels="app in (sa-webapp,sa-logic,visitors)"
    )
    return {
        each["metadata"]["name"]: sum(
            status["restartCount"]
            for status in each["status"].get("initContainerStatuses", ())
            if status["name"] == "backstay-proxy"
        )
        for each in listed.items
    }
