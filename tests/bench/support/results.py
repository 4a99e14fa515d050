"""How a benchmark ends: one line that is a JSON object, and the same kept under docs/benchmarks/."""

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parents[3]
KEPT: Final = ROOT / "docs" / "benchmarks"
QUICK: Final = bool(os.environ.get("QUICK"))
"""Short runs are for looking, never kept."""


def versions(*packages: str) -> dict[str, str]:
    """Of Backstay (with its commit), Python, and these packages."""
    found = {"backstay": version("backstay"), "python": platform.python_version()}
    commit = subprocess.run(
        ["git", "-C", str(ROOT), "rev-parse", "--short=12", "HEAD"], check=False, capture_output=True, text=True
    )
    if commit.returncode == 0:
        found["commit"] = commit.stdout.strip()
    return found | {package: version(package) for package in packages}


def machine() -> dict[str, Any]:
    """What the numbers were taken on, load at the end included: a shared machine is part of the result."""
    return {
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "load_1m": round(os.getloadavg()[0], 1),
    }


def finish(
    name: str, figures: Mapping[str, float], began: float, *, packages: tuple[str, ...] = (), **more: object
) -> None:
    """Print the last line; keep it, indented and with the machine, unless the run was a short one."""
    result = {
        "name": name,
        "figures": dict(figures),
        "versions": versions(*packages),
        "seconds": round(time.monotonic() - began, 1),
    }
    if not QUICK:
        KEPT.mkdir(parents=True, exist_ok=True)
        kept = result | {"machine": machine()} | more
        (KEPT / f"{name}.json").write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result), flush=True)


def say(text: str) -> None:
    """A line on the way, for people."""
    print(text, flush=True, file=sys.stdout)
