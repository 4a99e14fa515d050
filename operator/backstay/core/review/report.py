"""A review as a value: everything that can be said of a change before it is merged, ready to be written down.

Texts in here are made of what people wrote (names, paths, messages); `formats` makes them safe for where they go.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, Literal

import msgspec

from backstay.core.compile import PartCache, compile_mesh
from backstay.core.evaluate import Asked, Entrance, Received, Sent, World
from backstay.core.held import changed_documents
from backstay.core.problems import Problem
from backstay.core.registry import Registry
from backstay.core.review import words
from backstay.core.review.access import OUTSIDE, AccessClass, access_classes
from backstay.core.review.gateways import Exposure, exposures, gateway_classes
from backstay.core.review.routes import RouteClass, route_classes
from backstay.core.snapshot import Snapshot
from backstay.redact import clean

Severity = Literal["error", "warning", "notice"]


class Base(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """Common options: the structs are what `-o json` writes."""


class Remark(Base, frozen=True, kw_only=True):
    """Something said about one place: a problem, or what a guardrail found."""

    severity: Severity
    reason: str
    message: str
    file: str = ""
    line: int = 0
    column: int = 0
    document: str = ""


class DocumentChange(Base, frozen=True, kw_only=True):
    document: str
    change: Literal["added", "changed", "removed"]
    place: str


class Difference(Base, frozen=True, kw_only=True):
    """One facet of an outcome, before and after; empty is "not there"."""

    name: str
    before: str
    after: str


class RequestChange(Base, frozen=True, kw_only=True):
    """A class of requests whose outcome changes."""

    host: str
    callers: tuple[str, ...]
    """Workloads; at a gateway its own."""
    requests: tuple[str, ...]
    """In words, as alternatives; an empty one is every request."""
    differences: tuple[Difference, ...]
    before_place: str
    after_place: str
    example: str
    doubt: str = ""
    from_outside: bool = False
    """Requests that come in at a gateway."""


class AccessChange(Base, frozen=True, kw_only=True):
    """A class of requests that are let in, or kept out, otherwise."""

    direction: Literal["gains", "loses", "refused otherwise"]
    servers: tuple[str, ...]
    ports: tuple[int, ...]
    """The applications' own; 0 is every port that nobody names."""
    requests: tuple[str, ...]
    """`who: what`, as alternatives."""
    before: str
    after: str
    before_place: str
    after_place: str
    example: str
    doubt: str = ""


class Touched(Base, frozen=True, kw_only=True):
    workload: str
    proxies: int
    parts: tuple[str, ...]


class Rollout(Base, frozen=True, kw_only=True):
    """How the change would go out."""

    strategy: Literal["Progressive", "Immediate", "None"] = "None"
    stages: tuple[str, ...] = ()
    waves: tuple[float, ...] = ()
    """Percentages."""
    soak_seconds: float = 0.0
    least_seconds: float = 0.0
    """All waves of all stages, if each is proven as soon as it may be."""


class ReplayedKind(Base, frozen=True, kw_only=True):
    """Real requests that one line before and one line after decide, with the same change."""

    fate: Literal["denied", "admitted", "changed"]
    count: int
    before: str
    after: str
    before_place: str
    after_place: str
    examples: tuple[str, ...]


class Replayed(Base, frozen=True, kw_only=True):
    """What live traffic would have met; counts are estimates from samples."""

    span: str
    """How far back the samples go, in words."""
    requests: int
    distinct: int
    denied: int
    admitted: int
    changed: int
    unknown: int
    rules_ask_for_headers: int
    kinds: tuple[ReplayedKind, ...] = ()


class Report(Base, frozen=True, kw_only=True):
    base: str
    head: str
    valid: bool
    problems: tuple[Remark, ...] = ()
    guardrails: tuple[Remark, ...] = ()
    documents: tuple[DocumentChange, ...] = ()
    requests: tuple[RequestChange, ...] = ()
    access: tuple[AccessChange, ...] = ()
    touched: tuple[Touched, ...] = ()
    rollout: Rollout = Rollout()
    plaintext: tuple[str, ...] = ()
    """Callers without a certificate that a stricter mode would refuse, where traffic was given."""
    traffic: Replayed | None = None
    """The last hour's requests through both revisions, where a live mesh was asked."""
    untouched: str = ""
    notes: tuple[str, ...] = ()

    @property
    def widens(self) -> bool:
        return any(item.direction == "gains" for item in self.access)

    @property
    def denied(self) -> bool:
        """What must not be merged: invalid, or against a guardrail that denies."""
        return not self.valid or any(item.severity == "error" for item in self.guardrails)

    @property
    def warned(self) -> bool:
        return any(item.severity == "warning" for item in (*self.problems, *self.guardrails))


def as_object(report: Report) -> dict[str, Any]:
    """The report as plain values, without secrets that somebody wrote into a document."""
    body: dict[str, Any] = _cleaned(msgspec.to_builtins(report))
    return {"apiVersion": "backstay.dev/v1alpha1", "kind": "Review", **body}


def _cleaned(value: Any) -> Any:
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, Mapping):
        return {key: _cleaned(inner) for key, inner in value.items()}
    return [_cleaned(inner) for inner in value] if isinstance(value, list | tuple) else value


# --- making one -------------------------------------------------------------------------------------------------------

_SEVERITIES: Final[Mapping[str, Severity]] = {"error": "error", "warning": "warning", "waiting": "notice"}


