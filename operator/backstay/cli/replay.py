"""`backstay replay LOG --against BASE..HEAD`: real traffic through both revisions, before merge."""

import csv
import io
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any, Final, Protocol

import click
import msgspec

from backstay.cli.exits import Exit, Failed
from backstay.cli.output import emit
from backstay.cli.review import compare
from backstay.cli.session import Session, output_option, pass_session
from backstay.cli.worlds import registry_of, settled, snapshot_of
from backstay.core.durations import spell
from backstay.core.evaluate import world
from backstay.core.review import traffic as live_traffic
from backstay.core.review.formats import plain
from backstay.core.review.replay import Group, Logged, Replay, Result, summary
from backstay.core.review.traffic import Traffic
from backstay.core.validate import Cache

_CHUNK: Final = 4 * 1024 * 1024  # bytes read at once: enough that the reading costs nothing, little beside the rest
_SHOWN: Final = 20  # groups; -o json has all of them
_MOST_LINE: Final = 1024 * 1024  # bytes; a longer line is no line of an access log


class Line(msgspec.Struct, gc=False):
    """What is taken of a line, under the names that sidecars, Envoy's users and other tools give it."""

    method: str | None = None
    request_method: str | None = None
    pseudo_method: str | None = msgspec.field(name=":method", default=None)
    authority: str | None = None
    pseudo_authority: str | None = msgspec.field(name=":authority", default=None)
    host: str | None = None
    path: str | None = None
    pseudo_path: str | None = msgspec.field(name=":path", default=None)
    original_path: str | None = msgspec.field(name="x-envoy-original-path", default=None)
    request_path: str | None = None
    source: str | None = None
    peer: str | None = msgspec.field(name="downstream_peer_uri_san", default=None)
    source_principal: str | None = None
    remote: str | None = msgspec.field(name="downstream_remote_address", default=None)
    query: str | None = None
    route: str | None = None

    def logged(self) -> Logged | None:
        """None for a line that is no request."""
        method = self.method or self.request_method or self.pseudo_method
        authority = self.authority or self.pseudo_authority or self.host
        path = self.path or self.original_path or self.pseudo_path or self.request_path
        if not method or not authority or not path:
            return None
        target = f"{path}?{self.query}" if self.query else path
        return Logged(method, authority, target, self.peer or self.source_principal or self.source or self.remote or "")


@click.command
@click.argument("log", type=click.File("rb"), required=False)
@click.option("--live", is_flag=True, help="What the running mesh was asked in the last hour, instead of a log.")
@click.option("--against", required=True, metavar="BASE..HEAD", help="The two revisions; HEAD left out is the folder.")
@click.option("-d", "--dir", "folder", type=click.Path(path_type=Path), default=".", help="Folder of the documents.")
@click.option("-w", "--workloads", type=click.Path(path_type=Path), help="Services and workloads, from a file.")
@click.option("--registry", type=click.Path(path_type=Path), help="Services and workloads, from a JSON file.")
@click.option("-n", "--namespace", default="", help="Of documents that do not name theirs.")
@click.option("--from", "caller", default="", metavar="WORKLOAD", help="Whose log it is, where lines do not say.")
@click.option("--exit-code", is_flag=True, help="End with 1 if anything would be denied.")
@output_option()
@pass_session
def replay(
    session: Session,
    log: IO[bytes] | None,
    live: bool,
    against: str,
    folder: Path,
    workloads: Path | None,
    registry: Path | None,
    namespace: str,
    caller: str,
    exit_code: bool,
    output: str,
) -> None:
    """Put a log's requests through two revisions: how many would change, be denied, be admitted.

    LOG is a sidecar's access log, Envoy's in JSON, or NDJSON or CSV of method, host, path and source; `-` is stdin.
    """
    if live == (log is not None):
        raise click.UsageError("name a log, or --live; `-` is stdin")
    known = registry_of(session, workloads, registry, traffic=live)
    space = namespace or known.namespace
    compared = compare((against,), folder)
    cache = Cache()
    snapshots = (snapshot_of(files, known.registry, space, cache) for files in (compared.base, compared.head))
    before, after = (world(settled(session, item, known.registry), known.registry) for item in snapshots)
    replayed = Replay(before, after)
    skipped = 0
    if log is not None:
        skipped = feed(replayed, log, f"{space}/{caller}" if caller and "/" not in caller else caller)
    else:
        session.say(feed_live(replayed, known.traffic))
    result = replayed.finish()
    for note in (*compared.notes, *([f"{skipped} lines were no requests"] if skipped else [])):
        session.say(note)
    emit(output, result_object(result), lambda wide: "\n".join(result_lines(result, everything=wide)))
    sys.exit(Exit.NO if exit_code and result.count("denied") else Exit.OK)


# --- reading ----------------------------------------------------------------------------------------------------------


def feed_live(replayed: Replay, traffic: Traffic | None) -> str:
    """Put in what a mesh was asked lately; returns the sentence that says what that is. Raises Failed."""
    if traffic is None:
        raise Failed(
            "nothing here tells of live traffic",
            hint="leave --workloads out to ask the running operator, or save a registry with `backstay route registry --traffic`",
        )
    live_traffic.feed(replayed, traffic)
    span = spell(max(traffic.until - traffic.since, 0.0))
    return f"sampled requests of {span}: counts are estimates, and headers and values of queries are not known"


