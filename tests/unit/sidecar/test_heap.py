"""Settings of a process are those of a process of its own."""

import subprocess
import sys

PROGRAM = """
import gc, sys
from backstay.sidecar.heap import YOUNG_OBJECTS, settle
settle()
assert gc.isenabled() and gc.get_threshold()[0] == YOUNG_OBJECTS and gc.get_freeze_count() > 1000
kept = [bytes(100_000) for _ in range(500)]
del kept[::2]
del kept
class Ring: pass
ring = Ring(); ring.ring = ring
del ring
assert gc.collect() > 0
print("settled", "ctypes" in sys.modules)
"""


def test_a_process_that_settled_still_collects_cycles_and_allocates() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], check=False, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "settled True\n", "")


def test_a_python_without_ctypes_does_without() -> None:
    hidden = "import sys\nsys.modules['ctypes'] = None\n" + PROGRAM.replace('"ctypes" in sys.modules', "False")
    done = subprocess.run([sys.executable, "-c", hidden], check=False, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "settled False\n", "")
