"""Images for the node: written here file by file where one program is all of it, built by buildah where a Dockerfile is.

Nothing is pulled. An archive goes into the node's container runtime under the name that manifests use.
"""

import hashlib
import io
import json
import subprocess
import tarfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from cluster import build
from cluster.layout import COREDNS_IMAGE, PAUSE_IMAGE

OVERLAY_SUPER_MAGIC: Final = 0x794C7630
CONTAINERD_S: Final = 30.0

Inside = Callable[[Sequence[str]], tuple[str, ...]]


def load(archive: Path, inside: Inside, socket: Path) -> None:
    """Import an archive; the runtime makes its layers ready for containers."""
    command = _ctr(socket, "images", "import", "--all-platforms", str(archive))
    done = subprocess.run(inside(command), check=False, capture_output=True, text=True, timeout=300)
    if done.returncode != 0:
        raise RuntimeError(f"{archive.name} was not imported: {done.stderr.strip()}")


def wait_containerd(inside: Inside, socket: Path) -> None:
    deadline = time.monotonic() + CONTAINERD_S
    while subprocess.run(inside(_ctr(socket, "version")), check=False, capture_output=True, timeout=30).returncode:
        if time.monotonic() > deadline:
            raise RuntimeError(f"containerd did not answer within {CONTAINERD_S:.0f} s")
        time.sleep(0.1)


def _ctr(socket: Path, *arguments: str) -> tuple[str, ...]:
    return ("ctr", "--address", str(socket), "--namespace", "k8s.io", *arguments)


def snapshotter(folder: Path) -> str:
    """Overlay needs a file system below that can carry it; another overlay cannot, so there layers are copied."""
    kind = subprocess.run(
        ("stat", "-f", "-c", "%t", str(folder)), check=True, capture_output=True, text=True, timeout=10
    )
    return "native" if int(kind.stdout, 16) == OVERLAY_SUPER_MAGIC else "overlayfs"


# --- images of one program ------------------------------------------------------------------------------------------


def system(folder: Path) -> tuple[Path, ...]:
    """What every node needs before the first pod."""
    pause = single(folder / "pause.tar", PAUSE_IMAGE, build.binary("pause"))
    return pause, single(folder / "coredns.tar", COREDNS_IMAGE, build.binary("coredns"))


def single(target: Path, name: str, program: Path) -> Path:
    """An image whose only file is this static program: `docker save`'s form, one layer."""
    layer = _layer(program)
    entry = "/" + name.rpartition("/")[2].partition(":")[0]
    config = {
        "architecture": _architecture(),
        "os": "linux",
        "config": {"Entrypoint": [entry]},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"]},
    }
    manifest = [{"Config": "config.json", "RepoTags": [name], "Layers": ["layer.tar"]}]
    with tarfile.open(target, "w") as archive:
        _add(archive, "config.json", json.dumps(config).encode())
        _add(archive, "layer.tar", layer)
        _add(archive, "manifest.json", json.dumps(manifest).encode())
    return target


def _layer(program: Path) -> bytes:
    entry = program.name.rpartition("-")[0]
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        _add(archive, f"backstay-{entry}", program.read_bytes(), mode=0o755)
    return buffer.getvalue()


def _add(archive: tarfile.TarFile, name: str, content: bytes, mode: int = 0o644) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mode = len(content), mode
    archive.addfile(member, io.BytesIO(content))


def _architecture() -> str:
    machine = subprocess.run(("uname", "-m"), check=True, capture_output=True, text=True, timeout=10).stdout.strip()
    return {"x86_64": "amd64", "aarch64": "arm64"}.get(machine, machine)