class Taker(Protocol):
    def feed(self, requests: Iterable[Logged]) -> None: ...


def feed(replayed: Taker, log: IO[bytes], caller: str) -> int:
    """Read a log in portions; returns how many lines were no requests."""
    skipped = 0
    first = True
    is_csv, header = False, b""
    for chunk in chunks(log):
        if first:
            is_csv = not chunk.lstrip().startswith(b"{")
            header = chunk.partition(b"\n")[0] if is_csv else b""
            first = False
            found, wrong = read_csv(chunk) if is_csv else read_json(chunk)
        else:
            found, wrong = read_csv(header + b"\n" + chunk) if is_csv else read_json(chunk)
        replayed.feed(_from(found, caller) if caller else found)
        skipped += wrong
    return skipped


def _from(requests: Iterable[Logged], caller: str) -> Iterator[Logged]:
    return (item if item.source.startswith("spiffe://") else item._replace(source=caller) for item in requests)


def chunks(log: IO[bytes]) -> Iterator[bytes]:
    """Whole lines, a few megabytes at a time. Raises Failed for a line without an end."""
    rest = b""
    while data := log.read(_CHUNK):
        whole, newline, tail = (rest + data).rpartition(b"\n")
        if newline:
            yield whole
        rest = tail
        if len(rest) > _MOST_LINE + _CHUNK:
            raise Failed("a line of the log is longer than a megabyte", hint="is this an access log?")
    if rest.strip():
        yield rest


_line: Final = msgspec.json.Decoder(Line)


def read_json(chunk: bytes) -> tuple[list[Logged], int]:
    """The requests of NDJSON; lines that are none are counted."""
    try:
        lines: list[Line | None] = list(_line.decode_lines(chunk))
    except (msgspec.DecodeError, UnicodeDecodeError):
        lines = list(_one_by_one(chunk))
    found = [item for line in lines if line is not None and (item := line.logged()) is not None]
    return found, len(lines) - len(found)


def _one_by_one(chunk: bytes) -> Iterator[Line | None]:
    for text in chunk.split(b"\n"):
        if text.strip():
            try:
                yield _line.decode(text)
            except (msgspec.DecodeError, UnicodeDecodeError):
                yield None


def read_csv(chunk: bytes) -> tuple[list[Logged], int]:
    """The requests of a table whose first line names its columns. Raises Failed without the ones that are needed."""
    rows = csv.DictReader(io.StringIO(chunk.decode("utf-8", "replace")))
    names = {name.strip().lower(): name for name in rows.fieldnames or ()}
    if not {"method", "path"} <= names.keys() or not {"host", "authority"} & names.keys():
        raise Failed(
            "the log is neither JSON nor a table of requests", hint="a table begins with `method,host,path,source`"
        )
    host = names.get("host") or names["authority"]
    method, path, source = names["method"], names["path"], names.get("source", "")
    found, wrong = [], 0
    for row in rows:
        if row.get(method) and row.get(host) and row.get(path):
            found.append(Logged(row[method], row[host], row[path], row.get(source) or ""))
        else:
            wrong += 1
    return found, wrong


# --- answers ----------------------------------------------------------------------------------------------------------

_COLORS: Final = {"denied": "red", "admitted": "yellow", "changed": "cyan"}


def result_lines(result: Result, *, everything: bool = False) -> Iterator[str]:
    found = summary(result)
    yield (
        f"{found['requests']} requests, {found['distinct']} different: {found['denied']} would be denied, "
        f"{found['admitted']} admitted, {found['changed']} otherwise changed"
    )
    if found["unknown"]:
        yield f"of callers that the registry does not know, or to hosts outside the mesh: {found['unknown']}"
    if found["rulesAskForHeaders"]:
        asked = "to hosts whose rules ask for headers, tokens or addresses, which the log does not have"
        yield f"{asked}: {found['rulesAskForHeaders']}"
    groups = result.ordered()
    for group in groups if everything else groups[:_SHOWN]:
        yield from _group_lines(group)
    if len(groups) > _SHOWN and not everything:
        yield f"\nand {len(groups) - _SHOWN} more kinds; `-o wide` shows all"


def _group_lines(group: Group) -> Iterator[str]:
    yield f"\n{click.style(group.fate, fg=_COLORS[group.fate], bold=True)} {group.count}"
    yield f"  {plain(group.before)}  {click.style(plain(group.before_place), dim=True)}"
    yield f"  → {plain(group.after)}  {click.style(plain(group.after_place), dim=True)}"
    yield from (f"    {plain(example)}" for example in group.examples)


def result_object(result: Result) -> dict[str, Any]:
    groups = [
        {
            "fate": item.fate,
            "count": item.count,
            "before": item.before,
            "after": item.after,
            "beforePlace": item.before_place,
            "afterPlace": item.after_place,
            "examples": list(item.examples),
        }
        for item in result.ordered()
    ]
    return {"apiVersion": "backstay.dev/v1alpha1", "kind": "ReplayResult", **summary(result), "groups": groups}
