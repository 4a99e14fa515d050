"""The durable memory of one MeshRepository as Secrets in the operator's own namespace.

In the operator's namespace, because whoever can edit this state decides what the mesh serves; as Secrets, because a
compiled config may hold header values that not everybody who may look around should read. One small `head` is replaced
on every save and names everything else: immutable, compressed packs of blobs and segments of old events. They are written
before the head that names them, so a save is all or nothing; what no head names is swept by the next owner.

Rule: the head is only ever replaced at the resourceVersion that was read, and only by its epoch's owner. A greater epoch
in it means Fenced, whatever was about to be written.
"""

import asyncio
import base64
import binascii
import hashlib
import logging
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import msgspec

from backstay.adapters.kubernetes.client import ApiClient, ApiError
from backstay.core.ports import Event, Fenced, StateUnavailable
from backstay.redact import clean

MAX_OBJECT: Final = 1_000_000
"""Bytes of data in one Secret: the API server takes 1 MiB, and etcd 1.5 MiB of the whole request."""
PACK_BYTES: Final = 700_000
"""Bytes of blobs in one pack before compression: what cannot be compressed still fits."""
PACKS_KEPT: Final = 24
"""More packs than this are put together at the next prune: every commit makes one, an owner lists them all."""
SEGMENT: Final = 500
"""Events in the head before they become a segment: about 20 KiB compressed, written with every save."""
SEGMENTS_KEPT: Final = 20
"""Ten thousand events: about a thousand commits."""
TYPE: Final = "backstay.dev/state"
STATE: Final = "backstay.dev/state"
"""Label: head, pack or events."""
NAMESPACE: Final = "backstay.dev/repository-namespace"
NAME: Final = "backstay.dev/repository-name"
_log: Final = logging.getLogger("backstay.state")


class Tenure(Protocol):
    """Who may own the state."""

    async def claim(self) -> int:
        """The epoch to write with. Raises StateUnavailable while another operator is alive."""

    async def release(self) -> None: ...


class _Segment(msgspec.Struct, frozen=True):
    name: str
    last: int
    """Number of its last event."""


class _Stored(msgspec.Struct, frozen=True, omit_defaults=True):
    """An event as it is kept."""

    at: float
    kind: str
    reason: str
    message: str
    number: int
    revision: str = ""
    subject: str = ""
    warning: bool = False


