"""GitSource on folders of this machine: real git, hostile content, odd places."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from backstay.adapters.git import FolderWatch, GitSource, Limits, RefSpec
from backstay.core.ports import SourceRefused, SourceUnavailable
from ports.repositories import Repository

Open = Callable[..., GitSource]


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository(tmp_path / "repository")


@pytest.fixture
async def open_source(tmp_path: Path) -> AsyncIterator[Open]:
    opened: list[GitSource] = []

    def open_it(repository: Repository | Path, *, mirror: str = "mirror", **options: Any) -> GitSource:
        path = repository.path if isinstance(repository, Repository) else repository
        options.setdefault("ref", RefSpec(branch="main"))
        opened.append(GitSource(str(path), mirror=tmp_path / mirror, allow_file=True, timeout=30, **options))
        return opened[-1]

    yield open_it
    for source in opened:
        await source.close()


async def refusal(source: GitSource) -> tuple[str, str]:
    with pytest.raises(SourceRefused) as refused:
        await source.resolve()
    return refused.value.reason, str(refused.value)


async def test_links_submodules_and_files_over_the_cap_are_refused_by_name(
    repository: Repository, open_source: Open
) -> None:
    repository.commit(a__yaml="a: 1")
    (repository.path / "evil.yaml").symlink_to("/etc/passwd")
    repository.write("big.yaml", b"#" * (50 * 1024 * 1024))
    repository.git("add", "--all")
    repository.git("update-index", "--add", "--cacheinfo", f"160000,{'1' * 40},vendor")
    repository.git("commit", "--quiet", "--message=hostile")
    sha = repository.git("rev-parse", "HEAD")
    source = open_source(repository)
    assert (await source.resolve()).sha == sha
    tree = await source.read(sha)
    assert tree.files == {"a.yaml": b"a: 1"}
    assert [(path, reason) for path, reason, _ in tree.refused] == [
        ("evil.yaml", "Symlink"),
        ("vendor", "Submodule"),
        ("big.yaml", "FileTooLarge"),
    ]


async def test_ten_thousand_files_are_read_and_one_more_is_refused(repository: Repository, open_source: Open) -> None:
    blob = repository.blob(b"a: 1\n")
    entries = [("100644", blob, f"f{number:05}.yaml") for number in range(10_001)]
    fits, too_many = repository.commit_tree(*entries[:-1]), repository.commit_tree(*entries)
    source = open_source(repository)
    await source.resolve()
    with pytest.raises(SourceRefused, match="10001 YAML files, expected at most 10000"):
        await source.read(too_many)
    assert len((await source.read(fits)).files) == 10_000


@pytest.mark.parametrize("name", ["..", ".git", "."])
async def test_a_tree_that_climbs_out_never_gets_into_the_mirror(
    repository: Repository, open_source: Open, name: str
) -> None:
    good = repository.commit(a__yaml="a: 1")
    source = open_source(repository)
    await source.resolve()
    inner = repository.git("mktree", stdin=f"100644 blob {repository.blob(b'x')}\tx.yaml\n".encode())
    listing = f"40000 {name}\0".encode() + bytes.fromhex(inner)
    tree = repository.git("hash-object", "-t", "tree", "-w", "--literally", "--stdin", stdin=listing)
    repository.git("update-ref", "refs/heads/main", repository.git("commit-tree", tree, "-m", "climbs"))
    reason, message = await refusal(source)
    assert (reason, "git itself refuses" in message) == ("InvalidPath", True)
    assert (await source.read(good)).files == {"a.yaml": b"a: 1"}


async def test_hooks_filters_and_configuration_of_the_repository_start_nothing(
    repository: Repository, open_source: Open, tmp_path: Path
) -> None:
    trap = tmp_path / "trap"
    ran = tmp_path / "ran"
    trap.write_text(f"#!/bin/sh\necho $0 $* >> {ran}\ncat\n")
    trap.chmod(0o755)
    for key in ("core.fsmonitor", "core.sshCommand", "core.askPass", "filter.evil.smudge", "filter.evil.process",
                "uploadpack.packObjectsHook", "core.alternateRefsCommand", "credential.helper"):  # fmt: skip
        repository.git("config", key, str(trap))
    for hook in ("post-checkout", "reference-transaction", "pre-auto-gc", "post-update", "update"):
        (repository.path / ".git/hooks").mkdir(exist_ok=True)
        (repository.path / ".git/hooks" / hook).symlink_to(trap)
    repository.write(".gitattributes", "*.yaml filter=evil\n")
    repository.write("a.yaml", "a: 1")
    repository.git("-c", "filter.evil.process=", "-c", "filter.evil.clean=cat", "add", "--all")
    repository.git("-c", "core.hooksPath=/dev/null", "-c", "core.fsmonitor=", "commit", "-qm", "trap")
    ran.unlink(missing_ok=True)
    source = open_source(repository)
    sha = (await source.resolve()).sha
    assert (await source.read(sha)).files == {"a.yaml": b"a: 1"}
    assert not ran.exists()


async def test_a_subpath_narrows_what_is_read_and_must_exist(repository: Repository, open_source: Open) -> None:
    repository.write("mesh/prod/a.yaml", "a: 1")
    repository.write("mesh/b.yaml", "b: 1")
    (repository.path / "link").symlink_to("mesh")
    sha = repository.commit(other__yaml="o: 1")
    assert (await open_source(repository, path="mesh/prod").read(sha)).files == {"a.yaml": b"a: 1"}
    assert sorted((await open_source(repository, path="mesh", mirror="m2").read(sha)).files) == [
        "b.yaml",
        "prod/a.yaml",
    ]
    for path in ("nothere", "link", "mesh/b.yaml"):
        with pytest.raises(SourceRefused, match=f"has no folder '{path}'") as refused:
            await open_source(repository, path=path, mirror=f"m-{path.replace('/', '-')}").read(sha)
        assert refused.value.reason == "InvalidPath"


async def test_tags_ranges_commits_and_head_are_followed(repository: Repository, open_source: Open) -> None:
    first = repository.commit("one", a__yaml="1")
    repository.git("tag", "v1.0.0")
    second = repository.commit("two", a__yaml="2")
    repository.git("tag", "--annotate", "--message=two", "v1.1.0")
    third = repository.commit("three", a__yaml="3")
    specs = {
        RefSpec(tag="v1.0.0"): (first, "v1.0.0"),
        RefSpec(tag="v1.1.0"): (second, "v1.1.0"),
        RefSpec(semver="1.x"): (second, "1.x"),
        RefSpec(commit=first): (first, first),
        RefSpec(): (third, "main"),
    }
    for number, (spec, expected) in enumerate(specs.items()):
        revision = await open_source(repository, ref=spec, mirror=f"m{number}").resolve()
        assert (revision.sha, revision.ref) == expected, spec
    moving = open_source(repository, ref=RefSpec(semver="1.x"), mirror="moving")
    assert (await moving.resolve()).sha == second
    repository.git("tag", "v1.2.0")
    assert (await moving.resolve()).sha == third


async def test_what_is_not_there_is_named_with_what_there_is(repository: Repository, open_source: Open) -> None:
    where = str(repository.path)
    empty = ("RefNotFound", f"{where} has no commits yet, expected main")
    assert await refusal(open_source(repository)) == empty
    repository.commit(a__yaml="1")
    repository.git("branch", "other")
    missing = open_source(repository, ref=RefSpec(branch="prod"), mirror="m2")
    assert await refusal(missing) == ("RefNotFound", f"{where} has no branch 'prod'; its branches: main, other")
    untagged = open_source(repository, ref=RefSpec(semver="^2"), mirror="m3")
    assert await refusal(untagged) == ("RefNotFound", "none of 0 tags is in the range '^2'")
    unknown = open_source(repository, ref=RefSpec(commit="f" * 40), mirror="m4")
    assert (await refusal(unknown))[0] == "RefNotFound"


async def test_a_commit_that_is_pushed_after_it_was_asked_for_is_found(
    repository: Repository, open_source: Open, tmp_path: Path
) -> None:
    repository.commit(a__yaml="1")
    repository.git("clone", "--quiet", "--bare", str(repository.path), str(tmp_path / "bare.git"))
    sha = repository.commit(a__yaml="2")
    source = open_source(tmp_path / "bare.git", ref=RefSpec(commit=sha))
    assert (await refusal(source))[0] == "RefNotFound"
    repository.git("push", "--quiet", str(tmp_path / "bare.git"), "main")
    assert (await source.resolve()).sha == sha


async def test_a_deleted_branch_is_said_and_its_commits_stay_readable(
    repository: Repository, open_source: Open
) -> None:
    sha = repository.commit(a__yaml="1")
    source = open_source(repository)
    await source.resolve()
    repository.git("branch", "--move", "renamed")
    assert await refusal(source) == (
        "RefNotFound",
        f"{repository.path} has no branch 'main'; its branches: renamed",
    )
    assert (await source.read(sha)).files == {"a.yaml": b"1"}


async def test_a_folder_that_is_no_repository_is_told_what_to_do(tmp_path: Path, open_source: Open) -> None:
    plain = tmp_path / "plain"
    plain.mkdir()
    expected = f"{plain}: is not a git repository; make it one with 'git init' and commit"
    assert await refusal(open_source(plain)) == ("URLInvalid", expected)
    assert await refusal(open_source(tmp_path / "gone")) == ("URLInvalid", f"{tmp_path / 'gone'}: no such folder")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder to somebody else")
async def test_a_folder_of_somebody_else_says_what_to_do_and_is_read_once_trusted(
    repository: Repository, open_source: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sha = repository.commit(a__yaml="1")
    for path in (repository.path, *repository.path.rglob("*")):
        os.chown(path, 65534, 65534, follow_symlinks=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("SUDO_UID", raising=False)
    (tmp_path / "home").mkdir()
    source = open_source(repository)
    with pytest.raises(SourceUnavailable) as unavailable:
        await source.resolve()
    assert unavailable.value.reason == "DubiousOwnership"
    message = str(unavailable.value)
    assert f"{repository.path} belongs to nobody, this operator runs as root" in message
    assert f"chown -R root {repository.path}" in message
    assert f"git config --global --add safe.directory {repository.path}" in message
    (tmp_path / "home/.gitconfig").write_text(f"[safe]\n\tdirectory = {repository.path}\n")
    assert (await source.resolve()).sha == sha


async def test_a_worktree_a_bare_and_a_packed_repository_are_followed(
    repository: Repository, open_source: Open, tmp_path: Path
) -> None:
    repository.commit(a__yaml="1")
    repository.git("worktree", "add", "--quiet", str(tmp_path / "worktree"), "-b", "side")
    repository.git("clone", "--quiet", "--bare", str(repository.path), str(tmp_path / "bare.git"))
    sources = [open_source(repository), open_source(tmp_path / "worktree", mirror="m2")]
    for number in range(3):
        sha = repository.commit(a__yaml=f"again {number}")
        repository.git("pack-refs", "--all")
        assert [(await source.resolve()).sha for source in sources] == [sha, sha]
    bare = open_source(tmp_path / "bare.git", mirror="m3")
    await bare.resolve()
    repository.git("push", "--quiet", str(tmp_path / "bare.git"), "main")
    assert (await bare.resolve()).sha == sha


async def test_a_repository_with_sha256_ids_is_followed_and_replaced_by_one_with_sha1(
    open_source: Open, tmp_path: Path
) -> None:
    modern = Repository(tmp_path / "modern", object_format="sha256")
    sha = modern.commit(a__yaml="1")
    source = open_source(modern)
    assert len(sha) == 64
    assert (await source.resolve()).sha == sha
    assert (await source.read(sha)).files == {"a.yaml": b"1"}
    plain = Repository(tmp_path / "plain")
    sha = plain.commit(a__yaml="2")
    again = open_source(plain)  # same mirror
    assert (await again.resolve()).sha == sha
    assert (await again.read(sha)).files == {"a.yaml": b"2"}


async def test_a_shallow_clone_can_be_followed(repository: Repository, open_source: Open, tmp_path: Path) -> None:
    for number in range(4):
        repository.commit(a__yaml=str(number))
    repository.git("clone", "--quiet", "--depth=2", f"file://{repository.path}", str(tmp_path / "shallow"))
    sha = repository.git("rev-parse", "HEAD")
    source = open_source(tmp_path / "shallow")
    assert (await source.resolve()).sha == sha
    assert (await source.read(sha)).files == {"a.yaml": b"3"}


async def test_history_has_no_gap_after_the_first_shallow_fetch(repository: Repository, open_source: Open) -> None:
    early = [repository.commit(a__yaml=f"early {number}") for number in range(6)]
    source = open_source(repository, depth=3)
    assert (await source.resolve()).sha == early[-1]
    assert await source.is_ancestor(early[-3], early[-1]) is True
    assert await source.is_ancestor(early[0], early[-1]) is False  # before the first fetch: not known
    late = [repository.commit(a__yaml=f"late {number}") for number in range(8)]
    await source.resolve()
    assert [revision.sha for revision in await source.between(early[-1], late[-1])] == late


async def test_at_most_a_hundred_commits_are_told(repository: Repository, open_source: Open) -> None:
    first = repository.commit(a__yaml="0")
    tree = repository.git("rev-parse", "HEAD^{tree}")
    shas, sha = [], first
    for number in range(120):
        sha = repository.git("commit-tree", tree, "-p", sha, "-m", str(number))
        shas.append(sha)
    repository.git("update-ref", "refs/heads/main", sha)
    source = open_source(repository)
    await source.resolve()
    assert [revision.sha for revision in await source.between(first, sha)] == shas[-100:]


async def test_a_mirror_that_would_grow_too_big_is_refused_and_not_fetched_again(
    repository: Repository, open_source: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = repository.commit(a__yaml="1")
    source = open_source(repository, limits=Limits(mirror_bytes=1024 * 1024))
    await source.resolve()
    held = mirrored(tmp_path)
    repository.write("noise.bin", os.urandom(4 * 1024 * 1024))
    repository.commit()
    expected = ("LimitExceeded", "the mirror would grow over 1048576 bytes")
    assert await refusal(source) == expected
    assert mirrored(tmp_path) == held
    with monkeypatch.context() as patched:
        patched.setattr(source._mirror, "fetch", None)  # to call it would be a TypeError
        assert await refusal(source) == expected
    assert (await source.read(first)).files == {"a.yaml": b"1"}
    repository.git("reset", "--quiet", "--hard", first)
    sha = repository.commit(a__yaml="2")
    assert (await source.resolve()).sha == sha
    assert await source.is_ancestor(first, sha)


def mirrored(tmp_path: Path) -> set[Path]:
    return {path for path in (tmp_path / "mirror/repository.git/objects").rglob("*") if path.is_file()}


async def test_a_quota_is_also_kept_by_a_fetch_that_ends_between_two_looks(
    repository: Repository, open_source: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("backstay.adapters.git.command.WATCH_INTERVAL", 30.0)
    repository.write("noise.bin", os.urandom(2 * 1024 * 1024))
    repository.commit()
    source = open_source(repository, limits=Limits(mirror_bytes=1024 * 1024))
    assert (await refusal(source))[0] == "LimitExceeded"
    assert mirrored(tmp_path) == set()


async def test_a_mirror_that_lost_its_mind_is_made_anew(
    repository: Repository, open_source: Open, tmp_path: Path
) -> None:
    old = repository.commit(a__yaml="1")
    await open_source(repository).resolve()
    (tmp_path / "mirror/repository.git/HEAD").write_bytes(b"\0garbage")
    sha = repository.commit(a__yaml="2")
    source = open_source(repository)
    assert (await source.resolve()).sha == sha
    assert (await source.read(old)).files == {"a.yaml": b"1"}


async def test_what_a_killed_git_left_behind_is_in_nobodys_way(
    repository: Repository, open_source: Open, tmp_path: Path
) -> None:
    repository.commit(a__yaml="1")
    await open_source(repository).resolve()
    mirror = tmp_path / "mirror/repository.git"
    leftovers = [mirror / name for name in ("shallow.lock", "packed-refs.lock", "refs/backstay/tip.lock",
                                            "refs/backstay/incoming.lock", "objects/pack/tmp_pack_abc")]  # fmt: skip
    for path in leftovers:
        path.touch()
    sha = repository.commit(a__yaml="2")
    assert (await open_source(repository).resolve()).sha == sha
    assert [path for path in leftovers if path.exists()] == []


async def test_read_fetches_what_a_deleted_mirror_no_longer_has(
    repository: Repository, open_source: Open, tmp_path: Path
) -> None:
    old = repository.commit(a__yaml="1")
    repository.commit(a__yaml="2")
    assert (await open_source(repository).read(old)).files == {"a.yaml": b"1"}


async def test_an_unchanged_folder_is_asked_without_starting_git(
    repository: Repository, open_source: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository.commit(a__yaml="1")
    source = open_source(repository)
    revision = await source.resolve()

    def no_git(*_: object, **__: object) -> None:
        raise AssertionError("git was started")

    with monkeypatch.context() as patched:
        patched.setattr(source._git, "run", no_git)
        assert [await source.resolve() for _ in range(10)] == [revision] * 10


async def test_a_folder_is_asked_now_and_then_even_if_nothing_seems_to_have_moved(
    repository: Repository, open_source: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository.commit(a__yaml="1")
    source = open_source(repository)
    monkeypatch.setattr("backstay.adapters.git.source.ASK_ANYWAY", -1.0)
    await source.resolve()
    monkeypatch.setattr(FolderWatch, "has_changed", lambda *_: False)
    sha = repository.commit(a__yaml="2")
    assert (await source.resolve()).sha == sha


async def test_resolving_and_reading_at_once_gets_in_nobodys_way(repository: Repository, open_source: Open) -> None:
    first = repository.commit(a__yaml="first")
    source = open_source(repository)
    await source.resolve()
    last = repository.commit(a__yaml="last")
    revisions, trees = await asyncio.gather(
        asyncio.gather(*(source.resolve() for _ in range(4))),
        asyncio.gather(*(source.read(first) for _ in range(4))),
    )
    assert {revision.sha for revision in revisions} == {last}
    assert [dict(tree.files) for tree in trees] == [{"a.yaml": b"first"}] * 4


async def test_many_fetches_end_in_few_packs(
    repository: Repository, open_source: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("backstay.adapters.git.mirror.PACKS_BEFORE_REPACK", 3)
    source = open_source(repository)
    shas = []
    for number in range(6):
        shas.append(repository.commit(a__yaml=str(number)))
        await source.resolve()
    assert len(list((tmp_path / "mirror/repository.git/objects/pack").glob("*.pack"))) <= 3
    assert [(await source.read(sha)).files["a.yaml"] for sha in shas] == [str(n).encode() for n in range(6)]


async def test_a_closed_source_says_so(repository: Repository, open_source: Open) -> None:
    repository.commit(a__yaml="1")
    source = open_source(repository)
    await source.close()
    with pytest.raises(SourceUnavailable, match="the source is closed"):
        await source.resolve()
