"""Recorded requests put through two revisions: how many would change, be denied, be admitted, with examples and lines.

Equal requests are decided once. What is known of a request is what logs hold: method, host, path with query, and who sent
it; headers are not in logs, so a rule that asks for one is decided as if it were not there, and the result says so.
"""

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal, NamedTuple, TypeAlias

from backstay.config.authorize import NOTHING_AROUND, namespace_of, reads_requests
from backstay.config.match import host_of
from backstay.core.evaluate import (
    ANONYMOUS,
    Asked,
    Reach,
    Request,
    Sent,
    World,
    around,
    asked,
    forwarded_as,
    refused_by_mode,
)
from backstay.core.review import words
from backstay.core.review.routes import effect

Fate: TypeAlias = Literal["changed", "denied", "admitted"]
MOST_REMEMBERED: Final = 1_000_000
"""Different requests that are counted before they are decided; about 200 MB. A longer log is decided in several goes."""
_EXAMPLES: Final = 3


class Logged(NamedTuple):
    """One request of a log."""

    method: str
    authority: str
    target: str
    """Path and query."""
    source: str
    """SPIFFE ID, a workload's key, or an address (a caller without a certificate)."""
    entry: str = ""
    """`<workload>:<port>` where such a caller's request came in; empty: where its host leads."""


def question_of(logged: Logged) -> Asked | None:
    """What proxies are asked; None for what none of them would take."""
    path, _, query = logged.target.partition("?")
    request = Request(
        method=logged.method, authority=logged.authority, path=path or "/", query=query, address=_address(logged.source)
    )
    return asked(request)


def _address(source: str) -> str:
    """Of a caller without a certificate, without the port that some logs have."""
    if "/" in source:
        return ""
    host, _, port = source.rpartition(":")
    return host.strip("[]") if port.isdigit() and (":" not in host or host.startswith("[")) else source


@dataclass(slots=True, kw_only=True)
class Group:
    """Requests that one line before and one line after decide, with the same change."""

    fate: Fate
    before: str
    after: str
    before_place: str
    after_place: str
    count: int = 0
    examples: list[str] = field(default_factory=list)


@dataclass(slots=True, kw_only=True)
class Result:
    total: int = 0
    distinct: int = 0
    unknown: int = 0
    """From callers that the registry does not know, or that no proxy would take at all."""
    asks_headers: int = 0
    """Requests to hosts or workloads whose rules ask for headers that logs do not hold."""
    groups: dict[Hashable, Group] = field(default_factory=dict)

    def count(self, fate: Fate) -> int:
        return sum(group.count for group in self.groups.values() if group.fate == fate)

    def ordered(self) -> list[Group]:
        """Denied first, then admitted, then otherwise changed; the most frequent first."""
        order = {"denied": 0, "admitted": 1, "changed": 2}
        return sorted(self.groups.values(), key=lambda group: (order[group.fate], -group.count))


class _Outcome(NamedTuple):
    effect: Hashable
    """What is compared."""
    answered: bool
    sent: Sent | None
    refused: str
    """Workload that refuses, for the words."""
    protocol: str = ""
    """What a gateway's port speaks where the request came in."""


class _Entry(NamedTuple):
    """Where a caller without a proxy came in."""

    workload: str
    port: int
    is_gateway: bool
    """Before or after."""


