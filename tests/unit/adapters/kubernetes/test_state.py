"""How blobs are packed, and which packs are written anew. The store itself is tested on a real API server."""

from backstay.adapters.kubernetes.state import PACK_BYTES, chunked, stale_packs


def test_blobs_are_packed_up_to_the_limit_and_in_order() -> None:
    blobs = {"a": b"1" * 4, "b": b"2" * 4, "c": b"3" * 4, "d": b"4" * 20, "e": b""}
    assert list(chunked(blobs, 10)) == [{"a": b"1" * 4, "b": b"2" * 4}, {"c": b"3" * 4}, {"d": b"4" * 20}, {"e": b""}]
    assert list(chunked({})) == []


def test_a_pack_is_written_anew_once_most_of_it_is_forgotten() -> None:
    packs = {"whole": {"a": 10}, "mostly": {"b": 10, "c": 11}, "half": {"d": 10, "e": 10}, "gone": {"f": 10}}
    assert stale_packs(packs, frozenset({"a", "b", "d"})) == {"mostly", "gone"}


def test_many_small_packs_are_put_together_and_large_ones_stay() -> None:
    packs = {f"p{n}": {f"d{n}": 10} for n in range(6)} | {"large": {"x": PACK_BYTES}}
    keep = frozenset(digest for sizes in packs.values() for digest in sizes)
    assert stale_packs(packs, keep, most=7) == set()
    assert stale_packs(packs, keep, most=6) == {f"p{n}" for n in range(6)}
