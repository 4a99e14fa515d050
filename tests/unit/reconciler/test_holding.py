"""Whose documents are held."""

from backstay.core.rollout.model import Cause, Evidence, HeldSet, Phase, Rollout, Settings, Verdict, WorkloadRollout
from backstay.core.snapshot import Document
from backstay.reconciler.holding import blamed, by_commit, held_sets
from support.meshes import snapshot

TEXT = """
apiVersion: backstay.dev/v1alpha1
kind: Route
metadata: {name: %s}
spec: {hosts: [%s], rules: [{backendRefs: [{name: b}], timeouts: {request: %s}}]}
"""


def docs(**timeouts: str) -> dict[str, Document]:
    if not timeouts:
        return {}
    return dict(snapshot("---".join(TEXT % (name, name, value) for name, value in timeouts.items())).documents)


def rollout(**verdicts: Verdict) -> Rollout:
    workloads = {key: WorkloadRollout(evidence=Evidence(verdict=verdict)) for key, verdict in verdicts.items()}
    return Rollout(
        id="r1",
        cause=Cause(kind="commit", revision="main@sha1:2", commits=("1", "2")),
        settings=Settings(),
        phase=Phase.FAILED,
        stages=(),
        workloads=workloads,
        documents=("Route/shop/a", "Route/shop/b"),
    )


def make(sha: str, documents: dict[str, str]) -> HeldSet:
    return HeldSet(commit=sha, revision="r", rollout="r1", documents=documents, sentence="", since=0.0)


def test_documents_of_healthy_workloads_are_not_blamed() -> None:
    found = blamed(rollout(w1=Verdict.FAIL, w2=Verdict.PASS), {"Route/shop/a": ["w1"], "Route/shop/b": ["w2"]})
    assert found == {"Route/shop/a"}


def test_without_a_failing_workload_all_documents_are_blamed() -> None:
    assert blamed(rollout(w1=Verdict.INCONCLUSIVE), {}) == {"Route/shop/a", "Route/shop/b"}


def test_a_commit_is_named_with_everything_it_changed() -> None:
    before = docs(a="1s", b="1s")
    commits = [("one", docs(a="2s", b="1s")), ("two", docs(a="2s", b="2s", c="2s"))]
    assert by_commit({"Route/shop/b"}, commits, before) == {"two": {"Route/shop/b", "Route/shop/c"}}


def test_what_says_the_same_as_stable_needs_no_holding() -> None:
    stable, desired = docs(a="1s", b="1s"), docs(a="2s", b="1s")
    (held,) = held_sets({"two": {"Route/shop/a", "Route/shop/b"}}, desired, stable, make)
    assert held.documents == {"Route/shop/a": desired["Route/shop/a"].digest}


def test_a_removed_document_is_held_as_removed() -> None:
    (held,) = held_sets({"two": {"Route/shop/a"}}, {}, docs(a="1s"), make)
    assert held.documents == {"Route/shop/a": ""}
