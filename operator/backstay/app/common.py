"""What every composition needs: the clocks, and the reconciler as the API sees it."""

import time
from collections.abc import Iterable, Mapping, Sequence

from backstay.control import api
from backstay.core.ports import Event
from backstay.core.registry import Registry
from backstay.core.review.traffic import names_by_address
from backstay.core.view import MeshView
from backstay.reconciler.loop import OrderRefused, Reconciler


class SystemClock:
    """The real clocks."""

    def monotonic(self) -> float:
        return time.monotonic()

    def wall(self) -> float:
        return time.time()


class Neighbours:
    """Which workload runs at an address, as the reconciler sees it."""

    def __init__(self, reconciler: Reconciler) -> None:
        self._reconciler = reconciler
        self._registry: Registry | None = None
        self._names: dict[str, str] = {}

    def __call__(self, address: str) -> str:
        registry = self._reconciler.view().registry
        if registry is not self._registry:
            self._registry, self._names = registry, names_by_address(registry)
        return self._names.get(address, "")


class Facade:
    """The reconciler as the API sees it."""

    def __init__(self, reconciler: Reconciler) -> None:
        self._reconciler = reconciler

    def view(self) -> MeshView:
        return self._reconciler.view()

    async def act(self, action: api.Action) -> api.ActionResult:
        try:
            done = await self._reconciler.order(action.verb, actor=action.actor, reason=action.reason, args=action.args)
        except OrderRefused as refused:
            return api.ActionResult(done=False, reason=refused.reason, message=str(refused))
        return api.ActionResult(done=True, reason=action.verb.title().replace("-", ""), message=done)

    async def events(self, *, after: int = 0, since: float = 0.0, limit: int = 1000) -> Sequence[Event]:
        return await self._reconciler.events(after=after, since=since, limit=limit)

    async def wait_for_event(self, after: int) -> None:
        await self._reconciler.wait_for_event(after)

    async def blobs(self, digests: Iterable[str]) -> Mapping[str, bytes]:
        return await self._reconciler.blobs(digests)
