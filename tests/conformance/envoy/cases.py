"""The cases of the other folders, a whole group through one Envoy, and the differences that are known (differences.yaml)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import yaml

from backstay.sidecar.engines.envoy import EnvoyEngine

HERE: Final = Path(__file__).parent
FOLDERS: Final = HERE.parent
CONCURRENCY: Final = {"BACKSTAY_ENVOY_CONCURRENCY": "1", "PATH": "/usr/bin:/bin"}


def engine() -> EnvoyEngine:
    return EnvoyEngine(CONCURRENCY)


def groups(file: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = yaml.safe_load((FOLDERS / file).read_text(encoding="utf-8"))
    return found


def known(file: str) -> Mapping[str, str]:
    """Case -> why Envoy does otherwise."""
    every: dict[str, dict[str, str]] = yaml.safe_load((HERE / "differences.yaml").read_text(encoding="utf-8"))
    return every.get(file, {})
