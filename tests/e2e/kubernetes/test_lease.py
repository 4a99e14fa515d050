"""One leader at a time on a real API server, and what happens when it is lost, silent or slow."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from backstay.adapters.kubernetes import lease
from backstay.adapters.kubernetes.client import ApiClient, ApiError, Credentials
from backstay.adapters.kubernetes.lease import Elector
from backstay.core.ports import Fenced, StateUnavailable
from cluster.reach import Reach


class Clock:
    """Monotonic seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Fickle(ApiClient):
    """A client that can be cut off."""

    def __init__(self, credentials: Credentials) -> None:
        super().__init__(credentials)
        self.is_cut_off = False

    async def _ask(self, *arguments: Any, **more: Any) -> dict[str, Any]:
        if self.is_cut_off:
            raise ApiError(0, "Unreachable", "cut off")
        return await super()._ask(*arguments, **more)


@pytest.fixture
async def client(api: Reach) -> AsyncIterator[Fickle]:
    found = Fickle(Credentials.find(api.kubeconfig))
    yield found
    await found.close()


def candidate(client: ApiClient, namespace: str, name: str, clock: Clock, seconds: float = 10.0) -> Elector:
    return Elector(client, namespace=namespace, name="operator", identity=name, seconds=seconds, monotonic=clock)


async def test_the_first_leads_in_term_one_and_the_second_is_told_who(client: Fickle, namespace: str) -> None:
    clock = Clock()
    first, second = candidate(client, namespace, "a_1", clock), candidate(client, namespace, "b_1", clock)
    assert await first.claim() == 1
    with pytest.raises(StateUnavailable, match=r"in use by another operator \(a_1\)"):
        await second.claim()
    assert (first.is_leading, second.is_leading, second.leader) == (True, False, "a_1")


async def test_a_lease_that_is_given_back_is_taken_at_once(client: Fickle, namespace: str) -> None:
    clock = Clock()
    first, second = candidate(client, namespace, "a_1", clock), candidate(client, namespace, "b_1", clock)
    await first.claim()
    waiting = asyncio.create_task(second.acquire())
    while second.leader != "a_1":
        await asyncio.sleep(0.01)
    await first.release()
    assert await asyncio.wait_for(waiting, 10) == 2
    assert (first.is_leading, first.term) == (False, 0)


async def test_a_holder_that_is_silent_is_replaced_only_after_its_time(client: Fickle, namespace: str) -> None:
    clock = Clock()
    first, second = candidate(client, namespace, "a_1", clock), candidate(client, namespace, "b_1", clock)
    await first.claim()
    with pytest.raises(StateUnavailable):
        await second.claim()
    clock.now += 9.9
    with pytest.raises(StateUnavailable):
        await second.claim()
    clock.now += 0.2
    assert await second.claim() == 2


async def test_a_leader_stops_before_anybody_else_may_begin(client: Fickle, namespace: str) -> None:
    clock = Clock()
    first = candidate(client, namespace, "a_1", clock)
    await first.claim()
    clock.now += lease.RENEW_WITHIN - 0.1
    assert first.is_leading
    clock.now += 0.2
    assert not first.is_leading
    assert lease.RENEW_WITHIN < lease.LEASE_SECONDS


async def test_a_leader_that_cannot_renew_in_time_gives_up(client: Fickle, namespace: str) -> None:
    first = Elector(client, namespace=namespace, name="operator", identity="a_1", seconds=1.5)
    await first.claim()
    client.is_cut_off = True
    with pytest.raises(Fenced, match="could not be renewed"):
        await asyncio.wait_for(first.hold(), 20)
    assert first.term == 0


async def test_a_leader_whose_lease_was_taken_stops_at_once(client: Fickle, namespace: str) -> None:
    clock = Clock()
    first, second = candidate(client, namespace, "a_1", clock, 1.5), candidate(client, namespace, "b_1", clock, 1.5)
    await first.claim()
    with pytest.raises(StateUnavailable):
        await second.claim()
    clock.now += 1.6
    await second.claim()
    with pytest.raises(Fenced, match="the lease is b_1's now"):
        await asyncio.wait_for(first.hold(), 10)


async def test_a_renewal_keeps_the_term_and_the_lease(client: Fickle, namespace: str) -> None:
    first = Elector(client, namespace=namespace, name="operator", identity="a_1", seconds=0.6)
    await first.claim()
    holding = asyncio.create_task(first.hold())
    path = f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases/operator"
    renewed: set[str] = set()
    while len(renewed) < 3:
        renewed.add((await client.get(path))["spec"]["renewTime"])
        await asyncio.sleep(0.02)
    holding.cancel()
    assert (first.term, first.is_leading) == (1, True)


async def test_a_term_can_be_raised_above_what_was_written_before(client: Fickle, namespace: str) -> None:
    first = candidate(client, namespace, "a_1", Clock())
    await first.claim()
    assert await first.at_least(7) == 7
    assert await first.at_least(3) == 7
    await first.release()
    assert await candidate(client, namespace, "b_1", Clock()).claim() == 8


async def test_the_same_pod_in_another_process_is_another_candidate(client: Fickle, namespace: str) -> None:
    clock = Clock()
    await candidate(client, namespace, "pod_1", clock).claim()
    with pytest.raises(StateUnavailable):
        await candidate(client, namespace, "pod_2", clock).claim()
