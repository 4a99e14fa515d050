"""What is wrong in itself changes nothing: pushed to a running operator under traffic, refused by name, and outlived."""

import hashlib
import hmac
import json
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest

from support.live import LiveMesh, document, route

pytestmark = pytest.mark.xdist_group("mesh-a")

SECRET = b"hook-secret-canary"
SUBSETS = "shop/api-backend.yaml"


@pytest.fixture(scope="module")
def port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        found: int = free.getsockname()[1]
        return found


@pytest.fixture(scope="module")
def mesh(port: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveMesh]:
    secret = tmp_path_factory.mktemp("hook") / "secret"
    secret.write_bytes(SECRET)
    with LiveMesh(options=["--webhook-port", str(port), "--webhook-secret-file", str(secret)]) as found:
        yield found


@pytest.fixture(autouse=True)
def well_again(mesh: LiveMesh) -> Iterator[None]:
    """After each: the first commit's content, live."""
    yield
    mesh.repo.git("read-tree", "-u", "--reset", mesh.first)
    mesh.wait(mesh.push({}, "as it was"), "live", timeout=20)


def refused(mesh: LiveMesh, sha: str) -> list[str]:
    """The problems of a commit that must be invalid, after seeing that it changed nothing for anybody."""
    mark, before, rollouts = mesh.mark(), configs(mesh), names(mesh)
    mesh.wait(sha, "invalid", timeout=20)
    problems = mesh.problems()
    mesh.wait_seconds(1)
    assert configs(mesh) == before
    assert (names(mesh), mesh.failures_since(mark)) == (rollouts, 0)
    return problems


def names(mesh: LiveMesh) -> list[str]:
    return [item["metadata"]["name"] for item in mesh.rollouts()]


def configs(mesh: LiveMesh) -> dict[str, str]:
    return {item["metadata"]["name"]: item["status"]["stable"] for item in mesh.proxies()}


def test_a_dangling_reference_is_refused_with_what_was_probably_meant(mesh: LiveMesh) -> None:
    sha = mesh.push({"shop/api.yaml": route("api", {"v9": 100})})
    assert refused(mesh, sha) == [
        (
            "shop/api.yaml:15:15: spec.rules[0].backendRefs[0].subset: subset 'v9' is not defined in "
            "shop/api-backend.yaml:10, expected one of v1, v2, v3 [UnknownSubset]"
        )
    ]


def test_an_unknown_field_is_refused(mesh: LiveMesh) -> None:
    sha = mesh.push({"shop/api.yaml": route("api", rule={"timeout": "2s"})})
    assert refused(mesh, sha) == [
        "shop/api.yaml:15:5: spec.rules[0].timeout: unknown field 'timeout'; did you mean 'timeouts'? [UnknownField]"
    ]


def test_yaml_that_cannot_be_read_is_refused(mesh: LiveMesh) -> None:
    sha = mesh.push({"shop/api.yaml": "kind: Route\nspec:\n  hosts: [api\n  rules: []\n"})
    assert refused(mesh, sha) == [
        (
            "shop/api.yaml:4:8: the bracket or brace is not closed, expected `,` or its end; what is wrong may have begun "
            "in line 3 [YamlSyntax]"
        )
    ]


def test_an_alias_bomb_is_refused_before_it_grows(mesh: LiveMesh) -> None:
    bomb = "a: &a [x, x]\n" + "".join(
        f"{chr(98 + n)}: &{chr(98 + n)} [*{chr(97 + n)}, *{chr(97 + n)}]\n" for n in range(24)
    )
    problems = refused(mesh, mesh.push({"shop/bomb.yaml": bomb}))
    assert {problem.split(":")[0] for problem in problems} == {"shop/bomb.yaml"}
    assert any(problem.endswith("[AnchorForbidden]") for problem in problems), problems[:5]
    assert len(problems) < 100


