"""explain, check, completion, support-bundle, proxy: when something is wrong, or a name is wanted."""

import io
import json
import subprocess
import sys
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import msgspec
import pytest

from backstay.cli import check, proxy
from backstay.cli.completion import complete_names
from backstay.cli.exits import Exit
from backstay.cli.session import Session
from backstay.config.model import assemble, encode_manifest
from backstay.core.ports import Event
from backstay.core.view import SourceCondition
from backstay.sidecar.store import Objects, Saved
from support import views
from support.commands import backstay

# --- explain ---------------------------------------------------------------


@pytest.mark.parametrize("name", ["BS1403", "bs1403", "WeightSum"])
def test_explain_knows_codes_and_reasons(name: str) -> None:
    ran = backstay("explain", name)
    assert ran.code == Exit.OK
    assert ran.out.startswith("BS1403 WeightSum: ")
    assert "\n\nMend: " in ran.out


def test_explain_of_what_nobody_knows() -> None:
    ran = backstay("explain", "BS0000")
    assert (ran.code, ran.out, ran.err.splitlines()[0]) == (Exit.NO, "", "error: nothing is known about 'BS0000'")


def test_explain_guesses() -> None:
    assert "did you mean WeightSum" in backstay("explain", "weightsu").err


# --- check -----------------------------------------------------------------


def test_check_of_a_healthy_mesh(state_dir: Path, operator: views.ShowingOperator) -> None:
    operator.shown = views.live()
    facts = {fact.name: fact for fact in check.operator_facts(Session(state_dir=state_dir))}
    assert {name: fact.level for name, fact in facts.items()} == {
        "operator": "ok",
        "git remote": "ok",
        "mesh": "ok",
        "proxies": "ok",
        "certificates": "fail",  # of 2023: the clock here is the real one
    }


def test_check_names_what_is_wrong_and_fails(state_dir: Path, operator: views.ShowingOperator) -> None:
    away = SourceCondition(ok=False, reason="Timeout", message="git did not answer in 60 s")
    operator.shown = replace(views.held(), source=away, version="9.9.9")
    ran = backstay("check", state_dir=state_dir)
    assert ran.code == Exit.NO
    assert "× git remote: Timeout: git did not answer in 60 s" in ran.out
    assert "‼ operator: runs 9.9.9, this command is 0.1.0" in ran.out
    assert "× mesh: RevisionHeld: " in ran.out


def test_check_before_there_is_an_operator(tmp_path: Path) -> None:
    ran = backstay("check", "--pre", "-o", "json", state_dir=tmp_path / "new")
    facts = json.loads(ran.out)["facts"]
    assert [fact["name"] for fact in facts] == ["python", "git", "tls", "packages", "state folder", "disk"]


def test_check_without_an_operator_fails_with_what_to_do(tmp_path: Path) -> None:
    ran = backstay("check", state_dir=tmp_path)
    assert ran.code == Exit.NO
    assert "× operator: no operator is running" in ran.out
    assert "start one with `backstay up" in ran.out


def test_a_state_folder_that_others_can_read_is_a_warning(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    facts = {fact.name: fact for fact in check.machine_facts(tmp_path)}
    assert (facts["state folder"].level, facts["state folder"].hint) == ("warn", f"chmod 700 {tmp_path}")


# --- completion --------------------------------------------------------------


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(shell: str) -> None:
    assert f"_BACKSTAY_COMPLETE={shell}_complete" in backstay("completion", shell).out


def completed(words: str, state_dir: Path) -> list[str]:
    """What bash would offer for the last of the words."""
    count = len(words.split(" ")) - 1
    environment = {
        "PATH": "/usr/bin:/bin",
        "COMP_WORDS": words,
        "COMP_CWORD": str(count),
        "_BACKSTAY_COMPLETE": "bash_complete",
        "BACKSTAY_STATE_DIR": str(state_dir),
    }
    command = [sys.executable, "-m", "backstay.cli.main"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=True)
    return [line.partition(",")[2] for line in done.stdout.splitlines()]


def test_verbs_complete(tmp_path: Path) -> None:
    assert completed("backstay ro", tmp_path) == ["rollout", "rollback"]
    assert completed("backstay rollout p", tmp_path) == ["pause", "promote"]
    assert completed("backstay get in", tmp_path) == ["intents"]


def test_names_complete_while_an_operator_answers(state_dir: Path) -> None:
    assert completed("backstay describe intents Rou", state_dir) == ["Route/shop/b"]
    assert completed("backstay proxy config shop/", state_dir) == ["shop/a", "shop/b"]


def test_no_operator_means_no_names_and_no_noise(tmp_path: Path) -> None:
    context = click.Context(click.Command("x"))
    context.params["state_dir"] = tmp_path
    assert complete_names(context, click.Argument(["name"]), "") == []


# --- support-bundle -------------------------------------------------------------

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


# --- proxy ------------------------------------------------------------------------


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


def test_the_sidecar_verb_becomes_the_sidecar() -> None:
    command = [sys.executable, "-m", "backstay.cli.main", "sidecar", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0
    assert "usage: backstay sidecar" in done.stdout
