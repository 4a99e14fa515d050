"""One request -> the route, the shares, the policies and the lines of git that decide it.

A request meets two decisions: its caller's proxy chooses a route (`World.sends`), and the proxy of whoever answers takes it
in or refuses it (`World.receives`). Both are asked of the tables in config/ that the data plane runs, over the same compiled
configs, so what `route test`, reviews, expectations and replays say is what a proxy does. `World.trace` puts them together.

Rule: nothing is decided here that config/ could decide. Whoever adds a field to a rule or a policy extends this module,
core/review and the property tests that compare them with a real sidecar.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any, Final, Literal, TypeAlias
from urllib.parse import urlsplit

import msgspec

from backstay.config.actions import CompiledEdits, redirect_location, rewritten_target
from backstay.config.addresses import remote_address
from backstay.config.authorize import Around, AuthorizationTable, namespace_of
from backstay.config.gateways import ListenerTable, forwarded, to_https
from backstay.config.match import HostTable, RouteTable, host_of, is_let_out
from backstay.config.model import (
    Authorization,
    Backend,
    GatewayListener,
    HostRoutes,
    InboundPort,
    Listeners,
    Manifest,
    Mirror,
    Part,
    Rule,
    WeightedBackend,
    decode_part,
)
from backstay.config.target import clean_target, is_seen
from backstay.config.tokens import TokenTable
from backstay.core.compile import Compiled, PartCache, compile_mesh
from backstay.core.externals import let_out
from backstay.core.intents import GatewaySpec
from backstay.core.registry import Instance, Registry
from backstay.core.snapshot import Document, Snapshot

Labels: TypeAlias = tuple[tuple[str, str], ...]
Fields: TypeAlias = tuple[tuple[bytes, bytes], ...]
ANONYMOUS: Final = ""
"""The source of a caller without a certificate (plaintext)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What a caller asks for, as people write it."""

    method: str = "GET"
    authority: str = ""
    """The Host field: `sa-logic`, `sa-logic.shop:8080`."""
    path: str = "/"
    query: str = ""
    headers: tuple[tuple[str, str], ...] = ()
    address: str = ""
    """Where the connection to whoever answers comes from; empty: not said, and then it lies in no block."""
    claims: Mapping[str, Any] | None = field(default=None, hash=False)
    """Of a token that is valid in itself; None: it has none."""

    def __str__(self) -> str:
        query = f"?{self.query}" if self.query else ""
        return f"{self.method} {self.authority}{self.path}{query}"


def request_to(method: str, url: str, headers: Iterable[tuple[str, str]] = ()) -> Request:
    """A request for a URL (`http://sa-logic/x?y=1`, `sa-logic/x`). Raises ValueError for what is none."""
    parts = urlsplit(url if "://" in url else f"http://{url}")
    if parts.scheme != "http":
        raise ValueError(f"unknown scheme {parts.scheme!r}, expected 'http': proxies see no inside of other URLs")
    if not parts.netloc or "@" in parts.netloc:
        raise ValueError(f"{url!r} names no host, expected http://HOST[:PORT]/PATH")
    return Request(
        method=method.upper(),
        authority=parts.netloc,
        path=parts.path or "/",
        query=parts.query,
        headers=tuple(headers),
    )


@dataclass(frozen=True, slots=True)
class Asked:
    """A request as matchers see it: bytes, dot segments resolved, only fields that are forwarded."""

    method: bytes
    authority: bytes
    path: bytes
    query: bytes
    fields: Fields
    address: str = ""
    remote: str = ""
    """Where it began; empty: as the address and X-Forwarded-For say."""
    claims: Mapping[str, Any] | None = field(default=None, hash=False)


def asked(request: Request) -> Asked | None:
    """None for a target that every proxy answers with 400."""
    target = request.path + (f"?{request.query}" if request.query else "")
    method = request.method.encode("latin-1", "replace")
    cleaned = clean_target(target.encode("utf-8", "surrogateescape"), method)
    if cleaned is None:
        return None
    path, _, query = cleaned.partition(b"?")
    fields = tuple((name.encode(), value.encode("utf-8", "surrogateescape")) for name, value in request.headers)
    listed = {
        option.strip().lower()
        for name, value in fields
        if name.lower() == b"connection"
        for option in value.split(b",")
    }
    seen = tuple(item for item in fields if is_seen(item[0]) and item[0].lower() not in listed)
    authority = request.authority.encode("latin-1", "replace")
    return Asked(method, authority, path, query, seen, address=request.address, claims=request.claims)


@dataclass(frozen=True, slots=True, kw_only=True)
class Destination:
    """One of the places a rule may send a request to."""

    share: Fraction
    backend: Backend
    """As the caller's proxy has it, without the subsets of others."""
    subset: str = ""
    labels: Labels = ()
    place: str = ""
    """`file:line` of the Backend document, if one shapes it."""

    @property
    def service(self) -> str:
        return f"{self.backend.service}:{self.backend.port}"

    @property
    def name(self) -> str:
        return f"{self.service}/{self.subset}" if self.subset else self.service


