"""GitSource against a real sshd: a deploy key reads, a foreign key and an unknown host are refused, nothing is asked."""

import getpass
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from backstay.adapters.git import Credentials, GitSource, RefSpec
from backstay.core.ports import SourceUnavailable
from ports.repositories import Repository

SSHD = shutil.which("sshd") or shutil.which("sshd", path="/usr/sbin:/usr/local/sbin")

pytestmark = pytest.mark.skipif(SSHD is None, reason="no sshd on this machine: install openssh-server")


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    port: int
    folder: Path
    repository: Repository

    @property
    def url(self) -> str:
        return f"ssh://{getpass.getuser()}@127.0.0.1:{self.port}{self.repository.path}"

    def credentials(self, key: str = "deploy") -> Credentials:
        return Credentials(ssh_identity=self.folder / key, ssh_known_hosts=self.folder / "known_hosts")


def _key(file: Path) -> str:
    subprocess.run(
        ("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "test", "-f", str(file)), check=True, timeout=30
    )
    return file.with_suffix(".pub").read_text()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def _configuration(folder: Path, port: int) -> Path:
    """Everything of this server's own: host key, the one key that may enter, what that key may do."""
    (folder / "authorized_keys").write_text(
        f'restrict,command="git upload-pack \\"{folder / "mesh"}\\"" {_key(folder / "deploy")}'
    )
    _key(folder / "foreign")
    host_key = _key(folder / "host_key")
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {host_key}")
    file = folder / "sshd_config"
    file.write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {folder}/host_key\nPidFile none\nUsePAM no\n"
        f"AuthorizedKeysFile {folder}/authorized_keys\nStrictModes no\nPasswordAuthentication no\n"
        "KbdInteractiveAuthentication no\nPermitRootLogin prohibit-password\n"
    )
    return file


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """sshd on a loopback port of its own; `-D -e` keeps it in the foreground and away from syslog."""
    assert SSHD is not None
    repository = Repository(tmp_path / "mesh")
    port = _free_port()
    if os.geteuid() == 0:  # privilege separation's empty folder; the package's service makes it, we start none
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    command = (SSHD, "-D", "-e", "-f", str(_configuration(tmp_path, port)))
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        for line in process.stderr:
            if "Server listening" in line:
                break
        else:
            pytest.fail(f"sshd ended with {process.wait(timeout=10)}")
        yield Server(port=port, folder=tmp_path, repository=repository)
    finally:
        process.terminate()
        process.wait(timeout=10)
        process.stderr.close()


def _source(server: Server, credentials: Credentials) -> GitSource:
    mirror = server.folder / "mirror"
    return GitSource(server.url, mirror=mirror, ref=RefSpec(branch="main"), credentials=credentials, timeout=30)


async def test_a_deploy_key_reads_commits_as_they_come(server: Server) -> None:
    first = server.repository.commit("first", mesh__yaml="kind: Mesh\n")
    source = _source(server, server.credentials())
    assert (await source.resolve()).sha == first
    second = server.repository.commit("second", mesh__yaml="kind: Route\n")
    assert (await source.resolve()).sha == second
    assert (await source.read(second)).files == {"mesh.yaml": b"kind: Route\n"}
    await source.close()


async def test_a_key_the_server_does_not_know_is_refused_and_never_printed(server: Server) -> None:
    server.repository.commit("first", mesh__yaml="kind: Mesh\n")
    source = _source(server, server.credentials("foreign"))
    with pytest.raises(SourceUnavailable) as unavailable:
        await source.resolve()
    await source.close()
    assert unavailable.value.reason == "AuthenticationFailed"
    assert "the server refused the credentials" in str(unavailable.value)
    assert "PRIVATE KEY" not in str(unavailable.value)


async def test_a_host_that_is_not_known_is_refused_without_a_question(server: Server) -> None:
    server.repository.commit("first", mesh__yaml="kind: Mesh\n")
    (server.folder / "known_hosts").write_text("")
    source = _source(server, server.credentials())
    with pytest.raises(SourceUnavailable) as unavailable:
        await source.resolve()
    await source.close()
    assert unavailable.value.reason == "AuthenticationFailed"
    assert "Host key verification failed" in str(unavailable.value)
