"""The commits that `bench-safety` pushes, as data: what goes wrong in meshes, and what only looks like it.

The mesh they are pushed to: client -> web (8 proxies) -> api (8 instances of v1; v2 healthy; v3, flaky, slow and hang
are what their names say), client-solo -> solo (one instance) -> lone (one instance), and `probe`, which asks api directly.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

import yaml

from support.live import (
    LiveMesh,
    backend,
    caller,
    client,
    document,
    mesh_document,
    route,
    subsets,
    workloads_file,
)

Files: TypeAlias = dict[str, str | None]
Deed: TypeAlias = Callable[[LiveMesh], None]
REPLICAS: Final = 8
RATE: Final = 120
"""Requests a second of the main client: with three hops each, what two cores carry beside 27 sidecars and as many services,
also while some of it has to be made up for."""
SOLO_RATE: Final = 30
PROBE_RATE: Final = 4
MOST_OPEN: Final = 600
"""Requests of a client that may hang at once: five seconds of all of them, the mesh's timeout."""
SLOW_MS: Final = 250.0
"""A good answer that takes longer is harmed. Ten times the stable p99 of an idle machine (25 ms) and over it on a busy one;
the latency cases add 400 ms and more."""
TIMES: Final[Mapping[str, Any]] = {
    "shares": [5, 40, 100],
    "soak": "2s",
    "deadline": "20s",
    "confirmWithin": "20s",
    "bakeTime": "2s",
}
"""Times of the benchmark, and one wave fewer than the default; the statistics are the product's."""
DEFAULTS: Final[Mapping[str, Any]] = {"timeout": "5s"}
"""A hanging request ends, and is counted, after five seconds instead of fifteen."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    name: str
    kind: str
    """Which of the required classes it belongs to: `broken`, `partial`, `latency`, `refusal`, `receiver`, `single`, `hang`,
    `exit`; `good` or `good-no-change` for commits that must go live."""
    files: Files
    catastrophe: bool = False
    """Most of what the candidate serves fails."""
    before: Deed | None = None
    """Done to the world before the push; `after` undoes it."""
    meanwhile: Deed | None = None
    """Called every tenth of a second while the rollout runs."""
    after: Deed | None = None
    client: str = "client"
    """Whose requests count."""
    seconds: float = field(default=5.0)
    """How long apply-everywhere is measured."""


# --- the mesh ---------------------------------------------------------------------------------------------------------


def workloads() -> str:
    made = [
        backend("api-v1", "api", replicas=REPLICAS),
        backend("api-v2", "api", version="v2", replicas=2),
        backend("api-v3", "api", version="v3", behaviour={"fail": 40}),
        backend("api-flaky", "api", version="flaky", behaviour={"fail": 5}),
        backend("api-slow", "api", version="slow", behaviour={"delay_ms": 400}),
        backend("api-hang", "api", version="hang", behaviour={"hang": 100}),
        caller("web", "api", replicas=REPLICAS),
        backend("lone", "lone"),
        caller("solo", "lone", replicas=1),
        _counting(client("client", "web", rate=RATE, most_open=MOST_OPEN)),
        _counting(client("client-solo", "solo", rate=SOLO_RATE, most_open=MOST_OPEN)),
        _counting(client("probe", "api", rate=PROBE_RATE)),
    ]
    return workloads_file(["web", "api", "lone", "solo"], made)


def _counting(entry: dict[str, Any]) -> dict[str, Any]:
    entry["env"]["SLOW_MS"] = SLOW_MS
    return entry


def base() -> dict[str, str]:
    return {
        "mesh.yaml": mesh_document(TIMES, defaults=DEFAULTS),
        "shop/api-backend.yaml": subsets("api", "v1", "v2", "v3", "flaky", "slow", "hang"),
        "shop/api.yaml": route("api", {"v1": 100}),
        "shop/web.yaml": route("web"),
        "shop/lone.yaml": route("lone"),
    }


def everywhere(files: Files) -> Files:
    """The same commit for all proxies at once, and left there whatever the verdict: what a push without a rollout does."""
    return {name: text if text is None else _at_once(text) for name, text in files.items()}


def _at_once(text: str) -> str:
    found = [item for item in yaml.safe_load_all(text) if item]
    for item in found:
        if item["kind"] != "Mesh":
            own = item["spec"].get("rollout", {})
            item["spec"]["rollout"] = {**own, "strategy": "Immediate", "onFail": "pause"}
            item["spec"]["rollout"].pop("onNoTraffic", None)
    return yaml.safe_dump_all(found, sort_keys=False, explicit_start=True)


# --- documents in one line --------------------------------------------------------------------------------------------


def api(weights: Mapping[str, int] | None = None, **rule: Any) -> Files:
    return {"shop/api.yaml": route("api", weights or {"v1": 100}, rule=rule)}


def lone(**rule: Any) -> Files:
    return {"shop/lone.yaml": route("lone", rule=rule)}


def authorize(target: str, action: str, *rules: Mapping[str, Any], **more: Any) -> Files:
    """A policy of the workloads behind a service."""
    names = [f"api-{version}" for version in ("v1", "v2")] if target == "api" else [target]
    spec = {"selector": {"workloads": names}, "action": action, "rules": list(rules), **more}
    return {"shop/policy.yaml": document("Authorization", "policy", spec)}


def from_(*accounts: str, **to: Any) -> dict[str, Any]:
    rule: dict[str, Any] = {"from": [{"serviceAccounts": list(accounts)}]} if accounts else {}
    return {**rule, **({"to": [to]} if to else {})}


def mtls(target: str, mode: str) -> Files:
    spec = {"selector": {"workloads": [target]}, "mtls": {"mode": mode}}
    return {"shop/mtls.yaml": document("Authentication", "mtls", spec)}


def abort(status: int, percentage: float) -> dict[str, Any]:
    return {"fault": {"abort": {"status": status, "percentage": percentage}}}


def delay(duration: str, percentage: float) -> dict[str, Any]:
    return {"fault": {"delay": {"duration": duration, "percentage": percentage}}}


def header(value: str) -> dict[str, Any]:
    return {"headers": [{"name": "x-canary", "value": value}]}


def prefix(value: str) -> dict[str, Any]:
    return {"path": {"type": "PathPrefix", "value": value}}


# --- what is done to the world ----------------------------------------------------------------------------------------


def _behave(**behaviour: float) -> Deed:
    def do(mesh: LiveMesh) -> None:
        for number in range(REPLICAS):
            mesh.behave(f"api-v1-{number}", **behaviour)

    return do


class Outage:
    """Every api of v1 fails half of its requests for a while in the middle of the rollout: nobody's fault but its own."""

    def __init__(self, after: float, seconds: float) -> None:
        self._after, self._seconds = after, seconds
        self._looks = 0

    def __call__(self, mesh: LiveMesh) -> None:
        self._looks += 1
        if self._looks == int(self._after * 10):
            _behave(fail=50)(mesh)
        elif self._looks == int((self._after + self._seconds) * 10):
            _behave()(mesh)


