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


TOKENS = """\
apiVersion: backstay.dev/v1alpha1
kind: Authentication
metadata: {name: tokens, namespace: shop}
spec:
  jwt:
    providers: [{issuer: "https://issuer.example", jwksUri: "https://issuer.example/keys"}]
---
apiVersion: backstay.dev/v1alpha1
kind: Authorization
metadata: {name: web, namespace: shop}
spec:
  rules:
  - from: [{requestPrincipals: ["https://issuer.example/*"], claims: [{name: role, values: [admin]}]}]
  - from: [{ipBlocks: [10.1.0.0/16]}]
"""
REGISTRY = """{
  "services": {"web.shop": {"name": "web", "namespace": "shop", "ports": [{"port": 80, "target_port": 8080}]}},
  "workloads": {
    "shop/web": {"name": "web", "namespace": "shop", "service_account": "web", "services": ["web.shop"],
                 "ports": [[8080, "http"]]},
    "shop/client": {"name": "client", "namespace": "shop", "service_account": "client"}
  }
}"""


@pytest.fixture
def where(tmp_path: Path) -> list[str]:
    (tmp_path / "mesh").mkdir()
    (tmp_path / "mesh" / "tokens.yaml").write_text(TOKENS)
    (tmp_path / "registry.json").write_text(REGISTRY)
    return ["--dir", str(tmp_path / "mesh"), "--registry", str(tmp_path / "registry.json"), "-n", "shop"]


@pytest.mark.parametrize(
    ("claims", "address", "code", "why"),
    [
        ('{"iss": "https://issuer.example", "sub": "u", "role": "admin"}', "", 0, "shop/web rule 0  tokens.yaml:13"),
        ('{"iss": "https://issuer.example", "sub": "u", "role": "guest"}', "", 1, "no allow rule matches"),
        ('{"iss": "https://other.example", "sub": "u", "role": "admin"}', "", 1, "a token that is not believed: 401"),
        ("", "10.1.2.3", 0, "shop/web rule 1  tokens.yaml:14"),
        ("", "10.2.2.3", 1, "no allow rule matches"),
    ],
)
def test_claims_and_addresses_decide(
    where: list[str], tmp_path: Path, claims: str, address: str, code: int, why: str
) -> None:
    more = ["--address", address] if address else []
    if claims:
        (tmp_path / "claims.json").write_text(claims)
        more += ["--claims", str(tmp_path / "claims.json")]
    can_i = ["auth", "can-i", "GET", "/", "--from", "client", "--to", "web", *where, *more]
    tested = ["route", "test", "GET", "http://web/", "--from", "client", *where, *more]
    for arguments in (can_i, tested):
        done = CliRunner().invoke(cli, arguments)
        assert (done.exit_code, why in click.unstyle(done.output)) == (code, True), done.output


@pytest.mark.parametrize(
    ("content", "said"),
    [("[1]", "list, expected a JSON object"), ("{", "claims are a JSON object"), (None, "No such file")],
)
def test_a_file_without_claims_is_refused(where: list[str], tmp_path: Path, content: str | None, said: str) -> None:
    file = tmp_path / "claims.json"
    if content is not None:
        file.write_text(content)
    arguments = ["auth", "can-i", "GET", "/", "--from", "client", "--to", "web", "--claims", str(file), *where]
    assert said in CliRunner().invoke(cli, arguments).output


def test_what_is_no_address_is_refused(where: list[str]) -> None:
    arguments = ["route", "test", "GET", "http://web/", "--from", "client", "--address", "10.1", *where]
    done = CliRunner().invoke(cli, arguments)
    assert (done.exit_code, "'10.1' is no IP address" in done.output) == (2, True)
