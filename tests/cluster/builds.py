"""The images of this checkout, built as a user builds them: from their Dockerfiles, by buildah, with no registry.

The base image that the Dockerfiles name cannot be pulled on a machine without one, so Debian itself stands in for it,
made from packages once and kept. Each image is built whole when its Dockerfile or a pinned package changes. A change of
our own code alone is put into the last build in a few seconds: replaced is the package folder, which is all that pip
would have changed.
"""

import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Final

from cluster import build

ROOT: Final = Path(__file__).resolve().parents[2]
BASE: Final = "docker.io/library/python:3.11-slim-bookworm"
BASE_PACKAGES: Final = ("python3", "python3-venv", "git", "openssh-client", "ca-certificates", "iptables", "libstdc++6")
"""What the Dockerfiles would install on top where they can, and what the real base has: the interpreter, and the library
that regular expressions of routes (google-re2) are linked with."""
PROGRAMS: Final = {"buildah": "buildah", "mmdebstrap": "mmdebstrap"}
STEP_S: Final = 900

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """One image: what decides its bytes, and how its build context is made."""

    name: str
    dockerfile: Path
    requirements: tuple[Path, ...]
    sources: tuple[Path, ...]
    """Our own files in it, whose change does not touch the layers below."""

    @property
    def tag(self) -> str:
        return f"docker.io/library/backstay-{self.name}:dev"


def _ours(name: str) -> Image:
    requirements = ROOT / "requirements"
    return Image(
        name=name,
        dockerfile=ROOT / "bootstrap" / "images" / name / "Dockerfile",
        requirements=(requirements / f"{name}.txt", requirements / "pip.txt"),
        sources=(ROOT / "operator" / "backstay", ROOT / "schemas", ROOT / "pyproject.toml"),
    )


IMAGES: Final = {
    image.name: image
    for image in (
        _ours("operator"),
        _ours("sidecar"),
        Image(
            name="sample",
            dockerfile=ROOT / "example-repo" / "Dockerfile",
            requirements=(ROOT / "requirements" / "sample.txt",),
            sources=(ROOT / "example-repo" / "apps",),
        ),
    )
}


class CannotBuildImage(Exception):
    """An image could not be built; the message ends with what the tool said."""


def lacking() -> str | None:
    """The packages this machine lacks for building images; None if none."""
    absent = sorted(package for program, package in PROGRAMS.items() if shutil.which(program) is None)
    return f"the packages {', '.join(absent)}" if absent else None


def archive(name: str, say: Say) -> Path:
    """The image of this checkout as an archive to import; built if it is not there yet."""
    image = IMAGES[name]
    with build.locked(_folder() / f"{name}.lock"):
        target = _folder() / f"{name}-{_digest((*_below(image), *image.sources))}.tar"
        if not target.exists():
            _build(image, target, say)
            _forget_others(name, target)
    return target


def edition(name: str, tag: str, edits: Sequence[tuple[str, str, str]], say: Say) -> Path:
    """This checkout's image with texts of its code replaced, tagged `backstay-NAME:TAG`: another release, for upgrades.

    Edits are (file in the package, what is there once, what is there instead).
    """
    base = archive(name, say)
    with build.locked(_folder() / f"{tag}.lock"):
        digest = hashlib.sha256(json.dumps([base.name, edits]).encode()).hexdigest()[:12]
        target = _folder() / f"{tag}-{name}-{digest}.tar"
        if not target.exists():
            say(f"building image backstay-{name}:{tag}")
            _edit(base, f"docker.io/library/backstay-{name}:{tag}", edits, target)
            _forget_others(f"{tag}-{name}", target)
    return target


def _edit(base: Path, tag: str, edits: Sequence[tuple[str, str, str]], target: Path) -> None:
    container = _buildah("from", f"docker-archive:{base}").strip()
    try:
        root = Path(_buildah("mount", container).strip())
        packages = next((root / "opt" / "backstay" / "lib").glob("python3*/site-packages"))
        for file, old, new in edits:
            path = packages / "backstay" / file
            text = path.read_text(encoding="utf-8")
            if text.count(old) != 1:
                raise CannotBuildImage(f"{file} has {old!r} {text.count(old)} times, expected once")
            path.write_text(text.replace(old, new), encoding="utf-8")
        _buildah("umount", container)
        _buildah("commit", "--quiet", container, tag)
    finally:
        _buildah("rm", container)
    unfinished = target.with_suffix(".unfinished")
    unfinished.unlink(missing_ok=True)
    _buildah("push", "--quiet", tag, f"docker-archive:{unfinished}:{tag}")
    unfinished.replace(target)


def _build(image: Image, target: Path, say: Say) -> None:
    release = f"localhost/release-{image.name}:{_digest(_below(image))}"
    say(f"building image backstay-{image.name}")
    with tempfile.TemporaryDirectory(prefix="backstay-image-") as folder:
        if not _has(release):
            _ensure_base(say)
            _release(image, release, Path(folder))
        _renew(image, release)
        unfinished = target.with_suffix(".unfinished")
        unfinished.unlink(missing_ok=True)
        _buildah("push", "--quiet", image.tag, f"docker-archive:{unfinished}:{image.tag}")
        unfinished.replace(target)


def _release(image: Image, tag: str, folder: Path) -> None:
    """The Dockerfile from its first line to its last."""
    arguments = ["--build-arg", f"BASE={BASE}", "--isolation", "chroot", "--pull=false", "--quiet"]
    if image.name == "sample":
        wheels = folder / "wheels"
        _prepare().download(image.requirements[0], wheels, machine=os.uname().machine, python="3.11")
        arguments += ["--volume", f"{wheels}:/wheels:ro", "--build-arg", "PIP=--no-index --find-links /wheels"]
        context = _sample_context(folder / "context")
    else:
        context = folder / image.name
        wheel = _wheel(folder)
        _prepare().prepare(image.name, context, wheel=wheel, machine=os.uname().machine, python="3.11")
    _buildah("build", *arguments, "--tag", tag, "--file", str(image.dockerfile), str(context))


