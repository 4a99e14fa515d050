"""`backstay route test`: what becomes of one request, and which lines of git decide it."""

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any, TypeVar

import click

from backstay.cli.exits import Exit, Failed
from backstay.cli.output import emit
from backstay.cli.session import Session, output_option, pass_session
from backstay.cli.worlds import Where, load, where_options, workload_named
from backstay.core.evaluate import Answerer, Sent, Trace, World, request_to
from backstay.core.review import words

_WIDTH = 12  # of the first column: `backend` and `response headers` are the usual and the longest


@click.group
def route() -> None:
    """Which route and which policies decide one request."""


@route.command("registry")
@click.option(
    "--traffic", is_flag=True, help="With the last hour's sampled requests and the last day's plaintext callers."
)
@pass_session
def registry(session: Session, traffic: bool) -> None:
    """Write what the operator sees now (services, workloads, instances) as JSON, for `--registry`."""
    client = session.client()
    if not traffic:
        click.echo(client.text("/v1/registry"))
        return
    click.echo(json.dumps({**client.get("/v1/registry"), "traffic": client.get("/v1/traffic")}))


_Command = TypeVar("_Command", bound=Callable[..., Any])


def token_options(command: _Command) -> _Command:
    """What policies may ask of a request besides what it says itself."""
    for option in (
        click.option("--address", default="", callback=_address, help="Where the caller's connection comes from."),
        click.option(
            "--claims", type=click.Path(path_type=Path, dir_okay=False), help="JSON: claims of the valid token it has."
        ),
    ):
        command = option(command)
    return command


def _address(context: click.Context, parameter: click.Parameter, value: str) -> str:
    try:
        return str(ip_address(value)) if value else ""
    except ValueError as error:
        raise click.BadParameter(f"{value!r} is no IP address") from error


def read_claims(path: Path | None) -> dict[str, Any] | None:
    """Claims as a token would carry them. Raises Failed for a file that holds none."""
    if path is None:
        return None
    try:
        found = json.loads(path.read_bytes())
    except OSError as error:
        raise Failed(f"{path}: {error.strerror or error}") from error
    except ValueError as error:
        raise Failed(f"{path}: {error}", hint="claims are a JSON object, as the payload of a token") from error
    if not isinstance(found, dict):
        raise Failed(
            f"{path}: {type(found).__name__}, expected a JSON object", hint='such as {"iss": "...", "sub": "..."}'
        )
    return found


@route.command("test")
@click.argument("method")
@click.argument("url")
@click.option("--from", "caller", metavar="WORKLOAD", required=True, help="Whose request it is.")
@click.option("-H", "--header", "headers", multiple=True, metavar="NAME: VALUE", help="May be given several times.")
@token_options
@where_options
@output_option()
@pass_session
def test(
    session: Session,
    method: str,
    url: str,
    caller: str,
    headers: tuple[str, ...],
    claims: Path | None,
    address: str,
    folder: Path,
    at: str,
    live: bool,
    workloads: Path | None,
    registry: Path | None,
    namespace: str,
    output: str,
) -> None:
    """Say what becomes of one request: route, shares, limits, access, each with the line that says so.

    Exit code 0: somebody would answer it, 1: the mesh would refuse it.
    """
    where = Where(folder=folder, at=at, live=live, workloads=workloads, registry=registry, namespace=namespace)
    world, names_in = load(session, where)
    found = workload_named(caller, world.registry, names_in)
    try:
        request = request_to(method, url, parse_headers(headers))
    except ValueError as error:
        raise Failed(str(error)) from error
    request = replace(request, claims=read_claims(claims), address=address)
    trace = world.trace(found.key, request)
    emit(output, trace_object(world, trace), lambda _: "\n".join(trace_lines(world, trace)))
    sys.exit(Exit.OK if is_answered(trace) else Exit.NO)


def parse_headers(lines: tuple[str, ...]) -> list[tuple[str, str]]:
    """`Name: value`, as curl's -H. Raises ValueError."""
    found = []
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon or not name.strip():
            raise ValueError(f"{line!r} is no header, expected 'Name: value'")
        found.append((name.strip(), value.strip()))
    return found


def is_answered(trace: Trace) -> bool:
    return trace.sent.kind in ("route", "redirect", "direct", "pass-through") and not trace.is_denied


