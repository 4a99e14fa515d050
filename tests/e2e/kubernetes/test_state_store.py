"""What every StateStore promises, kept in Secrets of a real API server; and what only this one can get wrong."""

import hashlib
import os
from collections.abc import AsyncIterator
from typing import Any

import pytest

from backstay.adapters.kubernetes import state
from backstay.adapters.kubernetes.client import ApiClient, ApiError, Credentials
from backstay.adapters.kubernetes.lease import Elector
from backstay.adapters.kubernetes.state import KubernetesStore, forget, remembered
from backstay.core.ports import Fenced, StateStore, StateUnavailable
from cluster.reach import Reach
from ports.test_state_store import *  # noqa: F403 - the port's suite, collected here with this store
from ports.test_state_store import Disk, event

REPOSITORY = "shop/mesh"


class LosesAnswers(ApiClient):
    """A client whose next replacement of something happens, and nobody hears of it."""

    def __init__(self, credentials: Credentials) -> None:
        super().__init__(credentials)
        self.lose = 0

    async def replace(self, path: str, body: Any, **query: str) -> dict[str, Any]:
        answer = await super().replace(path, body, **query)
        if self.lose and "secrets" in path:
            self.lose -= 1
            raise ApiError(0, "Unreachable", "the answer was lost")
        return answer


@pytest.fixture
async def client(api: Reach) -> AsyncIterator[LosesAnswers]:
    found = LosesAnswers(Credentials.find(api.kubeconfig))
    yield found
    await found.close()


class Opener:
    """Stores on one namespace, each with a candidacy of its own for one Lease."""

    def __init__(self, client: ApiClient, namespace: str) -> None:
        self.client = client
        self.namespace = namespace
        self.stores: list[KubernetesStore] = []

    def __call__(self) -> KubernetesStore:
        elector = Elector(self.client, namespace=self.namespace, name="operator", identity=f"pod-{len(self.stores)}")
        made = KubernetesStore(self.client, namespace=self.namespace, repository=REPOSITORY, tenure=elector)
        self.stores.append(made)
        return made

    async def forget_owner(self) -> None:
        path = f"/apis/coordination.k8s.io/v1/namespaces/{self.namespace}/leases/operator"
        await self.client.patch(path, {"spec": {"holderIdentity": None}})

    async def secrets(self) -> dict[str, dict[str, Any]]:
        found = await self.client.list(f"/api/v1/namespaces/{self.namespace}/secrets")
        return {item["metadata"]["name"]: item for item in found.items}


@pytest.fixture
async def opener(client: LosesAnswers, namespace: str) -> AsyncIterator[Opener]:
    found = Opener(client, namespace)
    yield found
    for store in found.stores:
        await store.close()


@pytest.fixture  # type: ignore[no-redef] # the suite's own fixture knows the other stores
async def disk(opener: Opener) -> Disk:
    def open_store() -> StateStore:
        return opener()

    return Disk(open=open_store, forget_owner=opener.forget_owner)


async def test_a_save_whose_answer_was_lost_counts_once(client: LosesAnswers, opener: Opener) -> None:
    store = opener()
    epoch = await store.claim()
    client.lose = 1
    with pytest.raises(StateUnavailable, match="the answer was lost"):
        await store.save(epoch, b"new", {"d": b"blob"}, [event("A")])
    await store.save(epoch, b"newer", {"d": b"blob"}, [event("A"), event("B")])
    assert [found.reason for found in await store.events()] == ["A", "B"]
    await store.close()
    again = opener()
    assert (await again.load(), await again.blobs(["d"])) == (b"newer", {"d": b"blob"})


async def test_a_head_that_somebody_labelled_is_still_ours(client: LosesAnswers, opener: Opener) -> None:
    store = opener()
    epoch = await store.claim()
    path = f"/api/v1/namespaces/{opener.namespace}/secrets/backstay-state.shop.mesh"
    await client.patch(path, {"metadata": {"annotations": {"looked-at-by": "ann"}}})
    await store.save(epoch, b"state")
    assert await store.load() == b"state"


async def test_a_head_that_was_deleted_by_hand_is_written_again(client: LosesAnswers, opener: Opener) -> None:
    store = opener()
    epoch = await store.claim()
    await store.save(epoch, b"state", {"d": b"blob"})
    await client.delete(f"/api/v1/namespaces/{opener.namespace}/secrets/backstay-state.shop.mesh")
    await store.save(epoch, b"newer")
    await store.close()
    again = opener()
    await again.claim()
    assert (await again.load(), await again.blobs(["d"])) == (b"newer", {"d": b"blob"})


