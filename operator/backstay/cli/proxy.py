"""`backstay proxy ...`: proxies and the configs they serve, from the operator or from one proxy's own disk."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from backstay.cli.client import segment
from backstay.cli.completion import complete_names
from backstay.cli.exits import Exit, Failed
from backstay.cli.output import digest, emit, table
from backstay.cli.session import Session, output_option, pass_session
from backstay.cli.shown import COLUMNS, as_list, listed, matches

if TYPE_CHECKING:
    from backstay.sidecar.store import DiskState

_disk_option = click.option(
    "--state-dir",
    "disk",
    type=click.Path(path_type=Path, file_okay=False),
    help="Read this proxy's own state folder; needs no operator.",
)


@click.group
def proxy() -> None:
    """Proxies and the configs they serve."""


@proxy.command
@click.argument("name", default="", shell_complete=complete_names)
@_disk_option
@output_option()
@pass_session
def status(session: Session, name: str, disk: Path | None, output: str) -> None:
    """Whether proxies serve what they should: synced, splitting, stale, refused, away."""
    if disk is not None:
        found = read_disk(disk)
        emit(output, found, lambda _: _disk_text(found))
        return
    items = [item for item in listed(session, "proxies") if not name or _is_meant(item, name)]
    if name and not items:
        raise Failed(f"no proxy or workload {name!r}", hint="`backstay proxy status` lists them", code=Exit.NO)
    emit(output, as_list("proxies", items), lambda wide: table(COLUMNS["proxies"], items, wide=wide))


def _is_meant(item: dict[str, Any], name: str) -> bool:
    workload = str(item["spec"]["workload"])
    return matches("proxies", item, name) or name in (workload, workload.partition("/")[2])


@proxy.command
@click.argument("workload", default="", shell_complete=complete_names)
@click.option("--which", type=click.Choice(("stable", "candidate")), default="stable", show_default=True)
@click.option("--part", default="", metavar="KEY", help="Only parts whose key starts with this, `routes/sa-logic`.")
@_disk_option
@output_option()
@pass_session
def config(session: Session, workload: str, which: str, part: str, disk: Path | None, output: str) -> None:
    """The config of a workload (`shop/sa-logic`) or of one of its proxies, each part with the lines it came from."""
    found = disk_config(disk, which) if disk is not None else _live_config(session, workload, which)
    parts = [item for item in found["parts"] if item["key"].startswith(part)]
    if part and not parts:
        raise Failed(f"no part {part!r} in the {which} config of {found['workload']}", code=Exit.NO)
    data = {**found, "parts": parts}
    emit(output, data, lambda wide: _config_text(data, wide))


def _live_config(session: Session, name: str, which: str) -> dict[str, Any]:
    if not name:
        raise click.UsageError("name a workload or a proxy, or a proxy's folder with --state-dir")
    namespace, _, workload = _workload_of(session, name).partition("/")
    return session.client().get(f"/v1/config/{segment(namespace)}/{segment(workload)}", which=which)


def _workload_of(session: Session, name: str) -> str:
    """The workload that is meant, by its own name or by one of its proxies'."""
    workloads = {f"{item['metadata']['namespace']}/{item['metadata']['name']}" for item in listed(session, "workloads")}
    found = sorted(key for key in workloads if name in (key, key.partition("/")[2]))
    if len(found) > 1:
        raise Failed(f"{name!r} may be any of {', '.join(found)}", hint="say the namespace too")
    if found:
        return found[0]
    for item in listed(session, "proxies"):
        if item["metadata"]["name"] == name:
            return str(item["spec"]["workload"])
    raise Failed(f"no workload or proxy {name!r}", hint="`backstay get workloads` lists them", code=Exit.NO)


def _config_text(found: dict[str, Any], wide: bool) -> str:
    lines = [f"{found['workload']}  {found['which']}  {digest(found['digest'])}"]
    for part in found["parts"]:
        lines.append(f"  {part['key']}  {digest(part['digest'])}  {', '.join(part.get('origins', ()))}".rstrip())
        if wide:
            content = msgspec.json.format(msgspec.json.encode(part["content"]), indent=2).decode()
            lines += [f"      {line}" for line in content.splitlines()]
    return "\n".join(lines)


# --- from one proxy's disk --------------------------------------------------------------------------------------------


def read_disk(folder: Path) -> dict[str, Any]:
    """What a proxy would serve if it started now. Raises Failed when the folder is none of a proxy's."""
    state = _disk_state(folder)
    saved, lease = state.saved, state.lease
    return {
        "apiVersion": "backstay.dev/v1alpha1",
        "kind": "ProxyDiskState",
        "workload": state.stable.manifest.workload if state.stable else "",
        "epoch": saved.epoch,
        "stable": saved.stable,
        "stableComplete": state.stable is not None,
        "candidate": saved.candidate,
        "candidateComplete": state.candidate is not None,
        "share": round(saved.share * 100, 2) if saved.candidate else 0.0,
        "leased": lease is not None,
        "wentBack": saved.went_back,
        "wentBackFrom": saved.went_back_from,
        "endpoints": {name: len(found) for name, found in sorted(state.live.endpoints.items())},
        "trustDomains": sorted(state.live.trust),
        "revoked": list(state.live.revoked),
        "damagedObjects": state.damaged,
    }


def _disk_state(folder: Path) -> "DiskState":
    from backstay.sidecar.store import read_state  # late: only when a disk is read

    try:
        return read_state(folder)
    except (OSError, ValueError, msgspec.MsgspecError) as error:
        hint = "a proxy's folder is the one its sidecar was started with (--state)"
        raise Failed(f"cannot read a proxy's state: {error}", hint=hint) from error


def _disk_text(found: dict[str, Any]) -> str:
    candidate = f"{digest(found['candidate'])}  {found['share']:g} %" if found["candidate"] else "-"
    lines = [
        f"workload   {found['workload'] or '-'}",
        f"stable     {digest(found['stable']) or '-'}{'' if found['stableComplete'] else '  (incomplete)'}",
        f"candidate  {candidate}",
        f"endpoints  {sum(found['endpoints'].values())}, services: {len(found['endpoints'])}",
        f"epoch      {found['epoch']}",
    ]
    if found["wentBack"]:
        lines.append(f"went back  from {digest(found['wentBackFrom'])}: {found['wentBack']}")
    if found["damagedObjects"]:
        lines.append(f"damaged    {found['damagedObjects']} objects; they are asked for again at the next start")
    return "\n".join(lines)


def disk_config(folder: Path, which: str) -> dict[str, Any]:
    """A config as it lies on a proxy's disk, in the form the operator gives it. Raises Failed."""
    state = _disk_state(folder)
    chosen = state.stable if which == "stable" else state.candidate
    if chosen is None:
        raise Failed(f"{folder}: there is no whole {which} config here", code=Exit.NO)
    parts = [
        {"key": key, "digest": chosen.manifest.parts[key], "content": msgspec.to_builtins(part)}
        for key, part in sorted(chosen.parts.items())
    ]
    return {"workload": chosen.manifest.workload, "which": which, "digest": chosen.digest, "parts": parts}
