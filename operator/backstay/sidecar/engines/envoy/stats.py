"""Envoy's statistics as rows of a report. Pure: text in, increments out.

Rule: everything of a row comes from one histogram (accesslog.py), so that it cannot contradict itself. What Envoy shows are
sums since its start; `Sums` keeps what was seen of them, and forgets it when Envoy starts anew.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import msgspec

from backstay.config.model import LATENCY_BOUNDS_MS
from backstay.config.wire import PeerRow, Row, add_rows
from backstay.sidecar.engines.envoy import accesslog, strict, tokens
from backstay.sidecar.engines.envoy.names import OUTSIDE, Slots, split_route_name

BUCKETS: Final = len(LATENCY_BOUNDS_MS) + 1
QUERY: Final = "/stats/prometheus?usedonly&filter=%5Ebackstay%5C.rq"
ACTIVE: Final = "/stats?filter=%5Ehttp%5C..*%5C.downstream_rq_active%24"
FLUSHED_SECONDS: Final = 0.3
"""After the last request: Envoy adds up its histograms four times a second (bootstrap.py)."""
SERVER_ERROR: Final = 500
GRPC_FAILURES: Final = frozenset(("2", "4", "12", "13", "14", "15"))
"""UNKNOWN, DEADLINE_EXCEEDED, UNIMPLEMENTED, INTERNAL, UNAVAILABLE, DATA_LOSS: what HTTP says with 5xx."""
_FLAGS: Final = {
    "UH": "no-healthy-upstream",
    "NC": "no-healthy-upstream",
    "UO": "overflow",
    "UF": "connect-failure",
    "UT": "timeout",
    "SI": "timeout",
    "UMSDR": "timeout",
    "UC": "reset",
    "UR": "reset",
    "LR": "reset",
    "UPE": "reset",
}
"""Envoy's response flags by what we call them."""
_REASONS: Final = {"no-route": "no-route", "unknown-host": "no-route", "no-backend": "no-healthy-upstream"}
_REFUSALS: Final = frozenset(("no-route", "denied", "bad-token", "rate-limited", "fault"))
"""The mesh says no by its rules: evidence only if stable would have said yes."""
_NO_REQUEST: Final = f"{strict.DETAILS}{strict.PREFIX}"
_SAMPLE: Final = re.compile(r"envoy_backstay_rq_(bucket|count)\{(.*)\} (\S+)$")
_LABEL: Final = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


class Kind(NamedTuple):
    """One kind of request, as the labels say."""

    direction: str
    route: str
    cluster: str
    code: str
    flags: str
    what: str
    attempts: str
    grpc: str
    expected: str = ""
    """Which refusal that was announced this request would be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Excuses:
    """Refusals that are no evidence, because stable refuses the same."""

    everything: bool = True
    """There is no candidate."""
    denials: bool = True
    routes: frozenset[str] = frozenset()
    """Keys of route parts that stable has as well."""
    unknown_hosts: bool = True
    tokens: bool = True
    """Stable judges tokens alike."""

    def covers(self, reason: str, route: str) -> bool:
        if self.everything:
            return True
        if reason == "denied":
            return self.denials
        if reason == "bad-token":
            return self.tokens
        key = route.partition("#")[0]
        return key in self.routes if key else self.unknown_hosts


def parse(text: str) -> dict[Kind, list[int]]:
    """Requests per bucket (not cumulative), by kind."""
    cumulative: dict[Kind, list[int]] = {}
    for line in text.splitlines():
        found = _SAMPLE.match(line)
        if found is not None and found[1] == "bucket":
            labels = {name: _unescaped(value) for name, value in _LABEL.findall(found[2])}
            cumulative.setdefault(_kind(labels), []).append(int(float(found[3])))
    return {kind: _apart(counts) for kind, counts in cumulative.items() if len(counts) == BUCKETS}


def _kind(labels: Mapping[str, str]) -> Kind:
    return Kind(*(labels.get(name, "") for name in accesslog.TAGS))


def _unescaped(value: str) -> str:
    return value.replace(r"\"", '"').replace(r"\n", "\n").replace("\\\\", "\\") if "\\" in value else value


def _apart(cumulative: list[int]) -> list[int]:
    return [count - before for count, before in zip(cumulative, (0, *cumulative), strict=False)]


@dataclass(slots=True)
class Sums:
    """What was seen of Envoy's sums."""

    _requests: dict[Kind, list[int]] = field(default_factory=dict)
    _peers: dict[tuple[str, str], tuple[int, int]] = field(default_factory=dict)

    def forget(self) -> None:
        """Envoy has started anew, and its sums with it."""
        self._requests.clear()
        self._peers.clear()

    def grown(self, now: Mapping[Kind, list[int]]) -> dict[Kind, list[int]]:
        """What was added since the last call."""
        added: dict[Kind, list[int]] = {}
        for kind, counts in now.items():
            before = self._requests.get(kind)
            more = counts if before is None else [after - known for after, known in zip(counts, before, strict=True)]
            if any(more):
                added[kind] = more
        self._requests = dict(now)
        return added

    def connected(self, now: Mapping[tuple[str, str], tuple[int, int]]) -> dict[str, tuple[int, int]]:
        """(attempts, failures) since the last call, by address; `now` is by cluster and address."""
        added: dict[str, tuple[int, int]] = {}
        for key, (attempts, failures) in now.items():
            known = self._peers.get(key, (0, 0))
            if attempts < known[0]:
                known = (0, 0)  # an endpoint that was gone meanwhile
            before = added.get(key[1], (0, 0))
            added[key[1]] = (before[0] + attempts - known[0], before[1] + failures - known[1])
        self._peers = dict(now)
        return {address: counts for address, counts in added.items() if any(counts)}


