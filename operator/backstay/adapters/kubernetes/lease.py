"""Who leads: one holder of a Lease, whose number of transitions is the epoch of everything the leader writes and says.

A candidate believes the holder for as long as it sees the Lease change, by its own clock: clocks of other machines are
never compared. A leader that could not renew in time stops by itself, before anybody else may begin; and whatever it
still sends is refused for its epoch.
"""

import asyncio
import datetime
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from backstay.adapters.kubernetes.client import ApiClient, ApiError
from backstay.core.ports import Fenced, StateUnavailable
from backstay.redact import clean

LEASE_SECONDS: Final = 10.0
"""A leader that is gone is replaced after this long: with the start of its successor within the 15 s that are promised."""
RENEW_EVERY: Final = 3.0
"""Seconds between renewals: three may fail, and it is a third of the requests at rest that are promised."""
RENEW_WITHIN: Final = 7.0
"""Seconds after its last renewal at which a leader stops: 3 s before anybody else may take over."""
ANSWER_WITHIN: Final = 2.5
"""Seconds to wait for one answer about the Lease: a second try must still fit in."""
RETRY_EVERY: Final = 1.0
_log: Final = logging.getLogger("backstay.lease")


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """A Lease as it was last seen."""

    holder: str
    renewed: str
    transitions: int
    version: str
    """resourceVersion."""

    @classmethod
    def of(cls, lease: dict[str, Any]) -> "Standing":
        spec = lease.get("spec") or {}
        return cls(
            holder=spec.get("holderIdentity") or "",
            renewed=spec.get("renewTime") or "",
            transitions=int(spec.get("leaseTransitions") or 0),
            version=str(lease["metadata"]["resourceVersion"]),
        )

    def is_same_hold(self, other: "Standing | None") -> bool:
        """Nothing has been renewed or handed over since the other look."""
        return other is not None and (self.holder, self.renewed, self.transitions) == (
            other.holder,
            other.renewed,
            other.transitions,
        )


