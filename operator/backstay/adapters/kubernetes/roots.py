"""The ConfigMap `backstay-roots` in every namespace with injection: by it a sidecar that has just started knows the
operator. Written by the leader; anything there besides is left alone."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Callable, Mapping
from typing import Final, Protocol

from backstay.adapters.kubernetes.client import ApiClient, ApiError
from backstay.adapters.kubernetes.facts import NamespaceFacts, PodFacts
from backstay.core.inject import INJECT, NEVER_IN, ROOTS_CONFIG_MAP, ROOTS_FILE
from backstay.redact import clean

WRITE_AGAIN: Final = 600.0
"""Seconds after which all are written again, whatever happened to them meanwhile."""
RETRY_AFTER: Final = 2.0  # seconds; a pod waits for it, and the kubelet asks as often

_log: Final = logging.getLogger("backstay.injection")


class Watching(Protocol):
    """The platform, as far as this room needs it."""

    def namespaces_and_pods(self) -> tuple[Mapping[str, NamespaceFacts], Mapping[str, PodFacts]]: ...

    def looks(self) -> AsyncGenerator[None, None]: ...


class RootsKeeper:
    """`run` it in a task on the operator that leads."""

    def __init__(self, client: ApiClient, platform: Watching, bundle: Callable[[], str], *, own_namespace: str) -> None:
        self.faults: dict[str, str] = {}
        """Namespace -> why its ConfigMap could not be written; pods there cannot start."""
        self._client = client
        self._platform = platform
        self._bundle = bundle
        self._own_namespace = own_namespace
        self._written: dict[str, str] = {}
        self._wake = asyncio.Event()

    def wake(self) -> None:
        """The CA's roots may have changed: look now."""
        self._wake.set()

    async def run(self) -> None:
        """Until cancelled."""
        loop = asyncio.get_running_loop()
        again = loop.time() + WRITE_AGAIN
        async with asyncio.TaskGroup() as group:
            group.create_task(self._listen(), name="roots-listen")
            while True:
                if loop.time() >= again:
                    self._written.clear()
                    again = loop.time() + WRITE_AGAIN
                await self.look()
                pause = RETRY_AFTER if self.faults else again - loop.time()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(max(pause, 0.0)):
                        await self._wake.wait()
                self._wake.clear()

    async def _listen(self) -> None:
        async for _ in self._platform.looks():
            self._wake.set()

    async def look(self) -> int:
        """Write what is missing or old; says how many were written."""
        bundle = self._bundle()
        wanted = wanted_in(*self._platform.namespaces_and_pods(), self._own_namespace)
        self._written = {name: text for name, text in self._written.items() if name in wanted}
        self.faults = {name: text for name, text in self.faults.items() if name in wanted}
        missing = [name for name in sorted(wanted) if self._written.get(name) != bundle]
        for namespace in missing:
            await self._write(namespace, bundle)
        return len(missing)

    async def _write(self, namespace: str, bundle: str) -> None:
        path = f"/api/v1/namespaces/{namespace}/configmaps/{ROOTS_CONFIG_MAP}"
        body = {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {
                "name": ROOTS_CONFIG_MAP,
                "namespace": namespace,
                "labels": {"app.kubernetes.io/managed-by": "backstay"},
            },
            "data": {ROOTS_FILE: bundle},
        }
        try:
            await self._client.patch(path, body, kind="apply", field_manager="backstay-roots")
        except ApiError as error:
            fault = clean(str(error))
            if self.faults.get(namespace) != fault:
                _log.warning("roots.unwritten namespace=%s error=%s", namespace, fault)
            self.faults[namespace] = fault
            return
        self.faults.pop(namespace, None)
        self._written[namespace] = bundle


def wanted_in(
    namespaces: Mapping[str, NamespaceFacts], pods: Mapping[str, PodFacts], own_namespace: str
) -> frozenset[str]:
    """Namespaces that say so, and those where a single pod does."""
    labelled = {name for name, facts in namespaces.items() if facts.labels.get(INJECT) == "enabled"}
    with_pods = {pod.namespace for pod in pods.values() if pod.has_proxy}
    alive = {name for name, facts in namespaces.items() if not facts.is_leaving}
    return frozenset(((labelled | with_pods) & alive) - NEVER_IN - {own_namespace})