def remark(problem: Problem) -> Remark:
    path = f"{problem.path}: " if problem.path else ""
    return Remark(
        severity=_SEVERITIES[problem.severity.value],
        reason=problem.reason,
        message=f"{path}{problem.message}",
        file=problem.file,
        line=problem.line,
        column=problem.column,
        document=problem.document,
    )


def compared(before: Snapshot, after: Snapshot, registry: Registry) -> tuple[World, World]:
    """Both snapshots compiled for one registry; what they share is compiled once."""
    cache = PartCache()
    old = World(before, registry, compile_mesh(before, registry, cache, named=False))
    return old, World(after, registry, compile_mesh(after, registry, cache, named=False))


def document_changes(before: Snapshot, after: Snapshot) -> Iterator[DocumentChange]:
    for key in sorted(changed_documents(before.documents, after.documents)):
        change: Literal["added", "changed", "removed"] = "changed"
        if key not in before.documents:
            change = "added"
        elif key not in after.documents:
            change = "removed"
        document = after.documents.get(key) or before.documents[key]
        yield DocumentChange(document=key, change=change, place=document.place())


def changes(before: World, after: World) -> tuple[tuple[RequestChange, ...], tuple[AccessChange, ...]]:
    """Requests whose outcome changes, those from outside first; and access, what widens it first."""
    outside = gateway_classes(before, after)
    requests = (*outside, *route_classes(before, after))
    access = [
        *(_exposure_change(item) for item in exposures(before, after, outside)),
        *(_access_change(item) for item in access_classes(before, after)),
    ]
    order = {"gains": 0, "loses": 1, "refused otherwise": 2}
    return (
        tuple(_request_change(item, after) for item in requests),
        tuple(sorted(access, key=lambda item: order[item.direction])),
    )


def _exposure_change(item: Exposure) -> AccessChange:
    route = item.route
    gateways = ", ".join(route.callers)
    before, after_text = (_reached_text(sent) for sent in (route.before, route.after))
    return AccessChange(
        direction=item.direction,
        servers=item.servers,
        ports=item.ports,
        requests=tuple(
            f"{OUTSIDE} for {route.host} of {gateways}: {text or 'any request'}" for text in route.words() or [""]
        ),
        before=before,
        after=after_text,
        before_place=route.before.place,
        after_place=route.after.place,
        example=next((f"from outside: {request_text(question)}" for question in route.samples()), ""),
        doubt=route.doubt,
    )


def _reached_text(sent: Sent | Entrance) -> str:
    text = words.facets(sent).get("to", "")
    return f"sent to {text}" if isinstance(sent, Sent) and sent.kind == "route" else text


def _request_change(item: RouteClass, after: World) -> RequestChange:
    old, new = words.facets(item.before), words.facets(item.after)
    return RequestChange(
        host=item.host or "hosts outside the mesh",
        callers=item.callers if item.port else callers_text(item.callers, after.registry),
        requests=tuple(item.words()),
        differences=tuple(_differences(old, new)),
        before_place=item.before.place,
        after_place=item.after.place,
        example=next((request_text(question) for question in item.samples()), ""),
        doubt=item.doubt,
        from_outside=item.port > 0,
    )


def _differences(old: Mapping[str, str], new: Mapping[str, str]) -> Iterator[Difference]:
    for name in dict.fromkeys((*old, *new)):
        if old.get(name) != new.get(name):
            yield Difference(name=name, before=old.get(name, ""), after=new.get(name, ""))


def callers_text(callers: tuple[str, ...], registry: Registry) -> tuple[str, ...]:
    """The workloads, or `every workload` where it is all of them."""
    return ("every workload",) if len(callers) == len(registry.workloads) > 1 else callers


def request_text(question: Asked) -> str:
    query = f"?{question.query.decode('latin-1')}" if question.query else ""
    fields = "".join(f" -H '{name.decode('latin-1')}: {value.decode('latin-1')}'" for name, value in question.fields)
    authority = question.authority.decode("latin-1")
    return f"{question.method.decode('latin-1')} {authority}{question.path.decode('latin-1')}{query}{fields}"


def _access_change(item: AccessClass) -> AccessChange:
    source, question = next(item.samples(), ("", Asked(b"GET", b"", b"/", b"", ())))
    return AccessChange(
        direction=item.direction,
        servers=item.servers,
        ports=item.ports,
        requests=tuple(item.words()),
        before=_received_text(item.before),
        after=_received_text(item.after),
        before_place=_received_place(item.before),
        after_place=_received_place(item.after),
        example=f"{source or 'plaintext'}: {request_text(question)}" if item.boxes else "",
        doubt=item.doubt,
    )


def _received_text(received: Received) -> str:
    word, why = "allowed" if received.allowed else "refused", words.decided_by(received)
    return why if why.startswith(f"{word}: ") else f"{word}: {why}"


def _received_place(received: Received) -> str:
    return received.mtls_place if received.reason in ("plaintext-refused", "handshake-refused") else received.place


def untouched(before: World, after: World, touched: Iterable[Touched]) -> str:
    """What the change leaves alone, in one line."""
    changed = len(changed_documents(before.snapshot.documents, after.snapshot.documents))
    documents = len(after.snapshot.documents.keys() | before.snapshot.documents.keys())
    count = len(list(touched))
    return (
        f"{documents - changed} of {documents} documents and {len(after.registry.workloads) - count} of "
        f"{len(after.registry.workloads)} workloads are untouched"
    )
