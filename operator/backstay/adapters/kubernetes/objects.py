"""What a mesh shows, as objects in the API: MeshRepository's status, MeshRollouts, MeshIntents, and Events.

`desired` turns the objects of core/status into what belongs into the API; `Projection` brings the API there by
server-side apply, one object after the other, writing only what differs from what it wrote last. It decides nothing, and
an API server that is away only delays it: the newest wish is written when it is back.

Rule: a status is only ever written whole, by one field manager, so that a condition that is gone is removed.
"""

import asyncio
import datetime
import hashlib
import logging
import time
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from backstay.adapters.kubernetes.client import ApiClient, ApiError
from backstay.core import status
from backstay.core.intents import API_VERSION
from backstay.core.ports import Event
from backstay.core.resources import MESH_INTENT, MESH_REPOSITORY, MESH_ROLLOUT, RESOURCES, Kind
from backstay.core.status.common import timestamp
from backstay.redact import clean

MANAGER: Final = "backstay"
RETRY_FIRST: Final = 1.0  # seconds; doubles
RETRY_MOST: Final = 30.0  # seconds: what is promised for catching up after the API server was away
WRITE_EVERY: Final = 0.2
"""Seconds between two rounds: a rollout's numbers change every second, waiters on Ready=True should hear of it at once."""
AT_ONCE: Final = 8
"""Requests under way at a time: five hundred intents are written in a second or two, and nobody else is starved."""
EVENTS_REMEMBERED: Final = 256
REPEAT_AFTER: Final = 600.0
"""Seconds after which the same event is posted anew rather than counted up; the API keeps Events for an hour."""
FLEETING: Final = frozenset({"lastFetchAt"})
"""Fields of a status that change without anything having happened."""
FLEETING_EVERY: Final = 60.0
"""Seconds after which they are written all the same: a minute is near enough for a person who looks."""
OWNER: Final = "backstay.dev/mesh-repository"
"""Label of everything that is made for a repository: `namespace.name`."""
_log: Final = logging.getLogger("backstay.objects")
_QUIET: Final = frozenset({"proxy", "certificate"})
"""Kinds of events that only warn: a thousand proxies join and renew without anybody acting on it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """The MeshRepository things are made for."""

    namespace: str
    name: str
    uid: str
    ref: str = ""
    """What of `spec.ref` is followed."""
    namespaces: tuple[str, ...] = ()
    """Namespaces that it owns."""

    @property
    def key(self) -> str:
        return f"{self.namespace}/{self.name}"

    @property
    def label(self) -> str:
        return f"{self.namespace}.{self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """One object as it should be."""

    kind: Kind
    namespace: str
    name: str
    spec: Mapping[str, Any] | None
    """None: the spec is somebody else's (MeshRepository)."""
    status: Mapping[str, Any]
    labels: Mapping[str, str] = field(default_factory=dict)
    owner: Owner | None = None
    """Set where the API is to remove it together with its repository."""
    made_from: Mapping[str, Any] | None = field(default=None, repr=False, compare=False)
    """The object of core/status that it shows."""

    @property
    def key(self) -> str:
        return f"{self.kind.name}/{self.namespace}/{self.name}"

    def path(self, subresource: str = "") -> str:
        return self.kind.path(self.namespace, self.name, subresource)


# --- pure: what should be there ----------------------------------------------------------------------------------------


def desired(
    shown: status.Objects,
    owner: Owner,
    *,
    orders: Mapping[str, Mapping[str, Any]] = {},
    last: Mapping[str, Wish] = {},
) -> dict[str, Wish]:
    """Everything a repository shows. `orders` are the last orders by rollout name, `last` is what this gave before:
    an object that is shown as it was stays the same wish."""
    wishes = [_repository(shown, owner), *(_rollout(item, owner, orders) for item in shown.rollouts)]
    wishes += [
        _intent(item, owner, last) for item in shown.intents if item["metadata"]["namespace"] in owner.namespaces
    ]
    return {wish.key: wish for wish in wishes}


def refused(owner: Owner, conditions: Sequence[Mapping[str, Any]], generation: int, before: Mapping[str, Any]) -> Wish:
    """The status of a repository that is not worked with now; what was known of it before stays."""
    shown = {**before, "observedGeneration": generation, "conditions": list(conditions), "ref": owner.ref}
    return Wish(kind=MESH_REPOSITORY, namespace=owner.namespace, name=owner.name, spec=None, status=shown)


def _repository(shown: status.Objects, owner: Owner) -> Wish:
    own = dict(shown.repository["status"])
    own |= {"ref": owner.ref, "namespaces": sorted(owner.namespaces)}
    if shown.rollouts:
        own["phase"] = _progress(shown.rollouts[0]["status"])
    return Wish(kind=MESH_REPOSITORY, namespace=owner.namespace, name=owner.name, spec=None, status=own)