class _Meta(msgspec.Struct, frozen=True, kw_only=True):
    """What the head says about everything else."""

    epoch: int
    serial: int = 0
    """Grows with each save: tells whether a save whose answer was lost has happened."""
    digest: str = ""
    """SHA-256 of the state, empty while there is none."""
    packs: tuple[str, ...] = ()
    segments: tuple[_Segment, ...] = ()
    next_event: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class _Head:
    meta: _Meta
    state: bytes | None = None
    tail: tuple[_Stored, ...] = ()
    """Events that are in no segment yet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pack:
    """Blobs that were written together."""

    body: bytes = field(repr=False)
    """Compressed."""
    sizes: Mapping[str, int]
    """Digest of each blob -> its bytes."""


class KubernetesStore:
    """StateStore of one MeshRepository."""

    def __init__(self, client: ApiClient, *, namespace: str, repository: str, tenure: Tenure) -> None:
        """`namespace` is the operator's own; `repository` is `namespace/name`."""
        self._client = client
        self._path = f"/api/v1/namespaces/{namespace}/secrets"
        self._owner_namespace, _, self._owner_name = repository.partition("/")
        self._base = f"backstay-state.{self._owner_namespace}.{self._owner_name}"
        self._repository = repository
        self._tenure = tenure
        self._epoch = 0
        self._head: _Head | None = None
        self._version = ""
        self._packs: dict[str, _Pack] = {}
        self._index: dict[str, str] = {}
        """Blob -> its pack."""
        self._segments: dict[str, tuple[_Stored, ...]] = {}
        self._doubt: tuple[_Head, tuple[_Stored, ...]] | None = None
        """A head whose write was not answered, and the events that were new in it."""
        self._lock = asyncio.Lock()

    def __repr__(self) -> str:
        return f"<KubernetesStore {self._repository} epoch={self._epoch} packs={len(self._packs)}>"

    # --- the port -----------------------------------------------------------------------------------------------------

    async def claim(self) -> int:
        epoch = await self._tenure.claim()
        async with self._lock:
            with _mapped(self._repository):
                await self._refresh()
                found = self._head
                if found is not None and found.meta.epoch > epoch:
                    raise Fenced(f"{self._repository}: epoch {epoch} is behind {found.meta.epoch}")
                head = found or _Head(meta=_Meta(epoch=epoch))
                meta = msgspec.structs.replace(head.meta, epoch=epoch, serial=head.meta.serial + 1)
                await self._put(_Head(meta=meta, state=head.state, tail=head.tail))
                self._epoch = epoch
                await self._sweep()
        return epoch

    async def load(self) -> bytes | None:
        async with self._lock:
            with _mapped(self._repository):
                if not self._epoch:
                    await self._refresh()
                return self._head.state if self._head else None

    async def save(
        self, epoch: int, state: bytes, blobs: Mapping[str, bytes] = {}, events: Sequence[Event] = ()
    ) -> None:
        async with self._lock:
            with _mapped(self._repository):
                head = await self._own(epoch)
                stored = self._numbered(head, events)
                await self._add_packs({key: value for key, value in blobs.items() if key not in self._index})
                segments, tail = await self._cut(head.meta.segments, (*head.tail, *stored))
                meta = msgspec.structs.replace(
                    head.meta,
                    serial=head.meta.serial + 1,
                    digest=hashlib.sha256(state).hexdigest(),
                    packs=tuple(self._packs),
                    segments=segments,
                    next_event=head.meta.next_event + len(stored),
                )
                await self._write(_Head(meta=meta, state=state, tail=tail), stored)
                for segment in set(head.meta.segments) - set(segments):
                    self._segments.pop(segment.name, None)
                    await self._remove(segment.name)

    async def blobs(self, digests: Iterable[str]) -> Mapping[str, bytes]:
        wanted = set(digests)
        async with self._lock:
            with _mapped(self._repository):
                if not self._epoch:
                    await self._refresh()
                return self._unpacked(wanted)

    async def prune(self, epoch: int, keep: Iterable[str]) -> int:
        kept = frozenset(keep)
        async with self._lock:
            with _mapped(self._repository):
                head = await self._own(epoch)
                gone = [digest for digest in self._index if digest not in kept]
                stale = stale_packs({name: pack.sizes for name, pack in self._packs.items()}, kept)
                names = await self._add_packs(
                    self._unpacked({d for d, name in self._index.items() if name in stale} & kept)
                )
                meta = msgspec.structs.replace(
                    head.meta,
                    serial=head.meta.serial + 1,
                    packs=tuple(name for name in self._packs if name not in stale or name in names),
                )
                await self._write(_Head(meta=meta, state=head.state, tail=head.tail), ())
                for digest in gone:
                    del self._index[digest]
                await self._drop(stale - set(names))
        return len(gone)

    async def events(self, *, after: int = 0, since: float = 0.0, limit: int = 1000) -> Sequence[Event]:
        async with self._lock:
            with _mapped(self._repository):
                if not self._epoch:
                    await self._refresh()
                if self._head is None:
                    return ()
                found: list[_Stored] = []
                for segment in self._head.meta.segments:
                    if segment.last > after and len(found) < limit:
                        found += _chosen(await self._segment(segment.name), after, since)
                found += _chosen(self._head.tail, after, since)
        return tuple(_event(stored) for stored in found[:limit])

    async def close(self) -> None:
        """Let go of being the operator. Closing twice is fine."""
        if self._epoch:
            self._epoch = 0
            await self._tenure.release()

    # --- owning -------------------------------------------------------------------------------------------------------

    async def _own(self, epoch: int) -> _Head:
        if not self._epoch or self._head is None:
            raise StateUnavailable(f"{self._repository}: not claimed by this operator")
        if epoch != self._epoch:
            raise Fenced(f"{self._repository}: epoch {epoch} is not this operator's ({self._epoch})")
        if self._doubt is not None:
            await self._look_again()
        return self._head

    async def _write(self, head: _Head, fresh: tuple[_Stored, ...]) -> None:
        try:
            await self._put(head)
        except ApiError as error:
            if error.is_conflict:
                await self._look_again()
                await self._put(head)  # at the version that was just read; a second conflict is StateUnavailable
            else:
                if error.may_pass:
                    self._doubt = head, fresh
                raise

    async def _look_again(self) -> None:
        """Somebody else wrote, or an answer was lost: read whose head it is now. Raises Fenced."""
        found = await self._read()
        if found is None:
            self._version, self._doubt = "", None  # deleted by hand; the next write makes it again
            return
        head, version = found
        known = {self._head.meta.serial if self._head else 0}
        if self._doubt is not None:
            known.add(self._doubt[0].meta.serial)
        if head.meta.epoch != self._epoch or head.meta.serial not in known:
            raise Fenced(f"{self._repository}: written by epoch {head.meta.epoch}, this one is {self._epoch}")
        self._head, self._version = head, version
        if self._doubt is not None and self._doubt[0].meta.serial != head.meta.serial:
            self._doubt = None  # it did not happen

    def _numbered(self, head: _Head, events: Sequence[Event]) -> tuple[_Stored, ...]:
        """New events with their numbers. After a save whose answer was lost, its events are here again."""
        told = [_stored(event, 0) for event in events]
        if self._doubt is not None:
            again = [msgspec.structs.replace(stored, number=0) for stored in self._doubt[1]]
            if told[: len(again)] == again:
                told = told[len(again) :]
            self._doubt = None
        first = head.meta.next_event
        return tuple(msgspec.structs.replace(stored, number=first + index) for index, stored in enumerate(told))

    # --- objects ------------------------------------------------------------------------------------------------------

    async def _refresh(self) -> None:
        """Read everything there is."""
        found = await self._read()
        self._head, self._version = found or (None, "")
        self._packs, self._index, self._doubt = {}, {}, None
        if self._head is None:
            return
        listed = await self._client.list(self._path, labels=_labels(self._repository, "pack"))
        named = set(self._head.meta.packs)
        for item in listed.items:
            name = item["metadata"]["name"]
            if name in named:
                self._packs[name] = _pack(self._data(item, "pack"), name)
        missing = named - self._packs.keys()
        if missing:
            raise StateUnavailable(f"secret {min(missing)} with a part of the state is gone; restore a copy of it")
        self._index = {digest: name for name, pack in self._packs.items() for digest in pack.sizes}

    async def _sweep(self) -> None:
        """Remove what no head names: left by an owner that died between two writes."""
        assert self._head is not None  # noqa: S101 - called by claim
        named = {*self._head.meta.packs, *(segment.name for segment in self._head.meta.segments), self._base}
        for item in (await self._client.list(self._path, labels=_labels(self._repository))).items:
            if item["metadata"]["name"] not in named:
                await self._remove(item["metadata"]["name"])

    async def _read(self) -> tuple[_Head, str] | None:
        try:
            item = await self._client.get(f"{self._path}/{self._base}")
        except ApiError as error:
            if error.is_missing:
                return None
            raise
        return self._decoded(item), str(item["metadata"]["resourceVersion"])

    def _decoded(self, item: Mapping[str, Any]) -> _Head:
        try:
            meta = msgspec.json.decode(self._data(item, "meta"), type=_Meta)
            tail = msgspec.json.decode(_inflated(self._data(item, "events"), self._base), type=tuple[_Stored, ...])
        except msgspec.MsgspecError as error:
            raise StateUnavailable(self._damaged(str(error))) from error
        if not meta.digest:
            return _Head(meta=meta, tail=tail)
        state = _inflated(self._data(item, "state"), self._base)
        if hashlib.sha256(state).hexdigest() != meta.digest:
            raise StateUnavailable(self._damaged("the saved state does not match its checksum"))
        return _Head(meta=meta, state=state, tail=tail)

    async def _put(self, head: _Head) -> None:
        data = {
            "meta": msgspec.json.encode(head.meta),
            "events": zlib.compress(msgspec.json.encode(head.tail), 1),
            **({} if head.state is None else {"state": await _compressed(head.state)}),
        }
        self._must_fit(self._base, data)
        body = self._secret(self._base, "head", data)
        if self._version:
            body["metadata"]["resourceVersion"] = self._version
            try:
                answer = await self._client.replace(f"{self._path}/{self._base}", body)
            except ApiError as error:
                if not error.is_missing:
                    raise
                del body["metadata"]["resourceVersion"]  # deleted by hand: what is in memory is the state
                answer = await self._client.create(self._path, body)
        else:
            answer = await self._client.create(self._path, body)
        self._head, self._version = head, str(answer["metadata"]["resourceVersion"])

    async def _add_packs(self, blobs: Mapping[str, bytes]) -> tuple[str, ...]:
        """Write blobs as new packs, named by the next head; returns their names."""
        names = []
        for chunk in chunked(blobs):
            body = msgspec.msgpack.encode(chunk)
            name = f"{self._base}.{hashlib.sha256(body).hexdigest()[:20]}"
            data = {"pack": await _compressed(body)}
            self._must_fit(name, data)
            await self._create(self._secret(name, "pack", data))
            self._packs[name] = _Pack(body=data["pack"], sizes={key: len(value) for key, value in chunk.items()})
            self._index.update(dict.fromkeys(chunk, name))
            names.append(name)
        return tuple(names)

    async def _cut(
        self, segments: tuple[_Segment, ...], tail: tuple[_Stored, ...]
    ) -> tuple[tuple[_Segment, ...], tuple[_Stored, ...]]:
        """Move events out of the head once there are many; the oldest segments go."""
        while len(tail) > SEGMENT:
            old, tail = tail[:SEGMENT], tail[SEGMENT:]
            name = f"{self._base}.events-{old[-1].number}"
            await self._create(self._secret(name, "events", {"events": zlib.compress(msgspec.json.encode(old))}))
            self._segments[name] = old
            segments = (*segments, _Segment(name=name, last=old[-1].number))
        return segments[-SEGMENTS_KEPT:], tail

    async def _segment(self, name: str) -> tuple[_Stored, ...]:
        if name not in self._segments:
            item = await self._client.get(f"{self._path}/{name}")
            text = _inflated(self._data(item, "events"), name)
            self._segments[name] = msgspec.json.decode(text, type=tuple[_Stored, ...])
        return self._segments[name]

    async def _drop(self, names: set[str]) -> None:
        for name in names:
            self._packs.pop(name, None)
            await self._remove(name)

    async def _create(self, secret: dict[str, Any]) -> None:
        """Named by its content, so one that exists is this one."""
        try:
            await self._client.create(self._path, {**secret, "immutable": True})
        except ApiError as error:
            if not error.is_conflict:
                raise

    async def _remove(self, name: str) -> None:
        try:
            await self._client.delete(f"{self._path}/{name}")
        except ApiError as error:
            if not error.is_missing:
                raise

    def _unpacked(self, wanted: set[str]) -> dict[str, bytes]:
        found: dict[str, bytes] = {}
        for name in {self._index[digest] for digest in wanted if digest in self._index}:
            blobs = msgspec.msgpack.decode(_inflated(self._packs[name].body, name), type=dict[str, bytes])
            found |= {digest: body for digest, body in blobs.items() if digest in wanted}
        return found

    def _secret(self, name: str, kind: str, data: Mapping[str, bytes]) -> dict[str, Any]:
        return {
            "apiVersion": "v1",
            "kind": "Secret",
            "type": TYPE,
            "metadata": {
                "name": name,
                "labels": {
                    "app.kubernetes.io/managed-by": "backstay",
                    STATE: kind,
                    NAMESPACE: self._owner_namespace,
                    NAME: self._owner_name,
                },
            },
            "data": {key: base64.b64encode(value).decode("ascii") for key, value in data.items()},
        }

    def _data(self, item: Mapping[str, Any], key: str) -> bytes:
        try:
            return base64.b64decode((item.get("data") or {})[key], validate=True)
        except (KeyError, binascii.Error) as error:
            raise StateUnavailable(self._damaged(f"{key} cannot be read")) from error

    def _damaged(self, found: str) -> str:
        return (
            f"secret {self._base} is damaged: {found}; nothing was overwritten: restore a copy, "
            "or delete it to start from an empty state"
        )

    def _must_fit(self, name: str, data: Mapping[str, bytes]) -> None:
        size = sum(len(value) for value in data.values())
        if size > MAX_OBJECT:
            raise StateUnavailable(
                f"secret {name} would hold {size:,} bytes compressed, a Secret holds {MAX_OBJECT:,}: split the repository"
            )


