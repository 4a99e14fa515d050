"""Guardrails: conditions in CEL that changed documents must meet, judged in review and again by the operator.

The guardrails that are live judge a commit; those it brings judge the next one. Only documents that differ from what is
live are looked at, as an admission policy would, so a new guardrail never makes what already runs invalid.

Expressions are evaluated by Google's own CEL with its limits: 10,000 iterations in all, 32 levels of nesting, RE2 for
`matches`. One that fails or exceeds them counts as not met, unless `failurePolicy: Ignore`.
"""

import functools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Final, Literal

import msgspec

from backstay.core.intents import API_VERSION, GuardrailSpec, GuardrailValidation, RouteSpec
from backstay.core.problems import Problem, Severity
from backstay.core.registry import qualify
from backstay.core.snapshot import Document, Snapshot

Operation = Literal["CREATE", "UPDATE", "DELETE"]
MOST_FINDINGS: Final = 50
"""Of one guardrail in one commit; nobody reads more, and a hostile commit must not buy much time with them."""
VARIABLES: Final = ("object", "oldObject", "operation", "change")


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A condition that a changed document does not meet."""

    severity: Literal["Deny", "Warn", "Audit"]
    guardrail: str
    """Key of the document that says so."""
    place: str
    """`file:line` of the condition."""
    document: Document
    message: str

    def problem(self) -> Problem:
        """As the operator says it. Only `Deny` makes a commit invalid."""
        severity = Severity.ERROR if self.severity == "Deny" else Severity.WARNING
        reason = {"Deny": "GuardrailDenied", "Warn": "GuardrailWarned", "Audit": "GuardrailAudited"}[self.severity]
        return Problem(
            file=self.document.file,
            line=self.document.line,
            column=1,
            message=f"{self.message} (guardrail {self.guardrail}, {self.place})",
            reason=reason,
            severity=severity,
            document=self.document.key,
        )


def judge(live: Snapshot | None, wanted: Snapshot) -> tuple[Finding, ...]:
    """What the live guardrails say of a change; nothing at all where nothing is live yet."""
    if live is None:
        return ()
    found: list[Finding] = []
    for document in sorted(live.documents.values(), key=lambda item: item.key):
        if isinstance(document.spec, GuardrailSpec):
            found += _bounded(_judge(document, document.spec, live, wanted))
    return tuple(found)


def _bounded(findings: Iterator[Finding]) -> Iterator[Finding]:
    for count, finding in enumerate(findings, start=1):
        yield finding
        if count >= MOST_FINDINGS:
            return


def _judge(guardrail: Document, spec: GuardrailSpec, live: Snapshot, wanted: Snapshot) -> Iterator[Finding]:
    for operation, old, new in changes(live.documents, wanted.documents):
        subject = new or old
        if subject is None or operation not in spec.operations or not _is_meant(spec, subject):
            continue
        facts = facts_of(operation, old, new)
        for number, validation in enumerate(spec.validations):
            said = _says(validation, facts, ignore=spec.failure_policy == "Ignore")
            if said:
                yield Finding(
                    severity=spec.severity,
                    guardrail=guardrail.key,
                    place=guardrail.place(f"spec.validations[{number}]"),
                    document=subject,
                    message=said,
                )


def _is_meant(spec: GuardrailSpec, document: Document) -> bool:
    return (not spec.kinds or document.kind in spec.kinds) and (
        not spec.namespaces or document.metadata.namespace in spec.namespaces
    )


def changes(
    live: Mapping[str, Document], wanted: Mapping[str, Document]
) -> Iterator[tuple[Operation, Document | None, Document | None]]:
    """Every document that is new, different or gone, as (operation, old, new)."""
    for key in sorted(live.keys() | wanted.keys()):
        old, new = live.get(key), wanted.get(key)
        if old is not None and new is not None:
            if old.digest != new.digest:
                yield "UPDATE", old, new
        elif new is not None:
            yield "CREATE", None, new
        else:
            yield "DELETE", old, None


def _says(validation: GuardrailValidation, facts: Mapping[str, Any], *, ignore: bool) -> str:
    """What to tell the author; empty where the condition is met."""
    try:
        met = evaluate(validation.expression, facts)
    except BadExpression as error:
        return "" if ignore else f"a condition could not be evaluated: {error}"
    if met is True:
        return ""
    told = validation.message or f"does not meet {validation.expression!r}"
    return told if met is False else f"a condition gave {met!r}, expected true or false"


# --- what expressions see ---------------------------------------------------------------------------------------------


def facts_of(operation: Operation, old: Document | None, new: Document | None) -> dict[str, Any]:
    return {
        "object": as_object(new),
        "oldObject": as_object(old),
        "operation": operation,
        "change": {"weightStep": weight_step(old, new)},
    }


def as_object(document: Document | None) -> dict[str, Any] | None:
    """The document as people write it, with every default filled in; what has none and was not given is null."""
    if document is None:
        return None
    return {
        "apiVersion": API_VERSION,
        "kind": document.kind,
        "metadata": _filled(document.metadata),
        "spec": _filled(document.spec),
    }


def _filled(value: Any) -> Any:
    if isinstance(value, msgspec.Struct):
        names = zip(value.__struct_fields__, value.__struct_encode_fields__, strict=True)
        return {written: _filled(getattr(value, name)) for name, written in names}
    if isinstance(value, Mapping):
        return {key: _filled(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_filled(inner) for inner in value]
    return value


def weight_step(old: Document | None, new: Document | None) -> float:
    """The greatest move of any rule's traffic to or from one destination, in percentage points.

    Rules are paired by name, those without by their number. A rule that comes or goes moves nothing by itself.
    """
    if old is None or new is None or not isinstance(old.spec, RouteSpec) or not isinstance(new.spec, RouteSpec):
        return 0.0
    before, after = (dict(_shares(document)) for document in (old, new))
    steps = [
        abs(before[rule].get(name, Fraction(0)) - after[rule].get(name, Fraction(0)))
        for rule in before.keys() & after.keys()
        for name in before[rule].keys() | after[rule].keys()
    ]
    return float(max(steps, default=Fraction(0)) * 100)


def _shares(document: Document) -> Iterator[tuple[str, dict[tuple[str, int, str], Fraction]]]:
    if not isinstance(document.spec, RouteSpec):
        return
    for number, rule in enumerate(document.spec.rules):
        total = sum(ref.weight for ref in rule.backend_refs)
        found: dict[tuple[str, int, str], Fraction] = {}
        for ref in rule.backend_refs if total else ():
            key = (qualify(ref.name, document.metadata.namespace), ref.port or 0, ref.subset or "")
            found[key] = found.get(key, Fraction(0)) + Fraction(ref.weight, total)
        yield rule.name or f"#{number}", found


# --- CEL --------------------------------------------------------------------------------------------------------------


class BadExpression(ValueError):
    """The expression is no CEL, or cannot be evaluated for these values; the message is one line."""


@functools.cache
def _environment() -> Any:
    from cel_expr_python import cel  # type: ignore[import-untyped]  # noqa: PLC0415 - 8 MB that only guardrails need

    kinds = dict.fromkeys(VARIABLES, cel.Type.DYN) | {"operation": cel.Type.STRING}
    return cel.NewEnv(variables=kinds)


def _error_type() -> Any:
    from cel_expr_python import cel  # noqa: PLC0415 - as above

    return cel.Type.ERROR


@functools.lru_cache(maxsize=1024)
def compiled(expression: str) -> Any:
    """Raises BadExpression."""
    try:
        return _environment().compile(expression)
    except RuntimeError as error:
        raise BadExpression(_one_line(str(error))) from error


def evaluate(expression: str, facts: Mapping[str, Any]) -> Any:
    """The plain value of an expression. Raises BadExpression."""
    try:
        found = compiled(expression).eval(data=dict(facts))
        if found.type() == _error_type():
            raise BadExpression(_one_line(str(found.plain_value())))
        return found.plain_value()
    except (RuntimeError, TypeError, ValueError) as error:
        if isinstance(error, BadExpression):
            raise
        raise BadExpression(_one_line(str(error))) from error


def _one_line(said: str) -> str:
    """CEL's words without its drawing of the place."""
    first = said.splitlines()[0].removeprefix("INVALID_ARGUMENT: ").removeprefix("ERROR: ")
    return first.removeprefix("<input>:").strip()


def bad_expressions(documents: Iterable[Document]) -> Iterator[tuple[Document, str, str]]:
    """(document, path, why) of every expression that is no CEL or does not give true or false."""
    for document in documents:
        if isinstance(document.spec, GuardrailSpec):
            for number, validation in enumerate(document.spec.validations):
                why = _why_bad(validation.expression)
                if why:
                    yield document, f"spec.validations[{number}].expression", why


def _why_bad(expression: str) -> str:
    try:
        kind = str(compiled(expression).return_type().name())
    except BadExpression as error:
        return f"this is no CEL, expected a condition: {error}"
    return "" if kind.lower() in ("bool", "dyn") else f"the expression gives {kind.lower()!r}, expected true or false"