def _progress(rollout: Mapping[str, Any]) -> str:
    """`wave 2/4` while it runs, else how it ended: one word for tables."""
    if rollout["phase"] in {phase.value for phase in status.RUNNING}:
        return f"wave {rollout['wave']}/{rollout['waves']}"
    return str(rollout["phase"])


def _rollout(item: status.Json, owner: Owner, orders: Mapping[str, Mapping[str, Any]]) -> Wish:
    name = item["metadata"]["name"]
    own = {**item["status"], "progress": _progress(item["status"])}
    if name in orders:
        own["lastOrder"] = orders[name]
    return Wish(
        kind=MESH_ROLLOUT,
        namespace=owner.namespace,
        name=name,
        spec=item["spec"],
        status=own,
        labels={OWNER: owner.label},
        owner=owner,
    )


def _intent(item: status.Json, owner: Owner, last: Mapping[str, Wish]) -> Wish:
    namespace, spec = item["metadata"]["namespace"], dict(item["spec"])
    before = last.get(f"{MESH_INTENT.name}/{namespace}/{item['metadata']['name']}")
    if before is not None and before.made_from is item:
        return before
    line = f":{spec['line']}" if "line" in spec else ""
    spec |= {"place": f"{spec.get('file', '')}{line}", "repository": owner.key}
    proxies = item["status"]["proxies"]
    return Wish(
        kind=MESH_INTENT,
        namespace=namespace,
        name=item["metadata"]["name"],
        spec=spec,
        status={**item["status"], "programmed": f"{proxies['updated']}/{proxies['total']}"},
        labels={OWNER: owner.label},
        # An owner in another namespace would have the garbage collector remove it at once.
        owner=owner if namespace == owner.namespace else None,
        made_from=item,
    )


def body_of(wish: Wish) -> dict[str, Any]:
    """What server-side apply is asked for, without the status."""
    metadata: dict[str, Any] = {"name": wish.name, "namespace": wish.namespace}
    if wish.labels:
        metadata["labels"] = dict(wish.labels)
    if wish.owner is not None:
        metadata["ownerReferences"] = [
            {
                "apiVersion": API_VERSION,
                "kind": MESH_REPOSITORY.name,
                "name": wish.owner.name,
                "uid": wish.owner.uid,
                "controller": True,
                "blockOwnerDeletion": False,
            }
        ]
    return {"apiVersion": API_VERSION, "kind": wish.kind.name, "metadata": metadata, "spec": dict(wish.spec or {})}


def status_of(wish: Wish) -> dict[str, Any]:
    """What is applied to the status subresource."""
    metadata = {"name": wish.name, "namespace": wish.namespace}
    return {"apiVersion": API_VERSION, "kind": wish.kind.name, "metadata": metadata, "status": dict(wish.status)}


def is_as_wished(found: Mapping[str, Any], wish: Wish) -> bool:
    """Whether an object that was seen in the API says what it should; what was added by others does not matter."""
    return (wish.spec is None or _holds(found.get("spec") or {}, wish.spec)) and _holds(
        found.get("status") or {}, wish.status
    )


def _holds(found: Any, wanted: Any) -> bool:
    if isinstance(wanted, Mapping):
        return isinstance(found, Mapping) and all(_holds(found.get(key), value) for key, value in wanted.items())
    if isinstance(wanted, list | tuple):
        same_length = isinstance(found, list) and len(found) == len(wanted)
        return same_length and all(_holds(one, other) for one, other in zip(found, wanted, strict=True))
    return bool(found == wanted)


def memory_of(owner: str, found: Mapping[str, Any]) -> Iterator[tuple[str, tuple[str, float]]]:
    """`Kind/name#Condition` -> (status, since) of an object's conditions, so that a new leader keeps their times."""
    for condition in (found.get("status") or {}).get("conditions") or ():
        try:
            since = datetime.datetime.fromisoformat(condition["lastTransitionTime"]).timestamp()
        except ValueError:  # not ours
            continue
        yield f"{owner}#{condition['type']}", (condition["status"], since)


# --- bringing the API there --------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Written:
    """What was written last of one object: digests are enough, and a thousand objects are many."""

    spec: bytes = b""
    status: bytes = b""
    wish: Wish | None = None
    at: float = 0.0
    """Monotonic seconds of our last write of the status."""
    version: int = 0
    """resourceVersion of our last write: older sightings are no news."""


