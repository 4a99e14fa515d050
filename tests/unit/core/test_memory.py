"""What is remembered comes back as it was, places included."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backstay.core import memory
from support.meshes import snapshot

TEXT = """
apiVersion: backstay.dev/v1alpha1
kind: Route
metadata: {name: b}
spec: {hosts: [b], rules: [{backendRefs: [{name: b}], timeouts: {request: %ds}}]}
"""


@given(st.integers(min_value=1, max_value=1000))
def test_a_snapshot_survives_being_remembered(timeout: int) -> None:
    before = snapshot(TEXT % timeout)
    digest, blobs = memory.remember(before)
    after = memory.recall(digest, blobs)
    assert after == before
    assert after.documents["Route/shop/b"].positions == before.documents["Route/shop/b"].positions


def test_equal_documents_share_a_blob() -> None:
    _, one = memory.remember(snapshot(TEXT % 1, revision="main@sha1:1"))
    _, other = memory.remember(snapshot(TEXT % 1, revision="main@sha1:2"))
    assert len(one.keys() & other.keys()) == 1


def test_a_missing_blob_is_named() -> None:
    digest, blobs = memory.remember(snapshot(TEXT % 1))
    document = memory.document_blobs(blobs[digest])[0]
    with pytest.raises(KeyError, match=document):
        memory.recall(digest, {key: value for key, value in blobs.items() if key != document})


def test_known_blobs_change_nothing_but_the_work() -> None:
    known = memory.Blobs()
    first, changed = snapshot(TEXT % 1), snapshot(TEXT % 2)
    for each in (first, changed, first):
        assert memory.remember(each, known) == memory.remember(each)
    known.keep_only([changed])
    assert memory.remember(first, known) == memory.remember(first)


def test_a_document_is_encoded_once_while_it_is_kept() -> None:
    known, document = memory.Blobs(), snapshot(TEXT % 1).documents["Route/shop/b"]
    assert known.of(document)[1] is known.of(document)[1]
    before = known.of(document)[1]
    known.keep_only([])
    assert known.of(document)[1] is not before
