"""`backstay check`: find out what is wrong with an installation, one line per fact, with what to do about it."""

import importlib.metadata
import os
import re
import shutil
import socket
import ssl
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final, Literal

import click

import backstay
from backstay.cli.client import SOCKET_NAME
from backstay.cli.exits import Exit, Failed, OperatorAway
from backstay.cli.output import condition, emit
from backstay.cli.session import Session, output_option, pass_session
from backstay.core.codes import code_of

MINIMUM_FREE: Final = 200 * 1024 * 1024
"""Bytes: a mirror of some MiB, the database, and logs that are cut at 10 MiB per instance."""
EXPIRES_SOON: Final = 2 * 3600.0
"""Seconds: certificates live 24 h and are renewed at 12 h; with 2 h left renewal has failed for long."""
MINIMUM_GIT: Final = (2, 32)  # as adapters/git/command.py says, and why
SILENT_AFTER: Final = 15.0
"""Seconds: proxies report every second; this many in a row are not lost by chance."""
MAX_SOCKET_PATH: Final = 103  # as control/api.py, whose import would cost 200 ms
_SIGNS: Final = {"ok": ("√", "green"), "warn": ("‼", "yellow"), "fail": ("×", "red")}


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    name: str
    level: Literal["ok", "warn", "fail"]
    message: str
    hint: str = ""


@click.command
@click.option("--pre", is_flag=True, help="Only what is needed before an operator runs.")
@output_option()
@pass_session
def check(session: Session, pre: bool, output: str) -> None:
    """Find out what is wrong with an installation. Exit code 1 if any check fails."""
    facts = [*machine_facts(session.state_dir), *([] if pre else operator_facts(session))]
    data = {"apiVersion": "backstay.dev/v1alpha1", "kind": "CheckResult", "facts": [asdict(fact) for fact in facts]}
    emit(output, data, lambda _: "\n".join(line for fact in facts for line in lines(fact)))
    sys.exit(Exit.NO if any(fact.level == "fail" for fact in facts) else Exit.OK)


def lines(fact: Fact) -> Iterator[str]:
    sign, color = _SIGNS[fact.level]
    yield f"{click.style(sign, fg=color)} {fact.name}: {fact.message}"
    if fact.hint and fact.level != "ok":
        yield f"    {fact.hint}"


# --- this machine -----------------------------------------------------------------------------------------------------


def machine_facts(state_dir: Path) -> list[Fact]:
    return [
        _python(),
        _git(),
        _tls(),
        _packages(),
        _folder(state_dir),
        _socket(state_dir),
        _space(state_dir),
        _loopback(),
    ]


def _python() -> Fact:
    found = ".".join(map(str, sys.version_info[:3]))
    good = sys.version_info >= (3, 11)
    return Fact(name="python", level="ok" if good else "fail", message=found, hint="3.11 or newer is needed")


