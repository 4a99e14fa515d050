"""Expectations: requests of which a repository says what must become of them, checked by the one evaluator.

A commit that breaks one of its own expectations is invalid. One about a workload that the registry does not have yet
cannot be checked and waits.
"""

from collections.abc import Iterator
from fractions import Fraction
from typing import Final

from backstay.core.durations import milliseconds
from backstay.core.evaluate import Destination, Request, Sent, Trace, World, request_to
from backstay.core.intents import ExpectationSpec, Expected, ExpectedRequest, ExpectedShare
from backstay.core.problems import Problem, Severity
from backstay.core.registry import Registry, qualify
from backstay.core.snapshot import Document

_OUTCOMES: Final = {
    "route": "Routed",
    "no-backend": "Refused",
    "redirect": "Redirected",
    "direct": "Answered",
    "no-route": "NoRoute",
    "pass-through": "PassedThrough",
    "unknown-host": "Refused",
    "bad-request": "Refused",
}
_HUNDREDTH: Final = Fraction(1, 100)  # of a percentage point: shares are written with two decimals


def check(world: World) -> tuple[Problem, ...]:
    """Every expectation of the snapshot that does not hold."""
    documents = sorted(world.snapshot.documents.values(), key=lambda item: (item.file, item.line))
    return tuple(problem for document in documents for problem in failures(document, world))


def failures(document: Document, world: World) -> Iterator[Problem]:
    spec = document.spec
    if not isinstance(spec, ExpectationSpec):
        return
    caller = caller_of(spec.from_, document.metadata.namespace, world.registry)
    if caller not in world.compiled.manifests:
        message = f"workload {caller!r} is not in the registry, so this cannot be checked yet"
        yield _problem(document, "spec.from", message, "ExpectationWaiting", Severity.WARNING)
        return
    trace = world.trace(caller, request_of(spec.request))
    for path, message in _broken(spec.expect, trace, document.metadata.namespace):
        yield _problem(document, path, f"{message}{_because(trace)}", "ExpectationFailed")


def caller_of(name: str, namespace: str, registry: Registry) -> str:
    """`sa-webapp` of the document's own namespace, `shop/sa-webapp` of any."""
    return name if "/" in name and name in registry.workloads else name if "/" in name else f"{namespace}/{name}"


def request_of(spec: ExpectedRequest) -> Request:
    return request_to(spec.method, spec.url, tuple(spec.headers.items()))


def _problem(document: Document, path: str, message: str, reason: str, severity: Severity = Severity.ERROR) -> Problem:
    at = path
    while at and at not in document.positions:
        at = at[: max(at.rfind("."), at.rfind("["), 0)]
    line, column = document.positions.get(at, (document.line, 1))
    return Problem(
        file=document.file, line=line, column=column, path=path, message=message, reason=reason, severity=severity,
        document=document.key,
    )  # fmt: skip


def _because(trace: Trace) -> str:
    place = trace.sent.place
    refusals = [item.received.place for item in trace.answerers if item.received and not item.received.allowed]
    places = list(dict.fromkeys(text for text in (place, *(refusals if trace.is_denied else ())) if text))
    return f" (by {', '.join(places)})" if places else ""


def outcome(trace: Trace) -> str:
    """What becomes of a request, in the words of an Expectation."""
    return "Denied" if trace.is_denied else _OUTCOMES[trace.sent.kind]


def _broken(expected: Expected, trace: Trace, namespace: str) -> Iterator[tuple[str, str]]:
    """(path, what is wrong) of every part of an expectation that does not hold."""
    sent, found = trace.sent, outcome(trace)
    if expected.outcome and expected.outcome != found:
        yield "spec.expect.outcome", f"the request is {found}, expected {expected.outcome}"
    rule = sent.rule.name if sent.rule is not None else ""
    if expected.rule and expected.rule != rule:
        yield "spec.expect.rule", f"rule {rule!r} takes the request, expected {expected.rule!r}"
    if expected.destinations:
        yield from _other_shares(expected.destinations, sent, namespace)
    if expected.timeout is not None:
        actual = sent.rule.timeout_ms if sent.rule is not None else 0
        if actual != milliseconds(expected.timeout):
            yield "spec.expect.timeout", f"the timeout is {actual} ms, expected {expected.timeout}"
    if expected.retries is not None and expected.retries != retries(sent):
        yield "spec.expect.retries", f"it is retried {retries(sent)} times, expected {expected.retries}"


def retries(sent: Sent) -> int:
    return sent.rule.retry.attempts if sent.rule is not None and sent.rule.retry is not None else 0


def _other_shares(expected: tuple[ExpectedShare, ...], sent: Sent, namespace: str) -> Iterator[tuple[str, str]]:
    port = int(sent.host.rpartition(":")[2] or 0)
    wanted: dict[str, Fraction] = {}
    for item in expected:
        name = f"{qualify(item.name, namespace)}:{item.port or port}" + (f"/{item.subset}" if item.subset else "")
        wanted[name] = wanted.get(name, Fraction(0)) + Fraction(item.percent).limit_denominator(10_000)
    actual = {item.name: item.share * 100 for item in sent.destinations}
    for name in sorted(wanted.keys() | actual.keys()):
        have, want = actual.get(name, Fraction(0)), wanted.get(name, Fraction(0))
        if abs(have - want) > _HUNDREDTH:
            message = f"{name} gets {float(have):.4g} %, expected {float(want):.4g} %"
            yield "spec.expect.destinations", message


# --- writing them -----------------------------------------------------------------------------------------------------


def recorded(trace: Trace, name: str, namespace: str) -> dict[str, object]:
    """The Expectation that holds of a request now."""
    sent = trace.sent
    expect: dict[str, object] = {"outcome": outcome(trace)}
    if sent.rule is not None:
        expect["rule"] = sent.rule.name
    if sent.destinations:
        expect["destinations"] = [_share(item) for item in sent.destinations]
    if sent.rule is not None and sent.kind == "route":
        expect["timeout"] = f"{sent.rule.timeout_ms}ms"
        expect["retries"] = retries(sent)
    query = f"?{trace.request.query}" if trace.request.query else ""
    request: dict[str, object] = {
        "method": trace.request.method,
        "url": f"http://{trace.request.authority}{trace.request.path}{query}",
    }
    if trace.request.headers:
        request["headers"] = dict(trace.request.headers)
    return {
        "apiVersion": "backstay.dev/v1alpha1",
        "kind": "Expectation",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"from": trace.caller, "request": request, "expect": expect},
    }


def _share(item: Destination) -> dict[str, object]:
    found: dict[str, object] = {"name": item.backend.service, "port": item.backend.port}
    if item.subset:
        found["subset"] = item.subset
    return found | {"percent": round(float(item.share * 100), 2)}
