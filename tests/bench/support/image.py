"""A folder with what the sidecar's image holds: interpreter, its few packages, Backstay, all of it as bytecode.

The checkout's own environment is another one: tools bring hooks and packages that libraries import where they find them, and
its interpreter may be built without optimization. That is neither what runs in a pod nor what its memory is."""

import os
import shutil
import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[3]
TARGET: Final = ROOT / "build" / "bench-image"
_NAME: Final = f"python{sys.version_info.major}.{sys.version_info.minor}"
_TRIAL: Final = """
from time import process_time

class Field:
    def __init__(self, name, value):
        self.name, self.value = name, value

    def line(self):
        return b"%b: %b\\r\\n" % (self.name, self.value)

def once():
    began = process_time()
    for number in range(20_000):
        field = Field(b"name", b"%d" % number)
        {field.name.lower(): field.line().partition(b": ")}.get(b"name")
    return process_time() - began

print(min(once() for _ in range(15)))
"""
_TRIALS: Final = 7
"""Calls, attributes and bytes, as requests have them: an optimized build does them in two thirds of the time."""


def make_image(package: Path) -> Path:
    """The folder's interpreter; `package` is Backstay's. Replaces what is there."""
    shutil.rmtree(TARGET, ignore_errors=True)
    subprocess.run([interpreter(), "-m", "venv", "--without-pip", str(TARGET)], check=True)
    python = TARGET / "bin" / "python"
    place = TARGET / "lib" / _NAME / "site-packages"
    for name in _required():
        _copy_package(name, place)
    shutil.copytree(package, place / "backstay", ignore=shutil.ignore_patterns("__pycache__"))
    for shared in package.parent.glob("*.so"):  # machine code of all modules in one, beside the package
        shutil.copy2(shared, place)
    writing = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    subprocess.run([str(python), "-m", "compileall", "-q", str(place)], env=writing, check=True)
    os.sync()  # pages of files that are not on disk yet count as the memory of whoever maps them
    return python


def interpreter() -> str:
    """PROXY_PYTHON, or the quickest one of this version on the machine. The image's is built with profile-guided
    optimization; whether one is, not every build's configuration says (Debian's does not), so they are tried, in turn and
    several times: a machine that is lent out by slices is slower for seconds at a time, and the best time counts."""
    named = os.environ.get("PROXY_PYTHON")
    if named:
        return named
    places = [f"{sys.base_prefix}/bin/{_NAME}", f"/usr/local/bin/{_NAME}", f"/usr/bin/{_NAME}"]
    found = dict.fromkeys(os.path.realpath(place) for place in places if os.access(place, os.X_OK))
    times = [{python: _seconds(python) for python in found} for _ in range(_TRIALS)]
    return min(found, key=lambda python: min(each[python] for each in times))


def _seconds(python: str) -> float:
    done = subprocess.run([python, "-I", "-c", _TRIAL], check=True, capture_output=True, text=True)
    return float(done.stdout)


def _required() -> list[str]:
    """Names in requirements/sidecar.txt that are for this platform."""
    lines = (ROOT / "requirements" / "sidecar.txt").read_text().splitlines()
    return [line.partition("==")[0] for line in lines if "==" in line and not line.startswith((" ", "#"))]


def _copy_package(name: str, place: Path) -> None:
    found = distribution(name)
    for path in found.files or ():
        if path.parts[0] == ".." or "__pycache__" in path.parts:  # scripts, and bytecode of another interpreter
            continue
        target = place / path
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(str(found.locate_file(path)), target)


def described(python: Path) -> str:
    """The interpreter that this folder has, its version and its libraries'."""
    asked = "import platform, ssl; print(platform.python_version(), platform.python_compiler(), ssl.OPENSSL_VERSION)"
    done = subprocess.run([str(python), "-I", "-c", asked], check=True, capture_output=True, text=True)
    return done.stdout.strip()
