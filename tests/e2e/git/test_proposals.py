"""Pull requests as files, from real git: what is compared, what is refused, and what is forgotten."""

import secrets
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from backstay.adapters.git import GitProposals, GitSource, Limits, RefSpec
from backstay.core.ports import Proposal, PullRequest, SourceRefused
from ports.repositories import Repository


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    made = Repository(tmp_path / "mesh")
    made.commit("first", a__yaml="a: 1\n")
    return made


@pytest.fixture
async def proposals(repository: Repository, tmp_path: Path) -> AsyncIterator[GitProposals]:
    limits = Limits(files=10, mirror_bytes=256 * 1024)
    source = GitSource(
        str(repository.path), mirror=tmp_path / "mirror", ref=RefSpec(branch="main"), limits=limits, allow_file=True
    )
    made = GitProposals(source, "gitea")
    yield made
    await made.close()


def propose(repository: Repository, number: int, **files: str) -> PullRequest:
    """A commit that only the forge's ref reaches, as one of a fork."""
    repository.git("checkout", "--quiet", "--detach", "main")
    head = repository.commit(f"proposal {number}", **files)
    repository.git("update-ref", f"refs/pull/{number}/head", head)
    repository.git("checkout", "--quiet", "main")
    return PullRequest(number=number, head=head, base="main")


def shown(proposal: Proposal) -> tuple[dict[str, bytes], dict[str, bytes]]:
    return dict(proposal.base.files), dict(proposal.head.files)


async def test_a_proposal_is_compared_with_where_it_left(repository: Repository, proposals: GitProposals) -> None:
    request = propose(repository, 7, a__yaml="a: 2\n")
    found = await proposals.fetch(request)
    assert shown(found) == ({"a.yaml": b"a: 1\n"}, {"a.yaml": b"a: 2\n"})
    assert found.notes == ()
    left = repository.git("rev-parse", "main")
    repository.commit("main goes on", b__yaml="b: 1\n")
    again = await proposals.fetch(request)
    assert shown(again) == shown(found)
    assert again.notes == (f"main has moved on: compared with {left[:12]}, where the two parted",)


async def test_a_head_that_moved_on_since_it_was_listed_is_the_one_that_is_read(
    repository: Repository, proposals: GitProposals
) -> None:
    listed = propose(repository, 7, a__yaml="a: 2\n")
    moved = propose(repository, 7, a__yaml="a: 3\n")
    found = await proposals.fetch(listed)
    assert (found.head.revision.sha, dict(found.head.files)) == (moved.head, {"a.yaml": b"a: 3\n"})


async def test_histories_with_nothing_in_common_are_compared_as_they_are(
    repository: Repository, proposals: GitProposals
) -> None:
    repository.git("checkout", "--quiet", "--orphan", "other")
    head = repository.commit("from nowhere", a__yaml="a: 9\n")
    repository.git("update-ref", "refs/pull/8/head", head)
    found = await proposals.fetch(PullRequest(number=8, head=head, base="main"))
    assert shown(found) == ({"a.yaml": b"a: 1\n"}, {"a.yaml": b"a: 9\n"})
    assert found.notes == ("no common history with main within reach: compared with main as it is",)


async def test_a_proposal_over_a_limit_is_refused_and_the_next_one_is_not(
    repository: Repository, proposals: GitProposals
) -> None:
    large = propose(repository, 9, **{f"f{number}__yaml": "a: 1\n" for number in range(11)})
    with pytest.raises(SourceRefused, match="12 YAML files, expected at most 10"):
        await proposals.fetch(large)
    found = await proposals.fetch(propose(repository, 10, a__yaml="a: 4\n"))
    assert found.head.files == {"a.yaml": b"a: 4\n"}


async def test_proposals_that_are_closed_leave_the_disk_to_others(
    repository: Repository, proposals: GitProposals, tmp_path: Path
) -> None:
    """Each of these alone fits into the quota, two of them do not."""
    noise = secrets.token_hex(150 * 1024)
    for number in range(3):
        repository.write("noise.txt", f"{number}{noise}" if number % 2 else f"{number}{noise[::-1]}")
        request = propose(repository, number, a__yaml=f"a: {number}\n")
        await proposals.fetch(request)
        await proposals.keep_only([])
    refs = tmp_path / "mirror" / "repository.git" / "refs" / "backstay"
    assert [path.name for path in refs.rglob("*") if path.is_file()] == ["tip"]
