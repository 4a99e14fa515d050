"""What a verb costs before it does anything: wall time over bare Python, and `validate` of 100 files.

Budget (docs/cli.md): `backstay version` under 100 ms over bare Python, `validate` of 100 files under 1 s. The last line
is one JSON object. Run: `.venv/bin/python tests/bench/startup.py`.
"""

import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import backstay

ROUNDS = 15  # medians over these; the first one warms the file cache and is not counted
ROUTE = """\
apiVersion: backstay.dev/v1alpha1
kind: Route
metadata: {{name: s{number}, namespace: shop}}
spec:
  hosts: [s{number}]
  rules:
  - matches: [{{path: {{type: PathPrefix, value: /api}}}}]
    backendRefs: [{{name: s{number}, port: 80}}]
    timeouts: {{request: 2s}}
  - backendRefs: [{{name: s{number}, port: 80}}]
"""


@dataclass(frozen=True)
class Cost:
    wall_ms: float
    cpu_ms: float
    """User and system time of the process: what counts on a machine that is busy with something else."""

    def over(self, bare: "Cost") -> "Cost":
        return Cost(wall_ms=self.wall_ms - bare.wall_ms, cpu_ms=self.cpu_ms - bare.cpu_ms)


def median(command: list[str]) -> Cost:
    once(command)
    costs = [once(command) for _ in range(ROUNDS)]
    return Cost(
        wall_ms=statistics.median(cost.wall_ms for cost in costs),
        cpu_ms=statistics.median(cost.cpu_ms for cost in costs),
    )


def once(command: list[str]) -> Cost:
    """Run a command to its end. Exit code 2 is right for a status nobody can give."""
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode not in (0, 2):
        raise SystemExit(f"{command}: exit code {process.returncode}")
    return Cost(wall_ms=(time.perf_counter() - started) * 1000, cpu_ms=(used.ru_utime + used.ru_stime) * 1000)


def measure() -> dict[str, Cost]:
    cli = [sys.executable, "-m", "backstay.cli.main"]
    bare = median([sys.executable, "-c", "pass"])
    found = {
        "python": bare,
        "version_over_python": median([*cli, "version"]).over(bare),
        "help_over_python": median([*cli, "--help"]).over(bare),
        "status_away_over_python": median([*cli, "--state-dir", "/nonexistent", "status"]).over(bare),
    }
    with tempfile.TemporaryDirectory() as folder:
        for number in range(100):
            Path(folder, f"s{number}.yaml").write_text(ROUTE.format(number=number))
        found["validate_100_files"] = median([*cli, "validate", folder])
    return found


def main() -> None:
    started = time.perf_counter()
    costs = measure()
    walls = {f"{name}_ms": round(cost.wall_ms, 1) for name, cost in costs.items()}
    cpus = {f"{name}_cpu_ms": round(cost.cpu_ms, 1) for name, cost in costs.items()}
    versions = {
        "backstay": backstay.__version__,
        "python": platform.python_version(),
        "click": importlib.metadata.version("click"),
    }
    seconds = round(time.perf_counter() - started, 1)
    print(json.dumps({"name": "bench-startup", "figures": {**walls, **cpus}, "versions": versions, "seconds": seconds}))


if __name__ == "__main__":
    main()
