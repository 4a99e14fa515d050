"""Runs the cases of this folder: a whole repository in, every problem out. README.md describes their form."""

import codecs
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from backstay.core.codes import EXPLANATIONS, code_of
from backstay.core.problems import Problem, Severity
from backstay.core.registry import Instance, Registry, Service, ServicePort, Workload
from backstay.core.validate import Cache, validate

HERE: Final = Path(__file__).parent
PREFIXES: Final = {Severity.ERROR: "", Severity.WARNING: "warning: ", Severity.WAITING: "waiting: "}
LEAST_INVALID: Final = 60
LEAST_VALID: Final = 15


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    title: str
    flags: frozenset[str]
    files: dict[str, bytes]
    problems: list[str]
    source: str
    """All of it, as it stands in the file."""


def cases_of(path: Path) -> Iterator[Case]:
    for source in re.split(r"^(?==== )", path.read_text(encoding="utf-8"), flags=re.MULTILINE):
        if source:
            yield _case(source)


def _case(source: str) -> Case:
    head, *sections = re.split(r"^>>> ", source, flags=re.MULTILINE)
    title, _, flags = head.removeprefix("=== ").strip().partition(" [")
    files: dict[str, bytes] = {}
    problems: list[str] = []
    for section in sections:
        name, _, body = section.partition("\n")
        if name == "problems":
            problems = body.splitlines()
        else:
            files[_text(name, flags)] = _content(body, flags)
    return Case(title=title, flags=frozenset(flags.rstrip("]").split()), files=files, problems=problems, source=source)


def _text(name: str, flags: str) -> str:
    return codecs.decode(name, "unicode_escape") if "escapes" in flags else name


def _content(body: str, flags: str) -> bytes:
    for kind in ("Route", "Backend", "Mesh", "Authentication", "Authorization", "Gateway"):
        envelope = f"apiVersion: backstay.dev/v1alpha1\nkind: {kind}\nmetadata: {{name: a}}"
        body = body.replace(f"{{{kind.lower()}}}", envelope)
    if "escapes" in flags:
        return codecs.decode(body.encode("ascii"), "unicode_escape").encode("latin-1")
    return body.encode()


def _registry() -> Registry:
    raw: dict[str, Any] = yaml.safe_load((HERE / "registry.yaml").read_text(encoding="utf-8"))
    return Registry(
        services={key: _service(key, value) for key, value in raw["services"].items()},
        workloads={key: _workload(key, value) for key, value in raw["workloads"].items()},
        instances={
            key: Instance(id=key, workload=value["workload"], address="127.0.0.1", labels=value["labels"])
            for key, value in raw["instances"].items()
        },
    )


def _service(key: str, raw: dict[str, Any]) -> Service:
    name, _, namespace = key.partition(".")
    ports = tuple(
        ServicePort(port=port["port"], target_port=port["targetPort"], protocol=port.get("protocol", "http"))
        for port in raw["ports"]
    )
    return Service(name=name, namespace=namespace, ports=ports)


def _workload(key: str, raw: dict[str, Any]) -> Workload:
    namespace, _, name = key.partition("/")
    return Workload(
        name=name,
        namespace=namespace,
        service_account=name,
        services=tuple(raw["services"]),
        ports=tuple((port, "http") for port in raw["ports"]),
    )


def found_in(case: Case, cache: Cache | None = None) -> tuple[Problem, ...]:
    registry = _registry() if "registry" in case.flags else None
    outcome = validate(case.files, revision="main@sha1:0", registry=registry, cache=cache)
    has_errors = any(problem.severity is Severity.ERROR for problem in outcome.problems)
    assert (outcome.snapshot is None) == has_errors
    return outcome.problems


def lines(problems: tuple[Problem, ...]) -> list[str]:
    return [PREFIXES[problem.severity] + str(problem) for problem in problems]


CASES: Final = [(path.stem, case) for path in sorted(HERE.glob("*.cases")) for case in cases_of(path)]


@pytest.mark.parametrize("case", [pytest.param(case, id=f"{stem}: {case.title}") for stem, case in CASES])
def test_finds_exactly_these_problems(case: Case) -> None:
    assert lines(found_in(case)) == case.problems


@pytest.mark.parametrize("case", [pytest.param(case, id=f"{stem}: {case.title}") for stem, case in CASES])
def test_finds_the_same_where_every_file_was_judged_by_itself_before(case: Case) -> None:
    """What is remembered of a document is only what no other document can change."""
    remembered = Cache()
    for name, data in case.files.items():
        alone = Cache()
        validate({name: data}, revision="main@sha1:0", cache=alone)
        remembered.sound |= alone.sound
    assert lines(found_in(case, remembered)) == case.problems


def test_there_are_enough_cases() -> None:
    assert sum(bool(case.problems) for _, case in CASES) >= LEAST_INVALID
    assert sum(not case.problems for _, case in CASES) >= LEAST_VALID


UNWRITABLE: Final = frozenset(
    {"FileTooLarge", "TooManyProblems", "WrongShape", "Symlink", "Submodule", "InvalidPath", "TrustDomainMismatch"}
)
"""Reasons whose cases are made by programs (tests/unit/core), by git (tests/ports) or by the reconciler."""
JUDGED: Final = frozenset(
    {"GuardrailDenied", "GuardrailWarned", "GuardrailAudited", "ExpectationFailed", "ExpectationWaiting",
     "AccessWidened", "AccessNarrowed", "OutcomeChanges"}
)  # fmt: skip
"""Reasons that a change has, not a commit by itself (tests/unit/core/test_guardrails.py and its neighbours)."""


def test_every_reason_of_validation_has_a_case() -> None:
    shown = {problem.reason for _, case in CASES for problem in found_in(case)}
    explained = {item.reason for item in EXPLANATIONS if item.code.startswith("BS1")}
    assert explained - shown == UNWRITABLE | JUDGED
    assert all(code_of(reason) for reason in shown)


def accept() -> None:
    """Writes what is found into the case files."""
    for path in sorted(HERE.glob("*.cases")):
        texts = []
        for case in cases_of(path):
            body = re.split(r"^>>> problems$", case.source, flags=re.MULTILINE)[0].rstrip("\n") + "\n"
            found = lines(found_in(case))
            texts.append(body + (">>> problems\n" + "\n".join(found) + "\n" if found else ""))
        path.write_text("".join(texts), encoding="utf-8")


if __name__ == "__main__" and "--accept" in sys.argv:
    accept()
