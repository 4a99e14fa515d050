"""The manifests and parts in play, and the offers that take a proxy from what it has to what it should have.

An offer is made and encoded once and shared by every proxy that starts from the same place: the cost follows the
change, not the number of proxies. Pure bookkeeping; the control server owns the sockets.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

import msgspec

from backstay.config.model import Manifest, config_digest, encode_manifest
from backstay.config.wire import Offer

MAX_INLINE_BYTES: Final = 4 * 1024 * 1024
"""Parts sent along with an offer; a proxy asks for the rest. A quarter of MAX_MESSAGE_BYTES: two offers fit in one."""
_BACKEND: Final = "backend/"


class PartMissing(Exception):
    """An assignment names a part that was not handed over with it: a mistake of the caller."""


@dataclass(slots=True, eq=False)
class _Known:
    manifest: Manifest
    parts: Mapping[str, bytes]
    """By digest; shared between manifests of one assignment, so it may hold more."""
    services: frozenset[str]


class Library:
    """What may be asked for and offered. One per control server."""

    def __init__(self) -> None:
        self._known: dict[str, _Known] = {}
        self._digests: dict[int, tuple[Manifest, str]] = {}
        self._offers: dict[tuple[str, tuple[str, ...]], bytes] = {}

    def __repr__(self) -> str:
        return f"Library(manifests={len(self._known)}, offers={len(self._offers)})"

    def __contains__(self, digest: str) -> bool:
        return digest in self._known

    def __len__(self) -> int:
        return len(self._known)

    def add(self, manifest: Manifest, parts: Mapping[str, bytes]) -> str:
        """Remember a manifest and its parts; returns its digest. Raises PartMissing."""
        digest = self._digest(manifest)
        if digest not in self._known:
            missing = [key for key, part in manifest.parts.items() if part not in parts]
            if missing:
                raise PartMissing(
                    f"config {digest[:12]} of {manifest.workload}: part {missing[0]!r} was not handed over"
                )
            own = {part: parts[part] for part in manifest.parts.values()}
            self._known[digest] = _Known(manifest, own, services_of(manifest))
        return digest

    def _digest(self, manifest: Manifest) -> str:
        """By object: the same manifest is assigned to many proxies, and hashing 1,000 routes takes a millisecond."""
        known = self._digests.get(id(manifest))
        if known is None or known[0] is not manifest:
            known = self._digests[id(manifest)] = (manifest, config_digest(manifest))
        return known[1]

    def services(self, digests: Iterable[str]) -> frozenset[str]:
        """`service.namespace:port` of every backend these configs name."""
        return frozenset().union(*(self._known[each].services for each in digests if each in self._known))

    def offer(self, digest: str, believed: Iterable[str]) -> bytes:
        """Encoded Offer of a manifest for a proxy that is believed to have these configs."""
        bases = tuple(sorted({each for each in believed if each in self._known}))
        key = (digest, bases)
        encoded = self._offers.get(key)
        if encoded is None:
            encoded = self._offers[key] = msgspec.json.encode(self._make_offer(digest, bases))
        return encoded

    def _make_offer(self, digest: str, bases: tuple[str, ...]) -> Offer:
        target = self._known[digest]
        if digest in bases:
            return Offer(digest=digest, base=digest)
        deltas = [_delta(base, self._known[base].manifest.parts, target.manifest.parts) for base in bases]
        base, changed, gone = min(deltas, key=lambda each: len(each[1]) + len(each[2]), default=("", None, None))
        if changed is None or gone is None:
            changed, gone = dict(target.manifest.parts), []
        had = set().union(*(self._known[each].manifest.parts.values() for each in bases))
        lacking = {part: target.parts[part] for part in changed.values() if part not in had}
        return Offer(
            digest=digest,
            base=base,
            workload=target.manifest.workload,
            schema=target.manifest.schema,
            set=changed,
            unset=gone,
            parts=_fitting(lacking, MAX_INLINE_BYTES),
        )

    def part(self, digest: str) -> bytes | None:
        for known in self._known.values():
            found = known.parts.get(digest)
            if found is not None:
                return found
        return None

    def manifest(self, digest: str) -> bytes | None:
        known = self._known.get(digest)
        return encode_manifest(known.manifest) if known else None

    def prune(self, keep: Iterable[str]) -> None:
        """Forget manifests (and their parts and offers) that are neither assigned nor believed anywhere."""
        kept = set(keep)
        self._known = {digest: known for digest, known in self._known.items() if digest in kept}
        self._digests = {key: value for key, value in self._digests.items() if value[1] in self._known}
        self._offers = {
            key: value for key, value in self._offers.items() if key[0] in self._known and set(key[1]) <= kept
        }


def services_of(manifest: Manifest) -> frozenset[str]:
    return frozenset(key.removeprefix(_BACKEND) for key in manifest.parts if key.startswith(_BACKEND))


def _delta(base: str, old: Mapping[str, str], new: Mapping[str, str]) -> tuple[str, dict[str, str], list[str]]:
    changed = {key: part for key, part in new.items() if old.get(key) != part}
    return base, changed, sorted(old.keys() - new.keys())


def _fitting(parts: Mapping[str, bytes], limit: int) -> dict[str, msgspec.Raw]:
    """As many of the parts as fit; the rest is asked for."""
    chosen: dict[str, msgspec.Raw] = {}
    for digest, data in parts.items():
        limit -= len(data) + len(digest)
        if limit < 0:
            break
        chosen[digest] = msgspec.Raw(data)
    return chosen


def batches(parts: Mapping[str, bytes], limit: int = MAX_INLINE_BYTES) -> list[dict[str, msgspec.Raw]]:
    """Parts in groups that fit into one message each; a part over the limit goes alone."""
    groups: list[dict[str, msgspec.Raw]] = []
    rest = dict(parts)
    while rest:
        group = _fitting(rest, limit) or {next(iter(rest)): msgspec.Raw(next(iter(rest.values())))}
        groups.append(group)
        rest = {digest: data for digest, data in rest.items() if digest not in group}
    return groups
