"""`backstay sidecar` is the sidecar program."""

import subprocess
import sys


def test_the_sidecar_verb_becomes_the_sidecar() -> None:
    command = [sys.executable, "-m", "backstay.cli.main", "sidecar", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0
    assert "usage: backstay sidecar" in done.stdout