class Projection:
    """Keeps the objects of one repository as wished. `show` says how; `run` in a task does it."""

    def __init__(self, client: ApiClient, owner: Owner) -> None:
        self.owner = owner
        self.fault = ""
        """Why the API does not show the truth; empty while it does."""
        self.writes = 0
        self._client = client
        self._wanted: dict[str, Wish] = {}
        self._written: dict[str, _Written] = {}
        self._gone: dict[str, Wish] = {}
        self._is_new = asyncio.Event()
        self._settled = asyncio.Event()
        self._settled.set()

    def __repr__(self) -> str:
        return f"<Projection {self.owner.key} objects={len(self._wanted)} writes={self.writes}>"

    @property
    def wanted(self) -> Mapping[str, Wish]:
        """What was shown last."""
        return self._wanted

    def show(self, wishes: Mapping[str, Wish]) -> None:
        """What is to be there from now on. Cheap, and never waits."""
        for key in self._wanted.keys() - wishes.keys():
            self._gone[key] = self._wanted[key]
        self._wanted = dict(wishes)
        self._settled.clear()
        self._is_new.set()

    def saw(self, kind: str, found: Mapping[str, Any], *, deleted: bool = False) -> bool:
        """An object as the API has it now. True if somebody has changed it: it is put back."""
        metadata = found["metadata"]
        key = f"{kind}/{metadata['namespace']}/{metadata['name']}"
        wish, written = self._wanted.get(key), self._written.get(key)
        if wish is None:
            return False
        if written is None or written.version >= _number(metadata.get("resourceVersion")):
            return False
        if not deleted and is_as_wished(found, wish):
            return False
        del self._written[key]
        self._is_new.set()
        return written.status != b"" and (deleted or not _is_about_to_change(found, wish))

    def adopt(self, kind: Kind, items: Iterable[Mapping[str, Any]]) -> None:
        """What an operator before this one has written: what is not wished any more has to go."""
        for item in items:
            metadata = item["metadata"]
            wish = Wish(kind=kind, namespace=metadata["namespace"], name=metadata["name"], spec={}, status={})
            if wish.key not in self._wanted:
                self._gone[wish.key] = wish
        self._is_new.set()

    async def settled(self) -> None:
        """Until everything that was wished when this was called is in the API."""
        await self._settled.wait()

    async def run(self) -> None:
        """Until cancelled."""
        pause = RETRY_FIRST
        while True:
            await self._is_new.wait()
            self._is_new.clear()
            try:
                await self._round()
            except ApiError as error:
                self._blame(error)
                await asyncio.sleep(max(pause, error.retry_after))
                pause = min(2 * pause, RETRY_MOST)
                self._is_new.set()
                continue
            pause, self.fault = RETRY_FIRST, ""
            if not self._is_new.is_set():
                self._settled.set()
            await asyncio.sleep(WRITE_EVERY)

    def _blame(self, error: ApiError) -> None:
        text = clean(str(error))
        if text != self.fault:
            _log.warning("objects.unwritten repository=%s error=%s", self.owner.key, text)
        self.fault = text

    async def _round(self) -> None:
        """Write what differs: the repository first, waiters look at it. Raises ApiError of the first failure."""
        wishes = sorted(self._wanted.values(), key=lambda wish: wish.kind is not MESH_REPOSITORY)
        if wishes and wishes[0].kind is MESH_REPOSITORY:
            await self._write(wishes.pop(0))
        wishes = [wish for wish in wishes if not self._is_written(wish)]
        limit = asyncio.Semaphore(AT_ONCE)

        async def one(wish: Wish) -> None:
            async with limit:
                await self._write(wish)

        failures = await asyncio.gather(*(one(wish) for wish in wishes), return_exceptions=True)
        for failure in failures:
            if isinstance(failure, BaseException):
                raise failure
        for key, wish in list(self._gone.items()):
            await self._remove(wish)
            self._gone.pop(key, None)

    def _is_written(self, wish: Wish) -> bool:
        """The very object that was written last: of five hundred intents most are shown as they were."""
        written = self._written.get(wish.key)
        return written is not None and written.wish is wish

    async def _write(self, wish: Wish) -> None:
        if self._wanted.get(wish.key) is not wish:
            return  # there is a newer wish: the next round writes that one
        written = self._written.setdefault(wish.key, _Written())
        try:
            await self._write_halves(wish, written)
            written.wish = wish
        except ApiError as error:
            self._written.pop(wish.key, None)
            if error.is_missing and wish.spec is None:
                return  # the repository is being deleted, or its kind is
            raise

    async def _write_halves(self, wish: Wish, written: _Written) -> None:
        if wish.spec is not None:
            body = body_of(wish)
            digest = _digest(body)
            if digest != written.spec:
                written.version = await self._apply(wish.path(), body)
                written.spec = digest
        digest = _digest({key: value for key, value in wish.status.items() if key not in FLEETING})
        is_old = bool(FLEETING & wish.status.keys()) and time.monotonic() - written.at >= FLEETING_EVERY
        if digest != written.status or is_old:
            written.version = await self._apply(wish.path("status"), status_of(wish))
            written.status, written.at = digest, time.monotonic()

    async def _apply(self, path: str, body: Mapping[str, Any]) -> int:
        answer = await self._client.patch(path, body, kind="apply", field_manager=MANAGER)
        self.writes += 1
        return _number(answer["metadata"].get("resourceVersion"))

    async def _remove(self, wish: Wish) -> None:
        self._written.pop(wish.key, None)
        if wish.spec is None or wish.key in self._wanted:
            return
        try:
            await self._client.delete(wish.path())
        except ApiError as error:
            if not error.is_missing:
                raise


