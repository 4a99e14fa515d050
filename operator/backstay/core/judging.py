"""What is judged of a valid commit beyond its documents: the live guardrails, and its own expectations.

The operator asks it of every commit it takes up, `backstay review` of every change: a merge button is no guarantee.
"""

from dataclasses import dataclass

from backstay.core import expectations, guardrails
from backstay.core.compile import PartCache
from backstay.core.evaluate import World, world
from backstay.core.intents import ExpectationSpec
from backstay.core.problems import Problem, Severity
from backstay.core.registry import Registry
from backstay.core.snapshot import Snapshot
from backstay.core.validate import rules


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    problems: tuple[Problem, ...] = ()
    """Of any severity; an error makes the commit invalid."""

    @property
    def errors(self) -> tuple[Problem, ...]:
        return tuple(problem for problem in self.problems if problem.severity is Severity.ERROR)

    @property
    def remarks(self) -> tuple[Problem, ...]:
        return tuple(problem for problem in self.problems if problem.severity is not Severity.ERROR)


def judge(
    live: Snapshot | None, wanted: Snapshot, registry: Registry, cache: PartCache | None = None, *, audit: bool = False
) -> Judged:
    """Guardrails and expectations. What guardrails only note (`Audit`) is told if `audit`."""
    findings = guardrails.judge(live, wanted)
    told = [finding.problem() for finding in findings if audit or finding.severity != "Audit"]
    if any(isinstance(document.spec, ExpectationSpec) for document in wanted.documents.values()):
        told += expectations.check(world(settled(wanted, registry), registry, cache))
    return Judged(problems=tuple(told))


def settled(snapshot: Snapshot, registry: Registry) -> Snapshot:
    """Without documents that wait for something the registry does not have: they do nothing yet."""
    waiting = {problem.document for problem in rules.waiting(tuple(snapshot.documents.values()), registry)}
    if not waiting:
        return snapshot
    left = {key: item for key, item in snapshot.documents.items() if key not in waiting}
    return Snapshot(revision=snapshot.revision, documents=left)


def check_world(live: Snapshot | None, wanted: Snapshot, asked: World, *, audit: bool = False) -> Judged:
    """The same for a snapshot that is compiled already; guardrails are about documents that wait as well."""
    findings = guardrails.judge(live, wanted)
    told = [finding.problem() for finding in findings if audit or finding.severity != "Audit"]
    return Judged(problems=(*told, *expectations.check(asked)))
