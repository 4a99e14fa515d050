"""`backstay auth can-i`: whether one workload may ask something of another, and which rule says so."""

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from backstay.cli.exits import Exit, Failed
from backstay.cli.output import emit
from backstay.cli.route import parse_headers, read_claims, token_options
from backstay.cli.session import Session, output_option, pass_session
from backstay.cli.worlds import Where, load, where_options, workload_named
from backstay.core.evaluate import ANONYMOUS, Received, Request, World
from backstay.core.registry import Workload
from backstay.core.review import words


@click.group
def auth() -> None:
    """Who may ask what of whom."""


@auth.command("can-i")
@click.argument("method")
@click.argument("path")
@click.option("--from", "caller", metavar="WORKLOAD", required=True, help="A workload, a SPIFFE ID, or `plaintext`.")
@click.option("--to", "server", metavar="WORKLOAD", required=True)
@click.option("--port", type=int, default=0, help="The application's own port, where it has several.")
@click.option("-H", "--header", "headers", multiple=True, metavar="NAME: VALUE", help="May be given several times.")
@token_options
@where_options
@output_option()
@pass_session
def can_i(
    session: Session,
    method: str,
    path: str,
    caller: str,
    server: str,
    port: int,
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
    """Say whether a caller may ask PATH of a workload's proxy. Exit code 0: yes, 1: no."""
    where = Where(folder=folder, at=at, live=live, workloads=workloads, registry=registry, namespace=namespace)
    world, names_in = load(session, where)
    target = workload_named(server, world.registry, names_in)
    source = identity_of(caller, world, names_in)
    try:
        request = Request(method=method.upper(), path=path, headers=tuple(parse_headers(headers)))
    except ValueError as error:
        raise Failed(str(error)) from error
    request = replace(request, claims=read_claims(claims), address=address)
    ports = ports_of(target, port)
    received = [world.receives(target.key, number, source, request) for number in ports]
    data = {"kind": "AccessTest", "answers": [answer_object(item) for item in received]}
    emit(output, data, lambda _: "\n".join(line for item in received for line in answer_lines(request, item)))
    sys.exit(Exit.OK if all(item.allowed for item in received) else Exit.NO)


def identity_of(caller: str, world: World, namespace: str) -> str:
    """The SPIFFE ID that stands for a caller. Raises Failed."""
    if caller == "plaintext":
        return ANONYMOUS
    if caller.startswith("spiffe://"):
        return caller
    return workload_named(caller, world.registry, namespace).identity(world.snapshot.mesh.trust_domain)


def ports_of(target: Workload, wanted: int) -> tuple[int, ...]:
    known = tuple(port for port, _ in target.ports)
    if wanted and known and wanted not in known:
        raise Failed(f"{target.key} has no port {wanted}", hint=f"its ports: {', '.join(map(str, known))}")
    if wanted or known:
        return (wanted,) if wanted else known
    raise Failed(f"{target.key} serves no port that the registry knows", hint="name one with --port")


def answer_lines(request: Request, item: Received) -> Iterator[str]:
    word = click.style("yes", fg="green", bold=True) if item.allowed else click.style("no", fg="red", bold=True)
    who = item.source or "plaintext"
    yield f"{word}: {who} {'may' if item.allowed else 'may not'} {request.method} {request.path} of {item.workload}:{item.port}"
    yield f"  {words.decided_by(item)}  {click.style(item.place, dim=True)}".rstrip()
    if item.mtls_place:
        yield f"  mTLS {item.mtls.upper()}  {click.style(item.mtls_place, dim=True)}"
    yield from (f"  audited by {name}" for name in item.audited)


def answer_object(item: Received) -> dict[str, Any]:
    return {
        "workload": item.workload,
        "port": item.port,
        "source": item.source,
        "allowed": item.allowed,
        "reason": item.reason,
        "policy": item.policy,
        "rule": item.rule,
        "place": item.place,
        "mtls": item.mtls,
        "mtlsPlace": item.mtls_place,
        "audited": list(item.audited),
    }