class Replay:
    """Takes logged requests in any portions."""

    def __init__(self, before: World, after: World) -> None:
        self._sides = (_Side(before), _Side(after))
        self._counts: dict[Logged, int] = {}
        self._entries: dict[str, _Entry] = {}
        self.result = Result()

    def feed(self, requests: Iterable[Logged]) -> None:
        counts = self._counts
        for request in requests:
            counts[request] = counts.get(request, 0) + 1
        if len(counts) > MOST_REMEMBERED:
            self.finish()

    def take(self, request: Logged, count: int) -> None:
        """One that stands for several."""
        self._counts[request] = self._counts.get(request, 0) + count

    def finish(self) -> Result:
        """Decide what was fed since the last time."""
        for request, count in self._counts.items():
            self._decide(request, count)
        self.result.distinct += len(self._counts)
        self._counts = {}
        return self.result

    def _decide(self, logged: Logged, count: int) -> None:
        result = self.result
        result.total += count
        question = question_of(logged)
        if question is None:
            result.unknown += count
            return
        entry = self._entry(logged.entry) if logged.entry else None
        old, new = (side.outcome(logged, question, entry) for side in self._sides)
        if old is None or new is None:
            result.unknown += count
            return
        if self._sides[1].asks_headers(question.authority, logged, entry):
            result.asks_headers += count
        new = _spoken(old, new)
        if old.effect != new.effect:
            self._note(logged, count, question, old, new)

    def _entry(self, text: str) -> _Entry:
        found = self._entries.get(text)
        if found is None:
            workload, _, port = text.rpartition(":")
            is_gateway = any(side.has_gateway_port(workload, int(port)) for side in self._sides)
            found = self._entries[text] = _Entry(workload, int(port), is_gateway)
        return found

    def _note(self, logged: Logged, count: int, question: Asked, old: _Outcome, new: _Outcome) -> None:
        fate: Fate = "changed"
        if old.answered != new.answered:
            fate = "admitted" if new.answered else "denied"
        key = (fate, old.effect, new.effect, old.refused, new.refused)
        group = self.result.groups.get(key)
        if group is None:
            entry = self._entry(logged.entry) if logged.entry else None
            told = [
                side.told(item, logged, question, entry) for side, item in zip(self._sides, (old, new), strict=True)
            ]
            (before, before_place), (after, after_place) = told
            group = self.result.groups[key] = Group(
                fate=fate, before=before, after=after, before_place=before_place, after_place=after_place
            )
        group.count += count
        if len(group.examples) < _EXAMPLES:
            group.examples.append(
                f"{logged.method} {logged.authority}{logged.target} from {logged.source or 'plaintext'}"
            )


def _spoken(old: _Outcome, new: _Outcome) -> _Outcome:
    """Who came in by what a port spoke gets no answer where it speaks something else."""
    if new.protocol in (old.protocol, "closed") or old.protocol == "closed":
        return new
    return new._replace(effect=("speaks", new.protocol), answered=False)


