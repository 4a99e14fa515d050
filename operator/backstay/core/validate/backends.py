"""Rules about how callers reach a service: hashes, ejections, health checks, statuses to retry."""

from collections.abc import Iterator

from backstay.core.durations import milliseconds
from backstay.core.intents import BackendSpec, RouteSpec
from backstay.core.problems import Problem
from backstay.core.validate.facts import Facts, problem

_BY_HASH = ("RingHash", "Maglev")
LEAST_INTERVAL_MS = 500
"""Proxies look at what is due twice a second."""


def hashed_values(facts: Facts) -> Iterator[Problem]:
    for document, spec in facts.of(BackendSpec):
        balancing, path = spec.load_balancing, "spec.loadBalancing"
        by_hash = balancing.policy in _BY_HASH
        if by_hash and balancing.hash_on is None:
            message = f"{balancing.policy} without `hashOn`, expected the value that it chooses by"
            yield problem(document, f"{path}.policy", "HashWithoutValue", message)
        elif balancing.hash_on is not None and not by_hash:
            message = f"{balancing.policy} looks at no value, expected `hashOn` to be left out"
            yield problem(document, f"{path}.hashOn", "HashWithoutValue", message)
        elif balancing.hash_on is not None and bool(balancing.hash_on.name) == (balancing.hash_on.type == "Source"):
            kind = balancing.hash_on.type
            wanted = "it to be left out: there is one" if kind == "Source" else "one"
            message = f"`name` does not fit type {kind}, expected {wanted}"
            yield problem(document, f"{path}.hashOn", "HashWithoutValue", message)


def outlier_times(facts: Facts) -> Iterator[Problem]:
    for document, spec in facts.of(BackendSpec):
        rule = spec.outlier_detection
        if rule is None:
            continue
        base, most = milliseconds(rule.base_ejection_time), milliseconds(rule.max_ejection_time)
        if base <= 0 or most < base:
            message = (
                f"ejected for {rule.base_ejection_time}, at most {rule.max_ejection_time}; expected 0s < base <= max"
            )
            yield problem(document, "spec.outlierDetection", "HealthTimes", message)


def check_times(facts: Facts) -> Iterator[Problem]:
    for document, spec in facts.of(BackendSpec):
        check = spec.health_check
        if check is None:
            continue
        interval, timeout = milliseconds(check.interval), milliseconds(check.timeout)
        if interval < LEAST_INTERVAL_MS:
            message = f"a check every {check.interval}, expected at least {LEAST_INTERVAL_MS}ms between two"
            yield problem(document, "spec.healthCheck.interval", "HealthTimes", message)
        elif not 0 < timeout <= interval:
            message = (
                f"an answer may take {check.timeout}, expected more than 0s and at most the interval {check.interval}"
            )
            yield problem(document, "spec.healthCheck.timeout", "HealthTimes", message)


def listed_statuses(facts: Facts) -> Iterator[Problem]:
    for document, spec in facts.of(RouteSpec):
        for number, rule in enumerate(spec.rules):
            if rule.retry is None:
                continue
            path, asked = f"spec.rules[{number}].retry", "retriable-status-codes" in rule.retry.retry_on
            if asked and not rule.retry.status_codes:
                message = "`retriable-status-codes` without `statusCodes`, expected the codes"
                yield problem(document, f"{path}.retryOn", "StatusCodesUnused", message)
            elif rule.retry.status_codes and not asked:
                message = "`statusCodes` without `retriable-status-codes` in `retryOn`, expected both"
                yield problem(document, f"{path}.statusCodes", "StatusCodesUnused", message)