def _is_about_to_change(found: Mapping[str, Any], wish: Wish) -> bool:
    """Only the status differs, and the operator writes that all the time: an answer may be older than a sighting."""
    return wish.spec is None or _holds(found.get("spec") or {}, wish.spec)


def _digest(value: object) -> bytes:
    return hashlib.blake2b(msgspec.json.encode(value), digest_size=16).digest()


def _number(version: object) -> int:
    """Resource versions of one kind of object can be compared as numbers (KEP-5504); 0 for one that is none."""
    text = str(version or "")
    return int(text) if text.isdecimal() else 0


async def owned(client: ApiClient, owner: Owner) -> dict[str, Sequence[dict[str, Any]]]:
    """Everything in the API that was made for a repository, by kind. Raises ApiError."""
    found = {}
    for kind in (MESH_ROLLOUT, MESH_INTENT):
        found[kind.name] = (await client.list(kind.path(), labels=f"{OWNER}={owner.label}")).items
    return found


async def remove_owned(client: ApiClient, owner: Owner) -> None:
    """After a repository's deletion: the garbage collector does not reach other namespaces. Raises ApiError."""
    for kind, items in (await owned(client, owner)).items():
        for item in items:
            metadata = item["metadata"]
            try:
                await client.delete(RESOURCES[kind].path(metadata["namespace"], metadata["name"]))
            except ApiError as error:
                if not error.is_missing:
                    raise


# --- events -------------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Series:
    path: str
    count: int
    at: float


class EventSink:
    """Notifier: events about a repository as Events in the API, the same one counted up instead of posted again."""

    def __init__(self, client: ApiClient, owner: Owner, *, reporter: str) -> None:
        """`reporter` is this replica's name."""
        self.lost = 0
        """Events that could not be posted; they are on the timeline all the same."""
        self._client = client
        self._owner = owner
        self._reporter = reporter
        self._series: OrderedDict[tuple[str, str], _Series] = OrderedDict()
        self._waiting: asyncio.Queue[Event] = asyncio.Queue(maxsize=EVENTS_REMEMBERED)

    def __repr__(self) -> str:
        return f"<EventSink {self._owner.key} waiting={self._waiting.qsize()} lost={self.lost}>"

    async def notify(self, events: Sequence[Event]) -> None:
        """Take them; never waits for the API server."""
        for event in events:
            if event.kind in _QUIET and not event.warning:
                continue
            try:
                self._waiting.put_nowait(event)
            except asyncio.QueueFull:
                self.lost += 1

    async def run(self) -> None:
        """Post until cancelled. An Event that cannot be posted is not tried again: it would come too late."""
        while True:
            event = await self._waiting.get()
            try:
                await self._post(event)
            except ApiError as error:
                self.lost += 1
                _log.info("event.lost reason=%s error=%s", event.reason, clean(str(error)))

    async def _post(self, event: Event) -> None:
        key = (event.reason, clean(event.message, limit=1024))
        known = self._series.get(key)
        if known is not None and event.at - known.at < REPEAT_AFTER:
            known.count += 1
            patch = {"count": known.count, "lastTimestamp": timestamp(event.at)}
            await self._client.patch(known.path, patch)
            return
        path = f"/api/v1/namespaces/{self._owner.namespace}/events"
        posted = await self._client.create(path, event_body(event, self._owner, self._reporter))
        self._series[key] = _Series(path=f"{path}/{posted['metadata']['name']}", count=1, at=event.at)
        while len(self._series) > EVENTS_REMEMBERED:
            self._series.popitem(last=False)


def event_body(event: Event, owner: Owner, reporter: str) -> dict[str, Any]:
    """A core/v1 Event about the repository."""
    at = timestamp(event.at)
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"generateName": f"{owner.name}.", "namespace": owner.namespace},
        "involvedObject": {
            "apiVersion": API_VERSION,
            "kind": MESH_REPOSITORY.name,
            "namespace": owner.namespace,
            "name": owner.name,
            "uid": owner.uid,
        },
        "type": "Warning" if event.warning else "Normal",
        "reason": event.reason,
        "message": clean(event.message, limit=1024),  # the API takes no more
        "source": {"component": "backstay"},
        "reportingComponent": "backstay.dev/operator",
        "reportingInstance": reporter,
        "action": event.kind.title(),
        "firstTimestamp": at,
        "lastTimestamp": at,
        "count": 1,
    }
