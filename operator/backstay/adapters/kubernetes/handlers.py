"""kopf watches what people write; its handlers wake the operator and do nothing else.

`Wishes` is the little cache they fill: every MeshRepository as it was last seen, and what was seen of the operator's own
objects. Nothing is kept in annotations, no finalizer is set: what a repository's deletion undoes is only the operator's own
to undo, and a namespace can go even while no operator runs.
"""

import asyncio
import logging
import random
from collections.abc import Callable, Mapping
from typing import Any, Final

import kopf

from backstay.adapters.kubernetes.client import Credentials
from backstay.core.resources import GROUP, MESH_INTENT, MESH_REPOSITORY, MESH_ROLLOUT, VERSION, Kind
from backstay.redact import clean

ORDER: Final = f"{GROUP}/order"
ACTOR: Final = f"{GROUP}/actor"
REASON: Final = f"{GROUP}/reason"
REQUESTED: Final = f"{GROUP}/requestedAt"
_FIRST_PAUSES: Final = (0.5, 1, 2, 4, 8)
_LAST_PAUSE: Final = 15.0  # seconds between tries while the API server is away: caught up within 30 s
_log: Final = logging.getLogger("backstay.handlers")

Seen = Callable[[str, Mapping[str, Any], bool], None]
"""(kind, object, deleted)"""


class Backoffs:
    """Pauses with jitter that never end: kopf gives up where its list ends, an operator does not."""

    def __iter__(self) -> "Backoffs._Pauses":
        return self._Pauses()

    class _Pauses:
        def __init__(self) -> None:
            self._step = 0

        def __iter__(self) -> "Backoffs._Pauses":
            return self

        def __next__(self) -> float:
            pause = _FIRST_PAUSES[self._step] if self._step < len(_FIRST_PAUSES) else _LAST_PAUSE
            self._step += 1
            return pause * random.uniform(0.8, 1.2)  # noqa: S311 - spreads tries, protects nothing


IDENTITY: Final = "backstay-operator"
"""For kopf's peering, which is off. Without one kopf looks up the user's name, and a container's UID has none."""


class Watcher:
    """The kopf operator: `run` it in a task. `seen` is called for every event of our three kinds."""

    def __init__(self, credentials: Credentials, seen: Seen, started: Callable[[], None] = lambda: None) -> None:
        """`started` is called once kopf runs, to take the process's signals back from it."""
        self._credentials = credentials
        self._seen = seen
        self._started = started
        self._registry = kopf.OperatorRegistry()
        self._ready = asyncio.Event()
        self._register()

    def __repr__(self) -> str:
        return f"<Watcher ready={self._ready.is_set()}>"

    def _register(self) -> None:
        kopf.on.login(registry=self._registry)(self._login)
        for kind in (MESH_REPOSITORY, MESH_ROLLOUT, MESH_INTENT):
            kopf.on.event(GROUP, VERSION, kind.plural, registry=self._registry, id=kind.plural)(self._handler(kind))

    def _handler(self, kind: Kind) -> Callable[..., Any]:
        async def wake(event: Mapping[str, Any], body: Mapping[str, Any], **_: Any) -> None:
            self._seen(kind.name, dict(body), event.get("type") == "DELETED")

        return wake

    async def _login(self, **_asked: Any) -> kopf.ConnectionInfo:
        """The same credentials as our own client's; kopf asks again when they are refused."""
        found = self._credentials
        found.forget()
        scheme, _, token = (await found.headers()).get("Authorization", "").partition(" ")
        certificate, key = found.certificate_files or (None, None)
        return kopf.ConnectionInfo(
            server=found.server,
            ca_path=found.ca_file,
            scheme=scheme or None,
            token=token or None,
            certificate_path=certificate,
            private_key_path=key,
            insecure=not found.verifies,
            proxy_url=found.proxy,
        )

    async def run(self) -> None:
        """Until cancelled. Raises whatever kopf cannot go on from."""
        _quiet_logs()
        tasks = await kopf.spawn_tasks(
            registry=self._registry,
            settings=settings(),
            clusterwide=True,
            identity=IDENTITY,  # type: ignore[arg-type]  # a NewType of str that has no public name
            standalone=True,  # who acts is decided by the Lease, not by kopf's peering
            ready_flag=self._ready,
        )
        self._started()  # kopf has taken the process's signals for itself
        await kopf.run_tasks(tasks)
        raise RuntimeError("kopf has ended by itself")


def settings() -> kopf.OperatorSettings:
    """Tuned for an operator that must neither miss nor flood: see the kopf documentation for each."""
    found = kopf.OperatorSettings()
    found.process.ultimate_exiting_timeout = None  # ending in time is the kubelet's business
    found.watching.server_timeout = 290
    found.watching.client_timeout = 320
    found.watching.reconnect_backoff = 1.0
    found.networking.request_timeout = 30
    found.networking.connect_timeout = 5
    found.networking.error_backoffs = Backoffs()
    found.networking.enforce_retry_after = True
    found.execution.max_workers = 2
    found.posting.enabled = False  # events are the reconciler's to tell
    found.posting.loggers = False
    found.persistence.finalizer = f"{GROUP}/unused"
    found.persistence.progress_storage = kopf.StatusProgressStorage(field="status.kopf")
    found.persistence.diffbase_storage = kopf.StatusDiffBaseStorage(field="status.kopf.last")
    found.queueing.idle_timeout = 5.0
    found.scanning.disabled = False  # kinds may be deleted by mistake and come back
    return found


def _quiet_logs() -> None:
    """kopf tells every event of every object at INFO."""
    for name in ("kopf.objects", "kopf.activities", "kopf._core.engines.activities"):
        logging.getLogger(name).setLevel(logging.WARNING)


# --- what annotations ask -----------------------------------------------------------------------------------------------


def order_in(found: Mapping[str, Any]) -> tuple[str, str, str] | None:
    """(order, actor, reason) that somebody has written on a MeshRollout; None: none."""
    annotations = found["metadata"].get("annotations") or {}
    order = clean(str(annotations.get(ORDER, "")), limit=64).strip()
    if not order:
        return None
    actor = clean(str(annotations.get(ACTOR, "")), limit=253).strip() or _last_writer(found)
    return order, actor, clean(str(annotations.get(REASON, "")), limit=1024).strip()


def _last_writer(found: Mapping[str, Any]) -> str:
    """Who wrote the annotation, as far as the API server knows: the program, not the person."""
    for entry in found["metadata"].get("managedFields") or ():
        fields = (entry.get("fieldsV1") or {}).get("f:metadata", {}).get("f:annotations", {})
        if f"f:{ORDER}" in fields:
            return f"annotation by {clean(str(entry.get('manager', 'unknown')), limit=128)}"
    return "annotation"


def without_order() -> dict[str, Any]:
    """The patch that takes an order off once it is carried out or refused: it is not given again by a restart."""
    return {"metadata": {"annotations": {ORDER: None, ACTOR: None, REASON: None}}}


def requested_at(found: Mapping[str, Any]) -> str:
    """The request to look at git now; empty: none was ever made."""
    return str((found["metadata"].get("annotations") or {}).get(REQUESTED, ""))
