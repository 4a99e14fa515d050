"""Certificates of gateways: read where the platform keeps them, given to the proxies that show them and to nobody else.

They are live data: a renewed certificate reaches its gateways within a look or two, and no rollout knows of it.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Final

from backstay.core.compile.gateway import secrets_of
from backstay.core.ports import Fleet, TlsMaterial, TlsSecrets, TlsSecretsUnavailable
from backstay.core.registry import Registry
from backstay.core.snapshot import Document
from backstay.reconciler.journal import Journal
from backstay.redact import clean

LOOK_SECONDS: Final = 2.0
"""Between looks. Reading a handful of small files costs less than a millisecond; a renewal has hours."""

_log: Final = logging.getLogger("backstay.reconciler")


class SecretsWatch:
    """Looks at the secrets that documents name, and tells the fleet what has changed."""

    def __init__(
        self, secrets: TlsSecrets, fleet: Fleet, journal: Journal, known: Callable[[], tuple[list[Document], Registry]]
    ) -> None:
        """`known` gives the documents that any proxy may go by now, and the registry."""
        self._secrets = secrets
        self._fleet = fleet
        self._journal = journal
        self._known = known
        self._told: Mapping[str, Mapping[str, TlsMaterial]] = {}
        self._missing: Mapping[str, str] = {}
        """Secret -> what has been said of it."""

    async def run(self) -> None:
        while True:
            try:
                await self.look()
            except TlsSecretsUnavailable as error:
                _log.warning("secrets.unavailable error=%s", clean(str(error)))
            await asyncio.sleep(LOOK_SECONDS)

    async def look(self) -> None:
        """One look. Raises TlsSecretsUnavailable; proxies keep what they have."""
        wanted = secrets_of(*self._known())
        names = frozenset(name for each in wanted.values() for name in each)
        found = await self._secrets.read(names) if names else {}
        self._complain(names - found.keys())
        by_workload = {
            workload: {name: found[name] for name in sorted(each) if name in found} for workload, each in wanted.items()
        }
        if by_workload != self._told:
            self._fleet.secrets(by_workload)
            self._told = by_workload

    def _complain(self, missing: frozenset[str]) -> None:
        """Once for each secret, and again when something else is wrong with it."""
        said = {name: f"{self._secrets.lacking(name)}: its listeners refuse handshakes" for name in sorted(missing)}
        for name, text in said.items():
            if text != self._missing.get(name):
                self._journal.event("certificate", "SecretMissing", text, subject=name, warning=True)
        self._missing = said
