"""One CA for several operators: its files lie in one place all of them can read, changed by whoever leads.

The place says by a version whether somebody else was first; then theirs counts.
"""

import datetime as dt
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Protocol

from backstay.adapters.certificates.authority import LEAF_LIFETIME, Authority, utc
from backstay.adapters.certificates.making import ROOT_CERT, new_material
from backstay.adapters.certificates.reading import CertificatesUnusable, read_certificates

_log: Final = logging.getLogger("backstay.certificates")


@dataclass(frozen=True, slots=True, kw_only=True)
class Material:
    """A CA's files, by name."""

    name: str
    """Where they lie, for messages."""
    files: Mapping[str, bytes]
    version: str
    """Changes with the files."""
    trusted: bytes = b""
    """PEM roots of another CA that has signed for this mesh before, trusted besides."""


class SharedFiles(Protocol):
    """Where a shared CA's files lie. Its own exceptions come through: asked again later, nothing was changed."""

    async def load(self) -> Material | None:
        """None where nobody has made or brought a CA yet."""

    async def save(self, files: Mapping[str, bytes], version: str) -> bool:
        """Replace all files; version "" makes them. False: somebody else was first, load again."""


class _MemoryVault:
    """Files in memory; what is committed waits to be saved."""

    def __init__(self, name: str, files: Mapping[str, bytes]) -> None:
        self.files = dict(files)
        self._name = name

    def __str__(self) -> str:
        return self._name

    def read(self, name: str) -> bytes | None:
        return self.files.get(name)

    def commit(self, files: Mapping[str, bytes | None]) -> None:
        kept = {name: data for name, data in self.files.items() if name not in files}
        self.files = kept | {name: data for name, data in files.items() if data is not None}


class SharedCA(Authority):
    """The CA whose files operators share. `await SharedCA.open(...)`, then `tend` every minute."""

    def __init__(
        self,
        shared: SharedFiles,
        material: Material,
        trust_domain: str,
        *,
        lifetime: float = LEAF_LIFETIME,
        now: Callable[[], dt.datetime] = utc,
    ) -> None:
        """Use `open` instead: it makes the files where there are none."""
        self._shared = shared
        self._material = material
        super().__init__(_MemoryVault(material.name, material.files), trust_domain, lifetime=lifetime, now=now)
        self._check_trusted(material)

    @classmethod
    async def open(
        cls,
        shared: SharedFiles,
        trust_domain: str,
        *,
        lifetime: float = LEAF_LIFETIME,
        now: Callable[[], dt.datetime] = utc,
    ) -> "SharedCA":
        """The CA that lies there, made on first use. Raises CertificatesUnusable, and what `shared` raises."""
        material = await shared.load()
        if material is None:
            await shared.save(new_material(trust_domain, now()), "")
            material = await shared.load()
        if material is None:
            raise CertificatesUnusable("the CA's files vanished while they were made")
        return cls(shared, material, trust_domain, lifetime=lifetime, now=now)

    def trust_bundle(self) -> Mapping[str, str]:
        own = super().trust_bundle()[self.trust_domain]
        return {self.trust_domain: own + self._material.trusted.decode()}

    async def tend(self, *, may_change: bool) -> list[str]:
        """Take over what others have changed and, if this operator leads, do what rotation is due; says what was done.

        Raises CertificatesUnusable for files that cannot be used (then the former ones go on), and what `shared` raises.
        """
        done = ["the certificates of the CA were replaced"] if await self._refresh() else []
        return [*done, *(await self._rotate() if may_change else [])]

    async def _refresh(self) -> bool:
        material = await self._shared.load()
        if material is None or (material.version, material.trusted) == (self._material.version, self._material.trusted):
            return False
        self._take(material)
        return True

    def _take(self, material: Material) -> None:
        """All or nothing: files that cannot be used leave the former ones in force."""
        fresh = SharedCA(self._shared, material, self.trust_domain, lifetime=self.lifetime, now=self._now)
        self._material, self._vault = material, fresh._vault
        self._load()

    async def _rotate(self) -> list[str]:
        """On a copy: what could not be saved must not have happened."""
        copy = SharedCA(self._shared, self._material, self.trust_domain, lifetime=self.lifetime, now=self._now)
        done = copy.maintain()
        if not done:
            return []
        vault = copy._vault
        assert isinstance(vault, _MemoryVault)  # noqa: S101 - made by the constructor
        if not await self._shared.save(vault.files, self._material.version):
            _log.info("ca.rotation-raced name=%s", self._material.name)
            return []
        await self._refresh()
        return done

    def _check_trusted(self, material: Material) -> None:
        if material.trusted:
            read_certificates(f"{material.name}: {ROOT_CERT} that is trusted besides", material.trusted)
