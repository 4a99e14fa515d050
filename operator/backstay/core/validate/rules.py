"""The rules that look at a whole commit, as one table.

Rule: a new one is a small function in the module of its subject, a line in RULES, an entry in core/codes.py and a case
under tests/conformance/intents/. None may depend on another's findings.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from backstay.core.problems import Problem, Severity
from backstay.core.registry import Registry
from backstay.core.snapshot import Document
from backstay.core.validate import (
    backends,
    externals,
    filters,
    gateways,
    patterns,
    references,
    routes,
    security,
    settings,
)
from backstay.core.validate.facts import Rule, gather

RULES: Final[tuple[Rule, ...]] = (
    references.duplicate_documents,
    references.several_meshes,
    references.conflicting_hosts,
    references.conflicting_backends,
    references.duplicate_subsets,
    references.unknown_subsets,
    references.services_not_there,
    references.unknown_ports,
    references.ports_not_http,
    references.empty_subsets,
    references.workloads_not_there,
    references.ports_not_served,
    routes.match_paths,
    routes.match_ports,
    routes.unreachable_rules,
    routes.duplicate_rule_names,
    routes.weight_sums,
    routes.duplicate_backend_refs,
    routes.timeout_order,
    routes.retries_never_on_timeout,
    routes.retries_without_condition,
    routes.faults_without_effect,
    routes.match_values,
    routes.never_matching,
    patterns.bad_patterns,
    filters.rules_without_backends,
    filters.mismatched_filters,
    filters.repeated_filters,
    filters.conflicting_filters,
    filters.path_modifiers,
    filters.filters_without_effect,
    filters.redirect_status,
    filters.forbidden_headers,
    filters.rate_limit_periods,
    filters.cors_for_everybody,
    filters.sticky_headers,
    gateways.listener_names,
    gateways.listener_ports,
    gateways.listener_hosts,
    gateways.listener_tls,
    gateways.redirects_to_nowhere,
    gateways.shared_ports,
    gateways.selected_workloads,
    gateways.parent_names,
    gateways.unknown_gateways,
    gateways.hosts_not_served,
    gateways.conflicting_routes,
    gateways.passthrough_routes,
    backends.hashed_values,
    backends.outlier_times,
    backends.check_times,
    backends.listed_statuses,
    externals.hosts_of_the_mesh,
    externals.repeated_hosts,
    externals.repeated_ports,
    externals.originated_tls,
    security.overlapping_authentication,
    security.duplicate_mtls_ports,
    security.tls_conflicts,
    security.foreign_trust_domains,
    security.policies_without_effect,
    security.bad_blocks,
    security.key_sets,
    security.repeated_issuers,
    security.claim_headers,
    security.plain_key_addresses,
    security.conditions_without_tokens,
    security.bad_guardrails,
    settings.step_order,
    settings.step_end,
    settings.traffic_with_immediate,
    settings.soak_within_deadline,
    settings.confirm_long_enough,
    settings.tolerance_above_margin,
    settings.refused_sources,
    settings.refused_paths,
    settings.immediate_pauses,
)

MAY_WAIT: Final[tuple[Rule, ...]] = (references.services_not_there, references.workloads_not_there)
"""The rules that say WAITING: what they say changes with the registry alone."""


def check(documents: Sequence[Document], registry: Registry | None, *, is_complete: bool) -> Iterator[Problem]:
    """Problems of the commit as a whole. `is_complete` is False when something could not be read: then nothing is said
    to be missing that may stand there."""
    facts = gather(documents, registry, is_complete=is_complete)
    for rule in RULES:
        yield from _bounded(rule(facts))


def waiting(documents: Sequence[Document], registry: Registry) -> Iterator[Problem]:
    """What valid documents name that the registry does not have yet."""
    facts = gather(documents, registry, is_complete=True)
    for rule in MAY_WAIT:
        yield from (found for found in rule(facts) if found.severity is Severity.WAITING)


_MOST: Final = 500  # problems of one rule; nobody reads more, and making them takes time


def _bounded(problems: Iterable[Problem]) -> Iterator[Problem]:
    """What waits is all said: the operator goes by it. Of errors and warnings the first ones do."""
    count = 0
    for found in problems:
        yield found
        count += found.severity is not Severity.WAITING
        if count >= _MOST:
            return