async def test_an_epoch_that_is_behind_what_was_written_is_refused(opener: Opener, client: LosesAnswers) -> None:
    """The Lease was deleted, and its numbers begin anew."""
    first = opener()
    await first.claim()
    await first.close()
    second = opener()
    assert await second.claim() == 2
    await second.close()
    await client.delete(f"/apis/coordination.k8s.io/v1/namespaces/{opener.namespace}/leases/operator")
    with pytest.raises(Fenced, match="epoch 1 is behind 2"):
        await opener().claim()
    assert await remembered(client, opener.namespace) == {REPOSITORY: 2}


async def test_blobs_are_packed_and_immutable(opener: Opener) -> None:
    store = opener()
    epoch = await store.claim()
    blobs = {hashlib.sha256(bytes([n])).hexdigest(): os.urandom(10_000) for n in range(200)}
    await store.save(epoch, b"state", blobs)
    packs = {name: item for name, item in (await opener.secrets()).items() if name.count(".") == 3}
    assert len(packs) == 3
    assert all(item["immutable"] for item in packs.values())
    await store.close()
    assert await opener().blobs(blobs) == blobs


async def test_packs_that_nothing_needs_go_and_those_half_needed_are_written_anew(opener: Opener) -> None:
    store = opener()
    epoch = await store.claim()
    await store.save(epoch, b"1", {"a": b"a" * 10, "b": b"b" * 1000})
    await store.save(epoch, b"2", {"c": b"c" * 10})
    before = set(await opener.secrets())
    assert await store.prune(epoch, ["a"]) == 2
    after = set(await opener.secrets())
    assert (len(before - after), len(after - before)) == (2, 1)
    await store.close()
    again = opener()
    assert await again.blobs(["a", "b", "c"]) == {"a": b"a" * 10}


async def test_what_a_dead_owner_left_half_written_is_swept(client: LosesAnswers, opener: Opener) -> None:
    store = opener()
    await store.claim()
    stray = store._secret("backstay-state.shop.mesh.stray", "pack", {"pack": b"x"})
    await client.create(f"/api/v1/namespaces/{opener.namespace}/secrets", stray)
    await store.close()
    await opener().claim()
    assert set(await opener.secrets()) == {"backstay-state.shop.mesh"}


async def test_old_events_become_segments_and_the_oldest_go(opener: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state, "SEGMENT", 5)
    monkeypatch.setattr(state, "SEGMENTS_KEPT", 2)
    store = opener()
    epoch = await store.claim()
    for start in range(0, 24, 6):
        await store.save(epoch, b"s", events=[event(f"E{n}") for n in range(start, start + 6)])
    await store.close()
    again = opener()
    kept = [found.number for found in await again.events()]
    assert kept == list(range(11, 25))
    assert [found.reason for found in await again.events(after=22)] == ["E22", "E23"]
    assert len(await opener.secrets()) == 3


async def test_a_state_that_does_not_fit_is_refused_with_both_sizes(opener: Opener) -> None:
    store = opener()
    epoch = await store.claim()
    await store.save(epoch, b"small")
    with pytest.raises(
        StateUnavailable, match=r"would hold 1,\d\d\d,\d\d\d bytes compressed, a Secret holds 1,000,000"
    ):
        await store.save(epoch, os.urandom(1_100_000))
    assert await store.load() == b"small"


async def test_a_damaged_head_is_named_and_left_alone(client: LosesAnswers, opener: Opener) -> None:
    store = opener()
    await store.save(await store.claim(), b"state")
    await store.close()
    path = f"/api/v1/namespaces/{opener.namespace}/secrets/backstay-state.shop.mesh"
    await client.patch(path, {"data": {"state": "AAAA"}})
    with pytest.raises(StateUnavailable, match=r"backstay-state\.shop\.mesh is damaged"):
        await opener().load()


async def test_everything_of_a_repository_can_be_forgotten(client: LosesAnswers, opener: Opener) -> None:
    store = opener()
    await store.save(await store.claim(), b"state", {"d": b"blob"})
    await forget(client, opener.namespace, REPOSITORY)
    assert await opener.secrets() == {}
