"""The house rules that no other tool checks."""

import importlib.resources
import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "operator" / "backstay"
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
BENCHMARKS = ("verdict", "safety", "push", "swap", "proxy")
LOCKS = sorted((ROOT / "requirements").glob("*.txt"))


def test_the_source_root_is_no_package() -> None:
    """It would hide the standard library's `operator` from everything that starts in this folder."""
    assert not (ROOT / "operator" / "__init__.py").exists()


def test_unit_tests_are_named_after_what_they_test() -> None:
    """tests/unit/core/test_diff.py tests core/diff.py, or core/diff/, or (test_core.py) the package core itself;
    test_diff_topic.py tests core/diff.py under one aspect. What lies at the top is about the house."""
    unit = ROOT / "tests" / "unit"
    tests = [path.relative_to(unit) for path in unit.glob("*/**/test_*.py")]
    assert [str(path) for path in tests if not _has_source(path)] == []


def _has_source(test: Path) -> bool:
    name, folder = test.stem.removeprefix("test_"), SOURCE / test.parent
    words = name.split("_")
    names = ["_".join(words[:count]) for count in range(1, len(words) + 1)]
    return any((folder / f"{known}.py").exists() or (folder / known).is_dir() for known in names) or (
        name == folder.name and folder.is_dir()
    )


def test_every_package_in_the_source_has_an_init() -> None:
    folders = {path.parent for path in SOURCE.rglob("*.py") if "templates" not in path.parts}
    assert sorted(str(folder) for folder in folders if not (folder / "__init__.py").exists()) == []


@pytest.mark.parametrize("lock", LOCKS, ids=[lock.name for lock in LOCKS])
def test_locks_pin_by_hash_and_name_no_address(lock: Path) -> None:
    text = lock.read_text()
    assert not re.search(r"https?://|--(extra-)?index-url|--find-links|@ file", text)
    entries = re.split(r"\n(?=\S)", text.strip())
    unpinned = [
        entry.splitlines()[0] for entry in entries if not re.match(r"[\w.-]+==\S+[^\n]* \\\n    --hash=", entry)
    ]
    assert unpinned == []


def test_every_dependency_is_in_the_locks_that_need_it() -> None:
    extras = PROJECT["project"]["optional-dependencies"]
    needed = {
        "demo.txt": PROJECT["project"]["dependencies"] + extras["demo"] + extras["build"],
        "dev.txt": PROJECT["project"]["dependencies"] + [item for extra in extras.values() for item in extra],
    }
    for name, requirements in needed.items():
        locked = set(re.findall(r"^([\w.-]+)==", (ROOT / "requirements" / name).read_text(), re.MULTILINE))
        wanted = {re.split(r"[^\w.-]", item)[0].lower() for item in requirements} - {"backstay"}
        assert wanted - locked == set(), name


def test_both_locks_agree() -> None:
    """One environment can be the demo's and then the developer's without changing a version."""
    demo, dev = (
        set(re.findall(r"^([\w.-]+==[^\s;]+)", (ROOT / "requirements" / name).read_text(), re.MULTILINE))
        for name in ("demo.txt", "dev.txt")
    )
    assert demo - dev == set()


def test_ci_does_nothing_that_a_developer_cannot() -> None:
    for workflow in (ROOT / ".github" / "workflows").glob("*.yml"):
        found = yaml.safe_load(workflow.read_text())
        commands = [step["run"] for job in found["jobs"].values() for step in job["steps"] if "run" in step]
        is_for_others = list(found[True]) == ["workflow_call"]  # `on` is true to YAML 1.1
        assert commands == ([] if is_for_others else [".ci/run"]), workflow.name


def test_the_promised_make_targets_exist() -> None:
    promised = ["demo", "test", "check", "lock", "help", *(f"bench-{what}" for what in BENCHMARKS)]
    targets = re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert [target for target in promised if target not in targets] == []


def test_data_files_are_found_the_same_way_in_a_checkout_and_in_a_wheel() -> None:
    names = {item.name for item in importlib.resources.files("backstay.schemas").iterdir()}
    assert names == {path.name for path in (ROOT / "schemas").iterdir()}


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a checkout")
def test_nothing_committed_knows_this_machine() -> None:
    """Paths of somebody's home or workspace, and addresses of somebody's package mirror."""
    mentioned = re.compile(rb"/(?:root|home/\w+|Users/\w+|work" + rb")/(?!<)|index-url|pypi\." + rb"(?!org)")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    files = [ROOT / name for name in listed.decode().split("\0") if name and name != "tests/unit/test_house.py"]
    assert [str(file) for file in files if file.is_file() and mentioned.search(file.read_bytes())] == []
