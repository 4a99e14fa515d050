"""Somebody sets the time of the machine, or its lid was closed for days: the wall clock jumps under a running mesh."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.clock import Clock, needs_clock
from support.live import LiveMesh, route, shop, shop_documents

pytestmark = [pytest.mark.xdist_group("mesh-b"), needs_clock]

HOUR = 3600


@pytest.fixture
def clock(tmp_path: Path) -> Clock:
    return Clock(tmp_path)


@pytest.fixture
def mesh(clock: Clock) -> Iterator[LiveMesh]:
    rules = shop_documents(rollout={"deadline": "30s"})
    with LiveMesh(shop(rate=50), rules, environment=clock.environment) as found:
        yield found


def test_a_jump_moves_no_wave_ends_no_lease_and_hides_no_harm(mesh: LiveMesh, clock: Clock) -> None:
    good = mesh.push({"shop/api.yaml": route("api", {"v2": 100})})
    first = mesh.wait_phase(good, "shifting")["status"]["id"]
    clock.set(2 * HOUR)
    went_on = mesh.wait_phase(good, "preparing", "shifting", "baking", "succeeded", wave=2, timeout=60)["status"]
    assert (went_on["id"], "h" in went_on["elapsed"]) == (first, False), "the same rollout, and no hours have passed"
    bad = mesh.push({"shop/api.yaml": route("api", {"v3": 100})})
    mesh.wait_phase(bad, "shifting")
    clock.set(-2 * HOUR)
    mesh.wait(bad, "rolled-back", timeout=40)
    mesh.settle()
    assert set(mesh.held()) == {"Route/shop/api"}
    assert "StageRestarted" not in mesh.reasons()


def test_certificates_that_a_jump_made_useless_are_replaced_and_connections_are_made_again(
    mesh: LiveMesh, clock: Clock
) -> None:
    """Two days with a closed lid: they have ended. Then a clock that was ahead is put right: they have not begun."""
    for hours in (30, -3):
        jump_and_shake_hands_anew(mesh, clock, hours)


def jump_and_shake_hands_anew(mesh: LiveMesh, clock: Clock, hours: int) -> None:
    before = mesh.reasons().count("CertificateIssued")
    clock.set(hours * HOUR)
    mesh.until(
        lambda: mesh.reasons().count("CertificateIssued") >= before + 7, "every proxy to have another certificate", 60
    )
    mesh.until(lambda: mesh.connected() == 7, "the proxies to be back", 60)
    # What these had open ends with them: others shake hands with their successors, and those with them.
    killed = mesh.kill("web-0"), mesh.kill("api-v1-0")
    mesh.until(lambda: (mesh.pid("web-0"), mesh.pid("api-v1-0")) != killed, "successors", 40)
    mesh.until(lambda: mesh.connected() == 7, "the killed ones to be back", 40)
    mesh.wait_steady(timeout=60)