class Elector:
    """One candidate for one Lease. `claim` tries once, `acquire` waits, `hold` keeps it until it is lost."""

    def __init__(
        self,
        client: ApiClient,
        *,
        namespace: str,
        name: str,
        identity: str,
        seconds: float = LEASE_SECONDS,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """`identity` names this process, not only its pod: a container that restarts is another one."""
        self._client = client
        self._leases = f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases"
        self._namespace, self._name = namespace, name
        self.identity = identity
        self._seconds = seconds
        self._monotonic = monotonic
        self._seen: Standing | None = None
        self._seen_at = 0.0
        self._held: Standing | None = None
        self._renewed_at = 0.0

    def __repr__(self) -> str:
        return f"<Elector {self._namespace}/{self._name} {self.identity} term={self.term}>"

    @property
    def term(self) -> int:
        """The epoch this candidate leads in; 0: it does not lead."""
        return self._held.transitions if self._held else 0

    @property
    def leader(self) -> str:
        """Identity of who leads, as last seen; empty: nobody known."""
        return self._seen.holder if self._seen else ""

    @property
    def is_leading(self) -> bool:
        """Whether it may act now: false from the moment on at which somebody else might."""
        return self._held is not None and self._monotonic() - self._renewed_at < min(RENEW_WITHIN, self._seconds)

    async def claim(self) -> int:
        """Lead now. Raises StateUnavailable while another one does."""
        if self._held is not None:
            return self._held.transitions
        try:
            taken = await self._try()
        except ApiError as error:
            raise StateUnavailable(str(error)) from error
        if not taken:
            holder = self.leader or "unknown"
            raise StateUnavailable(f"lease {self._namespace}/{self._name}: in use by another operator ({holder})")
        return self.term

    async def acquire(self) -> int:
        """Wait until this candidate leads; returns the term."""
        while True:
            try:
                if await self._try():
                    return self.term
                await self._wait()
            except (ApiError, TimeoutError) as error:
                if not (isinstance(error, ApiError) and error.is_conflict):
                    _log.warning("lease.unreadable error=%s", clean(str(error) or "timeout"))
                await asyncio.sleep(RETRY_EVERY)

    async def hold(self) -> None:
        """Renew until cancelled. Raises Fenced when the Lease is somebody else's, or could not be renewed in time."""
        while True:
            await asyncio.sleep(min(RENEW_EVERY, self._seconds / 3))
            await self._renew()

    async def at_least(self, term: int) -> int:
        """Lead in a term no smaller than this one: the Lease may have been deleted, while epochs only grow."""
        held = self._must_hold()
        if held.transitions < term:
            await self._write(held, transitions=term)
        return self.term

    async def release(self) -> None:
        """Hand over at once, as well as possible: without it the next one waits the Lease out."""
        held, self._held = self._held, None
        if held is None:
            return
        try:
            async with asyncio.timeout(ANSWER_WITHIN):
                await self._client.replace(f"{self._leases}/{self._name}", self._lease(held, holder=""))
        except (ApiError, TimeoutError) as error:
            _log.info("lease.not-released error=%s", clean(str(error) or "timeout"))

    async def _try(self) -> bool:
        """Look once; take the Lease where it is free."""
        started = self._monotonic()
        found = await self._read()
        if found is None:
            created = await self._client.create(self._leases, self._lease(None, transitions=1))
            self._lead(Standing.of(created), started)
            return True
        self._observe(found)
        if not self._is_free(found):
            return False
        await self._write(found, transitions=found.transitions + 1)
        _log.info("lease.acquired term=%d identity=%s before=%s", self.term, self.identity, found.holder or "nobody")
        return True

    def _observe(self, found: Standing) -> None:
        if not found.is_same_hold(self._seen):
            self._seen_at = self._monotonic()
        self._seen = found

    def _is_free(self, found: Standing) -> bool:
        return not found.holder or self._monotonic() - self._seen_at >= self._seconds

    async def _wait(self) -> None:
        """Until the Lease changes hands or the holder has been silent for too long. Watching costs no requests."""
        assert self._seen is not None  # noqa: S101 - _try has looked
        path, fields = self._leases, f"metadata.name={self._name}"
        changes = self._client.watch(path, resource_version=self._seen.version, fields=fields)
        try:
            while True:
                left = self._seen_at + self._seconds - self._monotonic()
                async with asyncio.timeout(max(left, 0.0)):
                    change = await anext(changes)
                if change.kind == "DELETED":
                    return
                if change.kind != "BOOKMARK":
                    self._observe(Standing.of(change.object))
                if not self.leader:
                    return
        except (TimeoutError, StopAsyncIteration):
            return  # silent for too long, or the server has ended the watch: look again
        finally:
            await changes.aclose()

    async def _renew(self) -> None:
        held = self._must_hold()
        while True:
            try:
                async with asyncio.timeout(ANSWER_WITHIN):
                    await self._write(held)
                return
            except (ApiError, TimeoutError) as error:
                held = await self._after(error, held)
            if self._monotonic() - self._renewed_at >= min(RENEW_WITHIN, self._seconds):
                self._held = None
                raise Fenced(f"the lease could not be renewed for {RENEW_WITHIN:.0f} s; this operator stops acting")
            await asyncio.sleep(min(RETRY_EVERY, self._seconds / 10))

    async def _after(self, error: Exception, held: Standing) -> Standing:
        """After a renewal that failed: whose Lease is it? An answer that was lost may have renewed it all the same."""
        _log.warning("lease.not-renewed error=%s", clean(str(error) or "timeout"))
        if not (isinstance(error, ApiError) and (error.is_conflict or error.is_missing)):
            return held
        try:
            async with asyncio.timeout(ANSWER_WITHIN):
                found = await self._read()
        except (ApiError, TimeoutError):
            return held
        if found is None or found.holder != self.identity or found.transitions != held.transitions:
            self._held = None
            raise Fenced(f"the lease is {found.holder if found else 'nobody'}'s now; this operator stops acting")
        return found

    async def _read(self) -> Standing | None:
        try:
            return Standing.of(await self._client.get(f"{self._leases}/{self._name}"))
        except ApiError as error:
            if error.is_missing:
                return None
            raise

    async def _write(self, found: Standing, *, transitions: int | None = None) -> None:
        started = self._monotonic()
        wanted = self._lease(found, transitions=found.transitions if transitions is None else transitions)
        self._lead(Standing.of(await self._client.replace(f"{self._leases}/{self._name}", wanted)), started)

    def _lead(self, standing: Standing, since: float) -> None:
        """From when the request was sent, not from when its answer came: others count from the write."""
        self._held = self._seen = standing
        self._seen_at = self._renewed_at = since

    def _must_hold(self) -> Standing:
        if self._held is None:
            raise Fenced("this operator does not lead")
        return self._held

    def _lease(
        self, found: Standing | None, *, holder: str | None = None, transitions: int | None = None
    ) -> dict[str, Any]:
        now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        metadata: dict[str, Any] = {"name": self._name, "namespace": self._namespace}
        if found is not None:
            metadata["resourceVersion"] = found.version
        number = transitions if transitions is not None else found.transitions if found else 1
        return {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": metadata,
            "spec": {
                "holderIdentity": self.identity if holder is None else holder,
                "leaseDurationSeconds": max(round(self._seconds), 1),
                "acquireTime": now,
                "renewTime": now,
                "leaseTransitions": number,
            },
        }