SentKind: TypeAlias = Literal[
    "route", "redirect", "direct", "no-backend", "no-route", "unknown-host", "pass-through", "bad-request", "closed"
]
"""`closed`: nothing listens at that port of the gateway."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """What the caller's proxy does with a request."""

    kind: SentKind
    host: str = ""
    """`host:port` of the routes that were asked."""
    rule: Rule | None = None
    index: int = -1
    destinations: tuple[Destination, ...] = ()
    mirrors: tuple[Destination, ...] = ()
    prefix: str = ""
    """The path prefix that matched, where what is done depends on it."""
    place: str = ""
    """`file:line` of the rule, or of the document that has none for this request; empty where no document says so."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entrance:
    """How a gateway takes connections that name a host."""

    protocol: Literal["closed", "http", "https", "tls"]
    secret: str = ""
    """Certificate that callers are shown; empty where TLS ends here and there is none for the name."""
    min_tls: str = ""
    place: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Received:
    """What the proxy of one workload does with a request that reaches it."""

    workload: str
    port: int
    source: str
    """Verified SPIFFE ID of the caller, empty for plaintext."""
    allowed: bool
    reason: str = ""
    """`denied`, `no-token`, `bad-token`, `plaintext-refused`, `handshake-refused`; empty where it is allowed."""
    mtls: str = "permissive"
    mtls_place: str = ""
    policy: str = ""
    """`<namespace>/<name>` of the policy that decided; empty if none did."""
    rule: int = -1
    place: str = ""
    """`file:line` of the deciding rule, or of the policy that let nobody else in."""
    audited: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Reach:
    """Instances that a destination stands for, as one workload."""

    workload: str
    port: int
    """The application's own port."""
    instances: tuple[str, ...] = ()
    meshed: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Answerer:
    """Who may answer, and whether it would."""

    destination: Destination
    reach: Reach
    secure: bool
    """mTLS between the two proxies."""
    received: Received | None
    """None where it has no proxy: nothing of the mesh is asked there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """A request from its caller to everybody who may answer it."""

    caller: str
    """For a request from outside the gateway that it comes in at."""
    request: Request
    sent: Sent
    answerers: tuple[Answerer, ...] = ()
    admitted: Received | None = None
    """What the gateway's own policies say of a request from outside."""

    @property
    def is_denied(self) -> bool:
        """True if whoever may get it refuses it."""
        asked_of = [item.received for item in self.answerers if item.received is not None]
        return bool(asked_of) and len(asked_of) == len(self.answerers) and not any(one.allowed for one in asked_of)


class UnknownWorkload(LookupError):
    """The registry has no workload of that name."""


