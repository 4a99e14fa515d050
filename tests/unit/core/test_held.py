"""Held documents stay at what works until one of their set changes; everything else flows."""

from backstay.core.held import changed_documents, effective, is_released
from backstay.core.rollout.model import HeldSet
from backstay.core.snapshot import Snapshot
from support.meshes import snapshot

HEAD = "apiVersion: backstay.dev/v1alpha1\n"
ROUTE = (
    HEAD
    + "kind: Route\nmetadata: {name: %s}\nspec: {hosts: [%s], rules: [{backendRefs: [{name: b}], timeouts: {request: %s}}]}\n"
)


def docs(**timeouts: str) -> Snapshot:
    return snapshot("---\n".join(ROUTE % (name, name, value) for name, value in timeouts.items()))


def held(desired: Snapshot, *names: str) -> HeldSet:
    documents = {
        f"Route/shop/{name}": desired.documents[f"Route/shop/{name}"].digest
        if f"Route/shop/{name}" in desired.documents
        else ""
        for name in names
    }
    return HeldSet(commit="c1", revision="main@sha1:c1", rollout="r1", documents=documents, sentence="bad", since=1.0)


def timeouts(found: Snapshot) -> dict[str, str | None]:
    return {
        key[11:]: document.raw["spec"]["rules"][0]["timeouts"]["request"] for key, document in found.documents.items()
    }


def test_a_held_document_stays_at_its_stable_content_and_others_flow() -> None:
    stable, bad = docs(a="1s", b="1s"), docs(a="9s", b="2s")
    result = effective(bad, [held(bad, "a")], stable.documents)
    assert timeouts(result.snapshot) == {"a": "1s", "b": "2s"}
    assert (len(result.held), result.released) == (1, ())


def test_a_held_document_that_was_new_is_left_out() -> None:
    stable, bad = docs(b="1s"), docs(a="9s", b="1s")
    assert timeouts(effective(bad, [held(bad, "a")], stable.documents).snapshot) == {"b": "1s"}


def test_a_held_removal_keeps_the_document() -> None:
    stable, bad = docs(a="1s", b="1s"), docs(b="1s")
    assert timeouts(effective(bad, [held(bad, "a")], stable.documents).snapshot) == {"a": "1s", "b": "1s"}


def test_a_set_is_released_whole_when_one_of_its_documents_changes() -> None:
    stable, bad, fixed = docs(a="1s", b="1s"), docs(a="9s", b="9s"), docs(a="3s", b="9s")
    item = held(bad, "a", "b")
    result = effective(fixed, [item], stable.documents)
    assert timeouts(result.snapshot) == {"a": "3s", "b": "9s"}
    assert (result.held, result.released) == ((), (item,))


def test_a_revert_releases() -> None:
    stable, bad = docs(a="1s"), docs(a="9s")
    assert is_released(held(bad, "a"), stable.documents)
    assert not is_released(held(bad, "a"), bad.documents)


def test_a_document_that_waits_stays_out_until_it_can_work() -> None:
    stable, new = docs(b="1s"), docs(a="2s", b="1s")
    result = effective(new, [], stable.documents, ["Route/shop/a"])
    assert timeouts(result.snapshot) == {"b": "1s"}
    assert result.waiting == ("Route/shop/a",)


def test_changed_documents_names_new_gone_and_different() -> None:
    old, new = docs(a="1s", b="1s", c="1s"), docs(b="1s", c="2s", d="1s")
    assert changed_documents(old.documents, new.documents) == {"Route/shop/a", "Route/shop/c", "Route/shop/d"}
