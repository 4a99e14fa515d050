"""Settings of a process are those of a process of its own."""

import platform
import subprocess
import sys

import pytest

from backstay.sidecar.heap import GIVE_BACK_AFTER, Tide

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


FRAGMENTED = """
from backstay.sidecar.heap import give_back, settle

def resident():
    with open("/proc/self/statm") as pages:
        return int(pages.read().split()[1]) * 4

settle()
blocks = [bytes(20_000) for _ in range(3000)]  # 60 MB
kept = blocks[::20]
del blocks
before = resident()
give_back()
print(before - resident() > 30_000)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="malloc_trim is glibc's")
def test_pages_between_what_is_kept_are_given_back() -> None:
    done = subprocess.run([sys.executable, "-c", FRAGMENTED], check=False, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "True\n", "")


def test_many_connections_that_end_are_told_once() -> None:
    tide = Tide()
    open_connections = [0, 50, 200, 200 - GIVE_BACK_AFTER + 1, 200 - GIVE_BACK_AFTER, 130, 140, 77, 76, 0]
    assert [tide.has_ebbed(count) for count in open_connections] == [
        False, False, False, False, True, False, False, False, True, True,
    ]  # fmt: skip


def test_a_few_connections_that_come_and_go_are_not_told() -> None:
    tide = Tide()
    assert not any(tide.has_ebbed(count) for count in (10, 0, 40, 3, 60, 0) * 20)
