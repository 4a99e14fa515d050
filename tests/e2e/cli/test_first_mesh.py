"""What `backstay init` writes runs as it is, and the command line sees it: real operator, sidecars, services and git."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support.commands import backstay, git

START_WITHIN = 60.0  # seconds; five seconds on an idle machine


def until(holds: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + START_WITHIN
    while not holds():
        assert time.monotonic() < deadline, f"not within {START_WITHIN} s: {what}"
        time.sleep(0.2)


@pytest.fixture
def first_mesh(tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """The folder `init` wrote, with `backstay up` running on it, and its state folder."""
    folder, state = tmp_path / "first", tmp_path / "s"
    assert backstay("init", folder).code == 0
    git(folder / "mesh", "init", "-q", "-b", "main")
    git(folder / "mesh", "add", ".")
    git(folder / "mesh", "commit", "-q", "-m", "First mesh")
    command = [sys.executable, "-m", "backstay.cli.main", "--state-dir", str(state), "up", str(folder / "mesh")]
    with (tmp_path / "up.log").open("wb") as log:
        process = subprocess.Popen([*command, "--workloads", str(folder / "workloads.yaml")], stdout=log, stderr=log)
    try:
        until((state / "operator.sock").exists, f"the operator's socket: {(tmp_path / 'up.log').read_text()}")
        yield folder, state
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=60)
        finally:
            process.kill()


def test_a_new_users_first_mesh(first_mesh: tuple[Path, Path]) -> None:
    folder, state = first_mesh
    sha = git(folder / "mesh", "rev-parse", "HEAD")
    assert backstay("wait", "--for", "live", sha, "--timeout", "60s", state_dir=state).code == 0
    log = state / "instances" / "caller-0" / "app.log"
    until(lambda: log.exists() and "hello from v1" in log.read_text(), "an answer through the mesh")

    proxies = json.loads(backstay("get", "proxies", "-o", "json", state_dir=state).out)["items"]
    assert {item["status"]["sync"] for item in proxies} == {"synced"}
    config = json.loads(backstay("proxy", "config", "caller", "--part", "routes/", "-o", "json", state_dir=state).out)
    disk = state / "instances" / "caller-0" / "sidecar"
    on_disk = json.loads(backstay("proxy", "config", "--state-dir", disk, "-o", "json").out)
    assert config["digest"] == on_disk["digest"]
    assert "hello.yaml:29" in config["parts"][0]["origins"]

    body = (folder / "mesh" / "hello.yaml").read_text()
    (folder / "mesh" / "hello.yaml").write_text(body.replace("weight: 100", "weigth: 100"))
    git(folder / "mesh", "commit", "-q", "-a", "-m", "A slip")
    slip = git(folder / "mesh", "rev-parse", "HEAD")
    assert backstay("wait", "--for", "live", slip, "--timeout", "60s", state_dir=state).code == 6
    assert "did you mean 'weight'?" in backstay("status", state_dir=state).out
