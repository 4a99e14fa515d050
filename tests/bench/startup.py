"""What a verb costs before it does anything: wall time over bare Python, and `validate` of 100 files.

Budget (docs/cli.md): `backstay version` under 100 ms over bare Python, `validate` of 100 files under 1 s. The last line
is one JSON object. Run: `.venv/bin/python tests/bench/startup.py`.
"""

import importlib.metadata
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
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


def median_ms(command: list[str]) -> float:
    """Median wall time of a command in milliseconds."""
    times = []
    for _ in range(ROUNDS + 1):
        started = time.perf_counter()
        done = subprocess.run(command, capture_output=True, check=False)
        times.append((time.perf_counter() - started) * 1000)
        if done.returncode not in (0, 2):
            raise SystemExit(f"{command}: {done.stderr.decode()}")
    return statistics.median(times[1:])


def main() -> None:
    started = time.perf_counter()
    cli = [sys.executable, "-m", "backstay.cli.main"]
    bare = median_ms([sys.executable, "-c", "pass"])
    figures = {"python_ms": bare, "version_over_python_ms": median_ms([*cli, "version"]) - bare}
    figures["help_over_python_ms"] = median_ms([*cli, "--help"]) - bare
    figures["status_without_operator_over_python_ms"] = (
        median_ms([*cli, "--state-dir", "/nonexistent", "status"]) - bare
    )
    with tempfile.TemporaryDirectory() as folder:
        for number in range(100):
            Path(folder, f"s{number}.yaml").write_text(ROUTE.format(number=number))
        figures["validate_100_files_ms"] = median_ms([*cli, "validate", folder])
    print(
        json.dumps(
            {
                "name": "bench-startup",
                "figures": {name: round(value, 1) for name, value in figures.items()},
                "versions": {
                    "backstay": backstay.__version__,
                    "python": platform.python_version(),
                    "click": importlib.metadata.version("click"),
                },
                "seconds": round(time.perf_counter() - started, 1),
            }
        )
    )


if __name__ == "__main__":
    main()
