"""Where shown objects come from (the operator, or its state file when it is away), and their columns.

Pure except for the two functions that ask.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from backstay.cli.completion import KIND_PATHS, qualified
from backstay.cli.exits import Exit, Failed, OperatorAway
from backstay.cli.output import Column, Json, condition, digest, revision, share_of
from backstay.cli.session import Session
from backstay.core.suggest import NAMES, did_you_mean

API_VERSION: Final = "backstay.dev/v1alpha1"


def repository(session: Session) -> dict[str, Any]:
    """The MeshRepository, from the state file when nobody answers."""
    try:
        return session.client().get("/v1/meshrepository")
    except OperatorAway as away:
        from backstay.cli import offline  # late: SQLite and the core are needed only without an operator

        found = offline.read_objects(session.state_dir).repository
        session.say(f"{away.message}; answering from its state file")
        return found


def listed(session: Session, kind: str) -> list[dict[str, Any]]:
    """Objects of a kind; intents, revisions and rollouts are known without an operator too."""
    try:
        return session.client().items(KIND_PATHS[kind])
    except OperatorAway as away:
        if kind in ("workloads", "proxies"):
            raise
        from backstay.cli import offline  # late: as above

        found = offline.read_objects(session.state_dir)
        session.say(f"{away.message}; answering from its state file")
        known = {"intents": found.intents, "revisions": found.revisions, "rollouts": found.rollouts}
        return known[kind]


def as_list(kind: str, items: Sequence[Json]) -> Json:
    return {"apiVersion": API_VERSION, "kind": f"{OBJECT_KINDS[kind]}List", "metadata": {}, "items": list(items)}


OBJECT_KINDS: Final = {
    "intents": "MeshIntent",
    "workloads": "MeshWorkload",
    "proxies": "MeshProxy",
    "revisions": "MeshRevision",
    "rollouts": "MeshRollout",
}


def matches(kind: str, item: dict[str, Any], name: str) -> bool:
    """Whether a person who typed `name` may mean this object: its full name, the end of it, or the start of a sha."""
    full = qualified(kind, item)
    if kind == "revisions":
        return full.startswith(name.rpartition(":")[2])
    bare = str(item["metadata"]["name"])
    return name in (full, bare) or full.lower().endswith(f"/{name.lower()}")


def nothing_named(kind: str, items: Sequence[dict[str, Any]], name: str) -> Failed:
    """There is no such object; perhaps one whose name is near."""
    known = {known for item in items for known in (qualified(kind, item), str(item["metadata"]["name"]))}
    near = did_you_mean(name, known, NAMES)
    return Failed(f"no {name!r} among {kind}{near}", hint=f"`backstay get {kind}` lists them", code=Exit.NO)


def _place(item: Json) -> str:
    spec = item["spec"]
    return f"{spec['file']}:{spec['line']}" if "file" in spec else ""


def _status(item: Json, name: str) -> Any:
    return item["status"].get(name, "")


def _refusal(item: Json) -> str:
    """What keeps a proxy and its operator from agreeing."""
    return str(_status(item, "turnedAway") or _status(item, "lastNack"))


def _message(item: Json) -> str:
    """What is most worth knowing about an intent: the first condition that is not True."""
    found: Sequence[Mapping[str, Any]] = item["status"]["conditions"]
    off = next((one for one in found if one["status"] == "False"), None)
    return str(off["message"]) if off else ""


def _fraction(item: Json, part: str, whole: str) -> str:
    proxies = item["status"]["proxies"]
    return f"{proxies[part]}/{proxies[whole]}"


def _rolling(item: Json) -> Json:
    found: Json = item["status"].get("rollout", {})
    return found


def _candidate_rate(item: Json) -> str:
    cohorts = _rolling(item).get("cohorts")
    return share_of(cohorts["candidate"]["bad"], cohorts["candidate"]["requests"]) if cohorts else ""


COLUMNS: Final[dict[str, tuple[Column, ...]]] = {
    "intents": (
        Column(title="NAMESPACE", value=lambda item: item["metadata"]["namespace"]),
        Column(title="KIND", value=lambda item: item["spec"]["kind"]),
        Column(title="NAME", value=lambda item: item["spec"]["name"]),
        Column(title="STATE", value=lambda item: _status(item, "state")),
        Column(title="PROXIES", value=lambda item: _fraction(item, "updated", "total")),
        Column(title="PROVEN", value=lambda item: condition(item, "Proven").get("status", "")),
        Column(title="PLACE", value=_place),
        Column(title="MESSAGE", value=_message, wide=True),
    ),
    "workloads": (
        Column(title="NAMESPACE", value=lambda item: item["metadata"]["namespace"]),
        Column(title="NAME", value=lambda item: item["metadata"]["name"]),
        Column(title="READY", value=lambda item: condition(item, "Ready").get("status", "")),
        Column(title="CONNECTED", value=lambda item: _fraction(item, "connected", "total")),
        Column(title="CANDIDATE", value=lambda item: _fraction(item, "onCandidate", "total")),
        Column(title="VERDICT", value=lambda item: str(_rolling(item).get("verdict", ""))),
        Column(title="STABLE", value=lambda item: digest(_status(item, "stable"))),
        Column(title="BAD", value=_candidate_rate, wide=True),
        Column(title="IDENTITY", value=lambda item: item["spec"].get("identity", ""), wide=True),
    ),
    "proxies": (
        Column(title="NAME", value=lambda item: item["metadata"]["name"]),
        Column(title="WORKLOAD", value=lambda item: item["spec"]["workload"]),
        Column(title="SYNC", value=lambda item: _status(item, "sync")),
        Column(title="STABLE", value=lambda item: digest(_status(item, "stable"))),
        Column(title="CANDIDATE", value=lambda item: digest(_status(item, "candidate"))),
        Column(title="SHARE", value=lambda item: f"{_status(item, 'share'):g} %" if _status(item, "candidate") else ""),
        Column(title="ENGINE", value=lambda item: item["spec"].get("engine", "")),
        Column(title="ADDRESS", value=lambda item: item["spec"].get("address", ""), wide=True),
        Column(title="VERSION", value=lambda item: _status(item, "version"), wide=True),
        Column(title="CERTIFICATE-UNTIL", value=lambda item: _status(item, "certificateExpires"), wide=True),
        Column(title="LAST-REFUSAL", value=_refusal, wide=True),
    ),
    "revisions": (
        Column(title="COMMIT", value=lambda item: item["metadata"]["name"][:8]),
        Column(title="STATE", value=lambda item: _status(item, "state")),
        Column(title="AUTHOR", value=lambda item: item["spec"].get("author", "")),
        Column(title="SUBJECT", value=lambda item: item["spec"].get("subject", "")),
        Column(title="COMMITTED", value=lambda item: item["spec"].get("committedAt", ""), wide=True),
        Column(title="SENTENCE", value=lambda item: _status(item, "sentence"), wide=True),
    ),
    "rollouts": (
        Column(title="ID", value=lambda item: _status(item, "id")),
        Column(title="PHASE", value=lambda item: _status(item, "phase")),
        Column(title="WAVE", value=lambda item: f"{_status(item, 'wave')}/{_status(item, 'waves')}"),
        Column(title="VERDICT", value=lambda item: _status(item, "verdict")),
        Column(title="REVISION", value=lambda item: revision(item["spec"]["cause"]["revision"])),
        Column(title="CAUSE", value=lambda item: item["spec"]["cause"]["kind"]),
        Column(title="HARMED", value=lambda item: str(_status(item, "harmed"))),
        Column(title="STARTED", value=lambda item: _status(item, "startedAt")),
        Column(title="SENTENCE", value=lambda item: _status(item, "sentence"), wide=True),
    ),
}
"""Kind -> its columns, most wanted first."""