class Exits:
    """The policy makes sidecars exit: whoever has taken the candidate is killed, again and again."""

    def __init__(self) -> None:
        self._killed: dict[str, int] = {}

    def __call__(self, mesh: LiveMesh) -> None:
        for item in mesh.proxies():
            name = item["metadata"]["name"]
            status = item["status"]
            if not (name.startswith("web-") and status.get("connected") and status.get("candidate")):
                continue
            try:
                pid = mesh.pid(name)
                if self._killed.get(name) != pid:
                    self._killed[name] = mesh.kill(name)
            except (OSError, ValueError):  # between two lives
                continue


# --- the zoo ----------------------------------------------------------------------------------------------------------


def bad() -> list[Case]:
    return [
        Case(name="dead-subset", kind="broken", catastrophe=True, files={
            "shop/api-backend.yaml": subsets("api", "v1", "v2", "v3", "flaky", "slow", "hang").replace("version: v1", "version: v11")}),
        Case(name="buggy-version", kind="broken", files=api({"v3": 100})),
        Case(name="fault-left-in", kind="broken", files=api(**abort(503, 100.0)), catastrophe=True),
        # Most answers of api take less than a millisecond, so this breaks two requests of five: bad, but not most of them.
        Case(name="tiny-timeout", kind="broken", files=api(timeouts={"request": "1ms"})),
        Case(name="header-typo", kind="broken", files=api(matches=[header("alwyas")]), catastrophe=True),
        Case(name="retry-storm", kind="broken", files=api(
            timeouts={"request": "1s", "backendRequest": "2ms"},
            retry={"attempts": 10, "retryOn": ["5xx", "reset", "gateway-error"], "budgetPercent": 100, "backoff": "1ms"})),
        Case(name="flaky-version-5-percent", kind="partial", files=api({"flaky": 100})),
        Case(name="abort-4-percent", kind="partial", files=api(**abort(500, 4.0))),
        Case(name="abort-7-percent", kind="partial", files=api(**abort(503, 7.0))),
        Case(name="tenth-to-buggy-version", kind="partial", files=api({"v1": 90, "v3": 10})),
        Case(name="tenth-to-flaky-and-buggy", kind="partial", files=api({"v1": 84, "flaky": 8, "v3": 8})),
        Case(name="delay-for-all", kind="latency", files=api(**delay("500ms", 100.0))),
        Case(name="delay-for-a-quarter", kind="latency", files=api(**delay("600ms", 25.0))),
        Case(name="slow-version", kind="latency", files=api({"slow": 100})),
        Case(name="deny-all", kind="refusal", files=authorize("api", "Allow"), catastrophe=True),
        Case(name="wrong-identity", kind="refusal", files=authorize("api", "Allow", from_("webb", "probe")), catastrophe=True),
        Case(name="deny-a-method", kind="refusal", files=authorize("api", "Deny", from_("web", methods=["GET"])), catastrophe=True),
        Case(name="wrong-path-allowed", kind="receiver", files=authorize("api", "Allow", from_("web", paths=["/api/*"])), catastrophe=True),
        Case(name="mtls-mode-clash", kind="receiver", files=mtls("api-v1", "DISABLE"), catastrophe=True),
        Case(name="web-lets-nobody-in", kind="receiver", files=authorize("web", "Allow", from_("clients")), catastrophe=True),
        Case(name="hanging-version", kind="hang", files=api({"v1": 50, "hang": 50})),
        Case(name="sidecar-exits", kind="exit", files=api(timeouts={"request": "4900ms"}), meanwhile=Exits()),
        Case(name="single-instance-fault", kind="single", files=lone(**abort(500, 50.0)), client="client-solo"),
        Case(name="single-instance-deny-all", kind="single", files=authorize("lone", "Allow"), client="client-solo",
             catastrophe=True),
    ]  # fmt: skip


