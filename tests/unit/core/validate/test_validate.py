"""What `validate` makes of files, refusals and a registry; which rule finds what is in tests/conformance/intents."""

import time
from typing import Final

from hypothesis import given, settings
from hypothesis import strategies as st

from backstay.core.problems import Problem, Severity
from backstay.core.registry import Registry
from backstay.core.validate import Cache, Validated, rules, validate

HEAD: Final = "apiVersion: backstay.dev/v1alpha1\nkind: {}\nmetadata: {{name: {}}}\n"


def backend(name: str = "a", service: str = "sa-logic") -> bytes:
    return (HEAD.format("Backend", name) + f"spec: {{service: {service}}}\n").encode()


def test_a_valid_commit_is_a_snapshot() -> None:
    outcome = validate({"a.yaml": backend()}, revision="main@sha1:1")
    assert outcome.problems == ()
    assert outcome.snapshot is not None
    assert outcome.snapshot.revision == "main@sha1:1"
    assert list(outcome.snapshot.documents) == ["Backend/default/a"]


def test_what_the_source_refused_makes_the_commit_invalid() -> None:
    refused = [("link.yaml", "Symlink", "is a symbolic link, expected a regular file")]
    outcome = validate({"a.yaml": backend()}, revision="r", refused=refused)
    assert outcome.snapshot is None
    assert outcome.problems == (
        Problem(file="link.yaml", reason="Symlink", message="is a symbolic link, expected a regular file"),
    )
    assert [document.key for document in outcome.documents] == ["Backend/default/a"]


def test_what_waits_is_in_the_snapshot_and_named() -> None:
    outcome = validate({"a.yaml": backend(), "b.yaml": backend("b", "x")}, revision="r", registry=Registry())
    assert outcome.snapshot is not None
    assert outcome.waiting == {"Backend/default/a", "Backend/default/b"}
    assert outcome.errors == ()


def test_the_rules_that_may_wait_are_all_that_say_waiting() -> None:
    """The loop asks them alone whenever the registry changes."""
    workload = (HEAD.format("Authorization", "w") + "spec: {selector: {workloads: [nobody]}, rules: [{}]}\n").encode()
    route = (HEAD.format("Route", "r") + "spec: {hosts: [a], rules: [{backendRefs: [{name: x}]}]}\n").encode()
    files = {"a.yaml": backend(), "w.yaml": workload, "r.yaml": route}
    outcome = validate(files, revision="r", registry=Registry())
    said = [problem for problem in outcome.problems if problem.severity is Severity.WAITING]
    assert {problem.reason for problem in said} == {"ServiceNotFound", "WorkloadNotFound"}
    assert sorted(rules.waiting(outcome.documents, Registry())) == said


def test_a_warning_does_not_stop_a_commit() -> None:
    data = (HEAD.format("Authorization", "a") + "spec: {action: Deny}\n").encode()
    outcome = validate({"a.yaml": data}, revision="r")
    assert outcome.snapshot is not None
    assert [problem.reason for problem in outcome.problems] == ["PolicyWithoutEffect"]


def test_a_cache_changes_nothing_but_the_work() -> None:
    cache = Cache()
    files = {"a.yaml": backend(), "b.yaml": b"kind: [", "c.yaml": backend()}
    plain = validate(files, revision="r")
    assert validate(files, revision="r", cache=cache) == plain == validate(files, revision="r", cache=cache)
    assert (cache.hits, cache.misses) == (3, 3)


def test_everything_that_waits_is_named_however_much_it_is() -> None:
    files = {"a.yaml": b"---\n".join(backend(f"b{number}", f"s{number}") for number in range(900))}
    outcome = validate(files, revision="r", registry=Registry())
    assert len(outcome.waiting) == 900


def test_many_mistakes_of_one_kind_are_cut_off_and_still_an_error() -> None:
    outcome = validate({"a.yaml": b"---\n".join([backend()] * 900)}, revision="r")
    assert outcome.snapshot is None
    assert sum(problem.reason == "DuplicateDocument" for problem in outcome.problems) == 500


def route_of(matches: int, rules: int) -> bytes:
    """Rules that must all be compared with each other: none covers another."""
    text = HEAD.format("Route", "a") + "spec:\n  hosts: [x]\n  rules:\n"
    for rule in range(rules):
        alternatives = ", ".join(f"{{path: {{value: /{rule}-{match}}}}}" for match in range(matches))
        text += f"  - {{matches: [{alternatives}], backendRefs: [{{name: x}}]}}\n"
    return text.encode()


def test_a_route_as_large_as_may_be_is_judged_within_a_second() -> None:
    files = {"a.yaml": route_of(matches=32, rules=256)}
    started = time.process_time()
    outcome = validate(files, revision="r")
    assert time.process_time() - started < 1.0
    assert outcome.problems == ()


def test_in_a_route_of_256_rules_the_last_is_compared_with_all() -> None:
    data = route_of(matches=1, rules=255) + b"  - {matches: [{path: {value: /0-0/x}}], backendRefs: [{name: x}]}\n"
    outcome = validate({"a.yaml": data}, revision="r")
    assert [problem.path for problem in outcome.problems] == ["spec.rules[255]"]


words = st.sampled_from(["a", "b.c", "/", "/a", "GET", "v1", "*", "5s", "0s", "100", "STRICT", "DISABLE", "Immediate"])


@given(
    st.lists(st.tuples(st.sampled_from(["Route", "Backend", "Authentication", "Authorization", "Mesh"]), words, words))
)
@settings(max_examples=200, deadline=None)
def test_any_documents_are_judged(parts: list[tuple[str, str, str]]) -> None:
    specs = {
        "Route": "{{hosts: ['{0}'], rules: [{{backendRefs: [{{name: '{1}', subset: '{0}'}}]}}]}}",
        "Backend": "{{service: '{0}', tls: {{mode: '{1}'}}}}",
        "Authentication": "{{selector: {{workloads: ['{0}']}}, mtls: {{mode: '{1}'}}}}",
        "Authorization": "{{rules: [{{to: [{{paths: ['{0}'], methods: ['{1}']}}]}}]}}",
        "Mesh": "{{rollout: {{soak: '{0}', deadline: '{1}'}}}}",
    }
    text = "---\n".join(
        HEAD.format(kind, f"n{number}") + f"spec: {specs[kind].format(*rest)}\n"
        for number, (kind, *rest) in enumerate(parts)
    )
    assert isinstance(validate({"a.yaml": text.encode()}, revision="r", registry=Registry()), Validated)