def _git() -> Fact:
    path = shutil.which("git")
    if path is None:
        return Fact(
            name="git", level="fail", message="not found", hint="install git; the operator reads the repository with it"
        )
    try:
        done = subprocess.run([path, "version"], capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        return Fact(name="git", level="fail", message=f"does not run: {error}", hint=f"try `{path} version`")
    return git_fact(done.stdout.strip())


def git_fact(said: str) -> Fact:
    """Whether this git can be used, by what `git version` says."""
    found = re.search(r"(\d+)\.(\d+)", said)
    if found is None:
        return Fact(name="git", level="warn", message=f"{said!r} names no version", hint="try `git version`")
    good = (int(found[1]), int(found[2])) >= MINIMUM_GIT
    hint = f"{'.'.join(map(str, MINIMUM_GIT))} or newer is needed"
    return Fact(name="git", level="ok" if good else "fail", message=said, hint=hint)


def _tls() -> Fact:
    level: Literal["ok", "fail"] = "ok" if ssl.HAS_TLSv1_3 else "fail"
    return Fact(name="tls", level=level, message=ssl.OPENSSL_VERSION, hint="an OpenSSL with TLS 1.3 is needed")


def _packages() -> Fact:
    """Every dependency the installed package names, present."""
    try:
        wanted = importlib.metadata.requires("backstay") or []
    except importlib.metadata.PackageNotFoundError:
        return Fact(name="packages", level="warn", message="backstay runs from a checkout that is not installed")
    names = [text.split(";")[0].split(">")[0].split("=")[0].strip() for text in wanted if "extra ==" not in text]
    missing = [name for name in names if not _is_installed(name)]
    if missing:
        return Fact(
            name="packages", level="fail", message=f"missing: {', '.join(missing)}", hint="install backstay again"
        )
    return Fact(name="packages", level="ok", message=f"backstay {backstay.__version__}, {len(names)} dependencies")


def _is_installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _folder(state_dir: Path) -> Fact:
    if not state_dir.exists():
        return Fact(name="state folder", level="ok", message=f"{state_dir} will be made at the first start")
    found = state_dir.stat()
    if found.st_uid != os.geteuid():
        hint = "choose another with --state-dir, or run as its owner"
        return Fact(name="state folder", level="fail", message=f"{state_dir} belongs to another user", hint=hint)
    if stat.S_IMODE(found.st_mode) & 0o077:
        hint = f"chmod 700 {state_dir}"
        return Fact(
            name="state folder", level="warn", message=f"{state_dir} can be read by others; it holds keys", hint=hint
        )
    return Fact(name="state folder", level="ok", message=str(state_dir))


def _socket(state_dir: Path) -> Fact:
    length = len(os.fsencode(state_dir.absolute() / SOCKET_NAME))
    if length > MAX_SOCKET_PATH:
        message = f"{length} bytes, a unix socket's path may have {MAX_SOCKET_PATH}"
        return Fact(name="socket path", level="fail", message=message, hint="choose a shorter --state-dir")
    return Fact(name="socket path", level="ok", message=f"{length} of {MAX_SOCKET_PATH} bytes")


def _loopback() -> Fact:
    """Both kinds of system work; which one it is explains what addresses and ports look like."""
    with socket.socket() as probe:
        try:
            probe.bind(("127.77.77.77", 0))
        except OSError:
            message = "127.0.0.1 only: instances get free ports instead of the ones they declare"
            return Fact(name="loopback", level="ok", message=message)
    return Fact(name="loopback", level="ok", message="127.0.0.0/8: every instance gets an address of its own")


def _space(state_dir: Path) -> Fact:
    place = next(folder for folder in (state_dir, *state_dir.absolute().parents) if folder.exists())
    free = shutil.disk_usage(place).free
    level: Literal["ok", "warn"] = "ok" if free >= MINIMUM_FREE else "warn"
    return Fact(
        name="disk",
        level=level,
        message=f"{free // 2**20} MiB free at {place}",
        hint="make room; a full disk stops rollouts",
    )


# --- the operator -----------------------------------------------------------------------------------------------------


def operator_facts(session: Session) -> list[Fact]:
    client = session.client()
    try:
        version, repository = client.get("/v1/version"), client.get("/v1/meshrepository")
        proxies = client.items("/v1/proxies")
    except OperatorAway as away:
        return [Fact(name="operator", level="fail", message=away.message, hint=away.hint)]
    except Failed as error:
        return [Fact(name="operator", level="fail", message=error.message, hint=error.hint)]
    makers: Sequence[Callable[[], Fact]] = (
        lambda: _version(version),
        lambda: _source(repository),
        lambda: _ready(repository),
        lambda: _proxies(proxies),
        lambda: _silent(proxies, time.time()),
        lambda: _certificates(proxies, time.time()),
    )
    return [make() for make in makers]


def _version(version: dict[str, Any]) -> Fact:
    running = version["version"]
    if running != backstay.__version__:
        message = f"runs {running}, this command is {backstay.__version__}"
        return Fact(name="operator", level="warn", message=message, hint="use one version for both")
    return Fact(name="operator", level="ok", message=f"{running}, epoch {version['epoch']}, pid {version['pid']}")


def _source(repository: dict[str, Any]) -> Fact:
    failed = condition(repository, "FetchFailed")
    if failed:
        return Fact(
            name="git remote",
            level="fail",
            message=f"{failed['reason']}: {failed['message']}",
            hint="the last good state keeps serving",
        )
    return Fact(
        name="git remote", level="ok", message=f"last looked at {repository['status'].get('lastFetchAt', 'never')}"
    )


def _ready(repository: dict[str, Any]) -> Fact:
    found = condition(repository, "Ready")
    stalled = condition(repository, "Stalled")
    level: Literal["ok", "warn", "fail"] = "ok" if found["status"] == "True" else "fail" if stalled else "warn"
    hint = f"`backstay explain {found['reason']}`" if code_of(found["reason"]) else "`backstay status`"
    return Fact(name="mesh", level=level, message=f"{found['reason']}: {found['message']}", hint=hint)


def _proxies(proxies: list[dict[str, Any]]) -> Fact:
    off = [item for item in proxies if item["status"]["sync"] not in ("synced", "splitting")]
    if off:
        names = ", ".join(f"{item['metadata']['name']} {item['status']['sync']}" for item in off[:5])
        message = f"{len(off)} of {len(proxies)} not in step: {names}"
        return Fact(name="proxies", level="warn", message=message, hint="`backstay proxy status -o wide`")
    return Fact(name="proxies", level="ok", message=f"{len(proxies)}, all in step")


def _silent(proxies: list[dict[str, Any]], now: float) -> Fact:
    """Connected, and yet no report: nothing that such a proxy serves can be judged."""
    last = {
        item["metadata"]["name"]: item["status"].get("lastReport", "")
        for item in proxies
        if item["status"]["connected"]
    }
    silent = [name for name, at in last.items() if at and now - datetime.fromisoformat(at).timestamp() > SILENT_AFTER]
    early = [name for name, at in last.items() if at and datetime.fromisoformat(at).timestamp() - now > SILENT_AFTER]
    if early:
        hint = "the clock has jumped back; certificates need the right day"
        return Fact(name="reports", level="warn", message=f"from the future: {', '.join(early[:5])}", hint=hint)
    if silent:
        hint = "the sidecar's log says why; rollouts of its workload hold"
        return Fact(name="reports", level="warn", message=f"none for a while: {', '.join(silent[:5])}", hint=hint)
    return Fact(name="reports", level="ok", message=f"{len(last)} proxies report")


def _certificates(proxies: list[dict[str, Any]], now: float) -> Fact:
    ends = {item["metadata"]["name"]: item["status"].get("certificateExpires", "") for item in proxies}
    soon = [name for name, end in ends.items() if end and datetime.fromisoformat(end).timestamp() - now < EXPIRES_SOON]
    if soon:
        hint = "renewal fails; the sidecar's log says why"
        return Fact(name="certificates", level="fail", message=f"end within 2 h: {', '.join(soon[:5])}", hint=hint)
    return Fact(name="certificates", level="ok", message=f"{sum(map(bool, ends.values()))} known, none ends within 2 h")
