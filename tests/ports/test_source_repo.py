"""What every SourceRepo promises, on real git and on the fake."""

from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from backstay.adapters.git import GitSource, RefSpec
from backstay.core.ports import SourceRefused, SourceRepo
from ports.fakes import FakeRepo
from ports.repositories import Repository


@dataclass
class Pushed:
    """A source and the hands of those who push to it."""

    source: SourceRepo
    commit: Callable[[Mapping[str, str], str], str]
    """Files that change, subject -> commit id."""
    force: Callable[[str], object]


@pytest.fixture(params=["fake", "git"])
async def pushed(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Pushed]:
    if request.param == "fake":
        fake, files = FakeRepo(), dict[str, bytes]()

        def commit_fake(changed: Mapping[str, str], subject: str) -> str:
            files.update({name: text.encode() for name, text in changed.items()})
            return fake.commit(files, subject)

        yield Pushed(source=fake, commit=commit_fake, force=fake.force)
        return
    repository = Repository(tmp_path / "repository")

    def commit(changed: Mapping[str, str], subject: str) -> str:
        for name, text in changed.items():
            repository.write(name, text)
        return repository.commit(subject)

    source = GitSource(
        str(repository.path), mirror=tmp_path / "mirror", ref=RefSpec(branch="main"), allow_file=True, timeout=30
    )
    yield Pushed(source=source, commit=commit, force=lambda sha: repository.git("reset", "--quiet", "--hard", sha))
    await source.close()


async def test_an_empty_repository_has_no_revision_yet(pushed: Pushed) -> None:
    with pytest.raises(SourceRefused, match="no commits yet, expected main") as refused:
        await pushed.source.resolve()
    assert refused.value.reason == "RefNotFound"


async def test_a_push_is_seen_by_the_next_resolve(pushed: Pushed) -> None:
    for number in range(3):
        sha = pushed.commit({"a.yaml": f"number: {number}"}, f"change {number}")
        revision = await pushed.source.resolve()
        assert (revision.sha, revision.ref, revision.subject) == (sha, "main", f"change {number}")
        assert await pushed.source.resolve() == revision


async def test_a_revision_holds_its_yaml_files_and_no_others(pushed: Pushed) -> None:
    pushed.commit({"a.yaml": "a: 1", "deep/er/b.yml": "b: 2", "README.md": "hello"}, "first")
    first = await pushed.source.resolve()
    pushed.commit({"a.yaml": "a: 2"}, "second")
    await pushed.source.resolve()
    tree = await pushed.source.read(first.sha)
    assert tree.revision.sha == first.sha
    assert tree.files == {"a.yaml": b"a: 1", "deep/er/b.yml": b"b: 2"}
    assert tree.refused == ()


async def test_commits_in_between_come_oldest_first(pushed: Pushed) -> None:
    shas = [pushed.commit({"a.yaml": str(number)}, f"c{number}") for number in range(5)]
    await pushed.source.resolve()
    between = await pushed.source.between(shas[1], shas[4])
    assert [(revision.sha, revision.subject) for revision in between] == [(shas[n], f"c{n}") for n in (2, 3, 4)]
    assert await pushed.source.between(shas[4], shas[4]) == ()


async def test_after_an_unknown_commit_only_the_new_one_is_told(pushed: Pushed) -> None:
    pushed.commit({"a.yaml": "1"}, "one")
    new = pushed.commit({"a.yaml": "2"}, "two")
    await pushed.source.resolve()
    for old in ("f" * 40, "", "-x"):
        assert [revision.sha for revision in await pushed.source.between(old, new)] == [new]
        assert await pushed.source.is_ancestor(old, new) is False


async def test_a_force_push_is_told_and_what_it_dropped_stays_readable(pushed: Pushed) -> None:
    base = pushed.commit({"a.yaml": "base"}, "base")
    dropped = pushed.commit({"a.yaml": "dropped"}, "dropped")
    await pushed.source.resolve()
    pushed.force(base)
    forced = pushed.commit({"a.yaml": "forced"}, "forced")
    assert (await pushed.source.resolve()).sha == forced
    assert await pushed.source.is_ancestor(base, forced) is True
    assert await pushed.source.is_ancestor(dropped, forced) is False
    assert [revision.sha for revision in await pushed.source.between(dropped, forced)] == [forced]
    assert (await pushed.source.read(dropped)).files == {"a.yaml": b"dropped"}


async def test_a_commit_that_never_was_cannot_be_read(pushed: Pushed) -> None:
    pushed.commit({"a.yaml": "1"}, "one")
    await pushed.source.resolve()
    with pytest.raises(SourceRefused) as refused:
        await pushed.source.read("--output=/tmp/x")
    assert refused.value.reason == "RefNotFound"
