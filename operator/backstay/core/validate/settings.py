"""Rules about rollout settings: the Mesh's defaults and spec.rollout of any document."""

import ipaddress
import re
from collections.abc import Iterator, Sequence
from typing import Final

from backstay.core.durations import seconds
from backstay.core.intents import DocumentRollout, ExpectRefused, MeshRollout, MeshSpec, TrafficSteps
from backstay.core.problems import Problem, Severity
from backstay.core.snapshot import Document
from backstay.core.validate.facts import Facts, problem


def _document_rollouts(facts: Facts) -> Iterator[tuple[Document, DocumentRollout]]:
    for document in facts.documents:
        rollout = getattr(document.spec, "rollout", None)
        if isinstance(rollout, DocumentRollout):
            yield document, rollout


def _mesh_rollouts(facts: Facts) -> Iterator[tuple[Document, MeshRollout]]:
    for document, spec in facts.of(MeshSpec):
        yield document, spec.rollout


# --- steps ------------------------------------------------------------------------------------------------------------


def step_order(facts: Facts) -> Iterator[Problem]:
    for document, path, steps in _step_lists(facts):
        for index in range(1, len(steps)):
            if steps[index] <= steps[index - 1]:
                message = f"{steps[index]:g} comes after {steps[index - 1]:g}, expected the percentages to ascend"
                yield problem(document, f"{path}[{index}]", "StepsNotAscending", message)


def step_end(facts: Facts) -> Iterator[Problem]:
    for document, path, steps in _step_lists(facts):
        if not steps and path == "spec.rollout.shares":
            yield problem(document, path, "StepsNotComplete", "no shares, expected at least [100]")
        elif steps and steps[-1] != 100:
            message = f"the last step is {steps[-1]:g}, expected 100: the change would never be complete"
            yield problem(document, f"{path}[{len(steps) - 1}]", "StepsNotComplete", message)


def _step_lists(facts: Facts) -> Iterator[tuple[Document, str, Sequence[float]]]:
    for document, rollout in _mesh_rollouts(facts):
        yield document, "spec.rollout.shares", rollout.shares
    for document, settings in _document_rollouts(facts):
        if isinstance(settings, TrafficSteps):
            yield document, "spec.rollout.traffic", settings.traffic


def traffic_with_immediate(facts: Facts) -> Iterator[Problem]:
    for document, rollout in _document_rollouts(facts):
        if isinstance(rollout, TrafficSteps) and rollout.traffic and rollout.strategy == "Immediate":
            message = "`traffic` steps with `strategy: Immediate`, expected one of the two"
            yield problem(document, "spec.rollout.traffic", "TrafficWithImmediate", message)


# --- times and margins ------------------------------------------------------------------------------------------------

LEAST_CONFIRM_SECONDS: Final = 5.0
"""Proxies report once a second and a lease is renewed with every acked report: a few lost ones must not end it."""


def soak_within_deadline(facts: Facts) -> Iterator[Problem]:
    for document, rollout in _mesh_rollouts(facts):
        if seconds(rollout.deadline) <= 0:
            message = f"a deadline of {rollout.deadline} leaves no time for evidence, expected more than 0s"
            yield problem(document, "spec.rollout.deadline", "DeadlineZero", message)
        elif seconds(rollout.soak) > seconds(rollout.deadline):
            message = f"a wave soaks {rollout.soak} but must end within {rollout.deadline}, expected soak <= deadline"
            yield problem(document, "spec.rollout.soak", "SoakTooLong", message)


def confirm_long_enough(facts: Facts) -> Iterator[Problem]:
    for document, rollout in _mesh_rollouts(facts):
        if seconds(rollout.confirm_within) < LEAST_CONFIRM_SECONDS:
            message = (
                f"confirmWithin {rollout.confirm_within} is too short, expected at least {LEAST_CONFIRM_SECONDS:g}s"
            )
            yield problem(document, "spec.rollout.confirmWithin", "ConfirmTooShort", message)