def good() -> list[Case]:
    text = base()["shop/api.yaml"]
    return [
        Case(name="shorter-timeout", kind="good", files=api(timeouts={"request": "4s"})),
        Case(name="tenth-to-v2", kind="good", files=api({"v1": 90, "v2": 10})),
        Case(name="half-to-v2", kind="good", files=api({"v1": 50, "v2": 50})),
        Case(name="meant-tightening", kind="good", files=authorize("api", "Allow", from_("web"), rollout={
            "onNoTraffic": "proceed",
            "expectRefused": [{"source": "spiffe://backstay.local/ns/shop/sa/probe", "host": "api.shop"}]})),
        Case(name="strict-mtls", kind="good", files=mtls("api-v1", "STRICT")),
        Case(name="allow-the-caller", kind="good", files=authorize("api", "Allow", from_("web", "probe"))),
        Case(name="audit-policy", kind="good", files=authorize("api", "Audit", from_("web"))),
        Case(name="more-retries", kind="good", files=api(retry={"attempts": 3})),
        Case(name="no-retries", kind="good", files=api(retry={"attempts": 0})),
        Case(name="round-robin", kind="good", files={"shop/api-backend.yaml": subsets(
            "api", "v1", "v2", "v3", "flaky", "slow", "hang").replace("subsets:", "loadBalancing: {policy: RoundRobin}\n  subsets:")}),
        Case(name="canary-header", kind="good", files={"shop/api.yaml": _two_rules(header("always"), "v2")}),
        Case(name="path-split", kind="good", files={"shop/api.yaml": _two_rules(prefix("/v2"), "v2")}),
        Case(name="refactoring-rule-name", kind="good", files={"shop/api.yaml": text.replace("name: main", "name: everything")}),
        Case(name="mesh-timeout", kind="good", files={"mesh.yaml": mesh_document(TIMES, defaults={"timeout": "6s"})}),
        Case(name="mesh-access-log", kind="good", files={
            "mesh.yaml": mesh_document(TIMES, defaults=DEFAULTS, accessLog={"mode": "failures"})}),
        Case(name="single-instance-timeout", kind="good", files=lone(timeouts={"request": "3s"}), client="client-solo"),
        Case(name="refactoring-moved-file", kind="good-no-change", files={"shop/api.yaml": None, "shop/routes/api.yaml": text}),
        Case(name="comment-only", kind="good-no-change", files={"shop/api.yaml": "# Where requests to api go.\n" + text}),
        # These shake the mesh for minutes, so they come last.
        Case(name="busy-hour", kind="good", files=api(timeouts={"request": "4200ms"}), before=_behave(fail=5), after=_behave()),
        Case(name="common-outage", kind="good", files=api(timeouts={"request": "4300ms"}), meanwhile=Outage(4.0, 3.0),
             after=_behave()),
    ]  # fmt: skip


def _two_rules(match: Mapping[str, Any], subset: str) -> str:
    def refs(name: str) -> list[dict[str, Any]]:
        return [{"name": "api", "port": 80, "subset": name}]

    rules = [
        {"name": "some", "matches": [match], "backendRefs": refs(subset)},
        {"name": "main", "backendRefs": refs("v1")},
    ]
    return document("Route", "api", {"hosts": ["api"], "rules": rules})
