"""`backstay route test` on the sample: what it says, and what its exit code means."""

import json
import os
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from backstay.cli.main import cli
from backstay.cli.route import parse_headers

EXAMPLE = Path(__file__).parents[3] / "example-repo"
WHERE = ["--dir", str(EXAMPLE / "mesh"), "--workloads", str(EXAMPLE / "workloads.yaml")]


def run(*arguments: str, where: list[str] = WHERE) -> Result:
    return CliRunner().invoke(cli, ["route", "test", *arguments, *where])


def test_every_line_names_its_place() -> None:
    done = run("POST", "http://sa-logic/analyse/sentence", "--from", "sa-webapp")
    assert done.exit_code == 0
    lines = [" ".join(line.split()) for line in click.unstyle(done.output).splitlines()]
    assert lines[0] == "POST sa-logic/analyse/sentence from shop/sa-webapp"
    assert "route sa-logic.shop:80 rule main shop/sa-logic.yaml:32" in lines
    assert "shop/sa-logic-v1 port 5000, mTLS: allowed: shop/sa-logic rule 0 shop/security.yaml:23" in lines
    assert "timeout 8 s shop/sa-logic.yaml:37" in lines


def test_headers_choose_the_rule() -> None:
    done = run("POST", "http://sa-logic/analyse/x", "--from", "sa-webapp", "-H", "X-Version: v2", "-o", "json")
    found = json.loads(done.output)
    assert found["route"] == {"host": "sa-logic.shop:80", "rule": "preview", "place": "shop/sa-logic.yaml:25"}
    assert [(item["name"], item["percent"]) for item in found["destinations"]] == [("sa-logic.shop:80/v2", 100.0)]


def test_a_refusal_is_exit_code_1() -> None:
    done = run("GET", "http://sa-logic/health", "--from", "sa-webapp")
    assert done.exit_code == 1
    assert "refused: no allow rule matches" in click.unstyle(done.output)


def test_a_slip_in_a_workloads_name_is_told() -> None:
    done = run("GET", "http://sa-logic/", "--from", "sa-webap")
    assert "no workload 'sa-webap'; did you mean 'sa-webapp'?" in done.output


def test_the_age_of_an_old_registry_is_said(tmp_path: Path) -> None:
    registry = tmp_path / "registry.json"
    registry.write_text("{}")
    os.utime(registry, (1_700_000_000, 1_700_000_000))
    done = run("GET", "http://x/", "--from", "a", where=["--dir", str(tmp_path), "--registry", str(registry)])
    assert "old: workloads and instances may have changed since" in done.output


def test_headers_are_written_as_for_curl() -> None:
    assert parse_headers(("A: 1", "b:2:3")) == [("A", "1"), ("b", "2:3")]
    with pytest.raises(ValueError, match="expected 'Name: value'"):
        parse_headers(("nothing",))
