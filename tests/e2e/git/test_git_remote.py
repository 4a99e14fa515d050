"""GitSource over https with credentials, and against servers that are slow, absent or not what they seem."""

import asyncio
import logging
import os
import socket
import stat
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from backstay import tasks
from backstay.adapters.git import Credentials, GitSource, RefSpec
from backstay.core.ports import SourceUnavailable
from ports.forge import Forge, forge
from ports.repositories import Repository

CANARY = "c4n4ry-s3cr3t-9f1b"
Open = Callable[..., GitSource]


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository(tmp_path / "srv/mesh")


@pytest.fixture
def served(repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Forge]:
    for name in ("http_proxy", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with forge(tmp_path / "srv", tmp_path / "tls") as running:
        yield running


@pytest.fixture
async def open_source(served: Forge, tmp_path: Path) -> AsyncIterator[Open]:
    opened: list[GitSource] = []

    def open_it(*, url: str = f"{served.url}/mesh", timeout: float = 30, **credentials: Any) -> GitSource:
        credentials.setdefault("ca_file", served.ca_file)
        source = GitSource(
            url,
            mirror=tmp_path / f"mirror{len(opened)}",
            ref=RefSpec(branch="main"),
            credentials=Credentials(**credentials),
            timeout=timeout,
        )
        opened.append(source)
        return source

    yield open_it
    for source in opened:
        await source.close()


async def failure(source: GitSource) -> SourceUnavailable:
    with pytest.raises(SourceUnavailable) as unavailable:
        await source.resolve()
    return unavailable.value


def assert_nowhere(secret: str, texts: list[str], folder: Path) -> None:
    """The secret is in no text and in no file below the folder."""
    assert [text for text in texts if secret in text] == []
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files != []
    assert [path for path in files if secret.encode() in path.read_bytes()] == []


@pytest.mark.parametrize(
    ("accepted", "credentials"),
    [
        (("bot", CANARY), {"username": "bot", "password": CANARY}),
        (None, {"bearer": CANARY}),
    ],
    ids=["basic", "bearer"],
)
async def test_right_credentials_are_let_in_and_leave_no_trace(
    served: Forge, repository: Repository, open_source: Open, tmp_path: Path, caplog: pytest.LogCaptureFixture,
    accepted: tuple[str, str] | None, credentials: dict[str, str],
) -> None:  # fmt: skip
    caplog.set_level(logging.DEBUG)
    if accepted:
        served.accept_basic(*accepted)
    else:
        served.accepted.add(f"Bearer {CANARY}")
    source = open_source(**credentials)
    for number in range(2):
        sha = repository.commit(a__yaml=str(number))
        assert (await source.resolve()).sha == sha
    assert (await source.read(sha)).files == {"a.yaml": b"1"}
    assert_nowhere(CANARY, [caplog.text, repr(source)], tmp_path / "mirror0")


@pytest.mark.parametrize("credentials", [{"username": "bot", "password": CANARY}, {"bearer": CANARY}, {}])
async def test_wrong_credentials_are_said_and_never_shown(
    served: Forge, repository: Repository, open_source: Open, tmp_path: Path, caplog: pytest.LogCaptureFixture,
    credentials: dict[str, str],
) -> None:  # fmt: skip
    caplog.set_level(logging.DEBUG)
    repository.commit(a__yaml="1")
    served.accept_basic("bot", "another")
    source = open_source(**credentials)
    error = await failure(source)
    assert error.reason == "AuthenticationFailed"
    assert str(error).startswith(f"asking {served.url}/mesh: the server refused the credentials (git: ")
    assert_nowhere(CANARY, [str(error), repr(error), caplog.text, repr(source)], tmp_path / "mirror0")


async def test_no_argument_of_a_running_process_holds_a_secret(
    served: Forge, repository: Repository, open_source: Open
) -> None:
    repository.commit(a__yaml="1")
    served.stall.set()
    asking = tasks.spawn(open_source(username="bot", password=CANARY, bearer=CANARY).resolve(), name="asking")
    lines = await _command_lines(lambda lines: any("remote-https" in line for line in lines))
    assert [line for line in lines if CANARY in line] == []
    served.stall.clear()
    await asking


async def _command_lines(enough: Callable[[list[str]], bool]) -> list[str]:
    """Command lines of all our children, once they are what is waited for."""
    async with asyncio.timeout(20):
        while True:
            lines = []
            for child in psutil.Process().children(recursive=True):
                try:
                    lines.append(" ".join(child.cmdline()))
                except psutil.Error:
                    continue
            if enough(lines):
                return lines
            await asyncio.sleep(0.02)


async def test_a_server_that_does_not_answer_is_given_up_with_all_its_processes(
    served: Forge, repository: Repository, open_source: Open
) -> None:
    repository.commit(a__yaml="1")
    served.stall.set()
    started = time.monotonic()
    asking = tasks.spawn(failure(open_source(timeout=6.0)), name="asking")
    await _command_lines(lambda lines: any("remote-https" in line and served.url in line for line in lines))
    error = await asking
    assert (error.reason, str(error)) == ("Timeout", "git ls-remote did not finish within 6 s and was stopped")
    assert time.monotonic() - started < 30
    await _command_lines(lambda lines: not any(served.url in line for line in lines))


async def test_closing_ends_a_git_that_waits(served: Forge, repository: Repository, open_source: Open) -> None:
    repository.commit(a__yaml="1")
    served.stall.set()
    source = open_source()
    asking = tasks.spawn(source.resolve(), name="asking")
    await _command_lines(lambda lines: any("remote-https" in line for line in lines))
    await source.close()
    with pytest.raises(SourceUnavailable):
        await asking


async def test_reading_works_while_the_server_hangs(served: Forge, repository: Repository, open_source: Open) -> None:
    sha = repository.commit(a__yaml="1")
    source = open_source()
    await source.resolve()
    served.stall.set()
    asking = tasks.spawn(source.resolve(), name="asking")
    assert (await source.read(sha)).files == {"a.yaml": b"1"}
    assert not asking.done()
    served.stall.clear()
    assert (await asking).sha == sha


async def test_a_server_that_is_away_is_unavailable_and_what_was_fetched_stays_readable(
    served: Forge, repository: Repository, open_source: Open, tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        free = probe.getsockname()[1]
    error = await failure(open_source(url=f"https://127.0.0.1:{free}/mesh"))
    assert error.reason == "GitOperationFailed"
    assert str(error).startswith(f"asking https://127.0.0.1:{free}/mesh: git failed: ")


async def test_a_certificate_of_nobody_known_is_refused(
    served: Forge, repository: Repository, open_source: Open
) -> None:
    repository.commit(a__yaml="1")
    error = await failure(open_source(ca_file=None))
    assert error.reason == "GitOperationFailed"
    assert "the server's certificate is not trusted; give its CA as ca file" in str(error)


async def test_a_redirect_is_not_followed_with_the_credentials(
    served: Forge, repository: Repository, open_source: Open, tmp_path: Path
) -> None:
    repository.commit(a__yaml="1")
    with forge(tmp_path / "srv", tmp_path / "tls2") as thief:
        served.redirect_to = thief.url
        await failure(open_source(username="bot", password=CANARY, bearer=CANARY))
        assert thief.seen == []


async def test_a_repository_that_does_not_exist_is_unavailable(served: Forge, open_source: Open) -> None:
    error = await failure(open_source(url=f"{served.url}/nothere"))
    assert error.reason == "GitOperationFailed"


async def test_the_environment_of_the_operator_does_not_reach_git(
    served: Forge, repository: Repository, open_source: Open, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    trap = tmp_path / "trap"
    trap.write_text(f"#!/bin/sh\necho ran >> {tmp_path}/ran\n")
    trap.chmod(stat.S_IRWXU)
    (tmp_path / "home").mkdir()
    (tmp_path / "home/.gitconfig").write_text(f'[url "https://127.0.0.1:1/"]\n\tinsteadOf = {served.url}/\n')
    for name, value in {
        "HOME": str(tmp_path / "home"), "GIT_DIR": str(tmp_path), "GIT_SSH_COMMAND": str(trap), "GIT_EXEC_PATH": "/nothere",
        "GIT_ASKPASS": str(trap), "GIT_EXTERNAL_DIFF": str(trap), "GIT_TRACE": "1", "GIT_OBJECT_DIRECTORY": "/nothere",
        "GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": "http.proxy", "GIT_CONFIG_VALUE_0": "http://127.0.0.1:1",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    sha = repository.commit(a__yaml="1")
    for name in ("GIT_EXEC_PATH", "GIT_OBJECT_DIRECTORY", "GIT_DIR"):
        assert name in os.environ
    served.accept_basic("bot", CANARY)
    # The forge has an environment of its own, so only our git could be misled.
    assert (await open_source(username="bot", password=CANARY).resolve()).sha == sha
    assert not (tmp_path / "ran").exists()
