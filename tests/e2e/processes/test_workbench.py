"""A review in a process of its own: what comes back, and what ends it."""

import os
from pathlib import Path

import pytest

from backstay.adapters.workbench import ProcessBench
from backstay.core.admitting import Rules
from backstay.core.ports import JobFailed, Proposal, Revision, Tree
from backstay.core.registry import Registry
from backstay.reconciler.review_job import ReviewJob, encoded, report_in

MESH = b"apiVersion: backstay.dev/v1alpha1\nkind: Mesh\nmetadata: {name: m}\nspec: {}\n"


def job(**files: bytes) -> bytes:
    named = {name.replace("__", "."): content for name, content in files.items()}
    base = Tree(revision=Revision(sha="b" * 40, ref="main"), files={"mesh.yaml": MESH})
    head = Tree(revision=Revision(sha="a" * 40, ref="main"), files={"mesh.yaml": MESH, **named})
    return encoded(
        ReviewJob(
            proposal=Proposal(base=base, head=head),
            registry=Registry(),
            rules=Rules(trust_domain="backstay.local"),
            default_namespace="shop",
        )
    )


async def test_a_report_comes_back() -> None:
    report = report_in(await ProcessBench().review(job(a__yaml=b"kind: [\n")))
    assert (report.base, report.head, report.valid) == ("b" * 12, "a" * 12, False)
    assert [(item.file, item.reason) for item in report.problems] == [("a.yaml", "YamlSyntax")]


async def test_what_takes_too_long_is_ended() -> None:
    """No interpreter has read our modules by then."""
    with pytest.raises(JobFailed, match=r"it took more than 0\.01 s"):
        await ProcessBench(wall=0.01).review(job())


async def test_what_breaks_is_said_in_one_line() -> None:
    with pytest.raises(JobFailed, match=r"it broke: msgspec\.DecodeError"):
        await ProcessBench().review(b"\xc1")


async def test_nothing_of_our_environment_is_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A canary in the environment, and a module that would be found by PYTHONPATH."""
    (tmp_path / "stranger.py").write_text("import sys; sys.stdout.write('ran')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(JobFailed, match="No module named stranger"):
        await ProcessBench(module="stranger").review(b"")
    assert os.environ["PYTHONPATH"] == str(tmp_path)
