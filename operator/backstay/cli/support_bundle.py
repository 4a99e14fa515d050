"""`backstay support-bundle`: what helps others to help, in one archive, without secrets.

Rule: only what is named here goes in (never a whole folder), and every byte of it has passed the cleaner. Keys, tokens
and the database stay where they are.
"""

import io
import json
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Final

import click

import backstay
from backstay.cli.check import machine_facts, operator_facts
from backstay.cli.client import Client, segment
from backstay.cli.exits import Failed
from backstay.cli.session import Session, pass_session
from backstay.redact import clean

EVENTS_BACK: Final = 24 * 3600.0  # seconds
LOG_TAIL: Final = 256 * 1024
"""Bytes of each log, from its end: some thousand lines."""
MAX_LOGS: Final = 200
_NO_LIMIT: Final = 64 * 1024 * 1024  # clean() cuts at its limit; files here are bounded by other means


@click.command
@click.option(
    "--file", "target", type=click.Path(path_type=Path, dir_okay=False), help="Where to write; `-` is stdout."
)
@pass_session
def support_bundle(session: Session, target: Path | None) -> None:
    """Collect status, events, configs, metrics and logs into a tar.gz, without secrets."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    path = target or Path(f"backstay-support-{stamp}.tar.gz")
    archive = pack(f"backstay-support-{stamp}", collect(session))
    if str(path) == "-":
        sys.stdout.buffer.write(archive)
        return
    try:
        path.write_bytes(archive)
    except OSError as error:
        raise Failed(f"{path}: {error.strerror or error}", hint="name another place with --file") from error
    path.chmod(0o600)
    session.say("look through it before you send it: it names your hosts, workloads and files")
    click.echo(path)


def pack(folder: str, files: Iterator[tuple[str, str]]) -> bytes:
    """A tar.gz of cleaned texts."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, text in files:
            body = clean(text, limit=_NO_LIMIT).encode()
            entry = tarfile.TarInfo(f"{folder}/{name}")
            entry.size, entry.mode, entry.mtime = len(body), 0o600, int(time.time())
            archive.addfile(entry, io.BytesIO(body))
    return buffer.getvalue()


def collect(session: Session) -> Iterator[tuple[str, str]]:
    """Name and text of everything. What cannot be had is told in its place: a bundle of a broken mesh is the point."""
    facts = [*machine_facts(session.state_dir), *operator_facts(session)]
    yield (
        "version.json",
        json.dumps({"backstay": backstay.__version__, "python": sys.version, "platform": sys.platform}),
    )
    yield "check.json", json.dumps([asdict(fact) for fact in facts], indent=2)
    client = session.client()
    for name in ("meshrepository", "meshrollouts", "meshintents", "workloads", "proxies", "revisions", "registry"):
        yield f"{name}.json", _told(lambda name=name: _pretty(client, f"/v1/{name}"))  # type: ignore[misc]
    yield "metrics.txt", _told(lambda: client.text("/metrics").decode(errors="replace"))
    yield "events.ndjson", _told(lambda: _events(client))
    yield from _configs(client)
    yield from _logs(session.state_dir)


def _told(make: Callable[[], str]) -> str:
    try:
        return make()
    except Failed as error:
        return f"not available: {error.message}\n"


def _pretty(client: Client, path: str) -> str:
    return json.dumps(client.get(path), indent=2)


def _events(client: Client) -> str:
    return "".join(json.dumps(event) + "\n" for event in client.events(since=time.time() - EVENTS_BACK))


def _configs(client: Client) -> Iterator[tuple[str, str]]:
    try:
        workloads = client.items("/v1/workloads")
    except Failed:
        return  # told under workloads.json already
    for item in workloads:
        namespace, name = item["metadata"]["namespace"], item["metadata"]["name"]
        path = f"/v1/config/{segment(namespace)}/{segment(name)}"
        yield f"configs/{namespace}/{name}.json", _told(lambda path=path: _pretty(client, path))  # type: ignore[misc]


def _logs(state_dir: Path) -> Iterator[tuple[str, str]]:
    """Regular *.log files below the state folder; links are not followed, they could lead anywhere."""
    if not state_dir.is_dir():
        return
    found = [path for path in sorted(state_dir.rglob("*.log")) if path.is_file() and not path.is_symlink()]
    for path in found[:MAX_LOGS]:
        yield f"logs/{path.relative_to(state_dir)}", _told_tail(path)


def _told_tail(path: Path) -> str:
    try:
        with path.open("rb") as file:
            file.seek(max(path.stat().st_size - LOG_TAIL, 0))
            return file.read(LOG_TAIL).decode("utf-8", "replace")
    except OSError as error:
        return f"not available: {error}\n"