def tolerance_above_margin(facts: Facts) -> Iterator[Problem]:
    for document, rollout in _mesh_rollouts(facts):
        if rollout.tolerance <= rollout.margin:
            message = (
                f"tolerance {rollout.tolerance:g} is not above margin {rollout.margin:g}, expected it to be: "
                "between the two a wave neither passes nor fails"
            )
            path = "spec.rollout.tolerance" if "spec.rollout.tolerance" in document.positions else "spec.rollout.margin"
            yield problem(document, path, "ToleranceOrder", message)


# --- expectRefused ----------------------------------------------------------------------------------------------------

_IDENTITY: Final = re.compile(r"spiffe://[a-z0-9._-]+/ns/[a-z0-9-]+/sa/[a-z0-9.-]+\Z")
_NETWORK: Final = re.compile(r"[0-9A-Fa-f.:]+/[0-9]+\Z")
_WIDEST: Final = {4: 8, 6: 7}
"""Shortest prefix by IP version: the largest private networks are 10.0.0.0/8 and fc00::/7 (RFC 1918, RFC 4193)."""


def refused_sources(facts: Facts) -> Iterator[Problem]:
    for document, path, expected in _expect_refused(facts):
        wrong = _wrong_source(expected.source)
        if wrong:
            yield problem(document, f"{path}.source", "ExpectRefusedSource", wrong)


def _wrong_source(source: str) -> str:
    if _IDENTITY.match(source):
        return ""
    if not _NETWORK.match(source):
        return f"{source!r} names nobody in particular, expected one SPIFFE ID or a CIDR: a deny-all must be caught"
    try:
        network = ipaddress.ip_network(source)
    except ValueError as error:
        return f"{source!r} is not a CIDR ({error}), expected something like '10.2.0.0/16'"
    if network.prefixlen < _WIDEST[network.version]:
        return f"{source!r} is too wide, expected a prefix of at least /{_WIDEST[network.version]}"
    return ""


def refused_paths(facts: Facts) -> Iterator[Problem]:
    for document, path, expected in _expect_refused(facts):
        if expected.path and not re.fullmatch(r"/[^\s?#*]*\*?", expected.path):
            message = f"{expected.path!r} is not a path, expected '/admin' or '/admin/*'"
            yield problem(document, f"{path}.path", "ExpectRefusedPath", message)


def _expect_refused(facts: Facts) -> Iterator[tuple[Document, str, ExpectRefused]]:
    for document, rollout in _document_rollouts(facts):
        for index, expected in enumerate(rollout.expect_refused):
            yield document, f"spec.rollout.expectRefused[{index}]", expected


def immediate_pauses(facts: Facts) -> Iterator[Problem]:
    for document, rollout in _document_rollouts(facts):
        if rollout.strategy == "Immediate" and rollout.on_no_traffic == "hold":
            message = "`onNoTraffic: hold` with `strategy: Immediate` does nothing, expected it to be left out"
            yield problem(document, "spec.rollout.onNoTraffic", "HoldWithImmediate", message, Severity.WARNING)


# --- engines ----------------------------------------------------------------------------------------------------------


def engine_features(facts: Facts) -> Iterator[Problem]:
    """What the sidecar's engines/envoy/supported.py would refuse, said where it is written."""
    for document, spec in facts.of(MeshSpec):
        if "envoy" not in {spec.engine, *(entry.engine for entry in spec.engines)}:
            continue
        entries = ((f"spec.telemetry[{number}].tracing", entry.tracing) for number, entry in enumerate(spec.telemetry))
        for path, tracing in (("spec.tracing", spec.tracing), *entries):
            if tracing is not None and "b3" in tracing.propagation:
                message = "engine envoy reads and writes no b3 headers, expected only 'w3c'"
                at = f"{path}.propagation[{tracing.propagation.index('b3')}]"
                yield problem(document, at, "EngineUnsupported", message)