def test_links_submodules_and_files_of_50_mb_are_refused_by_name(mesh: LiveMesh) -> None:
    (mesh.repo.clone / "shop" / "evil.yaml").symlink_to("/etc/passwd")
    (mesh.repo.clone / "shop" / "huge.yaml").write_bytes(b"#" * 50_000_000)
    mesh.repo.git("add", "--all")
    mesh.repo.git("update-index", "--add", "--cacheinfo", f"160000,{'1' * 40},vendor")
    mesh.repo.git("commit", "--quiet", "-m", "hostile")
    mesh.repo.send()
    problems = refused(mesh, mesh.repo.git("rev-parse", "HEAD"))
    assert [(item.split(":")[0], item.rsplit("[")[-1]) for item in problems] == [
        ("shop/evil.yaml", "Symlink]"),
        ("shop/huge.yaml", "FileTooLarge]"),
        ("vendor", "Submodule]"),
    ]


def test_a_remote_that_vanishes_is_said_and_found_again(mesh: LiveMesh) -> None:
    mark = mesh.mark()
    aside = mesh.repo.remote.with_suffix(".aside")
    mesh.repo.remote.rename(aside)
    try:
        mesh.until(lambda: condition(mesh, "FetchFailed")[0] == "True", "the loss to be said", 15)
        assert condition(mesh, "FetchFailed")[1:] == (
            "GitOperationFailed",
            f"{mesh.repo.remote}: no such folder; waiting for it to come back",
        )
        assert condition(mesh, "Stalled")[0] != "True"
        assert mesh.repository()["status"]["activeRevision"].endswith(mesh.repo.git("rev-parse", "HEAD"))
    finally:
        aside.rename(mesh.repo.remote)
    sha = mesh.push({"shop/web.yaml": route("web", rule={"timeouts": {"request": "14s"}})})
    mesh.wait(sha, "rolling-out", timeout=30)
    assert condition(mesh, "FetchFailed")[0] == ""
    assert mesh.harm_since(mark) == {}


def condition(mesh: LiveMesh, kind: str) -> tuple[str, str, str]:
    found = mesh.repository().get("status", {}).get("conditions", ())
    return next(
        ((item["status"], item["reason"], item["message"]) for item in found if item["type"] == kind), ("", "", "")
    )


def post(port: int, signature: str, body: bytes) -> int:
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/hooks/default",
        data=body,
        headers={"X-GitHub-Event": "push", "X-Hub-Signature-256": f"sha256={signature}"},
    )
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_a_forged_webhook_moves_nothing_and_a_signed_one_is_only_a_hint(mesh: LiveMesh, port: int) -> None:
    body = json.dumps({"ref": "refs/heads/main", "after": "f" * 40}).encode()
    before = mesh.repository()["status"]["desiredRevision"]
    assert post(port, "0" * 64, body) == 401
    assert post(port, hmac.new(SECRET, body, hashlib.sha256).hexdigest(), body) == 202
    mesh.wait_seconds(1)
    assert mesh.repository()["status"]["desiredRevision"] == before


def test_a_suspended_mesh_takes_nothing_up_until_it_is_resumed(mesh: LiveMesh) -> None:
    mesh.act("suspend", why="the freeze")
    sha = mesh.push({"shop/lock.yaml": document("Route", "other", {"hosts": ["other.example"], "rules": [{}]})})
    mesh.wait_seconds(1)
    assert mesh.state(sha) == ""
    mesh.act("unsuspend")
    mesh.wait(sha, "live", "invalid", timeout=20)


def test_all_problems_of_a_commit_are_said_at_once(mesh: LiveMesh) -> None:
    sha = mesh.push(
        {"shop/api.yaml": route("api", {"v9": 100}), "shop/web.yaml": "a: [", "shop/x.yaml": "kind: Nothing\n"}
    )
    assert {problem.split(":")[0] for problem in refused(mesh, sha)} == {
        "shop/api.yaml",
        "shop/web.yaml",
        "shop/x.yaml",
    }
