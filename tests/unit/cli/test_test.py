"""`backstay test`: what holds, what does not, and recording."""

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from backstay.cli.main import cli

EXAMPLE = Path(__file__).parents[3] / "example-repo"
ROUTE = """
apiVersion: backstay.dev/v1alpha1
kind: Route
metadata: {name: web, namespace: shop}
spec:
  hosts: [web]
  rules:
  - {name: api, matches: [{path: {value: /api}}], backendRefs: [{name: web, port: 80}], timeouts: {request: %s}}
  - {name: rest, backendRefs: [{name: web, port: 80}]}
"""
WORKLOADS = """
namespace: shop
services:
- {name: web, ports: [{port: 80, targetPort: 8080}]}
workloads:
- {name: web, services: [web], command: [x], reaches: []}
- {name: client, command: [x], reaches: [web]}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "mesh").mkdir()
    (tmp_path / "workloads.yaml").write_text(WORKLOADS)
    (tmp_path / "mesh" / "route.yaml").write_text(ROUTE % "8s")
    return tmp_path


def run(folder: Path, *arguments: str) -> Result:
    where = ["--dir", str(folder / "mesh"), "--workloads", str(folder / "workloads.yaml")]
    return CliRunner().invoke(cli, ["test", *arguments, *where])


def test_what_is_recorded_of_every_rule_holds_until_it_changes(folder: Path) -> None:
    recorded = folder / "mesh" / "expectations.yaml"
    assert "2 expectations" in run(folder, "--record", str(recorded)).output
    done = run(folder)
    assert (done.exit_code, done.output) == (0, "2 of 2 expectations hold\n")
    (folder / "mesh" / "route.yaml").write_text(ROUTE % "3s")
    done = run(folder)
    assert done.exit_code == 1
    assert "spec.expect.timeout: the timeout is 3000 ms, expected 8000ms (by route.yaml:8)" in done.output
    assert "1 of 2 expectations hold" in done.output


def test_one_request_can_be_recorded(folder: Path) -> None:
    recorded = folder / "one.yaml"
    run(folder, "--record", str(recorded), "-r", "client POST http://web/api/x", "-H", "x-a: 1")
    text = recorded.read_text()
    assert "from: shop/client" in text
    assert "url: http://web/api/x" in text
    assert "rule: api" in text


def test_a_request_that_is_none_is_refused(folder: Path) -> None:
    assert "expected 'WORKLOAD METHOD URL'" in run(folder, "--record", str(folder / "x"), "-r", "client /").output


def test_the_sample_can_be_recorded(tmp_path: Path) -> None:
    where = ["--dir", str(EXAMPLE / "mesh"), "--workloads", str(EXAMPLE / "workloads.yaml")]
    done = CliRunner().invoke(cli, ["test", "--record", str(tmp_path / "all.yaml"), *where])
    assert done.exit_code == 0, done.output
