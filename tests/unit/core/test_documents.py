"""Reading documents: what a Document holds, budgets across files, and what the cache saves. What is wrong with a
document is in tests/conformance/intents."""

from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from backstay.core.documents import Cache, Limits, Parsed, digest_of, parse
from backstay.core.intents import BackendSpec, Metadata, SubsetSpec
from backstay.core.problems import Problem
from backstay.core.snapshot import Document

BACKEND = b"""# how to reach it
apiVersion: backstay.dev/v1alpha1
kind: Backend
metadata:
  name: sa-logic
spec:
  service: sa-logic
  subsets: [{name: v2, labels: {version: v2}}]
"""
RAW: dict[str, Any] = {
    "apiVersion": "backstay.dev/v1alpha1",
    "kind": "Backend",
    "metadata": {"name": "sa-logic"},
    "spec": {"service": "sa-logic", "subsets": [{"name": "v2", "labels": {"version": "v2"}}]},
}


def only_document(data: bytes, **options: Any) -> Document:
    parsed = parse({"a.yaml": data}, **options)
    assert parsed.problems == ()
    (document,) = parsed.documents
    return document


def test_a_document_knows_what_it_says_and_where() -> None:
    document = only_document(BACKEND, default_namespace="shop")
    expected = Document(
        kind="Backend",
        metadata=Metadata(name="sa-logic", namespace="shop"),
        spec=BackendSpec(service="sa-logic", subsets=(SubsetSpec(name="v2", labels={"version": "v2"}),)),
        file="a.yaml",
        line=2,
        positions={},
        raw={},
        digest=digest_of(RAW),
    )
    assert document == expected
    assert document.raw == RAW
    assert document.key == "Backend/shop/sa-logic"
    assert document.place("spec.subsets[0].labels.version") == "a.yaml:8"
    assert document.place("spec.tls.mode") == "a.yaml:7"


def test_comments_order_and_place_do_not_change_the_digest() -> None:
    rewritten = msgspec.json.encode(dict(reversed(RAW.items())))
    assert only_document(rewritten).digest == only_document(BACKEND).digest


def test_what_is_said_changes_the_digest() -> None:
    assert only_document(BACKEND.replace(b"v2}}]", b"v3}}]")).digest != only_document(BACKEND).digest


def test_a_namespace_that_is_given_stays() -> None:
    data = BACKEND.replace(b"name: sa-logic\n", b"name: sa-logic\n  namespace: own\n")
    assert only_document(data, default_namespace="shop").metadata.namespace == "own"


def test_documents_come_in_the_order_of_file_names() -> None:
    files = {name: BACKEND.replace(b"name: sa-logic", b"name: " + name[:1].encode()) for name in ("c.yaml", "a.yaml")}
    assert [document.file for document in parse(files).documents] == ["a.yaml", "c.yaml"]


def test_too_many_files_are_read_up_to_the_cap() -> None:
    files = {"a.yaml": BACKEND, "b.yaml": BACKEND, "c.yaml": BACKEND}
    parsed = parse(files, limits=Limits(files=2))
    message = "from this file on nothing was read: the commit has 3 files, expected at most 2"
    assert len(parsed.documents) == 2
    assert parsed.problems == (Problem(file="c.yaml", message=message, reason="LimitExceeded"),)


def test_too_many_values_are_read_up_to_the_cap() -> None:
    parsed = parse({"a.yaml": BACKEND, "b.yaml": BACKEND}, limits=Limits(nodes=15))
    assert [document.file for document in parsed.documents] == ["a.yaml"]
    assert [(problem.file, problem.reason) for problem in parsed.problems] == [("b.yaml", "LimitExceeded")]


def test_more_problems_than_anybody_reads_are_counted() -> None:
    parsed = parse({"a.yaml": b"kind: x\n---\n" * 200})
    assert len(parsed.problems) == 101
    assert str(parsed.problems[-1]) == "a.yaml: 300 more problems in this file are not shown [TooManyProblems]"


def test_of_a_document_too_large_to_explain_the_first_mistake_is_told_with_its_place() -> None:
    labels = "".join(f"    l{number}: v\n" for number in range(11_000))
    head = "apiVersion: backstay.dev/v1alpha1\nkind: Backend\nmetadata:\n  name: a\n  labels:\n"
    (problem,) = parse({"a.yaml": f"{head}{labels}spec: {{service: 5}}\n".encode()}).problems
    assert str(problem) == "a.yaml:11006:17: spec.service: expected str, got int [WrongShape]"


def test_a_file_that_was_read_before_is_not_read_again() -> None:
    cache = Cache()
    files = {"a.yaml": BACKEND, "b.yaml": b"kind: ["}
    first = parse(files, valid_cache=cache)
    second = parse({**files, "c.yaml": BACKEND}, valid_cache=cache)
    assert (cache.hits, cache.misses) == (2, 3)
    assert second.documents[0] is first.documents[0]
    assert second.problems == first.problems


def test_the_cache_tells_names_namespaces_and_limits_apart() -> None:
    cache = Cache()
    parse({"a.yaml": BACKEND}, valid_cache=cache)
    assert parse({"b.yaml": BACKEND}, valid_cache=cache).documents[0].file == "b.yaml"
    assert parse({"a.yaml": BACKEND}, valid_cache=cache, default_namespace="x").documents[0].metadata.namespace == "x"
    assert parse({"a.yaml": BACKEND}, valid_cache=cache, limits=Limits(file_bytes=1)).documents == ()


def test_the_cache_forgets_what_was_not_used_for_longest() -> None:
    cache = Cache(files=2)
    for name in ("a", "b", "a", "c", "a", "b"):
        parse({name: BACKEND}, valid_cache=cache)
    assert (cache.hits, cache.misses) == (2, 4)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
envelopes = st.fixed_dictionaries(
    {
        "apiVersion": st.just("backstay.dev/v1alpha1") | json_values,
        "kind": st.sampled_from(["Mesh", "Route", "Backend", "Authentication", "Authorization"]) | json_values,
        "metadata": st.just({"name": "a"}) | json_values,
        "spec": json_values,
    }
)


@given(envelopes)
@settings(max_examples=300, deadline=None)
def test_any_envelope_is_a_document_or_has_problems(raw: dict[str, Any]) -> None:
    parsed = parse({"a.yaml": msgspec.json.encode(raw)})
    assert bool(parsed.documents) != bool(parsed.problems)


@given(st.dictionaries(st.text(max_size=10), st.binary(max_size=100), max_size=3))
@settings(max_examples=200, deadline=None)
def test_any_files_are_read_or_refused(files: dict[str, bytes]) -> None:
    assert isinstance(parse(files), Parsed)
