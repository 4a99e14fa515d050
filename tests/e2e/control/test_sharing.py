"""One control port for several meshes, and two replicas of which one holds the streams: real servers, real sidecars."""

import asyncio
from collections.abc import Callable

from backstay.config.wire import Ack, Endpoint, Live
from backstay.control.sharing import SharedFleet
from backstay.core.ports import FleetEvent, Joined, Left
from support.control_world import Operator, World, assignment, config

WITHIN = 30.0
LOGIC = Endpoint(id="logic-1", address="127.0.0.1", port=1)


class Mesh:
    """One reconciler's side of a share: files what it hears."""

    def __init__(self, fleet: SharedFleet, *namespaces: str) -> None:
        self.woken = 0
        self.heard: list[FleetEvent] = []
        self.share = fleet.share(frozenset(namespaces), self._wake)

    def _wake(self) -> None:
        self.woken += 1
        self.heard += self.share.drain()

    def joined(self) -> int:
        return sum(isinstance(event, Joined) for event in self.heard)


async def so(true: Callable[[], object]) -> None:
    """Until a condition about other tasks holds: there is nothing else to be woken by."""
    async with asyncio.timeout(WITHIN):
        while not true():
            await asyncio.sleep(0.02)


def shared(operator: Operator) -> tuple[SharedFleet, list[int]]:
    unclaimed: list[int] = []
    fleet = SharedFleet(operator.server, unclaimed=lambda: unclaimed.append(1))
    operator.server.wake = fleet.woken
    return fleet, unclaimed


async def test_a_mesh_hears_of_its_own_proxies_only(world: World) -> None:
    fleet, unclaimed = shared(await world.operator())
    shop, bank = Mesh(fleet, "shop"), Mesh(fleet, "bank", "vault")
    await world.sidecar()
    await so(lambda: shop.joined() == 1)
    assert (bank.woken, bank.heard, unclaimed) == (0, [], [])


async def test_proxies_connect_anew_when_somebody_else_listens_to_them(world: World) -> None:
    operator = await world.operator()
    fleet, unclaimed = shared(operator)
    await world.sidecar()
    await so(lambda: unclaimed)
    await so(lambda: any(isinstance(event, Joined) for event in fleet.drain_unclaimed()))
    shop = Mesh(fleet, "shop")
    await so(lambda: shop.joined() == 1)
    assert isinstance(shop.heard[0], Left)


async def test_a_newcomer_has_no_config_until_it_is_given_one(world: World) -> None:
    operator = await world.operator()
    fleet, _ = shared(operator)
    await world.sidecar()
    await so(lambda: operator.server.newcomers() == [("logic-1", "shop/logic")])
    operator.server.assign("logic-1", *assignment(config(1)))
    assert operator.server.newcomers() == []
    shop = Mesh(fleet, "shop")
    await so(lambda: shop.joined() == 1)
    assert operator.server.newcomers() == []


async def test_a_share_publishes_trust_and_no_endpoints(world: World) -> None:
    operator = await world.operator()
    fleet, _ = shared(operator)
    shop = Mesh(fleet, "shop")
    await world.sidecar()
    await so(lambda: shop.joined() == 1)
    operator.server.publish(Live(epoch=1, full=True, endpoints={"logic.shop:80": [LOGIC]}))
    shop.share.publish(
        Live(epoch=1, endpoints={"logic.bank:80": [LOGIC]}, revoked=["spiffe://backstay.local/ns/x/sa/y"])
    )
    assert operator.server._live.endpoints.keys() == {"logic.shop:80"}
    assert operator.server._live.revoked == ["spiffe://backstay.local/ns/x/sa/y"]


async def test_a_standby_enrols_and_sends_streams_to_the_leader(world: World) -> None:
    leader = Operator(world.folder, epoch=7, port=0)
    await leader.server.start()
    try:
        standby = await world.operator(epoch=0)
        standby.server.elsewhere = lambda: f"127.0.0.1:{leader.server.port}"
        await world.sidecar()
        await leader.until(lambda: [event for event in leader.events if isinstance(event, Joined)], WITHIN)
        assert standby.enroller.used == {"token-logic-1"}
        assert leader.enroller.used == set()
        leader.server.assign("logic-1", *assignment(config(1)))
        await leader.until(lambda: leader.said(Ack), WITHIN)
    finally:
        await leader.server.close()


async def test_where_nobody_leads_a_proxy_waits_and_goes_on_trying(world: World) -> None:
    operator = await world.operator(epoch=0)
    operator.server.elsewhere = lambda: ""
    await world.sidecar()
    await so(lambda: operator.enroller.used)
    operator.server.elsewhere = lambda: None
    operator.server.lead(3)
    await operator.until(lambda: [event for event in operator.events if isinstance(event, Joined)], WITHIN)


async def test_who_stands_down_forgets_what_it_has_told_and_lets_go_of_its_streams(world: World) -> None:
    operator = await world.operator(epoch=2)
    await world.sidecar()
    await operator.until(lambda: [event for event in operator.events if isinstance(event, Joined)], WITHIN)
    operator.server.assign("logic-1", *assignment(config(1)))
    await operator.until(lambda: operator.said(Ack), WITHIN)
    operator.server.elsewhere = lambda: ""
    operator.server.stand_down()
    await so(lambda: operator.server.connected() == [])
    operator.server.elsewhere = lambda: None
    operator.server.lead(3)
    await so(lambda: operator.server.connected() == ["logic-1"])
    await asyncio.sleep(0)
    assert len(operator.said(Ack)) == 1, "the former term's assignment was sent again"
