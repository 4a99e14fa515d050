"""Certificates of gateways on one machine: `<folder>/<namespace>/<name>/tls.crt` and `tls.key`, as Kubernetes names them.

Implements ports.TlsSecrets. The folder stands outside of the mesh repository: keys are never in git.
"""

import asyncio
import ssl
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from backstay.core.ports import TlsMaterial, TlsSecretsUnavailable

MAX_BYTES: Final = 256 * 1024  # of a chain; four certificates with RSA keys have 8 KiB


class FolderSecrets:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __repr__(self) -> str:
        return f"FolderSecrets({self.folder})"

    async def read(self, names: Iterable[str]) -> Mapping[str, TlsMaterial]:
        return await asyncio.to_thread(self._read_all, sorted(names))

    def lacking(self, name: str) -> str:
        return f"secret {name} is not there or has no certificate with its key"

    def _read_all(self, names: list[str]) -> dict[str, TlsMaterial]:
        found = ((name, self._read(name)) for name in names)
        return {name: material for name, material in found if material is not None}

    def _read(self, name: str) -> TlsMaterial | None:
        """None where a file is missing or the two do not belong together (one of them is being replaced, say)."""
        namespace, _, own = name.partition("/")
        if not namespace or not own or "/" in own or ".." in (namespace, own):
            return None
        folder = self.folder / namespace / own
        try:
            certificate, key = _text(folder / "tls.crt"), _text(folder / "tls.key")
        except FileNotFoundError:
            return None
        except (OSError, UnicodeDecodeError) as error:
            raise TlsSecretsUnavailable(f"{folder}: {error}") from error
        return TlsMaterial(certificate=certificate, key=key) if belong_together(certificate, key) else None


def _text(path: Path) -> str:
    with path.open(encoding="ascii") as file:
        return file.read(MAX_BYTES)


def belong_together(certificate: str, key: str) -> bool:
    """Whether OpenSSL takes the two as a pair; an empty or broken one is none."""
    with tempfile.NamedTemporaryFile("w", suffix=".pem") as file:  # 0600, and gone in a moment
        file.write(f"{key}\n{certificate}\n")
        file.flush()
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(file.name)
        except (ssl.SSLError, ValueError):
            return False
    return True
