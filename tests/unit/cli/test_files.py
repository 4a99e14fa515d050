"""validate, plan and init: what a person does before a push, on real files and real git."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from backstay.cli.exits import Exit
from backstay.cli.files import read_folder, read_revision
from backstay.cli.init import templates
from backstay.cli.validate import as_github
from backstay.core.problems import Problem, Severity
from support import views
from support.commands import backstay, git

GOOD = views.ROUTE.format(timeout="5s")
BAD = GOOD.replace("timeouts:", "timeuots:")
UNKNOWN = "unknown field 'timeuots'; did you mean 'timeouts'?"
WORKLOADS = """\
namespace: shop
services:
- {name: a, ports: [{port: 80, targetPort: 8080}]}
- {name: b, ports: [{port: 80, targetPort: 8080}]}
workloads:
- {name: a, services: [a], command: [sleep, "1"]}
- {name: b, services: [b], command: [sleep, "1"]}
"""


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A mesh repository with one commit."""
    folder = tmp_path / "mesh"
    folder.mkdir()
    git(folder, "init", "-q", "-b", "main")
    (folder / "b.yaml").write_text(GOOD)
    git(folder, "add", ".")
    git(folder, "commit", "-q", "-m", "first")
    return folder


@pytest.fixture
def workloads(tmp_path: Path) -> Path:
    path = tmp_path / "workloads.yaml"
    path.write_text(WORKLOADS)
    return path


# --- validate ------------------------------------------------------------


def test_a_valid_folder(repository: Path) -> None:
    ran = backstay("validate", repository)
    assert (ran.code, ran.out) == (Exit.OK, "")
    assert ran.err == f"{repository}: 1 documents, valid\n"


def test_quiet_says_nothing(repository: Path) -> None:
    assert backstay("-q", "validate", repository).err == ""


def test_a_problem_is_shown_with_its_line_and_a_caret(repository: Path) -> None:
    (repository / "b.yaml").write_text(BAD)
    ran = backstay("validate", repository)
    assert ran.code == Exit.NO
    assert ran.out.splitlines() == [
        f"b.yaml:9:5: spec.rules[0].timeuots: error: {UNKNOWN} [BS1207 UnknownField]",
        "    9 |     timeuots: {request: 5s}",
        "      |     ^",
    ]


def test_problems_as_json(repository: Path) -> None:
    (repository / "b.yaml").write_text(BAD)
    found = json.loads(backstay("validate", repository, "-o", "json").out)
    assert (found["kind"], found["valid"], found["files"]) == ("ValidationResult", False, 1)
    assert found["problems"] == [
        {
            "file": "b.yaml",
            "line": 9,
            "column": 5,
            "path": "spec.rules[0].timeuots",
            "message": "unknown field 'timeuots'; did you mean 'timeouts'?",
            "reason": "UnknownField",
            "code": "BS1207",
            "severity": "error",
            "document": "Route/shop/b",
        }
    ]