class _Side:
    """One of the two worlds, with what is asked again and again at hand."""

    def __init__(self, world: World) -> None:
        self._world = world
        domain = world.snapshot.mesh.trust_domain
        self._by_identity: dict[str, str] = {}
        for workload in sorted(world.registry.workloads.values(), key=lambda item: item.key):
            self._by_identity.setdefault(workload.identity(domain), workload.key)
            self._by_identity.setdefault(workload.key, workload.key)
        self._effects: dict[int, tuple[Sent, Hashable, tuple[tuple[Reach, bool], ...]]] = {}
        self._headers: dict[tuple[bytes, str], bool] = {}

    def outcome(self, logged: Logged, question: Asked, entry: _Entry | None = None) -> _Outcome | None:
        """None for a caller that is not known, or a name that means nothing to a caller without a proxy."""
        if entry is not None:
            return self._entering(entry, question)
        source = logged.source
        caller = self._by_identity.get(source)
        if caller is not None:
            sent = self._world.chooses(caller, question)
            return self._answered(sent, self._world.listeners(caller).identity, question)
        return None if "/" in source else self._from_outside(question)

    def _from_outside(self, question: Asked) -> _Outcome | None:
        """A caller without a proxy reaches the workloads of a service directly."""
        found = self._services(question.authority)
        return self._at(found, question) if found else None

    def _at(self, found: tuple[Reach, ...], question: Asked) -> _Outcome:
        refusals = [self._refuses(reach, ANONYMOUS, question) for reach in found]
        refused = next((reach.workload for reach, why in zip(found, refusals, strict=True) if why), "")
        return _Outcome(tuple(refusals), not all(refusals), None, refused)

    def has_gateway_port(self, workload: str, port: int) -> bool:
        return workload in self._world.compiled.manifests and self._world.entries(workload, port) is not None

    def _entering(self, entry: _Entry, question: Asked) -> _Outcome | None:
        """A caller without a proxy at one port of one workload, which may be a gateway's."""
        world, workload, port = self._world, entry.workload, entry.port
        if workload not in world.compiled.manifests:
            return None
        reach = Reach(workload=workload, port=port)
        if not entry.is_gateway:
            return self._at((reach,), question)
        entries = world.entries(workload, port)
        protocol = entries.protocol if entries is not None else "closed"
        asked_there = world.at_gateway(workload, port, question)
        why = self._refuses(reach, ANONYMOUS, asked_there) if entries is not None else ""
        if why:
            return _Outcome((why,), False, None, workload, protocol)
        sent = world.enters(workload, port, asked_there)
        return self._answered(sent, world.listeners(workload).identity, asked_there)._replace(protocol=protocol)

    def _services(self, authority: bytes) -> tuple[Reach, ...]:
        host, _, port = authority.decode("latin-1").lower().partition(":")
        known = self._world.registry.services
        name = next((key for key in (host, *(k for k in known if k.partition(".")[0] == host)) if key in known), "")
        if not name:
            return ()
        number = int(port) if port.isdigit() else 80
        ports = [item.target_port for item in known[name].ports if item.port == number]
        workloads = [item for item in self._world.registry.workloads.values() if name in item.services]
        return tuple(Reach(workload=item.key, port=target) for target in ports for item in workloads)

    def _answered(self, sent: Sent, identity: str, question: Asked) -> _Outcome:
        known = self._effects.get(id(sent))
        if known is None:
            ends = tuple(
                (reach, item.backend.tls == "mesh")
                for item in sent.destinations
                for reach in self._world.reaches(item)
                if reach.meshed
            )
            known = self._effects[id(sent)] = (sent, effect(sent), ends)
        _, what, ends = known
        forwarded = question if sent.rule is None or not ends else forwarded_as(sent, question)
        if forwarded is None:
            return _Outcome((what, "bad-rewrite"), False, sent, "")
        refusals = tuple(self._refuses(reach, identity if secure else ANONYMOUS, forwarded) for reach, secure in ends)
        answered = sent.kind in ("route", "redirect", "direct", "pass-through") and not (refusals and all(refusals))
        refused = next((reach.workload for (reach, _), why in zip(ends, refusals, strict=True) if why), "")
        return _Outcome((what, refusals), answered, sent, refused)

    def _refuses(self, reach: Reach, source: str, question: Asked) -> str:
        world = self._world
        port = world.inbound(reach.workload, reach.port)
        why = refused_by_mode(port.mtls, source)
        table = world.policies(reach.workload)
        if why or table.decides_nothing:
            return why
        if port.protocol == "tcp":
            decision = table.decide_connection(source, namespace_of(source), reach.port, question.address)
        else:
            decision = table.decide(
                source, namespace_of(source), question.method, question.path, question.fields, reach.port,
                around(question, world.listeners(reach.workload)) if table.asks_around else NOTHING_AROUND,
            )  # fmt: skip
        return "" if decision.allowed else "denied"

    def asks_headers(self, authority: bytes, logged: Logged, entry: _Entry | None = None) -> bool:
        """Whether the rules of a host, or the policies of who answers, look at headers."""
        if entry is not None and not entry.is_gateway:
            return self._reads_headers(entry.workload)
        caller = entry.workload if entry is not None else self._by_identity.get(logged.source)
        if caller is None:
            return False
        key = (authority, logged.entry or caller)
        found = self._headers.get(key)
        if found is None:
            found = self._headers[key] = self._asks_headers(caller, authority, entry)
        return found

    def _asks_headers(self, caller: str, authority: bytes, entry: _Entry | None) -> bool:
        """Rules of the host by headers; policies of who may answer, and of a gateway, by what else a log does not tell."""
        if entry is None:
            table = self._world.hosts(caller).find(authority)
        elif self._reads_headers(caller):
            return True
        else:
            table = self._world.gateway_hosts(caller, entry.port).find(host_of(authority))
        rules = table.routes.rules if table is not None else ()
        if any(match.headers for rule in rules for match in rule.matches):
            return True
        destinations = (item for rule in rules for item in self._world.destinations(caller, rule))
        servers = {reach.workload for item in destinations for reach in self._world.reaches(item)}
        return any(self._reads_headers(workload) for workload in servers)

    def _reads_headers(self, workload: str) -> bool:
        if self._world.listeners(workload).jwt is not None:
            return True
        policies = self._world.policies(workload).authorization.policies
        rules = [rule for policy in policies for rule in policy.rules]
        return any(operation.headers for rule in rules for operation in rule.operations) or any(
            reads_requests(source) or source.ip_blocks or source.not_ip_blocks
            for rule in rules
            for source in rule.sources
        )

    def told(self, outcome: _Outcome, logged: Logged, question: Asked, entry: _Entry | None = None) -> tuple[str, str]:
        """In words, with the place."""
        if entry is not None and entry.is_gateway:
            question = self._world.at_gateway(entry.workload, entry.port, question)
        sent = outcome.sent
        if outcome.refused and not outcome.answered:
            return self._refusal_told(outcome, logged, question, entry)
        if outcome.effect == ("speaks", outcome.protocol) and entry is not None:
            entrance = self._world.entrance(entry.workload, entry.port, host_of(question.authority))
            return f"the port speaks {words.connection_text(entrance)}", entrance.place
        if sent is None:
            return "answered", ""
        told = [text if name == "to" else f"{name} {text}" for name, text in words.facets(sent).items()]
        return ", ".join(told), sent.place

    def _refusal_told(
        self, outcome: _Outcome, logged: Logged, question: Asked, entry: _Entry | None
    ) -> tuple[str, str]:
        world, sent = self._world, outcome.sent
        caller = self._by_identity.get(logged.source)
        if sent is not None and entry is not None:
            caller = entry.workload  # the gateway asks in its own name
        identity = world.listeners(caller).identity if caller else ANONYMOUS
        port = next(iter(dict(world.registry.workloads[outcome.refused].ports)), 0)
        if sent is None and entry is not None:
            port = entry.port
        asked_there = forwarded_as(sent, question) if sent is not None else None
        received = world.takes(outcome.refused, port, identity, asked_there or question)
        return f"refused at {outcome.refused}: {words.decided_by(received)}", received.place or received.mtls_place