async def remembered(client: ApiClient, namespace: str) -> dict[str, int]:
    """Repositories (`namespace/name`) that have a state here, with the epoch of their last owner. Raises ApiError."""
    found = {}
    for item in (await client.list(f"/api/v1/namespaces/{namespace}/secrets", labels=f"{STATE}=head")).items:
        labels = item["metadata"]["labels"]
        try:
            meta = msgspec.json.decode(base64.b64decode(item["data"]["meta"]), type=_Meta)
        except (KeyError, ValueError) as error:
            _log.error("state.unreadable secret=%s error=%r", item["metadata"]["name"], error)
            continue
        found[f"{labels[NAMESPACE]}/{labels[NAME]}"] = meta.epoch
    return found


async def forget(client: ApiClient, namespace: str, repository: str) -> None:
    """Remove everything that is kept for a repository. Raises ApiError."""
    path = f"/api/v1/namespaces/{namespace}/secrets"
    for item in (await client.list(path, labels=_labels(repository))).items:
        try:
            await client.delete(f"{path}/{item['metadata']['name']}")
        except ApiError as error:
            if not error.is_missing:
                raise


def _labels(repository: str, kind: str = "") -> str:
    namespace, _, name = repository.partition("/")
    return f"{NAMESPACE}={namespace},{NAME}={name},{STATE}{f'={kind}' if kind else ''}"