# --- rows ----------------------------------------------------------------------------------------------------------


def rows(added: Mapping[Kind, list[int]], slots: Slots, excuses: Excuses) -> list[Row]:
    """Increments as rows; what has no route (a tunnel, which is counted where it ends) is none of ours."""
    made: dict[tuple[str, str, str, str], Row] = {}
    for kind, latency in added.items():
        slot, route, refused = split_route_name(kind.route)
        digest = slots.digest_of(slot) if route else ""
        if not digest:
            continue
        row = _row(kind, digest, route, latency, _reason(kind, refused), excuses)
        key = (row.config, row.direction, row.route, row.backend)
        made[key] = add_rows(made[key], row) if key in made else row
    return list(made.values())


def _row(kind: Kind, digest: str, route: str, latency: list[int], reason: str, excuses: Excuses) -> Row:
    total = sum(latency)
    is_excused = reason in _REFUSALS and (kind.expected not in ("", "-") or excuses.covers(reason, route))
    return Row(
        config=digest,
        direction="in" if kind.direction == "in" else "out",
        route=route,
        backend=kind.cluster if kind.direction == "out" and kind.cluster not in ("", "-", OUTSIDE) else "",
        total=total,
        bad={reason: total} if reason and not is_excused else {},
        excused=total if is_excused else 0,
        attempts=total * int(kind.attempts) if kind.attempts.isdecimal() else 0,
        latency=latency,
        over=[sum(latency[bound + 1 :]) for bound in range(len(latency) - 1)],
    )


def _reason(kind: Kind, refused: str) -> str:
    """Why a request is bad, in the words of `BAD_REASONS`; empty if it is not."""
    if refused:
        return _REASONS.get(refused, "no-route")
    if kind.what.startswith(_NO_REQUEST):
        return ""  # the client's own doing
    if kind.what.startswith(tokens.REFUSALS):
        return "bad-token"
    if kind.what.startswith("rbac_access_denied"):
        return "denied"
    flags = set(kind.flags.split(","))
    if "RL" in flags:
        return "rate-limited"
    if "FI" in flags:
        return "fault"
    if flags & {"DC", "DPE"}:
        return ""  # the client's own doing
    for flag in flags:
        if flag in _FLAGS:
            return _FLAGS[flag]
    is_server_error = kind.code.isdecimal() and int(kind.code) >= SERVER_ERROR
    return "5xx" if is_server_error or kind.grpc in GRPC_FAILURES else ""


# --- endpoints -----------------------------------------------------------------------------------------------------


class _Socket(msgspec.Struct):
    address: str = ""
    port_value: int = 0


class _Address(msgspec.Struct):
    socket_address: _Socket = msgspec.field(default_factory=_Socket)


class _Stat(msgspec.Struct):
    name: str = ""
    value: str = "0"


class _Host(msgspec.Struct):
    address: _Address = msgspec.field(default_factory=_Address)
    stats: list[_Stat] = []


class _Cluster(msgspec.Struct):
    name: str = ""
    host_statuses: list[_Host] = []


class _Clusters(msgspec.Struct):
    cluster_statuses: list[_Cluster] = []


def parse_clusters(text: str) -> dict[tuple[str, str], tuple[int, int]]:
    """(connections tried, failed) by (cluster, `address:port`). Raises msgspec.DecodeError."""
    found = msgspec.json.decode(text, type=_Clusters)
    return {
        (cluster.name, f"{host.address.socket_address.address}:{host.address.socket_address.port_value}"): _connections(
            host
        )
        for cluster in found.cluster_statuses
        if "/" in cluster.name  # backends; the application and the outside are no peers
        for host in cluster.host_statuses
    }


def _connections(host: _Host) -> tuple[int, int]:
    values = {stat.name: int(stat.value) for stat in host.stats if stat.name in ("cx_total", "cx_connect_fail")}
    return values.get("cx_total", 0), values.get("cx_connect_fail", 0)


def peer_rows(added: Mapping[str, tuple[int, int]], ids: Mapping[str, str], digest: str) -> list[PeerRow]:
    """`ids`: endpoint ids by `address:port`."""
    return [
        PeerRow(ids[address], digest, attempts, failures)
        for address, (attempts, failures) in sorted(added.items())
        if address in ids
    ]


# --- listeners -----------------------------------------------------------------------------------------------------


def parse_values(text: str) -> dict[str, str]:
    """Lines `name: value` of Envoy's plain statistics."""
    pairs: Iterable[tuple[str, str, str]] = (line.partition(": ") for line in text.splitlines())
    return {name: value.strip('"') for name, sep, value in pairs if sep}


def active(values: Mapping[str, str], prefix: str = "") -> int:
    """Requests under way on the ports whose name begins so; the admin interface's own (this one) is none of them."""
    return sum(
        int(count)
        for name, count in values.items()
        if name.startswith(f"http.{prefix}") and not name.startswith("http.admin.")
    )
