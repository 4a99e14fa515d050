"""`make fuzz`: each target in turn with Hypothesis, or one of them guided by coverage: `make fuzz TARGET=requests`.

The latter needs the package `atheris` (`python -m pip install atheris`), and ends after SECONDS or with the first input that
breaks an invariant, which it leaves in a file `crash-...` in the folder it was started in.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[2]
EXAMPLES: Final = "20000"
TIMEOUT: Final = "3600"  # seconds for each target; 20,000 examples take about two minutes
CUTS: Final = 4
"""Bytes at the head of an input that say where it is cut."""


def examples() -> int:
    environment = {**os.environ, "FUZZ": os.environ.get("FUZZ") or EXAMPLES}
    command = [sys.executable, "-m", "pytest", "--timeout", TIMEOUT, str(ROOT / "tests" / "fuzz")]
    return subprocess.run(command, env=environment, cwd=ROOT, check=False).returncode


def guided(name: str, seconds: int) -> None:
    try:
        import atheris  # type: ignore[import-untyped]
    except ImportError as error:
        raise SystemExit("this needs the package atheris, which is no part of the environment") from error
    sys.path.insert(0, str(ROOT / "tests"))
    with atheris.instrument_imports(include=["backstay", "fuzz"]):
        from fuzz.strategies import ANSWERS, CONFIG, REQUESTS, encoded
        from fuzz.targets import TARGETS

    seeds = {"requests": REQUESTS, "answers": ANSWERS, "config": [encoded(CONFIG)]}[name]
    target = TARGETS[name]
    with tempfile.TemporaryDirectory() as corpus:
        for number, seed in enumerate(seeds):
            (Path(corpus) / f"{number}").write_bytes(bytes(CUTS) + seed)

        def one(data: bytes) -> None:
            target(data[CUTS:], list(data[:CUTS]))

        atheris.Setup([sys.argv[0], f"-max_total_time={seconds}", "-max_len=4096", corpus], one)
        atheris.Fuzz()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("target", nargs="?", choices=("requests", "answers", "config"))
    parser.add_argument("--seconds", type=int, default=600)
    arguments = parser.parse_args()
    if arguments.target:
        guided(arguments.target, arguments.seconds)
    else:
        raise SystemExit(examples())
