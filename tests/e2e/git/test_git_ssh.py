"""GitSource over ssh as far as a client alone can prove it: which ssh is started, how, and what its failures become."""

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from backstay.adapters.git import Credentials, GitSource, RefSpec
from backstay.core.ports import SourceUnavailable


@pytest.fixture
def recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An `ssh` that comes first on PATH, writes down how it was called and fails as ssh does."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "ssh").write_text(
        f'#!/bin/sh\nprintf "%s\\n" "$@" > {tmp_path}/arguments\nenv > {tmp_path}/environment\n'
        "echo 'git@127.0.0.1: Permission denied (publickey).' >&2\nexit 255\n"
    )
    (folder / "ssh").chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=":")
    monkeypatch.setenv("SSH_AUTH_SOCK", "/agent")
    return tmp_path


async def test_ssh_is_started_shut_in_with_the_given_key_only(recorded: Path) -> None:
    credentials = Credentials(ssh_identity=Path("/keys/id with space"), ssh_known_hosts=Path("/keys/known"))
    url = "ssh://git@127.0.0.1:2222/team/mesh.git"
    source = GitSource(url, mirror=recorded / "mirror", ref=RefSpec(branch="main"), credentials=credentials, timeout=20)
    with pytest.raises(SourceUnavailable) as unavailable:
        await source.resolve()
    await source.close()
    assert unavailable.value.reason == "AuthenticationFailed"
    assert str(unavailable.value).startswith(f"asking {url}: the server refused the credentials (git: git@127.0.0.1: ")
    arguments = (recorded / "arguments").read_text().splitlines()
    assert arguments[:2] == ["-F", "/dev/null"]
    for option in ("-oBatchMode=yes", "-oStrictHostKeyChecking=yes", "-oUserKnownHostsFile=/keys/known",
                   "-oIdentitiesOnly=yes", "/keys/id with space", "git@127.0.0.1"):  # fmt: skip
        assert option in arguments
    assert "git-upload-pack '/team/mesh.git'" in arguments[-1]
    assert "SSH_AUTH_SOCK" not in (recorded / "environment").read_text()


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A server that takes connections and never says a word."""
    taken: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def take() -> None:
            try:
                while True:
                    taken.append(server.accept()[0])
            except OSError:
                return

        thread = threading.Thread(target=take, daemon=True)
        thread.start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)
    thread.join(timeout=5)
    for connection in taken:
        connection.close()


async def test_a_silent_ssh_server_is_given_up(silent_port: int, tmp_path: Path) -> None:
    source = GitSource(
        f"ssh://git@127.0.0.1:{silent_port}/mesh.git", mirror=tmp_path / "m", ref=RefSpec(branch="main"), timeout=1.0
    )
    with pytest.raises(SourceUnavailable) as unavailable:
        await source.resolve()
    await source.close()
    assert unavailable.value.reason == "Timeout"
