"""What of a request is decided by."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backstay.config.target import OWN_PREFIX, UNSEEN_FIELDS, clean_target, is_seen, resolve_dots
from backstay.sidecar.engines.python import framing


@pytest.mark.parametrize(
    ("path", "resolved"),
    [
        (b"/a/./b", b"/a/b"),
        (b"/a/../b", b"/b"),
        (b"/../../b", b"/b"),
        (b"/a/..", b"/"),
        (b"/a/.", b"/a/"),
        (b"/a/%2e%2E/b", b"/b"),
        (b"/a/.%2e", b"/"),
        (b"/a/...", b"/a/..."),
        (b"/.well-known/x", b"/.well-known/x"),
        (b"//a", b"//a"),
        (b"/a%2fb", b"/a%2fb"),
    ],
)
def test_dot_segments_are_resolved(path: bytes, resolved: bytes) -> None:
    assert resolve_dots(path) == resolved


@given(st.lists(st.sampled_from([b"a", b"..", b".", b"%2e", b"%2E.", b"", b"b%41"]), max_size=8))
def test_resolving_twice_changes_nothing_and_never_leaves_the_root(segments: list[bytes]) -> None:
    once = resolve_dots(b"/" + b"/".join(segments))
    assert once.startswith(b"/")
    assert resolve_dots(once) == once
    assert b".." not in once.split(b"/")


@pytest.mark.parametrize("target", [b"/a b", b"/a\\b", b"/a#b", b"/%", b"/%0", b"/%zz", b"/%00", b"/\xff", b"*"])
def test_targets_that_can_be_read_in_two_ways_are_refused(target: bytes) -> None:
    assert clean_target(target, b"GET") is None


def test_the_data_plane_hides_the_same_fields_from_matchers() -> None:
    assert framing._OWN_PREFIX == OWN_PREFIX
    assert frozenset(framing._SPECIAL) == UNSEEN_FIELDS


@pytest.mark.parametrize("name", [b"Host", b"X-Backstay-Peer", b"x_backstay_peer", b"Content_Length", b"TE"])
def test_fields_between_hops_are_not_seen(name: bytes) -> None:
    assert not is_seen(name)


@pytest.mark.parametrize("name", [b"X-Version", b"cookie", b"Authorization"])
def test_ordinary_fields_are_seen(name: bytes) -> None:
    assert is_seen(name)
