"""A support bundle helps others and holds no secret."""

import io
import json
import tarfile
from dataclasses import replace
from pathlib import Path

from backstay.cli.exits import Exit
from backstay.core.ports import Event
from backstay.core.view import SourceCondition
from support import views
from support.commands import backstay

CANARIES = {
    "password": "hunter2-canary",
    "token": "ghp_canarycanarycanarycanary1234",
    "url": "url-canary-secret",
    "key": "MIIcanaryKEY",
}


def bundle(path: Path) -> dict[str, str]:
    with tarfile.open(fileobj=io.BytesIO(path.read_bytes())) as archive:
        members = [member for member in archive.getmembers() if member.isfile()]
        return {
            member.name.partition("/")[2]: file.read().decode()
            for member in members
            if (file := archive.extractfile(member)) is not None
        }


def test_a_bundle_holds_no_secret(state_dir: Path, operator: views.ShowingOperator, tmp_path: Path) -> None:
    away = SourceCondition(ok=False, reason="X", message=f"https://joe:{CANARIES['url']}@git.example failed")
    operator.shown = replace(views.held(), source=away, url=f"https://joe:{CANARIES['url']}@git.example/m.git")
    operator.told = [
        Event(number=1, at=4e9, kind="commit", reason="RevisionSeen", message=f"password={CANARIES['password']}")
    ]
    logs = state_dir / "instances" / "a-0"
    logs.mkdir(parents=True)
    (logs / "sidecar.log").write_text(
        f"started\nAuthorization: Bearer {CANARIES['token']}\npassword: {CANARIES['password']}\n"
        f"-----BEGIN PRIVATE KEY-----\n{CANARIES['key']}\n-----END PRIVATE KEY-----\n"
    )
    (logs / "key.pem").write_text(CANARIES["key"])
    (logs / "token").write_text(CANARIES["token"])
    (logs / "link.log").symlink_to(logs / "token")
    target = tmp_path / "bundle.tar.gz"
    ran = backstay("support-bundle", "--file", target, state_dir=state_dir)
    assert (ran.code, ran.out) == (Exit.OK, f"{target}\n")
    files = bundle(target)
    assert [(name, canary) for name, text in files.items() for canary in CANARIES.values() if canary in text] == []
    assert "started" in files["logs/instances/a-0/sidecar.log"]
    assert "logs/instances/a-0/link.log" not in files
    assert json.loads(files["meshrepository.json"])["kind"] == "MeshRepository"
    assert json.loads(files["configs/shop/a.json"])["workload"] == "shop/a"
    assert target.stat().st_mode & 0o077 == 0


def test_a_bundle_of_a_dead_mesh_says_what_it_lacks(tmp_path: Path) -> None:
    target = tmp_path / "bundle.tar.gz"
    assert backstay("support-bundle", "--file", target, state_dir=tmp_path).code == Exit.OK
    files = bundle(target)
    assert files["proxies.json"].startswith("not available: no operator is running")
    assert any(fact["name"] == "operator" for fact in json.loads(files["check.json"]))