class PlaintextCallers:
    """Callers without a certificate whose requests a change would refuse: who to look for before STRICT."""

    def __init__(self, before: World, after: World) -> None:
        self._sides = (_Side(before), _Side(after))
        self._seen: dict[Logged, bool] = {}
        self._counts: dict[tuple[str, str], int] = {}

    def feed(self, requests: Iterable[Logged]) -> None:
        for logged in requests:
            if "/" in logged.source:  # an identity, or a workload's key
                continue
            refused = self._seen.get(logged)
            if refused is None:
                refused = self._seen[logged] = self._is_refused(logged)
            if refused:
                key = (logged.source or "somebody", logged.authority)
                self._counts[key] = self._counts.get(key, 0) + 1

    def _is_refused(self, logged: Logged) -> bool:
        question = question_of(logged)
        if question is None:
            return False
        old, new = (side.outcome(logged, question) for side in self._sides)
        return old is not None and new is not None and old.answered and not new.answered

    def told(self) -> tuple[str, ...]:
        """`10.0.0.7: 120 requests to sa-logic`, the most frequent first."""
        ordered = sorted(self._counts.items(), key=lambda item: -item[1])
        return tuple(f"{source}: {count} request{'s' * (count != 1)} to {host}" for (source, host), count in ordered)


def summary(result: Result) -> Mapping[str, int]:
    return {
        "requests": result.total,
        "distinct": result.distinct,
        "denied": result.count("denied"),
        "admitted": result.count("admitted"),
        "changed": result.count("changed"),
        "unknown": result.unknown,
        "rulesAskForHeaders": result.asks_headers,
    }
