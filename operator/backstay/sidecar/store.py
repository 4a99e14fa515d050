"""What a sidecar keeps on its disk: configs as content-addressed objects, what it was last told, leases, live data.

Objects (parts and manifests by digest) lie in packs: one file, one fsync per change however many parts it has, and one
read at start. Every object is checked against its name when it is read; what does not match is as good as missing and
is asked for again. Everything else is small files that are replaced as a whole.
"""

import fcntl
import logging
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from backstay.config.model import Config, Manifest, Part, config_digest, decode_part, digest_of
from backstay.config.wire import Endpoint, Offer, RefusalExpected, TlsSecret
from backstay.sidecar import files
from backstay.sidecar.lease import Lease

REMEMBERED_CONFIGS: Final = 8
"""Manifests kept with their parts, so that a rollback needs no download; the operator believes in the last four."""
MAX_PACKS: Final = 8
"""More are merged into one; the work stays small beside receiving that many configs."""
_DIGEST_LENGTH: Final = 64
_Kind = TypeVar("_Kind")

_log: Final = logging.getLogger("backstay.store")


_LABEL: Final = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")  # a DNS label, as names of documents are


class StoreInUse(Exception):
    """Another process holds this state folder."""


class Saved(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the sidecar was last told and did, across restarts."""

    epoch: int = 0
    """The greatest epoch seen; lower ones are refused."""
    stable: str = ""
    candidate: str = ""
    share: float = 0.0
    lease_s: float = 60.0
    expect_refused: list[RefusalExpected] = []
    went_back: str = ""
    """Why it left `went_back_from` by itself, until the operator has heard of it."""
    went_back_from: str = ""
    restarts: tuple[float, ...] = ()
    clean_end: bool = False
    recent: tuple[str, ...] = ()
    """Manifest digests, newest last."""


class SavedLive(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The last known live data: better than nothing for a start without an operator."""

    endpoints: dict[str, list[Endpoint]] = {}
    addresses: dict[str, list[str]] = {}
    trust: dict[str, str] = {}
    revoked: list[str] = []
    zone: str = ""
    key_sets: dict[str, str] = {}


@dataclass(frozen=True, slots=True)
class _Place:
    pack: Path
    offset: int
    length: int


class Objects:
    """Immutable bytes by their SHA-256, in packs of lines `<digest> <bytes>` (canonical JSON has no line breaks)."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._places: dict[str, _Place] = {}
        self.dropped = 0
        """Objects that were damaged on disk."""
        for pack in sorted(folder.glob("*.pack")):
            self._index(pack, pack.read_bytes())

    def __contains__(self, digest: str) -> bool:
        return digest in self._places

    def _index(self, pack: Path, data: bytes) -> None:
        offset = 0
        for line in data.split(b"\n"):
            body = line[_DIGEST_LENGTH + 1 :]
            name = line[:_DIGEST_LENGTH].decode("ascii", "replace")
            if line and digest_of(body) == name:
                self._places[name] = _Place(pack, offset + _DIGEST_LENGTH + 1, len(body))
            elif line:
                self.dropped += 1
                _log.warning("store.damaged pack=%s object=%r", pack.name, name[:12])
            offset += len(line) + 1

    def read(self, digests: Iterable[str]) -> dict[str, bytes]:
        """Those of the asked that are there and whole."""
        by_pack: dict[Path, list[str]] = {}
        for digest in digests:
            if digest in self._places:
                by_pack.setdefault(self._places[digest].pack, []).append(digest)
        found: dict[str, bytes] = {}
        for pack, wanted in by_pack.items():
            found |= self._read_pack(pack, wanted)
        return found

    def _read_pack(self, pack: Path, wanted: Iterable[str]) -> dict[str, bytes]:
        try:
            data = pack.read_bytes()
        except OSError as error:
            _log.warning("store.unreadable pack=%s error=%s", pack.name, error)
            data = b""
        found: dict[str, bytes] = {}
        for digest in wanted:
            place = self._places[digest]
            body = data[place.offset : place.offset + place.length]
            if digest_of(body) == digest:
                found[digest] = body
            else:
                self.dropped += 1
                del self._places[digest]
                _log.warning("store.damaged pack=%s object=%s", pack.name, digest[:12])
        return found

    def add(self, objects: Mapping[str, bytes]) -> None:
        """Keep these. Raises OSError, then none is kept."""
        fresh = {digest: data for digest, data in objects.items() if digest not in self._places}
        if not fresh:
            return
        pack = self._folder / f"{self._next_number():08d}.pack"
        data = b"".join(b"%s %s\n" % (digest.encode(), body) for digest, body in fresh.items())
        files.write(pack, data, files.Outlives.POWER_CUT)
        self._index(pack, data)

    def _next_number(self) -> int:
        return max((int(pack.stem) for pack in self._folder.glob("*.pack")), default=0) + 1

    @property
    def is_scattered(self) -> bool:
        return sum(1 for _ in self._folder.glob("*.pack")) > MAX_PACKS

    def compact(self, keep: Iterable[str]) -> None:
        """Merge all packs into one that holds only these. Raises OSError, then all is as before."""
        old = sorted(self._folder.glob("*.pack"))
        kept = self.read(keep)
        self._places = {}
        try:
            self.add(kept)
        except OSError:
            for pack in old:
                self._index(pack, pack.read_bytes())
            raise
        for pack in old:
            pack.unlink(missing_ok=True)


class Store:
    """The state folder of one proxy. Used by one process at a time."""

    def __init__(self, folder: Path) -> None:
        """Raises StoreInUse, OSError."""
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        (folder / "objects").mkdir(exist_ok=True, mode=0o700)
        self.folder = folder
        self._lock = _hold(folder / "lock")
        for each in (folder, folder / "objects"):
            files.remove_leftovers(each)
        self.objects = Objects(folder / "objects")
        self.saved = read_saved(folder)

    def __repr__(self) -> str:
        return f"Store({self.folder}, stable={self.saved.stable[:12]}, candidate={self.saved.candidate[:12]})"

    @property
    def identity(self) -> Path:
        return self.folder / "identity.pem"

    def save(self, saved: Saved) -> None:
        """Raises OSError, then the former stays. A power cut may bring the former config back, but never an epoch."""
        outlives = files.Outlives.ALWAYS if saved.epoch != self.saved.epoch else files.Outlives.POWER_CUT
        files.write(self.folder / "state.json", msgspec.json.encode(saved), outlives)
        self.saved = saved

    def save_lease(self, lease: Lease | None) -> None:
        """Not durable on purpose: written every few seconds, and after a power cut the lease is over anyway."""
        if lease is None:
            (self.folder / "lease.json").unlink(missing_ok=True)
        else:
            files.write(self.folder / "lease.json", msgspec.json.encode(lease), files.Outlives.KILL)

    def lease(self) -> Lease | None:
        return _read(self.folder / "lease.json", Lease)

    def save_secrets(self, secrets: Mapping[str, TlsSecret]) -> None:
        """Keep exactly these certificates, each with its key in one private file. Raises OSError."""
        wanted = {self._secret_file(name): secret for name, secret in secrets.items()}
        for path, secret in wanted.items():
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            files.write(path, f"{secret.key}\n{secret.certificate}\n".encode())
        for path in set(self.secrets().values()) - wanted.keys():
            path.unlink(missing_ok=True)

    def secrets(self) -> dict[str, Path]:
        """Name (`<namespace>/<name>`) -> file of every certificate on disk."""
        found = sorted((self.folder / "secrets").glob("*/*.pem"))
        return {f"{path.parent.name}/{path.stem}": path for path in found}

    def _secret_file(self, name: str) -> Path:
        namespace, _, own = name.partition("/")
        if not _LABEL.fullmatch(namespace) or not _LABEL.fullmatch(own):
            raise OSError(f"secret {name!r} cannot be a file")
        return self.folder / "secrets" / namespace / f"{own}.pem"

    def save_live(self, live: SavedLive) -> None:
        files.write(self.folder / "live.json", msgspec.json.encode(live), files.Outlives.KILL)

    def live(self) -> SavedLive:
        return read_live(self.folder)

    def remember(self, *digests: str) -> tuple[str, ...]:
        """The recent manifests after these were used."""
        fresh = dict.fromkeys(digest for digest in digests if digest)
        older = [digest for digest in self.saved.recent if digest not in fresh]
        return tuple([*older, *fresh][-REMEMBERED_CONFIGS:])

    def compact(self) -> None:
        """Merge packs and forget objects that no recent config uses, once it is worth it. Raises OSError."""
        if not self.objects.is_scattered:
            return
        keep: set[str] = set(self.saved.recent)
        for data in self.objects.read(self.saved.recent).values():
            keep.update(msgspec.json.decode(data, type=Manifest).parts.values())
        self.objects.compact(keep)

    def close(self) -> None:
        os.close(self._lock)


def _hold(path: Path) -> int:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, files.PRIVATE)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        raise StoreInUse(f"{path.parent}: another sidecar uses this state folder") from error
    return descriptor


def _read(path: Path, kind: type[_Kind]) -> _Kind | None:
    """A small file as a value; a damaged one is said and counts as absent."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except FileNotFoundError:
        return None
    except msgspec.DecodeError as error:
        _log.error("store.damaged file=%s error=%s", path.name, error)
        return None


def read_saved(folder: Path) -> Saved:
    return _read(folder / "state.json", Saved) or Saved()


def read_live(folder: Path) -> SavedLive:
    return _read(folder / "live.json", SavedLive) or SavedLive()


# --- configs from objects -------------------------------------------------------------------------


def load_config(objects: Objects, digest: str, known: Mapping[str, Part] | None = None) -> Config | None:
    """A config from disk; None if anything of it is missing or damaged. Raises msgspec.ValidationError for a part that
    this version does not understand. `known` are parts at hand, by digest."""
    data = objects.read([digest]).get(digest)
    if data is None:
        return None
    return complete(objects, msgspec.json.decode(data, type=Manifest), known or {})


def complete(objects: Objects, manifest: Manifest, known: Mapping[str, Part]) -> Config | None:
    lacking = missing(objects, manifest, known)
    if lacking:
        return None
    read = objects.read(part for part in manifest.parts.values() if part not in known)
    try:
        parts = {key: known.get(part) or decode_part(read[part]) for key, part in manifest.parts.items()}
    except KeyError:  # found damaged while reading
        return None
    return Config(manifest=manifest, parts=parts)


def missing(objects: Objects, manifest: Manifest, known: Mapping[str, Part]) -> list[str]:
    return sorted({part for part in manifest.parts.values() if part not in known and part not in objects})


def parts_of(*configs: Config | None) -> dict[str, Part]:
    """Decoded parts by digest: what two configs share is decoded and held once."""
    return {
        config.manifest.parts[key]: part
        for config in configs
        if config is not None
        for key, part in config.parts.items()
    }


def offered(base: Manifest, offer: Offer) -> Manifest | None:
    """The manifest that an offer describes; None if it does not come out at its digest."""
    parts = {key: part for key, part in base.parts.items() if key not in offer.unset} | offer.set
    manifest = Manifest(workload=offer.workload or base.workload, parts=parts, schema=offer.schema or base.schema)
    return manifest if config_digest(manifest) == offer.digest else None


# --- for people -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskState:
    """All a proxy would serve if it started now; read without its process and without an operator."""

    saved: Saved
    stable: Config | None
    candidate: Config | None
    live: SavedLive
    lease: Lease | None
    damaged: int
    """Objects that were found damaged."""


def read_state(folder: Path) -> DiskState:
    """What lies in a proxy's state folder. Raises FileNotFoundError when it is none."""
    if not (folder / "objects").is_dir():
        raise FileNotFoundError(f"{folder}: is not the state folder of a sidecar")
    objects = Objects(folder / "objects")
    saved = read_saved(folder)
    return DiskState(
        saved=saved,
        stable=load_config(objects, saved.stable),
        candidate=load_config(objects, saved.candidate) if saved.candidate else None,
        live=read_live(folder),
        lease=_read(folder / "lease.json", Lease),
        damaged=objects.dropped,
    )
