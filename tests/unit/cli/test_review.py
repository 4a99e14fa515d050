"""`backstay review`: what is compared, and what the exit code says."""

import json
import subprocess
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner, Result

from backstay.cli.exits import Failed
from backstay.cli.main import cli
from backstay.cli.registries import expected
from backstay.cli.review import from_pipeline
from backstay.core.review.traffic import PlaintextCaller, Seen, Traffic

WORKLOADS = """
namespace: shop
services:
- {name: web, ports: [{port: 80, targetPort: 8080}]}
workloads:
- {name: web, services: [web], command: [x]}
- {name: client, replicas: 2, command: [x]}
"""
ROUTE = """
apiVersion: backstay.dev/v1alpha1
kind: Route
metadata: {name: web, namespace: shop}
spec:
  hosts: [web]
  rules:
  - backendRefs: [{name: web, port: 80}]
    timeouts: {request: %s}
"""
POLICY = """
apiVersion: backstay.dev/v1alpha1
kind: Authorization
metadata: {name: web, namespace: shop}
spec:
  rules:
  - from: [{serviceAccounts: [%s]}]
"""
STRICT = """
apiVersion: backstay.dev/v1alpha1
kind: Authentication
metadata: {name: strict, namespace: shop}
spec: {mtls: {mode: STRICT}}
"""
GUARDRAIL = """
apiVersion: backstay.dev/v1alpha1
kind: Guardrail
metadata: {name: timeouts, namespace: shop}
spec:
  kinds: [Route]
  severity: %s
  validations:
  - expression: object.spec.rules.all(r, r.timeouts.request != '0s')
    message: a route must have a time limit
"""


class Repository:
    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "mesh").mkdir(parents=True)
        (root / "workloads.yaml").write_text(WORKLOADS)
        self.git("init", "-q", "-b", "main")

    def git(self, *arguments: str) -> str:
        identity = ["-c", "user.name=t", "-c", "user.email=t@example.com"]
        done = subprocess.run(
            ["git", "-C", str(self.root), *identity, *arguments], check=True, capture_output=True, text=True
        )
        return done.stdout.strip()

    def commit(self, **files: str) -> str:
        for name, text in files.items():
            (self.root / "mesh" / f"{name}.yaml").write_text(text)
        self.git("add", "-A")
        self.git("commit", "-q", "-m", "change")
        return self.git("rev-parse", "HEAD")

    def review(self, *arguments: str) -> Result:
        where = ["--dir", str(self.root / "mesh"), "--workloads", str(self.root / "workloads.yaml")]
        return CliRunner().invoke(cli, ["review", *where, *arguments])


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository(tmp_path / "repository")


def test_a_change_is_said_with_its_lines(repository: Repository) -> None:
    base = repository.commit(route=ROUTE % "8s")
    head = repository.commit(route=ROUTE % "3s")
    done = repository.review(f"{base}..{head}")
    assert done.exit_code == 0
    assert done.output.splitlines() == [
        "valid, 1 class of requests changes, 2 workloads, 3 proxies",
        f"{base} → {head}",
        "",
        "requests whose outcome changes",
        "  every request to web.shop:80 from every workload",
        "      timeout 8 s → 3 s",
        "      route.yaml:8",
        "",
        "waves of 5 %, 25 %, 60 %, 100 % (move), at least 120 s in all",
        "0 of 1 documents and 0 of 2 workloads are untouched",
    ]


def test_the_folder_as_it_is_can_be_the_head(repository: Repository) -> None:
    repository.commit(route=ROUTE % "8s")
    (repository.root / "mesh" / "route.yaml").write_text(ROUTE % "4s")
    assert "timeout 8 s → 4 s" in repository.review("main").output


def test_only_widening_fails_where_that_is_asked_for(repository: Repository) -> None:
    base = repository.commit(policy=POLICY % "client")
    head = repository.commit(policy=POLICY % "client, web")
    assert repository.review(f"{base}..{head}").exit_code == 0
    assert repository.review(f"{base}..{head}", "--fail-on", "widening").exit_code == 1
    assert repository.review(f"{head}..{head}", "--fail-on", "widening").exit_code == 0


def test_an_invalid_head_fails_with_every_problem(repository: Repository) -> None:
    base = repository.commit(route=ROUTE % "8s")
    head = repository.commit(route=ROUTE % "soon", policy="kind: Nothing")
    done = repository.review(f"{base}..{head}")
    assert done.exit_code == 1
    assert "policy.yaml:1:7: error: kind: unknown kind 'Nothing'" in done.output
    assert "route.yaml:9" in done.output
    assert repository.review(f"{base}..{head}", "--fail-on", "never").exit_code == 0


def test_the_guardrails_of_the_base_judge_the_head(repository: Repository) -> None:
    before = repository.commit(route=ROUTE % "8s")
    base = repository.commit(guardrail=GUARDRAIL % "Deny")
    head = repository.commit(route=ROUTE % "0s", guardrail=GUARDRAIL % "Audit")
    done = repository.review(f"{base}..{head}")
    assert done.exit_code == 1
    assert "route.yaml:2:1: error: a route must have a time limit (guardrail Guardrail/shop/timeouts," in done.output
    new = repository.review(f"{before}..{head}")
    assert new.exit_code == 0
    assert "it judges the commits after this one" in new.output