def test_problems_for_github_are_counted_from_the_checkout(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (repository / "b.yaml").write_text(BAD)
    monkeypatch.chdir(repository.parent)
    assert backstay("validate", "mesh", "-o", "github").out == (
        "::error file=mesh/b.yaml,line=9,col=5,title=BS1207 UnknownField::"
        "spec.rules[0].timeuots: unknown field 'timeuots'; did you mean 'timeouts'?\n"
    )


def test_text_cannot_start_a_command_of_its_own_in_a_github_log() -> None:
    problem = Problem(file="a,b:c.yaml", line=1, message="50 %\n::error::forged", reason="X", severity=Severity.WARNING)
    assert as_github([problem]) == "::warning file=a%2Cb%3Ac.yaml,line=1,title=X::50 %25%0A::error::forged"


def test_problems_as_sarif(repository: Path) -> None:
    (repository / "b.yaml").write_text(BAD)
    (run,) = json.loads(backstay("validate", repository, "-o", "sarif").out)["runs"]
    (result,) = run["results"]
    assert run["tool"]["driver"]["rules"] == [{"id": "BS1207", "name": "UnknownField"}]
    assert (result["ruleId"], result["level"]) == ("BS1207", "error")
    assert result["locations"][0]["physicalLocation"]["region"] == {"startLine": 9, "startColumn": 5}


def test_services_are_checked_against_a_workloads_file(repository: Path, workloads: Path) -> None:
    (repository / "b.yaml").write_text(GOOD.replace("name: b, port: 80", "name: zzz, port: 80"))
    ran = backstay("validate", repository, "--workloads", workloads)
    assert ran.code == Exit.OK
    assert "[BS" in ran.out
    assert "ServiceNotFound]" in ran.out
    assert "1 waiting for the registry" in ran.err


def test_a_workloads_file_that_is_wrong_is_trouble(repository: Path, workloads: Path) -> None:
    workloads.write_text("namespace: shop\nworkloads: 7\n")
    ran = backstay("validate", repository, "--workloads", workloads)
    assert (ran.code, ran.out) == (Exit.TROUBLE, "")
    assert "workloads.yaml:2:" in ran.err


def test_a_folder_that_is_not_there_is_trouble(tmp_path: Path) -> None:
    ran = backstay("validate", tmp_path / "none")
    assert (ran.code, ran.err.splitlines()[0]) == (Exit.TROUBLE, f"error: {tmp_path}/none: no such folder")


def test_links_are_refused_as_the_operator_refuses_them(repository: Path) -> None:
    (repository / "link.yaml").symlink_to("/etc/passwd")
    ran = backstay("validate", repository)
    assert ran.code == Exit.NO
    assert ran.out.startswith("link.yaml: error: is a symbolic link")
    assert "Symlink]" in ran.out


def test_a_folder_and_its_commit_read_alike(repository: Path) -> None:
    (repository / "deep").mkdir()
    (repository / "deep" / "c.yml").write_bytes(b"# nothing\n\xff\n")
    (repository / "README.md").write_text("no document")
    (repository / "link.yaml").symlink_to("b.yaml")
    git(repository, "add", ".")
    git(repository, "commit", "-q", "-m", "more")
    here, there = read_folder(repository), read_revision(repository, "HEAD")
    assert here.contents == there.contents == {"b.yaml": GOOD.encode(), "deep/c.yml": b"# nothing\n\xff\n"}
    assert list(here.refused) == list(there.refused)
    assert [path for path, _, _ in here.refused] == ["link.yaml"]


# --- plan ------------------------------------------------------------------


def test_plan_against_a_commit(repository: Path, workloads: Path) -> None:
    (repository / "b.yaml").write_text(views.ROUTE.format(timeout="1s"))
    ran = backstay("plan", repository, "--from", "HEAD", "--workloads", workloads)
    assert ran.code == Exit.OK
    assert ran.out.splitlines() == [
        "~ Route/shop/b  b.yaml:1",
        "",
        "shop/a",
        "  ~ routes/b.shop:80  b.yaml:5, b.yaml:7",
        "",
        "shop/b",
        "  ~ routes/b.shop:80  b.yaml:5, b.yaml:7",
        "",
        "stage 1 (move): shop/a, shop/b",
        "waves: 5 %, 25 %, 60 %, 100 %, at least 30 s each",
    ]


def test_plan_wide_shows_the_difference(repository: Path, workloads: Path) -> None:
    (repository / "b.yaml").write_text(views.ROUTE.format(timeout="1s"))
    out = backstay("plan", repository, "--from", "HEAD", "--workloads", workloads, "-o", "wide").out
    assert '      -      "timeout_ms": 5000' in out.splitlines()
    assert '      +      "timeout_ms": 1000' in out.splitlines()


def test_plan_of_nothing(repository: Path, workloads: Path) -> None:
    ran = backstay("plan", repository, "--from", "HEAD", "--workloads", workloads, "--exit-code")
    assert (ran.code, ran.out) == (Exit.OK, "nothing changes\n")


def test_plan_says_by_its_exit_code_that_something_changes(repository: Path, workloads: Path) -> None:
    (repository / "b.yaml").unlink()
    ran = backstay("plan", repository, "--from", "HEAD", "--workloads", workloads, "--exit-code")
    assert ran.code == Exit.NO
    assert ran.out.splitlines()[0] == "- Route/shop/b  b.yaml:1"


def test_a_reformatted_file_changes_nothing(repository: Path, workloads: Path) -> None:
    (repository / "b.yaml").write_text("# moved down\n\n" + GOOD)
    ran = backstay("plan", repository, "--from", "HEAD", "--workloads", workloads, "--exit-code")
    assert (ran.code, ran.out) == (Exit.OK, "nothing changes\n")


def test_plan_against_the_live_mesh(repository: Path, state_dir: Path, operator: views.ShowingOperator) -> None:
    operator.shown = views.live()
    (repository / "b.yaml").write_text(views.ROUTE.format(timeout="1s"))
    found = json.loads(backstay("plan", repository, "-o", "json", state_dir=state_dir).out)
    assert found["from"] == views.named(views.OLD)
    assert found["documents"] == [{"document": "Route/shop/b", "place": "b.yaml:1", "change": "changed"}]
    assert [item["workload"] for item in found["workloads"]] == ["shop/a", "shop/b"]
    assert found["stages"] == [{"name": "move", "workloads": ["shop/a", "shop/b"]}]


def test_plan_knows_what_the_mesh_repository_says_of_rollouts(
    repository: Path, state_dir: Path, operator: views.ShowingOperator
) -> None:
    """Where the Mesh document says nothing; what it says wins."""
    operator.shown = replace(views.live(), rollout_defaults={"soak": "90s", "shares": [50, 100]})
    (repository / "b.yaml").write_text(views.ROUTE.format(timeout="1s"))
    found = json.loads(backstay("plan", repository, "-o", "json", state_dir=state_dir).out)
    assert (found["soakSeconds"], found["waves"]) == (90.0, [50.0, 100.0])
    mesh = {"apiVersion": "backstay.dev/v1alpha1", "kind": "Mesh", "metadata": {"name": "mesh"}}
    (repository / "mesh.yaml").write_text(json.dumps({**mesh, "spec": {"rollout": {"soak": "7s"}}}))
    found = json.loads(backstay("plan", repository, "-o", "json", state_dir=state_dir).out)
    assert (found["soakSeconds"], found["waves"]) == (7.0, [50.0, 100.0])


def test_plan_without_anything_to_compare_with_says_what_to_do(repository: Path, workloads: Path) -> None:
    ran = backstay("plan", repository, "--workloads", workloads)
    assert ran.code == Exit.TROUBLE
    assert "hint: name a commit with --from REV" in ran.err


def test_plan_of_an_invalid_folder_shows_its_problems(repository: Path, workloads: Path) -> None:
    (repository / "b.yaml").write_text(BAD)
    ran = backstay("plan", repository, "--from", "HEAD", "--workloads", workloads)
    assert ran.code == Exit.NO
    assert "b.yaml:9:5: spec.rules[0].timeuots" in ran.err


def test_plan_from_a_commit_that_is_not_there(repository: Path, workloads: Path) -> None:
    ran = backstay("plan", repository, "--from", "nope", "--workloads", workloads)
    assert (ran.code, ran.err.splitlines()[-1]) == (
        Exit.TROUBLE,
        "hint: is this a git repository with that revision?",
    )


def test_a_revision_is_never_an_option(repository: Path, workloads: Path) -> None:
    ran = backstay("plan", repository, "--from=--output=/tmp/x", "--workloads", workloads)
    assert ran.code == Exit.TROUBLE


# --- init --------------------------------------------------------------------


def test_what_init_writes_is_valid(tmp_path: Path) -> None:
    assert backstay("init", tmp_path / "new").code == Exit.OK
    ran = backstay("validate", tmp_path / "new" / "mesh", "--workloads", tmp_path / "new" / "workloads.yaml")
    assert (ran.code, ran.out) == (Exit.OK, "")


def test_init_names_every_file_and_the_next_steps(tmp_path: Path) -> None:
    ran = backstay("init", tmp_path)
    written = {str(path) for path in tmp_path.rglob("*") if path.is_file()}
    assert set(ran.out.splitlines()) == written == {str(tmp_path / name) for name, _ in templates()}
    assert "backstay up mesh --workloads workloads.yaml" in ran.err


def test_init_overwrites_nothing(tmp_path: Path) -> None:
    (tmp_path / "workloads.yaml").write_text("mine")
    ran = backstay("init", tmp_path)
    assert (ran.code, ran.out) == (Exit.NO, "")
    assert ran.err.splitlines()[0] == f"error: {tmp_path} already holds workloads.yaml"
    assert [path.name for path in tmp_path.iterdir()] == ["workloads.yaml"]
    assert (tmp_path / "workloads.yaml").read_text() == "mine"
