import msgspec
import pytest

from backstay.config.model import Backend, HostRoutes, Manifest, Part, config_digest, digest_of, encode_part
from backstay.config.wire import MAX_MESSAGE_BYTES, Assign, Offer
from backstay.control.links import AssignFrame
from backstay.control.offers import MAX_INLINE_BYTES, Library, PartMissing, batches


def made(*parts: Part, workload: str = "shop/x") -> tuple[Manifest, dict[str, bytes]]:
    encoded = {part.key: encode_part(part) for part in parts}
    manifest = Manifest(workload=workload, parts={key: digest_of(data) for key, data in encoded.items()})
    return manifest, {digest_of(data): data for data in encoded.values()}


A, A2 = Backend(service="a.shop", port=80), Backend(service="a.shop", port=80, connect_timeout_ms=1)
B, ROUTES = Backend(service="b.shop", port=80), HostRoutes(host="a.shop", port=80, rules=())


def offer_of(library: Library, digest: str, *believed: str) -> Offer:
    return msgspec.json.decode(library.offer(digest, believed), type=Offer)


def test_a_proxy_that_has_nothing_gets_everything_and_whose_config_it_is() -> None:
    library = Library()
    manifest, parts = made(A, ROUTES)
    digest = library.add(manifest, parts)
    assert digest == config_digest(manifest)
    assert offer_of(library, digest) == Offer(
        digest=digest,
        workload="shop/x",
        schema=1,
        set=manifest.parts,
        parts={name: msgspec.Raw(data) for name, data in parts.items()},
    )


def test_a_change_costs_what_differs() -> None:
    library = Library()
    (old, old_parts), (new, new_parts) = made(A, B, ROUTES), made(A2, ROUTES)
    base, digest = library.add(old, old_parts), library.add(new, new_parts)
    changed = new.parts["backend/a.shop:80"]
    offer = offer_of(library, digest, base)
    assert (offer.base, offer.set, offer.unset) == (base, {"backend/a.shop:80": changed}, ["backend/b.shop:80"])
    assert {name: bytes(raw) for name, raw in offer.parts.items()} == {changed: new_parts[changed]}


def test_parts_of_any_believed_config_are_not_sent_again() -> None:
    library = Library()
    stable, candidate = made(A, ROUTES), made(A2, ROUTES)
    first, second = library.add(*stable), library.add(*candidate)
    both = made(A2, B, ROUTES)
    digest = library.add(*both)
    offer = offer_of(library, digest, first, second)
    assert (offer.base, list(offer.parts)) == (second, [both[0].parts["backend/b.shop:80"]])


def test_what_a_proxy_has_is_named_only() -> None:
    library = Library()
    digest = library.add(*made(A))
    assert offer_of(library, digest, digest) == Offer(digest=digest, base=digest)


def test_beliefs_the_library_does_not_know_are_no_base() -> None:
    library = Library()
    manifest, parts = made(A)
    assert offer_of(library, library.add(manifest, parts), "unknown").base == ""


def test_one_offer_is_shared_by_all_proxies_that_start_from_the_same_place() -> None:
    library = Library()
    base, digest = library.add(*made(A)), library.add(*made(A2))
    assert library.offer(digest, [base]) is library.offer(digest, [base, "unknown"])


def test_an_assignment_without_its_parts_is_refused_by_name() -> None:
    manifest, _ = made(A)
    with pytest.raises(PartMissing, match=r"of shop/x: part 'backend/a.shop:80' was not handed over$"):
        Library().add(manifest, {})


def test_services_are_those_of_the_backend_parts() -> None:
    library = Library()
    one, two = library.add(*made(A, ROUTES)), library.add(*made(B))
    assert library.services([one, two, "unknown"]) == {"a.shop:80", "b.shop:80"}


def test_pruning_forgets_what_nobody_has_or_should_have() -> None:
    library = Library()
    (old, old_parts), (new, new_parts) = made(B), made(A)
    gone, kept = library.add(old, old_parts), library.add(new, new_parts)
    library.prune({kept})
    assert (gone in library, kept in library) == (False, True)
    assert library.part(old.parts["backend/b.shop:80"]) is None
    assert library.part(new.parts["backend/a.shop:80"]) == new_parts[new.parts["backend/a.shop:80"]]
    assert library.add(old, old_parts) == gone


def test_no_message_outgrows_the_limit() -> None:
    assert 2 * MAX_INLINE_BYTES < MAX_MESSAGE_BYTES
    parts = {f"{number}": b'"' + b"x" * 100 + b'"' for number in range(10)}
    groups = batches(parts, limit=350)
    assert [len(group) for group in groups] == [3, 3, 3, 1]
    assert {name: bytes(raw) for group in groups for name, raw in group.items()} == parts
    assert batches({"big": b"1" * 1000}, limit=10) == [{"big": msgspec.Raw(b"1" * 1000)}]


def test_the_pre_encoded_assign_is_an_assign() -> None:
    assert AssignFrame.__struct_fields__ == Assign.__struct_fields__
    assert AssignFrame.__struct_config__.tag == Assign.__struct_config__.tag