# --- pure ---------------------------------------------------------------------------------------------------------------


def chunked(blobs: Mapping[str, bytes], limit: int = PACK_BYTES) -> Iterator[dict[str, bytes]]:
    """Blobs in groups of at most `limit` bytes; a larger one stands alone."""
    chunk: dict[str, bytes] = {}
    size = 0
    for digest, body in blobs.items():
        if chunk and size + len(body) > limit:
            yield chunk
            chunk, size = {}, 0
        chunk[digest] = body
        size += len(body)
    if chunk:
        yield chunk


def stale_packs(packs: Mapping[str, Mapping[str, int]], keep: frozenset[str], most: int = PACKS_KEPT) -> set[str]:
    """Packs to write anew without what is forgotten: those that are mostly forgotten; all small ones when there are many."""
    live = {name: sum(size for digest, size in sizes.items() if digest in keep) for name, sizes in packs.items()}
    stale = {name for name, sizes in packs.items() if 2 * live[name] < sum(sizes.values()) or not keep & sizes.keys()}
    if len(packs) - len(stale) > most:
        stale |= {name for name, size in live.items() if 2 * size < PACK_BYTES}
    return stale


def _stored(event: Event, number: int) -> _Stored:
    return _Stored(
        at=event.at,
        kind=event.kind,
        reason=event.reason,
        message=event.message,
        number=number,
        revision=event.revision,
        subject=event.subject,
        warning=event.warning,
    )