def test_a_base_that_moved_on_is_compared_from_where_the_two_parted(repository: Repository) -> None:
    repository.commit(route=ROUTE % "8s")
    repository.git("checkout", "-q", "-b", "topic")
    repository.commit(route=ROUTE % "3s")
    repository.git("checkout", "-q", "main")
    repository.commit(policy=POLICY % "client")
    done = repository.review("main..topic")
    assert "timeout 8 s → 3 s" in done.output
    assert "access" not in done.output
    assert "note: main has moved on: compared with" in done.output


def test_a_shallow_clone_without_the_base_says_how_to_get_it(repository: Repository, tmp_path: Path) -> None:
    repository.commit(route=ROUTE % "8s")
    repository.git("checkout", "-q", "-b", "topic")
    repository.commit(route=ROUTE % "3s")
    repository.git("checkout", "-q", "main")
    repository.commit(policy=POLICY % "client")
    shallow = Repository.__new__(Repository)
    shallow.root = tmp_path / "shallow"
    url = f"file://{repository.root}"
    subprocess.run(["git", "clone", "-q", "--depth", "1", "--no-single-branch", url, str(shallow.root)], check=True)
    done = shallow.review("origin/main..origin/topic")
    assert "is not in this shallow clone" in done.output
    assert "fetch-depth: 0" in done.output


def test_several_forms_are_written_at_once(repository: Repository, tmp_path: Path) -> None:
    base = repository.commit(route=ROUTE % "8s")
    head = repository.commit(route=ROUTE % "3s")
    comment, sarif = tmp_path / "comment.md", tmp_path / "review.sarif"
    done = repository.review(f"{base}..{head}", "-o", "github", "-o", f"markdown={comment}", "-o", f"sarif={sarif}")
    assert done.output.startswith("::notice file=mesh/route.yaml,line=8,title=BS1709 OutcomeChanges::")
    assert comment.read_text().startswith("<!-- backstay-review -->\n")
    (run,) = json.loads(sarif.read_text())["runs"]
    places = [item["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] for item in run["results"]]
    assert places == ["mesh/route.yaml"], "forges know files by their place in the repository"


@pytest.mark.parametrize(
    ("environment", "compared"),
    [
        ({"GITHUB_BASE_REF": "main"}, "origin/main..HEAD"),
        ({"CI_MERGE_REQUEST_DIFF_BASE_SHA": "abc"}, "abc..HEAD"),
        ({"GITHUB_BASE_REF": "", "CHANGE_TARGET": "dev"}, "origin/dev..HEAD"),
    ],
)
def test_a_pipeline_says_what_is_compared(environment: dict[str, str], compared: str) -> None:
    assert from_pipeline(environment) == compared


def test_outside_of_a_pipeline_something_must_be_named() -> None:
    with pytest.raises(Failed, match="nothing says what to compare"):
        from_pipeline({})


def test_a_saved_registry_says_what_the_mesh_repository_says_of_rollouts(
    repository: Repository, tmp_path: Path
) -> None:
    base = repository.commit(route=ROUTE % "8s")
    head = repository.commit(route=ROUTE % "3s")
    known = msgspec.to_builtins(expected(repository.root / "workloads.yaml"))
    saved, mesh = tmp_path / "registry.json", str(repository.root / "mesh")
    saved.write_bytes(msgspec.json.encode({**known, "rolloutDefaults": {"soak": "45s", "shares": [50, 100]}}))
    done = CliRunner().invoke(cli, ["review", f"{base}..{head}", "--dir", mesh, "--registry", str(saved)])
    assert "waves of 50 %, 100 % (move), at least 90 s in all" in done.output.splitlines()


def test_a_saved_registry_with_traffic_says_who_would_be_refused(repository: Repository, tmp_path: Path) -> None:
    base = repository.commit(route=ROUTE % "8s")
    head = repository.commit(policy=POLICY % "web", strict=STRICT)
    registry = expected(repository.root / "workloads.yaml")
    traffic = Traffic(
        since=0.0,
        until=1800.0,
        requests=(Seen("GET", "web", "/", "shop/client", "", 200, 40),),
        plaintext=(
            PlaintextCaller(workload="shop/web", port=8080, address="10.0.0.7", accepted=2, refused=0, last_seen=1.0),
        ),
    )
    saved = tmp_path / "registry.json"
    saved.write_bytes(msgspec.json.encode({**msgspec.to_builtins(registry), "traffic": traffic}))
    mesh = str(repository.root / "mesh")
    done = CliRunner().invoke(cli, ["review", f"{base}..{head}", "--dir", mesh, "--registry", str(saved)])
    lines = done.output.splitlines()
    assert "about 40 requests of the last 30m00s would be denied" in lines[0]
    at = lines.index("plaintext callers seen that would be refused")
    assert lines[at + 1] == "  10.0.0.7: 2 connections to shop/web port 8080"
    at = lines.index("live traffic")
    assert lines[at + 1 : at + 3] == [
        "  of about 40 requests of the last 30m00s (1 different) 40 would be denied, 0 admitted, 0 otherwise changed",
        "  40 denied",
    ]
    assert lines[at + 4].strip() == "GET web/ from shop/client"
