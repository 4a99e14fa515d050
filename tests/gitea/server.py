"""One Gitea on loopback, with a folder, a certificate and users of its own; it ends with the block that started it."""

import json
import os
import shutil
import socket
import ssl
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, TypeAlias

from gitea import build
from ports.forge import loopback_certificate

Json: TypeAlias = Any
START_S: Final = 90.0
"""4 s on an idle machine; migrations run on a new database."""
CALL_S: Final = 30.0
STOP_S: Final = 10.0
ADMIN: Final = "keeper"
PASSWORD: Final = "for-tests-only"
_INI: Final = """\
APP_NAME = forge
RUN_MODE = prod
WORK_PATH = {folder}
I_AM_BEING_UNSAFE_RUNNING_AS_ROOT = true

[server]
PROTOCOL = https
HTTP_ADDR = 127.0.0.1
HTTP_PORT = {port}
DOMAIN = 127.0.0.1
ROOT_URL = https://127.0.0.1:{port}/
CERT_FILE = {certificate}
KEY_FILE = {key}
STATIC_ROOT_PATH = {assets}
DISABLE_SSH = true
OFFLINE_MODE = true
LFS_START_SERVER = false

[database]
DB_TYPE = sqlite3
PATH = {folder}/gitea.db

[security]
INSTALL_LOCK = true
PASSWORD_HASH_ALGO = pbkdf2_v1

[webhook]
ALLOWED_HOST_LIST = loopback

[log]
MODE = console
LEVEL = warn

[repository]
ROOT = {folder}/repositories

[indexer]
ISSUE_INDEXER_TYPE = db

[queue]
TYPE = channel

[cron]
ENABLED = false

[service]
DISABLE_REGISTRATION = true

[packages]
ENABLED = false

[actions]
ENABLED = false
"""


class CannotStart(Exception):
    """It did not come up; the message ends with what it said."""


class Refused(Exception):
    """The API said no."""

    def __init__(self, status: int, said: str) -> None:
        super().__init__(f"{status}: {said}")
        self.status = status


class Gitea:
    """A running forge. `api` calls it as its first user."""

    def __init__(self, folder: Path, port: int, certificate: Path) -> None:
        self.folder = folder
        self.url = f"https://127.0.0.1:{port}"
        self.api_url = f"{self.url}/api/v1"
        self.ca_file = certificate
        self._context = ssl.create_default_context(cafile=str(certificate))
        self._opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=self._context)
        )
        self.token = ""

    def __repr__(self) -> str:
        return f"<Gitea {self.url}>"

    def api(self, method: str, path: str, body: Mapping[str, Any] | None = None, *, token: str = "") -> Json:
        """One call; what it answers. Raises Refused."""
        request = urllib.request.Request(
            f"{self.api_url}{path}",
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": f"token {token or self.token}", "Content-Type": "application/json"},
        )
        try:
            with self._opener.open(request, timeout=CALL_S) as response:
                data = response.read()
        except urllib.error.HTTPError as error:
            raise Refused(error.code, error.read().decode("utf-8", "replace")[:500]) from error
        return json.loads(data) if data else None

    def answers(self) -> bool:
        try:
            self._opener.open(f"{self.api_url}/version", timeout=2).close()
        except OSError:
            return False
        return True

    def command(self, *arguments: str) -> str:
        """Its own command line: users and tokens. Returns the last line, after what it has to say about root."""
        done = subprocess.run(
            [str(build.program()), "--config", str(self.folder / "app.ini"), *arguments],
            env=_environment(self.folder),
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=START_S,
            check=False,
        )
        if done.returncode != 0:
            raise CannotStart(f"gitea {' '.join(arguments[:3])}: {done.stdout}{done.stderr}")
        return (done.stdout.strip().splitlines() or [""])[-1]

    def add_user(self, name: str, *options: str) -> None:
        self.command(
            "admin", "user", "create", "--username", name, "--password", PASSWORD, "--email", f"{name}@example.com",
            "--must-change-password=false", *options,
        )  # fmt: skip

    def add_token(self, user: str, *scopes: str) -> str:
        """A token with these scopes and no others."""
        name = f"{user}-{'-'.join(scopes).replace(':', '-')}"
        return self.command(
            "admin", "user", "generate-access-token", "--username", user, "--token-name", name,
            "--scopes", ",".join(scopes), "--raw",
        )  # fmt: skip

    def git_url(self, repository: str, user: str = ADMIN) -> str:
        """With the password inside, for a person's clone."""
        return f"{self.url.replace('https://', f'https://{user}:{PASSWORD}@')}/{repository}.git"


@contextmanager
def gitea() -> Iterator[Gitea]:
    """A new one, empty but for its first user. Raises CannotStart."""
    folder = Path(tempfile.mkdtemp(prefix="bs-gitea-"))
    log = folder / "log.txt"
    process: subprocess.Popen[bytes] | None = None
    try:
        forge = _configured(folder)
        with log.open("wb") as output:
            process = subprocess.Popen(
                [str(build.program()), "web", "--config", str(folder / "app.ini")],
                env=_environment(folder), cwd=folder, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                start_new_session=True,
            )  # fmt: skip
        _wait(forge, process, log)
        forge.add_user(ADMIN, "--admin")
        forge.token = forge.add_token(ADMIN, "all")
        yield forge
    finally:
        _end(process)
        shutil.rmtree(folder, ignore_errors=True)


def _configured(folder: Path) -> Gitea:
    port = _free_port()
    certificate, key = loopback_certificate(folder)
    text = _INI.format(folder=folder, port=port, certificate=certificate, key=key, assets=build.assets())
    (folder / "app.ini").write_text(text, encoding="utf-8")
    return Gitea(folder, port, certificate)


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def _environment(folder: Path) -> dict[str, str]:
    """Nothing of ours: an outer git or Gitea would lead it elsewhere."""
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        "USER": "root",
        "LANG": "C.UTF-8",
        "GITEA_WORK_DIR": str(folder),
    }


def _wait(forge: Gitea, process: "subprocess.Popen[bytes]", log: Path) -> None:
    end = time.monotonic() + START_S
    while not forge.answers():
        if process.poll() is not None or time.monotonic() > end:
            said = log.read_text(encoding="utf-8", errors="replace")[-3000:]
            raise CannotStart(f"gitea does not answer within {START_S:g} s; it says:\n{said}")
        time.sleep(0.1)


def _end(process: "subprocess.Popen[bytes] | None") -> None:
    if process is None:
        return
    process.terminate()
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(STOP_S)


def main() -> None:
    """One to look at, until Enter."""
    with gitea() as forge:
        print(f"{forge.url} user {ADMIN} password {PASSWORD} token {forge.token}", file=sys.stderr)
        sys.stdin.readline()


if __name__ == "__main__":
    main()