def _event(stored: _Stored) -> Event:
    return Event(**msgspec.structs.asdict(stored))


def _chosen(events: Iterable[_Stored], after: int, since: float) -> list[_Stored]:
    return [stored for stored in events if stored.number > after and stored.at >= since]


def _pack(body: bytes, name: str) -> _Pack:
    blobs = msgspec.msgpack.decode(_inflated(body, name), type=dict[str, bytes])
    return _Pack(body=body, sizes={digest: len(blob) for digest, blob in blobs.items()})


async def _compressed(data: bytes) -> bytes:
    """A megabyte takes 20 ms at level 1: too long for the loop, which has proxies to listen to."""
    return zlib.compress(data, 1) if len(data) < 100_000 else await asyncio.to_thread(zlib.compress, data, 1)


def _inflated(data: bytes, name: str) -> bytes:
    try:
        return zlib.decompress(data)
    except zlib.error as error:
        raise StateUnavailable(f"secret {name} is damaged: it cannot be unpacked; restore a copy of it") from error


class _mapped:  # noqa: N801 - reads as a statement
    """The API's failures as the port's."""

    def __init__(self, repository: str) -> None:
        self._repository = repository

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, ApiError):
            raise StateUnavailable(clean(f"state of {self._repository}: {error}")) from error
        if isinstance(error, msgspec.MsgspecError):
            raise StateUnavailable(f"state of {self._repository} is damaged: {error}") from error
