"""The control channel from end to end: a real server, real sidecar processes, sockets, signals and disks."""

from support.control_world import World, assignment, config

from backstay.config.model import config_digest
from backstay.config.wire import Ack, Endpoint, Live, Report
from backstay.core.ports import Joined


async def test_a_proxy_enrols_joins_takes_its_config_acks_and_reports(world: World) -> None:
    operator = await world.operator()
    sidecar = await world.sidecar()
    joined = await operator.until(lambda: [event for event in operator.events if isinstance(event, Joined)])
    assert (joined[0].proxy, joined[0].workload) == ("logic-1", "shop/logic")

    operator.server.publish(
        Live(epoch=1, full=True, endpoints={"logic.shop:80": [Endpoint(id="logic-1", address="127.0.0.1", port=1)]})
    )
    stable, candidate = config(1), config(2)
    operator.server.assign("logic-1", *assignment(stable, candidate))
    acks = await operator.until(lambda: operator.said(Ack))
    assert acks == [
        Ack(serial=1, stable=config_digest(stable[0]), candidate=config_digest(candidate[0]), share=0.5)
    ]
    reports = await operator.until(lambda: [each for each in operator.said(Report) if each.serving])
    assert reports[0].serving == {config_digest(stable[0]): 0.5, config_digest(candidate[0]): 0.5}
    assert [each.sequence for each in operator.said(Report)] == list(range(1, reports[-1].sequence + 1))
    assert (await sidecar.page("/healthz/ready"))[0] == 200
    assert sidecar.recorded("endpoints")[-1]["names"] == {"logic.shop:80": 1}