class World:
    """One snapshot compiled for one registry, ready to be asked. Answers are remembered by the parts they came from."""

    def __init__(self, snapshot: Snapshot, registry: Registry, compiled: Compiled) -> None:
        self.snapshot = snapshot
        self.registry = registry
        self.compiled = compiled
        self._parts: dict[str, Part] = {}
        self._hosts: dict[str, HostTable] = {}
        self._gateways: dict[tuple[str, int], HostTable] = {}
        self._entries: dict[tuple[str, int], ListenerTable | None] = {}
        self._externals: tuple[tuple[tuple[str, ...], str], ...] | None = None
        self._entered: dict[tuple[str, int, str], Sent] = {}
        self._tables: dict[tuple[object, ...], HostTable] = {}
        self._sents: dict[tuple[str, str, int, str], Sent] = {}
        self._policies: dict[str, AuthorizationTable] = {}
        self._sends_to: dict[str, frozenset[str]] = {}
        self._of_service: dict[str, list[str]] = {}
        self._of_workload: dict[str, list[Instance]] = {}
        self._reaches: dict[tuple[str, Labels], tuple[Reach, ...]] = {}

    # --- parts -----------------------------------------------------------------------------------------------------

    def manifest(self, workload: str) -> Manifest:
        """Raises UnknownWorkload."""
        found = self.compiled.manifests.get(workload)
        if found is None:
            raise UnknownWorkload(workload)
        return found

    def part(self, digest: str) -> Part:
        found = self._parts.get(digest)
        if found is None:
            found = self._parts[digest] = decode_part(self.compiled.parts[digest])
        return found

    def sends_to(self, digest: str) -> frozenset[str]:
        """`service:port` of every backend that the rules of a routes part name."""
        found = self._sends_to.get(digest)
        if found is None:
            part = self.part(digest)
            rules = part.rules if isinstance(part, HostRoutes) else ()
            mirrors = (item.backend for rule in rules for item in rule.mirrors)
            found = frozenset((*(item.backend for rule in rules for item in rule.backends), *mirrors))
            self._sends_to[digest] = found
        return found

    def listeners(self, workload: str) -> Listeners:
        part = self.part(self.manifest(workload).parts["listeners"])
        if not isinstance(part, Listeners):
            raise TypeError(f"{workload} has no listeners")
        return part

    def policies(self, workload: str) -> AuthorizationTable:
        digest = self.manifest(workload).parts["authorization"]
        table = self._policies.get(digest)
        if table is None:
            part = self.part(digest)
            table = AuthorizationTable(part if isinstance(part, Authorization) else Authorization())
            self._policies[digest] = table
        return table

    def hosts(self, workload: str) -> HostTable:
        """What the workload's proxy looks hosts up in for requests of its own application."""
        found = self._hosts.get(workload)
        if found is None:
            digests = (digest for key, digest in self.manifest(workload).parts.items() if key.startswith("routes/"))
            found = self._hosts[workload] = self._host_table(workload, tuple(digests))
        return found

    def gateway_hosts(self, workload: str, port: int) -> HostTable:
        """What a gateway looks the hosts of one of its ports up in."""
        found = self._gateways.get((workload, port))
        if found is None:
            wanted = f":{port}"
            parts = self.manifest(workload).parts.items()
            digests = (d for key, d in parts if key.startswith("gateway/") and key.endswith(wanted))
            found = self._gateways[workload, port] = self._host_table(workload, tuple(digests))
        return found

    def _host_table(self, workload: str, digests: tuple[str, ...]) -> HostTable:
        """Shared by all workloads of a namespace with the same routes, unless one of those asks who sends."""
        namespace = self.listeners(workload).namespace
        parts = [part for part in map(self.part, digests) if isinstance(part, HostRoutes)]
        asks = any(match.sources for part in parts for rule in part.rules for match in rule.matches)
        key = (namespace, workload if asks else "", digests)
        found = self._tables.get(key)
        if found is None:
            found = self._tables[key] = HostTable(namespace, parts, workload=workload if asks else "")
        return found

    def table(self, workload: str, key: str) -> RouteTable | None:
        """The routes of one host alone, for who needs no other."""
        digest = self.manifest(workload).parts.get(key)
        part = self.part(digest) if digest else None
        if not isinstance(part, HostRoutes):
            return None
        return RouteTable(part, self.listeners(workload).namespace, workload)

    # --- the caller's side -----------------------------------------------------------------------------------------

    def sends(self, workload: str, request: Request) -> Sent:
        """What the proxy of `workload` does with a request of its application. Raises UnknownWorkload."""
        self.manifest(workload)
        question = asked(request)
        return Sent(kind="bad-request") if question is None else self.chooses(workload, question)

    def chooses(self, workload: str, question: Asked) -> Sent:
        table = self.hosts(workload).find(question.authority)
        if table is None:
            return self.unknown_host(workload, question.authority)
        return self._picked(workload, table, question)

    def _picked(self, workload: str, table: RouteTable, question: Asked) -> Sent:
        index = table.pick(question.method, question.path, question.query, question.fields, question.authority)
        if index is None:
            return Sent(kind="no-route", host=_host(table), place=self.route_place(workload, table.key))
        prefix = ""
        if needs_prefix(table.routes.rules[index]):
            prefix = table.matched_prefix(
                index, question.method, question.path, question.query, question.fields, question.authority
            ).decode()
        return self.by_rule(workload, table, index, prefix)

    def unknown_host(self, workload: str, authority: bytes = b"") -> Sent:
        """What becomes of requests to hosts that the workload's config does not know."""
        listeners = self.listeners(workload)
        place = self._mesh_place("spec.egress")
        if listeners.egress != "registry_only":
            return Sent(kind="pass-through", place=place)
        if is_let_out(listeners.egress_hosts, authority):
            return Sent(kind="pass-through", place=self._let_out_place(authority))
        return Sent(kind="unknown-host", place=place)

    def _let_out_place(self, authority: bytes) -> str:
        """`file:line` of the ExternalService that lets a host out."""
        if self._externals is None:
            documents = (item for item in self.snapshot.documents.values() if item.kind == "ExternalService")
            self._externals = tuple((let_out((item,)), item.place("spec.hosts")) for item in documents)
        return next((place for hosts, place in self._externals if is_let_out(hosts, authority)), "")

    def by_rule(self, workload: str, table: RouteTable, index: int, prefix: str = "") -> Sent:
        """What one rule of a host does."""
        key = (workload, table.key, index, prefix)
        found = self._sents.get(key)
        if found is None:
            found = self._sents[key] = self._by_rule(workload, table, index, prefix)
        return found

    def _by_rule(self, workload: str, table: RouteTable, index: int, prefix: str) -> Sent:
        rule = table.routes.rules[index]
        destinations = tuple(self._destinations(workload, rule.backends))
        kind: SentKind = "route" if destinations else "no-backend"
        if rule.redirect is not None:
            kind = "redirect"
        elif rule.direct is not None:
            kind = "direct"
        return Sent(
            kind=kind,
            host=_host(table),
            rule=rule,
            index=index,
            destinations=destinations,
            mirrors=tuple(self._mirrored(workload, rule.mirrors)),
            prefix=prefix,
            place=self.route_place(workload, table.key, rule.name),
        )

    def destinations(self, workload: str, rule: Rule) -> tuple[Destination, ...]:
        """Where a rule may send."""
        return tuple(self._destinations(workload, rule.backends))

    def _destinations(self, workload: str, backends: tuple[WeightedBackend, ...]) -> Iterator[Destination]:
        """Where a rule sends, with exact shares; what takes nothing is left out, what is named twice is added up."""
        total = sum(item.weight for item in backends)
        shares: dict[tuple[str, str], int] = {}
        for item in backends:
            if item.weight > 0:
                shares[item.backend, item.subset] = shares.get((item.backend, item.subset), 0) + item.weight
        for (key, subset), weight in shares.items():
            yield self._destination(workload, key, subset, Fraction(weight, total))

    def _mirrored(self, workload: str, mirrors: tuple[Mirror, ...]) -> Iterator[Destination]:
        for item in mirrors:
            if item.percent > 0:
                share = Fraction(item.percent).limit_denominator(1_000_000) / 100
                yield self._destination(workload, item.backend, item.subset, share)

    def _destination(self, workload: str, key: str, subset: str, share: Fraction) -> Destination:
        digest = self.manifest(workload).parts.get(f"backend/{key}", "")
        part = self.part(digest) if digest else None
        if not isinstance(part, Backend):
            service, _, port = key.rpartition(":")
            part = Backend(service=service, port=int(port))
        labels = next((known.labels for known in part.subsets if known.name == subset), ())
        origins = self.compiled.origins.get(digest)
        return Destination(
            share=share,
            backend=msgspec.structs.replace(part, subsets=()),
            subset=subset,
            labels=labels if subset else (),
            place=origins.rules.get("", "") if origins else "",
        )

    # --- who is there ----------------------------------------------------------------------------------------------

    def reaches(self, destination: Destination) -> tuple[Reach, ...]:
        """The workloads behind a destination. Without instances (nothing runs yet) labels cannot tell any apart."""
        key = (destination.service, destination.labels)
        found = self._reaches.get(key)
        if found is None:
            found = self._reaches[key] = tuple(self._find_reaches(destination))
        return found

    def _find_reaches(self, destination: Destination) -> Iterator[Reach]:
        service = self.registry.services.get(destination.backend.service)
        ports = (item.target_port for item in service.ports if item.port == destination.backend.port) if service else ()
        port = next(iter(ports), 0)
        if not port:
            return
        wanted = set(destination.labels)
        for workload in self._behind().get(destination.backend.service, ()):
            running = self._running().get(workload, ())
            chosen = tuple(item.id for item in running if wanted <= set(item.labels.items()))
            if chosen or not running:
                meshed = any(item.meshed for item in running) if running else True
                yield Reach(workload=workload, port=port, instances=chosen, meshed=meshed)

    def _behind(self) -> Mapping[str, Sequence[str]]:
        """Service -> keys of its workloads, sorted; looked up for every destination, so made once."""
        if not self._of_service:
            for workload in sorted(self.registry.workloads.values(), key=lambda item: item.key):
                for service in workload.services:
                    self._of_service.setdefault(service, []).append(workload.key)
        return self._of_service

    def _running(self) -> Mapping[str, Sequence[Instance]]:
        """Workload -> its instances by id."""
        if not self._of_workload:
            for instance in sorted(self.registry.instances.values(), key=lambda item: item.id):
                self._of_workload.setdefault(instance.workload, []).append(instance)
        return self._of_workload

    # --- a gateway's ports -----------------------------------------------------------------------------------------

    def entries(self, workload: str, port: int) -> ListenerTable | None:
        """The listeners of one port of a gateway; None where it does not listen."""
        key = (workload, port)
        if key not in self._entries:
            own = [listener for listener in self.listeners(workload).gateway if listener.port == port]
            self._entries[key] = ListenerTable(own) if own else None
        return self._entries[key]

    def at_gateway(self, workload: str, port: int, question: Asked) -> Asked:
        """A request from outside as the gateway's rules and policies see it."""
        entries = self.entries(workload, port)
        if entries is None or entries.protocol == "tls":
            return question
        fields = forwarded(question.fields, question.address, secure=entries.protocol == "https")
        return replace(question, fields=tuple(fields))

    def entrance(self, workload: str, port: int, host: bytes) -> Entrance:
        """How a connection for a host is taken; callers name the host that they ask for in TLS as well."""
        entries = self.entries(workload, port)
        if entries is None:
            return Entrance(protocol="closed")
        listener = entries.find(host)
        place = self.listener_place(listener or entries.listeners[0])
        if listener is None or entries.protocol != "https":
            return Entrance(protocol=entries.protocol, place=place)
        return Entrance(protocol="https", secret=listener.secret, min_tls=listener.min_tls, place=place)

    def enters(self, workload: str, port: int, question: Asked) -> Sent:
        """Where a gateway sends a request from outside that its policies let in."""
        entries = self.entries(workload, port)
        host = host_of(question.authority)
        listener = entries.find(host) if entries is not None else None
        table = self.gateway_hosts(workload, port).find(host)
        return self.entering(workload, port, listener, table) or (
            self._picked(workload, table, question) if table is not None else Sent(kind="no-route")
        )

    def entering(
        self, workload: str, port: int, listener: GatewayListener | None, table: RouteTable | None
    ) -> Sent | None:
        """What becomes of every request that a listener and a host's routes are about; None where the rules decide."""
        entries = self.entries(workload, port)
        if entries is None:
            return Sent(kind="closed")
        if listener is not None and listener.redirect_port:
            return self._sent_to_https(workload, listener)
        if listener is None or table is None:
            return Sent(kind="no-route", place=self.listener_place(listener or entries.listeners[0]))
        return self.by_rule(workload, table, 0) if entries.protocol == "tls" else None

    def _sent_to_https(self, workload: str, listener: GatewayListener) -> Sent:
        """To the listener's own port, as callers that see ports are sent; others need none said (`https_port`)."""
        key = (workload, listener.port, listener.name)
        found = self._entered.get(key)
        if found is None:
            rule = to_https(listener.port, listener.redirect_port).rules[0]
            found = self._entered[key] = Sent(
                kind="redirect", host=f"*:{listener.port}", rule=rule, index=0, place=self.listener_place(listener)
            )
        return found

    def listener_place(self, listener: GatewayListener) -> str:
        """`file:line` of a listener."""
        gateway, _, name = listener.name.rpartition("/")
        document = self.snapshot.documents.get(f"Gateway/{gateway}")
        if document is None or not isinstance(document.spec, GatewaySpec):
            return ""
        index = next((number for number, item in enumerate(document.spec.listeners) if item.name == name), None)
        return document.place("spec.listeners" if index is None else f"spec.listeners[{index}]")

    # --- the server's side -----------------------------------------------------------------------------------------

    def receives(self, workload: str, port: int, source: str, request: Request) -> Received:
        """What the proxy of `workload` does with a request to one of its application's ports. Raises UnknownWorkload."""
        self.manifest(workload)
        question = asked(request)
        if question is None:
            return Received(workload=workload, port=port, source=source, allowed=False, reason="bad-request")
        return self.takes(workload, port, source, question)

    def takes(self, workload: str, port: int, source: str, question: Asked) -> Received:
        inbound = self.inbound(workload, port)
        place = self._part_place(workload, "listeners")
        refusal = refused_by_mode(inbound.mtls, source)
        if refusal:
            return Received(
                workload=workload, port=port, source=source, allowed=False, reason=refusal, mtls=inbound.mtls,
                mtls_place=place, place=place,
            )  # fmt: skip
        table, namespace = self.policies(workload), namespace_of(source)
        if inbound.protocol == "tcp":
            decision = table.decide_connection(source, namespace, port, question.address)
            audited = table.audited_connection(source, namespace, port, question.address)
        else:
            question, refusal = self._with_token(workload, question)
            if refusal:
                return Received(
                    workload=workload, port=port, source=source, allowed=False, reason=refusal, mtls=inbound.mtls,
                    mtls_place=place, place=self.token_place(workload),
                )  # fmt: skip
            about = around(question, self.listeners(workload))
            request = (source, namespace, question.method, question.path, question.fields, port, about)
            decision, audited = table.decide(*request), table.audited(*request)
        return Received(
            workload=workload,
            port=port,
            source=source,
            allowed=decision.allowed,
            reason="" if decision.allowed else "denied",
            mtls=inbound.mtls,
            mtls_place=place,
            policy=decision.policy,
            rule=decision.rule,
            place=self.policy_place(workload, decision.policy, decision.rule, allowed=decision.allowed),
            audited=audited,
        )

    def _with_token(self, workload: str, question: Asked) -> tuple[Asked, str]:
        """The request as policies see it once its token was judged, and why it gets no further, if it does not."""
        jwt = self.listeners(workload).jwt
        if jwt is None:
            return (question if question.claims is None else replace(question, claims=None)), ""
        table = TokenTable(jwt)
        refusal = table.refusal(question.path, question.claims)
        forwarded = table.forwarded(question.fields, question.query, (), question.claims)
        return replace(question, fields=tuple(forwarded.fields)), refusal

    def token_place(self, workload: str) -> str:
        """`file:line` of the rules about tokens."""
        origins = self.compiled.origins.get(self.manifest(workload).parts.get("listeners", ""))
        keys = [item for item in origins.documents if item.startswith("Authentication/")] if origins else []
        document = self.snapshot.documents.get(keys[0]) if keys else None
        return document.place("spec.jwt") if document is not None else ""

    def inbound(self, workload: str, port: int) -> InboundPort:
        """How a port is listened on; one that the config does not name is taken whole, as the data plane has it. At a
        gateway's own ports nobody is asked for a certificate."""
        listeners = self.listeners(workload)
        found = next((item for item in listeners.inbound if item.port == port), None)
        if found is not None:
            return found
        entries = self.entries(workload, port) if listeners.gateway else None
        if entries is not None:
            return InboundPort(port=port, protocol="tcp" if entries.protocol == "tls" else "http")
        return InboundPort(port=port, protocol="tcp", mtls=listeners.other_ports)

    # --- together --------------------------------------------------------------------------------------------------

    def trace(self, workload: str, request: Request) -> Trace:
        """The whole way of a request. Raises UnknownWorkload."""
        sent = self.sends(workload, request)
        question = asked(request)
        answerers = () if question is None else tuple(self._answerers(workload, sent, question))
        return Trace(caller=workload, request=request, sent=sent, answerers=answerers)

    def trace_outside(self, gateway: str, port: int, request: Request) -> Trace:
        """The whole way of a request from outside. Raises UnknownWorkload."""
        self.manifest(gateway)
        question = asked(request)
        if question is None:
            return Trace(caller=gateway, request=request, sent=Sent(kind="bad-request"))
        question = self.at_gateway(gateway, port, question)
        sent = self.enters(gateway, port, question)
        admitted = self.takes(gateway, port, ANONYMOUS, question) if sent.kind != "closed" else None
        answerers = tuple(self._answerers(gateway, sent, question))
        return Trace(caller=gateway, request=request, sent=sent, answerers=answerers, admitted=admitted)

    def _answerers(self, caller: str, sent: Sent, question: Asked) -> Iterator[Answerer]:
        forwarded = forwarded_as(sent, question)
        if forwarded is None:
            return
        for destination in sent.destinations:
            for reach in self.reaches(destination):
                secure = destination.backend.tls == "mesh" and reach.meshed
                source = self.listeners(caller).identity if secure else ANONYMOUS
                received = self.takes(reach.workload, reach.port, source, forwarded) if reach.meshed else None
                yield Answerer(destination=destination, reach=reach, secure=secure, received=received)

    # --- places ----------------------------------------------------------------------------------------------------

    def route_place(self, workload: str, key: str, rule: str = "") -> str:
        origins = self.compiled.origins.get(self.manifest(workload).parts.get(key, ""))
        return origins.rules.get(rule, "") if origins else ""

    def takes_place(self, workload: str) -> str:
        """What says how connections are taken."""
        return self._part_place(workload, "listeners")

    def _part_place(self, workload: str, key: str) -> str:
        found = self.route_place(workload, key)
        return found or self._mesh_place("spec.defaults.mtls")

    def _mesh_place(self, path: str) -> str:
        document = next((item for item in self.snapshot.documents.values() if item.kind == "Mesh"), None)
        return document.place(path) if document and path in document.positions else ""

    def policy(self, name: str) -> Document | None:
        """The Authorization document that `<namespace>/<name>` means."""
        return self.snapshot.documents.get(f"Authorization/{name}")

    def policy_place(self, workload: str, policy: str, rule: int, *, allowed: bool) -> str:
        document = self.policy(policy) if policy else None
        if document is not None:
            return document.place(f"spec.rules[{rule}]")
        return "" if allowed else ", ".join(self.allowing(workload))

    def allowing(self, workload: str) -> tuple[str, ...]:
        """Places of the allow policies of a workload: together they are why nobody else gets in."""
        policies = (item for item in self.policies(workload).authorization.policies if item.action == "allow")
        documents = (self.policy(item.name) for item in policies)
        return tuple(document.place("spec") for document in documents if document is not None)

    def document_of(self, workload: str, key: str) -> Document | None:
        """The Route that a routes part was made from."""
        origins = self.compiled.origins.get(self.manifest(workload).parts.get(key, ""))
        keys = [item for item in origins.documents if item.startswith("Route/")] if origins else []
        return self.snapshot.documents.get(keys[0]) if keys else None

    def setting_place(self, workload: str, sent: Sent, name: str, default: str = "") -> str:
        """`file:line` of one setting of the rule that took a request (`timeouts.request`), or of the Mesh's default."""
        document = self.document_of(workload, f"routes/{sent.host}")
        path = f"spec.rules[{sent.index}].{name}"
        if document is not None and path in document.positions:
            return document.place(path)
        return self._mesh_place(f"spec.defaults.{default}") if default else ""