# --- text -------------------------------------------------------------------------------------------------------------

_SETTINGS = {
    "timeout": ("timeouts.request", "timeout"),
    "try timeout": ("timeouts.backendRequest", ""),
    "retries": ("retry", "retry"),
    "fault": ("fault", ""),
}
"""Facet -> where a rule says it, and where the Mesh has a default for it."""


def trace_lines(world: World, trace: Trace) -> Iterator[str]:
    yield f"{click.style(str(trace.request), bold=True)} from {trace.caller}"
    sent = trace.sent
    rule = f" rule {sent.rule.name}" if sent.rule is not None else ""
    yield _line("route", f"{sent.host}{rule}" if sent.host else "none", sent.place)
    if sent.kind != "route":
        yield _line("answer", words.destination_text(sent), "")
    for destination in sent.destinations:
        yield _line("to", f"{words.percent(destination.share)} {destination.name}", destination.place)
        yield from (_answerer_line(item) for item in trace.answerers if item.destination == destination)
        if not any(item.destination == destination for item in trace.answerers):
            yield _line("", "nobody is there: 503", "")
    for name, text in words.facets(sent).items():
        if name != "to":
            yield _line(name, text, _setting(world, trace.caller, sent, name))


def _setting(world: World, caller: str, sent: Sent, name: str) -> str:
    path, default = _SETTINGS.get(name, ("", ""))
    return world.setting_place(caller, sent, path, default) if path else sent.place


def _answerer_line(item: Answerer) -> str:
    transport = "mTLS" if item.secure else "plaintext"
    who = f"{item.reach.workload} port {item.reach.port}, {transport}"
    received = item.received
    if received is None:
        return _line("", f"{who}: has no proxy, nothing of the mesh is asked", "")
    color, word = ("green", "allowed") if received.allowed else ("red", "refused")
    audited = f"; audited by {', '.join(received.audited)}" if received.audited else ""
    place = received.mtls_place if received.reason in ("plaintext-refused", "handshake-refused") else received.place
    return _line("", f"{who}: {click.style(word, fg=color)}: {words.decided_by(received)}{audited}", place)


def _line(name: str, text: str, place: str) -> str:
    shown = f"  {click.style(place, dim=True)}" if place else ""
    return f"  {name:<{_WIDTH}} {text}{shown}"


# --- data -------------------------------------------------------------------------------------------------------------


def trace_object(world: World, trace: Trace) -> dict[str, Any]:
    sent = trace.sent
    return {
        "apiVersion": "backstay.dev/v1alpha1",
        "kind": "RouteTest",
        "revision": world.snapshot.revision,
        "request": {
            "method": trace.request.method,
            "authority": trace.request.authority,
            "path": trace.request.path,
            "query": trace.request.query,
            "headers": [{"name": name, "value": value} for name, value in trace.request.headers],
            "from": trace.caller,
            "address": trace.request.address,
            "claims": trace.request.claims,
        },
        "answered": is_answered(trace),
        "outcome": sent.kind,
        "route": {"host": sent.host, "rule": sent.rule.name if sent.rule else "", "place": sent.place},
        "destinations": [
            {
                "name": item.name,
                "percent": round(float(item.share * 100), 4),
                "labels": dict(item.labels),
                "place": item.place,
                "answerers": [_answerer_object(one) for one in trace.answerers if one.destination == item],
            }
            for item in sent.destinations
        ],
        "settings": {
            name: {"value": text, "place": _setting(world, trace.caller, sent, name)}
            for name, text in words.facets(sent).items()
            if name != "to"
        },
    }


def _answerer_object(item: Answerer) -> dict[str, Any]:
    received = item.received
    found: dict[str, Any] = {
        "workload": item.reach.workload,
        "port": item.reach.port,
        "instances": list(item.reach.instances),
        "mtls": item.secure,
        "meshed": item.reach.meshed,
    }
    if received is not None:
        found["access"] = {
            "allowed": received.allowed,
            "reason": received.reason,
            "policy": received.policy,
            "rule": received.rule,
            "place": received.place,
            "mode": received.mtls,
            "modePlace": received.mtls_place,
            "audited": list(received.audited),
        }
    return found
