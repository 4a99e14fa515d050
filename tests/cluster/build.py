"""Builds the programs of the test cluster from the Go modules under go/, once per content of their sources.

A program's file name carries a digest of everything that decides its bytes, so that "is it built?" is a question to the
file system and two checkouts share what is the same. Nothing here starts anything; `lifecycle` does.
"""

import hashlib
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fcntl import LOCK_EX, flock
from pathlib import Path
from typing import Final

HERE: Final = Path(__file__).resolve().parent
KUBERNETES: Final = "v1.34.4"
BUILD_TIMEOUT_S: Final = 45 * 60
"""Kubernetes takes 6 minutes on two idle cores; a machine that is seven times as busy should still come through."""


class CannotBuild(Exception):
    """A program could not be built: no Go, no network, or a compiler error. The message says which."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """One Go module that becomes one static binary."""

    name: str
    module: Path
    link: str = "-s -w"
    takes: str = "seconds"
    package: str = "."
    tags: str = ""
    cgo: bool = False
    """Needs a C compiler as well: SQLite is C."""


def _kubernetes_link() -> str:
    # Without a version every client sees v0.0.0-master+$Format and refuses to compare.
    major, minor, _ = KUBERNETES.removeprefix("v").split(".")
    values = {"gitVersion": KUBERNETES, "gitMajor": major, "gitMinor": minor}
    return "-s -w " + " ".join(f"-X k8s.io/component-base/version.{name}={value}" for name, value in values.items())


def _helm_link() -> str:
    # What a chart may ask of the cluster while none is there (`helm template`): else it would be 1.20.
    major, minor, _ = KUBERNETES.removeprefix("v").split(".")
    values = {"k8sVersionMajor": major, "k8sVersionMinor": minor}
    return "-s -w " + " ".join(f"-X helm.sh/helm/v3/pkg/chartutil.{name}={value}" for name, value in values.items())


PROGRAMS: Final = {
    program.name: program
    for program in (
        Program(name="pause", module=HERE / "go" / "pause"),
        Program(
            name="kubernetes", module=HERE / "go" / "kubernetes", link=_kubernetes_link(), takes="about 6 minutes cold"
        ),
        Program(name="coredns", module=HERE / "go" / "coredns", takes="about 70 seconds cold"),
        Program(
            name="helm",
            module=HERE / "go" / "helm",
            link=_helm_link(),
            package="helm.sh/helm/v3/cmd/helm",
            takes="about 3 minutes cold",
        ),
    )
}


def cache() -> Path:
    """Where built programs, images and the running cluster live."""
    named = os.environ.get("BACKSTAY_CLUSTER_DIR")
    if named:
        return Path(named).absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "backstay" / "cluster"


def digest(program: Program) -> str:
    sources = [path for path in program.module.iterdir() if path.suffix in {".go", ".mod", ".sum"}]
    state = hashlib.sha256(f"{program.link} {program.package}{program.tags}".encode())
    for source in sorted(sources):
        state.update(source.name.encode() + b"\0" + source.read_bytes() + b"\0")
    return state.hexdigest()[:12]


def binary(name: str) -> Path:
    """Where this program is, or would be once built."""
    return place(PROGRAMS[name])


def place(program: Program) -> Path:
    return cache() / "bin" / f"{program.name}-{digest(program)}"


def missing(names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(name for name in names if not binary(name).exists())


def build(name: str, say: Callable[[str], None]) -> Path:
    """Build this program unless it is there; returns its path."""
    return ensure(PROGRAMS[name], say)


def ensure(program: Program, say: Callable[[str], None]) -> Path:
    target = place(program)
    with locked(cache() / f"{program.name}.lock"):
        if not target.exists():
            _compile(program, target, say)
    return target


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """One process at a time, whichever checkout it comes from; the kernel lets go when the process dies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        flock(file, LOCK_EX)
        yield


def _compile(program: Program, target: Path, say: Callable[[str], None]) -> None:
    if shutil.which("go") is None:
        raise CannotBuild(f"{program.name} has to be built and there is no Go here; install Go 1.25 or newer")
    say(f"building {program.name} ({program.takes})")
    if program.cgo and not any(map(shutil.which, ("gcc", "clang"))):
        raise CannotBuild(f"{program.name} has to be built and there is no C compiler here")
    started = time.monotonic()
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_suffix(".unfinished")
    tags = ["-tags", program.tags] if program.tags else []
    command = ["go", "build", "-trimpath", *tags, "-ldflags", program.link, "-o", str(unfinished), program.package]
    _run(program, command)
    unfinished.replace(target)
    say(f"built {program.name} in {time.monotonic() - started:.0f} s")


def _run(program: Program, command: list[str]) -> None:
    environment = {**os.environ, "CGO_ENABLED": str(int(program.cgo))}
    try:
        done = subprocess.run(
            command,
            cwd=program.module,
            env=environment,
            timeout=BUILD_TIMEOUT_S,
            check=False,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
    except subprocess.TimeoutExpired as error:
        raise CannotBuild(f"{program.name} was not built within {BUILD_TIMEOUT_S // 60} minutes") from error
    if done.returncode != 0:
        last = "\n".join(done.stdout.strip().splitlines()[-15:])
        raise CannotBuild(f"{program.name} was not built; go says:\n{last}")
