"""`proxy status` and `proxy config`, from the operator and from a proxy's own disk."""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from backstay.cli import proxy
from backstay.cli.exits import Exit
from backstay.config.model import assemble, encode_manifest
from backstay.sidecar.store import Objects, Saved
from support import views
from support.commands import backstay


def test_proxy_status_by_workload(state_dir: Path) -> None:
    out = backstay("proxy", "status", "shop/a", state_dir=state_dir).out
    assert [line.split()[:3] for line in out.splitlines()[1:]] == [
        ["a-0", "shop/a", "splitting"],
        ["a-1", "shop/a", "synced"],
    ]


@pytest.mark.parametrize("name", ["a", "shop/a", "a-0"])
def test_proxy_config_by_workload_or_proxy(state_dir: Path, name: str) -> None:
    found = json.loads(backstay("proxy", "config", name, "--part", "routes/b", "-o", "json", state_dir=state_dir).out)
    (part,) = found["parts"]
    assert (found["workload"], part["key"]) == ("shop/a", "routes/b.shop:80")
    assert part["content"]["rules"][0]["timeout_ms"] == 5000


def test_proxy_config_of_nobody(state_dir: Path) -> None:
    ran = backstay("proxy", "config", "zzz", state_dir=state_dir)
    assert (ran.code, ran.err.splitlines()[0]) == (Exit.NO, "error: no workload or proxy 'zzz'")


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """A proxy's state folder with its stable config."""
    manifest = views.STABLE_CONFIGS.manifests["shop/a"]
    digest = views.STABLE_CONFIGS.digests["shop/a"]
    bodies = {digest: encode_manifest(manifest)}
    bodies |= {name: views.STABLE_CONFIGS.parts[name] for name in manifest.parts.values()}
    folder = tmp_path / "proxy"
    (folder / "objects").mkdir(parents=True)
    lines = b"".join(name.encode() + b" " + body + b"\n" for name, body in bodies.items())
    (folder / "objects" / "1.pack").write_bytes(lines)
    (folder / "state.json").write_bytes(msgspec.json.encode(Saved(epoch=3, stable=digest)))
    assert digest in Objects(folder / "objects")
    return folder


def test_a_proxys_disk_is_read_without_an_operator(disk: Path) -> None:
    found: dict[str, Any] = json.loads(backstay("proxy", "status", "--state-dir", disk, "-o", "json").out)
    assert (found["workload"], found["epoch"], found["stableComplete"], found["damagedObjects"]) == (
        "shop/a",
        3,
        True,
        0,
    )


def test_a_config_on_disk_is_the_config_that_was_compiled(disk: Path) -> None:
    manifest = views.STABLE_CONFIGS.manifests["shop/a"]
    found = proxy.disk_config(disk, "stable")
    expected = assemble(manifest, views.STABLE_CONFIGS.parts)
    assert found["digest"] == expected.digest
    assert {part["key"]: part["content"] for part in found["parts"]} == msgspec.to_builtins(expected.parts)


def test_a_damaged_disk_says_so(disk: Path) -> None:
    pack = disk / "objects" / "1.pack"
    pack.write_bytes(pack.read_bytes().replace(b"timeout_ms", b"timeout_mz"))
    out = backstay("proxy", "status", "--state-dir", disk).out
    assert "(incomplete)" in out
    assert "they are asked for again at the next start" in out
    assert backstay("proxy", "config", "--state-dir", disk).code == Exit.NO


def test_a_folder_that_is_no_proxys(tmp_path: Path) -> None:
    ran = backstay("proxy", "status", "--state-dir", tmp_path)
    assert ran.code == Exit.TROUBLE
    assert "is not the state folder of a sidecar" in ran.err