def _sample_context(folder: Path) -> Path:
    """Only what the Dockerfile copies: the whole checkout would be read for every build."""
    (folder / "requirements").mkdir(parents=True)
    shutil.copy(ROOT / "requirements" / "sample.txt", folder / "requirements")
    shutil.copytree(
        ROOT / "example-repo" / "apps", folder / "example-repo" / "apps", ignore=shutil.ignore_patterns("__pycache__")
    )
    return folder


def _renew(image: Image, release: str) -> None:
    """The release with the code as it is now."""
    container = _buildah("from", "--pull-never", release).strip()
    try:
        root = Path(_buildah("mount", container).strip())
        if image.name == "sample":
            _replace(root / "sample" / "apps", ROOT / "example-repo" / "apps")
        else:
            _replace_package(root)
        _buildah("umount", container)
        _buildah("commit", "--quiet", container, image.tag)
    finally:
        _buildah("rm", container)


def _replace_package(root: Path) -> None:
    """As pip would leave it: the package's files where the wheel has them, compiled if our Python is the image's."""
    packages = next((root / "opt" / "backstay" / "lib").glob("python3*/site-packages"))
    _replace(packages / "backstay", ROOT / "operator" / "backstay")
    compiler = shutil.which(packages.parent.name)
    if compiler is not None:  # else the first start compiles in memory, and only start-up figures suffer
        inside = str(packages / "backstay").removeprefix(str(root))
        _run((compiler, "-m", "compileall", "-q", "-d", inside, str(packages / "backstay")))


def _replace(target: Path, source: Path) -> None:
    shutil.rmtree(target)
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))


def _wheel(folder: Path) -> Path:
    """Backstay's wheel, built from a copy: setuptools leaves its work in the tree it builds, and others build too."""
    copy = folder / "tree"
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in ("operator", "schemas"):
        shutil.copytree(ROOT / name, copy / name, symlinks=True, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    _run((sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", str(folder / "dist"), str(copy)))
    return next((folder / "dist").glob("backstay-*.whl"))


def _prepare() -> ModuleType:
    """bootstrap/images/prepare.py, which users run to make the same contexts."""
    spec = importlib.util.spec_from_file_location("prepare", ROOT / "bootstrap" / "images" / "prepare.py")
    if spec is None or spec.loader is None:
        raise CannotBuildImage("bootstrap/images/prepare.py is not there")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# --- the base -------------------------------------------------------------------------------------------------------


def _ensure_base(say: Say) -> None:
    mark = f"localhost/base:{hashlib.sha256(json.dumps(BASE_PACKAGES).encode()).hexdigest()[:12]}"
    if _has(mark):
        return
    say("building the base image from Debian packages (about 45 seconds)")
    with tempfile.TemporaryDirectory(prefix="backstay-base-") as folder:
        tree = Path(folder) / "base.tar"
        packages = ",".join(BASE_PACKAGES)
        without = [f"--dpkgopt=path-exclude=/usr/share/{each}/*" for each in ("doc", "info", "locale", "man")]
        _run(("mmdebstrap", "--quiet", "--variant=essential", f"--include={packages}", *without, "bookworm", str(tree)))
        container = _buildah("from", "scratch").strip()
        _buildah("add", "--quiet", container, str(tree), "/")
        _buildah("commit", "--quiet", container, mark)
        _buildah("rm", container)
    _buildah("tag", mark, BASE)


# --- tools ----------------------------------------------------------------------------------------------------------


def _below(image: Image) -> tuple[Path, ...]:
    return (image.dockerfile, *image.requirements, Path(__file__))


def _digest(paths: Iterable[Path]) -> str:
    """Over names and bytes of these files, and of everything in these folders."""
    state = hashlib.sha256()
    for path in paths:
        for file in sorted(path.rglob("*")) if path.is_dir() else (path,):
            if file.is_file() and "__pycache__" not in file.parts:
                state.update(str(file.relative_to(ROOT)).encode() + b"\0" + file.read_bytes() + b"\0")
    return state.hexdigest()[:12]


def _forget_others(name: str, kept: Path) -> None:
    """Archives of earlier code: each is a quarter of a gigabyte."""
    for other in _folder().glob(f"{name}-*.tar"):
        if other != kept:
            other.unlink()


def _folder() -> Path:
    return build.cache() / "images"


def _has(tag: str) -> bool:
    done = subprocess.run(_command("images", "--quiet", tag), check=False, capture_output=True, timeout=60)
    return done.returncode == 0 and bool(done.stdout.strip())


def _buildah(*arguments: str) -> str:
    return _run(_command(*arguments))


def _command(*arguments: str) -> tuple[str, ...]:
    # A store of its own: what a person has built on this machine is neither seen nor changed.
    store, runtime = build.cache() / "buildah", Path(tempfile.gettempdir()) / "backstay-buildah"
    return ("buildah", "--root", str(store), "--runroot", str(runtime), *arguments)


def _run(command: Sequence[str]) -> str:
    try:
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=STEP_S)
    except subprocess.TimeoutExpired as error:
        raise CannotBuildImage(f"{' '.join(command)} did not end within {STEP_S} s") from error
    if done.returncode != 0:
        last = "\n".join((done.stdout + done.stderr).strip().splitlines()[-20:])
        raise CannotBuildImage(f"{' '.join(command)} ended with {done.returncode}:\n{last}")
    return done.stdout
