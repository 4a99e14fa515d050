"""Where the forge's program is, and how it is built: as the programs of the test cluster, from a Go module, once."""

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Final

from cluster import build
from cluster.build import CannotBuild, Program

__all__ = ["VERSION", "CannotBuild", "assets", "ensure", "lacking", "program"]

VERSION: Final = "v1.26.0"
"""The last one that can be required as a Go module: later ones are named otherwise in their own go.mod."""
GITEA: Final = Program(
    name="gitea",
    module=Path(__file__).resolve().parent / "go",
    link=f"-s -w -X main.Version={VERSION.removeprefix('v')}",
    takes="about 4 minutes cold",
    package="code.gitea.io/gitea",
    tags="sqlite,sqlite_unlock_notify",
    cgo=True,
)
LIST_S: Final = 120  # seconds to ask Go for a folder: it may have to fetch the module


def program() -> Path:
    """Where it is, or would be once built."""
    return build.place(GITEA)


def assets() -> Path:
    """Templates and translations, copied beside the program: the module cache may be cleaned."""
    return program().with_suffix(".assets")


def lacking() -> str | None:
    """What this machine lacks for a forge, as the end of a sentence; None if nothing."""
    return None if program().exists() and assets().is_dir() else "a build of Gitea (make gitea)"


def ensure(say: Callable[[str], None]) -> None:
    """Build what is not there. Raises CannotBuild."""
    build.ensure(GITEA, say)
    if not assets().is_dir():
        _copy_assets()


def _copy_assets() -> None:
    import shutil

    source = _module_folder()
    unfinished = assets().with_suffix(".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    for name in ("templates", "options", "public"):
        shutil.copytree(source / name, unfinished / name)
    unfinished.replace(assets())


def _module_folder() -> Path:
    command = ["go", "list", "-m", "-f", "{{.Dir}}", "code.gitea.io/gitea"]
    done = subprocess.run(command, cwd=GITEA.module, capture_output=True, text=True, timeout=LIST_S, check=False)
    if done.returncode != 0:
        raise CannotBuild(f"where Gitea's templates are is not known; go says: {done.stderr.strip()}")
    return Path(done.stdout.strip())
