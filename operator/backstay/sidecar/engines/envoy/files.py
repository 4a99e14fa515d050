"""Where Envoy's files lie, and how they are replaced: written beside and moved into place, so that Envoy never reads half a file
and its watch of the folder fires once.

The folder is private and lives as long as the engine; everything in it can be made again from what the agent keeps.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from backstay.sidecar import files
from backstay.sidecar.engines.envoy.api import Json

_UNSAFE: Final = re.compile(r"[^A-Za-z0-9._-]")
_KINDS: Final = ("routes", "endpoints", "secrets", "filters")


@dataclass(frozen=True, slots=True)
class Folder:
    """The files of one Envoy."""

    path: Path

    def make(self) -> None:
        """Raises OSError."""
        for kind in ("", *_KINDS):
            (self.path / kind).mkdir(mode=0o700, parents=True, exist_ok=True)

    @property
    def bootstrap(self) -> Path:
        return self.path / "bootstrap.json"

    @property
    def listeners(self) -> Path:
        return self.path / "listeners.json"

    @property
    def clusters(self) -> Path:
        return self.path / "clusters.json"

    @property
    def admin(self) -> Path:
        return self.path / "admin.sock"

    def routes(self, name: str) -> Path:
        return self.path / "routes" / f"{file_name(name)}.json"

    def endpoints(self, cluster: str) -> Path:
        return self.path / "endpoints" / f"{file_name(cluster)}.json"

    def filter(self, name: str) -> Path:
        return self.path / "filters" / f"{file_name(name)}.json"

    def secret(self, name: str) -> Path:
        return self.path / "secrets" / f"{file_name(name)}.json"


def file_name(name: str) -> str:
    """A name of the mesh as a file's; different names stay different."""
    return _UNSAFE.sub(lambda found: f"~{ord(found[0]):x}~", name)


def response(version: str, resources: list[Json]) -> bytes:
    """A DiscoveryResponse as files hold it."""
    return msgspec.json.encode({"version_info": version, "resources": resources})


def write(path: Path, data: bytes) -> None:
    """Replace one file. Raises OSError. Nothing here must outlive this process."""
    files.write(path, data, files.Outlives.KILL)
