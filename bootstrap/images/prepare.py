"""Prepare the build contexts of the two images: `make images`, then `docker build` (podman, buildah) of each folder.

Everything that comes from a package index is fetched here, hash-checked, so that the build itself needs no index and is
the same wherever it runs. Wheels are taken for the images' platform, not for this machine's.
"""

import argparse
import os
import platform
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[2]
IMAGES: Final = ("operator", "sidecar")
GLIBC: Final = (17, 24, 26, 27, 28, 31, 34, 35, 36)
"""Minors of glibc 2 whose wheels run on the base image: Debian 12 has 2.36. pip wants each tag by name."""


def platforms(machine: str) -> list[str]:
    """Wheel platforms of the base image for that kind of machine, in the words of PEP 600 and the names before it."""
    return [f"manylinux_2_{minor}_{machine}" for minor in GLIBC] + [f"manylinux2014_{machine}"]


def prepare(image: str, folder: Path, *, wheel: Path, machine: str, python: str, more: Sequence[str] = ()) -> None:
    """Write the whole context of one image, replacing what is there. `more`: lists of requirements besides its own."""
    shutil.rmtree(folder, ignore_errors=True)
    wheels = folder / "wheels"
    wheels.mkdir(parents=True)
    shutil.copy(ROOT / "bootstrap" / "images" / image / "Dockerfile", folder)
    lists = [ROOT / "requirements" / f"{name}.txt" for name in (image, *more)]
    (folder / "requirements.txt").write_text(
        "".join(each.read_text(encoding="utf-8") for each in lists), encoding="utf-8"
    )
    for wanted in (*lists, ROOT / "requirements" / "pip.txt"):
        download(wanted, wheels, machine=machine, python=python)
    shutil.copy(wheel, wheels)


def download(requirements: Path, folder: Path, *, machine: str, python: str) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "download", "--quiet"]
    command += ["--require-hashes", "--no-deps", "--only-binary=:all:", "--python-version", python]
    command += [f"--platform={name}" for name in platforms(machine)]
    subprocess.run([*command, "-r", str(requirements), "-d", str(folder)], check=True)


def build_wheel(folder: Path) -> Path:
    """Backstay's own wheel from this checkout."""
    command = [sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", str(folder), str(ROOT)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return max(folder.glob("backstay-*.whl"), key=lambda path: path.stat().st_mtime)


def compiled(wheel: Path, *, machine: str, python: str) -> Path:
    """The wheel with the sidecar's hot path as machine code, where this machine can make it for the image; else the same."""
    own = f"{sys.version_info.major}.{sys.version_info.minor}"
    why = (
        f"this is {sys.platform} on {platform.machine()}" if (sys.platform, platform.machine()) != ("linux", machine) else
        f"this is Python {own}" if python != own else
        "there is no C compiler" if shutil.which(os.environ.get("CC", "cc")) is None else ""
    )  # fmt: skip
    if why:
        print(f"the sidecar's image gets Python without machine code: {why}", file=sys.stderr)
        return wheel
    command = [sys.executable, str(Path(__file__).with_name("compile.py")), "--wheel", str(wheel)]
    told = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    made = Path(told.splitlines()[-1].removeprefix("compiled: "))
    if glibc_of(made) > GLIBC[-1]:
        print(
            f"the sidecar's image gets Python without machine code: it would need glibc 2.{glibc_of(made)}",
            file=sys.stderr,
        )
        return wheel
    return made


def glibc_of(wheel: Path) -> int:
    """The minor of glibc 2 that a wheel's machine code was linked against: an older one cannot load it."""
    with zipfile.ZipFile(wheel) as archive:
        code = [archive.read(name) for name in archive.namelist() if name.endswith(".so")]
    return max((int(minor) for each in code for minor in re.findall(rb"GLIBC_2\.(\d+)", each)), default=0)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--to", type=Path, default=ROOT / "build" / "images", help="where the contexts go")
    parser.add_argument("--machine", default=platform.machine(), help="of the images: x86_64 or aarch64")
    parser.add_argument("--python", default="3.11", help="of the base image")
    parser.add_argument("--wheel", type=Path, help="Backstay's wheel, if it is built already: it is taken as it is")
    parser.add_argument("--envoy", action="store_true", help="the sidecar's image holds Envoy as well")
    found = parser.parse_args(arguments)
    wheel = found.wheel or build_wheel(ROOT / "dist")
    fast = found.wheel or compiled(wheel, machine=found.machine, python=found.python)
    for image in IMAGES:
        held = fast if image == "sidecar" else wheel
        more = ("envoy",) if found.envoy and image == "sidecar" else ()
        prepare(image, found.to / image, wheel=held, machine=found.machine, python=found.python, more=more)
        print(f"docker build -t backstay-{image}:dev {found.to / image}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
