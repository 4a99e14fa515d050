"""The rules that look at a whole commit, as one table.

Rule: a new one is a small function in the module of its subject, a line in OF_COMMIT or OF_DOCUMENT, an entry in
core/codes.py and a case under tests/conformance/intents/. None may depend on another's findings.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Final, TypeAlias

from backstay.core.problems import Problem, Severity
from backstay.core.registry import Registry
from backstay.core.snapshot import Document, DocumentKey
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

OF_COMMIT: Final[tuple[Rule, ...]] = (
    references.duplicate_documents,
    references.several_meshes,
    references.conflicting_hosts,
    references.conflicting_backends,
    references.unknown_subsets,
    references.services_not_there,
    references.unknown_ports,
    references.ports_not_http,
    references.empty_subsets,
    references.workloads_not_there,
    references.ports_not_served,
    routes.timeout_order,
    gateways.shared_ports,
    gateways.selected_workloads,
    gateways.unknown_gateways,
    gateways.hosts_not_served,
    gateways.conflicting_routes,
    gateways.passthrough_routes,
    externals.hosts_of_the_mesh,
    externals.repeated_hosts,
    security.overlapping_authentication,
    security.tls_conflicts,
    security.foreign_trust_domains,
    security.conditions_without_tokens,
)
"""What takes other documents, the Mesh or the registry to say."""

OF_DOCUMENT: Final[tuple[Rule, ...]] = (
    references.duplicate_subsets,
    routes.match_paths,
    routes.match_ports,
    routes.unreachable_rules,
    routes.duplicate_rule_names,
    routes.weight_sums,
    routes.duplicate_backend_refs,
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
    gateways.parent_names,
    backends.hashed_values,
    backends.outlier_times,
    backends.check_times,
    backends.listed_statuses,
    externals.repeated_ports,
    externals.originated_tls,
    security.duplicate_mtls_ports,
    security.policies_without_effect,
    security.bad_blocks,
    security.key_sets,
    security.repeated_issuers,
    security.claim_headers,
    security.plain_key_addresses,
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
    settings.engine_features,
)
"""What a document says by itself: found in it once or never, so a document in which it was not found is not asked again."""

MAY_WAIT: Final[tuple[Rule, ...]] = (references.services_not_there, references.workloads_not_there)
"""The rules that say WAITING: what they say changes with the registry alone."""


Sound: TypeAlias = set[tuple[DocumentKey, str]]
"""Documents, by key and digest, that break no rule of OF_DOCUMENT."""


def check(
    documents: Sequence[Document], registry: Registry | None, *, is_complete: bool, sound: Sound | None = None
) -> Iterator[Problem]:
    """Problems of the commit as a whole. `is_complete` is False when something could not be read: then nothing is said
    to be missing that may stand there. With `sound`, documents that are known to be are not asked again what only they
    can answer, and it holds those of this commit afterwards."""
    facts = gather(documents, registry, is_complete=is_complete)
    for rule in OF_COMMIT:
        yield from _bounded(rule(facts))
    yield from _by_themselves(documents, set() if sound is None else sound)


def _by_themselves(documents: Sequence[Document], sound: Sound) -> list[Problem]:
    doubtful = [document for document in documents if (document.key, document.digest) not in sound]
    facts = gather(doubtful, None, is_complete=True)
    found = [problem for rule in OF_DOCUMENT for problem in _bounded(rule(facts))]
    broken = {problem.document for problem in found}
    sound &= {(document.key, document.digest) for document in documents}
    if len(found) < _MOST:  # else a rule may have ended early
        sound |= {(document.key, document.digest) for document in doubtful if document.key not in broken}
    return found


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