def world(snapshot: Snapshot, registry: Registry, cache: PartCache | None = None) -> World:
    """Compile and ask. The snapshot must be valid for the registry, or its waiting documents taken out."""
    return World(snapshot, registry, compile_mesh(snapshot, registry, cache, named=False))


def refused_by_mode(mode: str, source: str) -> str:
    """Why a connection is refused before a request is read; empty if it is taken."""
    if mode == "strict" and source == ANONYMOUS:
        return "plaintext-refused"
    return "handshake-refused" if mode == "disable" and source != ANONYMOUS else ""


def around(question: Asked, listeners: Listeners) -> Around:
    """What the policies of a workload may ask besides the request itself."""
    remote = question.remote or remote_address(question.fields, question.address, listeners.trusted_hops)
    return Around(authority=question.authority, address=question.address, remote=remote, claims=question.claims)


def needs_prefix(rule: Rule) -> bool:
    """Whether what a rule does depends on the prefix by which it took a request."""
    rewrites = (rule.rewrite.path if rule.rewrite else None, rule.redirect.path if rule.redirect else None)
    return any(path is not None and path.kind == "prefix" for path in rewrites)


def forwarded_as(sent: Sent, question: Asked) -> Asked | None:
    """The request as the destination gets it; None if its rewritten target is none that can be sent."""
    rule = sent.rule
    if rule is None:
        return question
    path, query, authority, fields = question.path, question.query, question.authority, question.fields
    if rule.rewrite is not None:
        target = clean_target(rewritten_target(rule.rewrite, path, query, sent.prefix.encode()), question.method)
        if target is None or not (target.startswith(b"/") or target == b"*"):
            return None
        path, _, query = target.partition(b"?")
        authority = rule.rewrite.host.encode() or authority
    if rule.request_headers is not None:
        fields = tuple(CompiledEdits(rule.request_headers).apply(fields))
    return replace(question, authority=authority, path=path, query=query, fields=fields)


def location_of(sent: Sent, question: Asked, *, secure: bool = False) -> str:
    """Where a redirect sends a caller; empty for anything else."""
    redirect = sent.rule.redirect if sent.rule is not None else None
    if redirect is None:
        return ""
    return redirect_location(
        redirect,
        secure=secure,
        authority=question.authority,
        path=question.path,
        query=question.query,
        prefix=sent.prefix.encode(),
    ).decode("latin-1")


def _host(table: RouteTable) -> str:
    return f"{table.routes.host}:{table.routes.port}"
