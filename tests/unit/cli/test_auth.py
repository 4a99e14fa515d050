"""`backstay auth can-i` on the sample."""

from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from backstay.cli.main import cli

EXAMPLE = Path(__file__).parents[3] / "example-repo"
WHERE = ["--dir", str(EXAMPLE / "mesh"), "--workloads", str(EXAMPLE / "workloads.yaml")]


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["auth", "can-i", *arguments, "--to", "sa-logic-v1", *WHERE])


def test_yes_names_the_rule() -> None:
    done = run("POST", "/analyse/x", "--from", "sa-webapp")
    assert (done.exit_code, [line.strip() for line in click.unstyle(done.output).splitlines()]) == (
        0,
        [
            "yes: spiffe://backstay.local/ns/shop/sa/sa-webapp may POST /analyse/x of shop/sa-logic-v1:5000",
            "shop/sa-logic rule 0  shop/security.yaml:23",
            "mTLS STRICT  shop/security.yaml:11",
        ],
    )


@pytest.mark.parametrize(
    ("caller", "why"),
    [
        ("sa-frontend", "no allow rule matches  shop/security.yaml:19"),
        ("spiffe://backstay.local/ns/other/sa/x", "no allow rule matches  shop/security.yaml:19"),
        ("plaintext", "refused: plaintext at a STRICT port  shop/security.yaml:11"),
    ],
)
def test_no_says_why(caller: str, why: str) -> None:
    done = run("POST", "/analyse/x", "--from", caller)
    assert done.exit_code == 1
    assert why in click.unstyle(done.output)


def test_a_port_that_is_not_there_is_refused() -> None:
    assert "has no port 1" in run("GET", "/", "--from", "sa-webapp", "--port", "1").output
