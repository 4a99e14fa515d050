"""The whole way on a real forge: push, pull request, one comment edited in place, statuses that follow a rollout."""

import asyncio
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from backstay.adapters.forge import Desk, Forge, ForgeRefused, Place
from gitea.server import ADMIN, PASSWORD, Gitea, Refused
from support.live import GitRepository, LiveMesh, NotSo, clean_environment, route, shop_documents

pytestmark = [pytest.mark.xdist_group("forge"), pytest.mark.timeout(300, func_only=True)]
"""One forge for all; each test waits for a rollout on two cores with other work."""

REPOSITORY = f"{ADMIN}/mesh"
WAIT_S = 120.0
"""For an answer to a pull request: a look, a fetch, a comparison, two calls; 2 s on an idle machine."""
TIMES = {"deadline": "20s", "soak": "2s"}
"""Waves that last, so that a forge on a busy machine hears of one before the next begins."""
LOOK_S = 0.5
"""Between two questions to the forge: each is a connection of its own, on the cores that the mesh runs on."""


class Hosted(LiveMesh):
    """A mesh whose repository is at the forge, and that answers its pull requests."""

    def __init__(self, forge: Gitea) -> None:
        self.forge = forge
        self.hooks_port = _free_port()
        super().__init__(url=f"{forge.url}/{REPOSITORY}.git", documents=shop_documents(rollout=TIMES))
        secrets = {"password": PASSWORD, "token": forge.token, "hook": "knock-knock"}
        files = {name: self.folder / name for name in secrets}
        for name, text in secrets.items():
            files[name].write_text(text, encoding="utf-8")
        self._options = (
            "--username", ADMIN, "--password-file", str(files["password"]), "--ca-file", str(forge.ca_file),
            "--commit-status", "gitea", forge.api_url, REPOSITORY, "--commit-status-token-file", str(files["token"]),
            "--reviews", "--interval", "2s",
            "--webhook-port", str(self.hooks_port), "--webhook-secret-file", str(files["hook"]),
        )  # fmt: skip
        follow(self.repo, forge, ADMIN)

    def statuses(self, sha: str) -> list[dict[str, str]]:
        """Oldest first: (state, context, sentence)."""
        found = self.forge.api("GET", f"/repos/{REPOSITORY}/commits/{sha}/statuses?limit=50&sort=oldest")
        return [{key: item[key] for key in ("status", "context", "description")} for item in reversed(found)]

    def last_status(self, sha: str, context: str = "backstay/default") -> tuple[str, str]:
        """State and sentence of what stands now; Gitea counts statuses, it may list two of one second in any order."""
        found = self.forge.api("GET", f"/repos/{REPOSITORY}/commits/{sha}/statuses?limit=50")
        mine = max((item for item in found if item["context"] == context), key=lambda item: item["id"], default=None)
        return (mine["status"], mine["description"]) if mine else ("", "")

    def wait_status(self, sha: str, state: str) -> str:
        """Wait until the forge shows this state of a commit; returns the sentence."""
        end = time.monotonic() + WAIT_S
        while (found := self.last_status(sha))[0] != state:
            if time.monotonic() > end:
                raise NotSo(f"the status of {sha[:12]} is {found}, expected {state}\n{self.tail()}")
            time.sleep(LOOK_S)
        return found[1]

    def comments(self, request: int) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.forge.api("GET", f"/repos/{REPOSITORY}/issues/{request}/comments")
        return found

    def open_request(self, head: str, title: str = "a change", token: str = "") -> int:
        body = {"head": head, "base": "main", "title": title}
        number: int = self.forge.api("POST", f"/repos/{REPOSITORY}/pulls", body, token=token)["number"]
        return number

    def propose(self, branch: str, files: dict[str, str], start: str = "") -> str:
        """Push a branch that leaves main at its first commit, or goes on from `start`; returns its commit."""
        self.repo.git("checkout", "--quiet", "-B", branch, start or self.first)
        self.repo.write(files)
        sha = self.repo.commit(f"{branch} proposed")
        self.repo.git("push", "--quiet", "--force", "origin", branch)
        self.repo.git("checkout", "--quiet", "main")
        return sha

    def answered(self, request: int, sha: str) -> str:
        """Wait for the status of a head; returns the comment's text."""
        said = f"pull request {request} ({sha[:12]}): "
        self.until(lambda: said in self.log.read_text(encoding="utf-8"), f"an answer to {said}", WAIT_S)
        assert self.last_status(sha, "backstay/default/review")[0] in ("success", "failure")
        (comment,) = self.comments(request)
        return str(comment["body"])


def follow(repo: GitRepository, forge: Gitea, user: str) -> None:
    """Have a clone push to the forge."""
    repo.git("remote", "set-url", "origin", forge.git_url(REPOSITORY, user))
    repo.git("config", "http.sslCAInfo", str(forge.ca_file))


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


@pytest.fixture(scope="module")
def shared(forge: Gitea) -> Iterator[Hosted]:
    forge.api("POST", "/user/repos", {"name": "mesh", "private": True, "default_branch": "main"})
    mesh = Hosted(forge)
    hook = {
        "type": "gitea",
        "active": True,
        "events": ["push", "pull_request", "pull_request_sync"],
        "config": {
            "url": f"http://127.0.0.1:{mesh.hooks_port}/v1/hooks/default",
            "content_type": "json",
            "secret": "knock-knock",
        },
    }
    forge.api("POST", f"/repos/{REPOSITORY}/hooks", hook)
    forge.add_user("stranger")
    with mesh:
        yield mesh


@pytest.fixture
def mesh(shared: Hosted) -> Hosted:
    shared.begin_again()
    return shared


def test_a_pull_request_is_answered_in_one_comment_that_is_edited(shared: Hosted) -> None:
    first = shared.propose("weights", {"shop/api.yaml": route("api", {"v1": 90, "v2": 10})})
    number = shared.open_request("weights")
    text = shared.answered(number, first)
    assert "1 class of requests changes" in text
    assert "90 % api.shop&#58;80/v1" in text
    assert "compared by the operator of mesh default" in text
    assert shared.last_status(first, "backstay/default/review")[0] == "success"

    second = shared.propose("weights", {"shop/api.yaml": route("api", {"v9": 100})}, start="weights")
    text = shared.answered(number, second)
    assert "INVALID" in text
    assert "90 %" not in text
    assert shared.last_status(second, "backstay/default/review")[0] == "failure"
    assert shared.state(first) == shared.state(second) == "", "nothing of a pull request is a revision of the mesh"
    log = shared.log.read_text(encoding="utf-8")
    assert "event=pull_request" in log, "the forge's knock was believed"
    shared.forge.api("PATCH", f"/repos/{REPOSITORY}/pulls/{number}", {"state": "closed"})


def test_a_strangers_fork_gets_the_same_answer_whatever_it_holds(shared: Hosted, tmp_path: Path) -> None:
    forge = shared.forge
    forge.api("PUT", f"/repos/{REPOSITORY}/collaborators/stranger", {"permission": "read"})
    token = forge.add_token("stranger", "write:repository", "write:issue")
    forge.api("POST", f"/repos/{REPOSITORY}/forks", {}, token=token)
    repo = GitRepository(tmp_path)
    repo.git("remote", "set-url", "origin", forge.git_url("stranger/mesh", "stranger"))
    repo.git("config", "http.sslCAInfo", str(forge.ca_file))
    repo.git("fetch", "--quiet", "origin")
    repo.git("checkout", "--quiet", "-B", "main", "origin/main")

    nasty = "</details><img src=x onerror=alert(1)> @keeper"
    repo.write({"shop/api.yaml": route("api", {nasty: 100}), "shop/bomb.yaml": BOMB})
    (repo.clone / "outside.yaml").symlink_to("/etc/passwd")
    first = repo.commit("hello\x1b[31m")
    repo.git("push", "--quiet", "--force", "origin", "HEAD:evil")
    number = shared.open_request("stranger:evil", token=token)
    text = shared.answered(number, first)
    assert "<img" not in text
    assert "@keeper" not in text
    assert "root:x:0" not in text
    assert "is a symbolic link" in text
    assert shared.last_status(first, "backstay/default/review")[0] == "failure"

    blob = repo.git("rev-parse", "HEAD:shop/bomb.yaml")
    tree = repo.git("mktree", data="".join(f"100644 blob {blob}\t{n}.yaml\n" for n in range(10_001)).encode())
    second = repo.git("commit-tree", "-p", first, "-m", "many", tree)
    repo.git("push", "--quiet", "--force", "origin", f"{second}:refs/heads/evil")
    text = shared.answered(number, second)
    assert "cannot be reviewed" in text
    assert "YAML files, expected at most 10000" in text
    forge.api("PATCH", f"/repos/{REPOSITORY}/pulls/{number}", {"state": "closed"})


BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "\n".join(
    f"{name}: &{name} [{','.join([f'*{before}'] * 9)}]" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


def test_the_pipelines_review_writes_its_own_comment_and_edits_it(shared: Hosted) -> None:
    sha = shared.propose("pipeline", {"shop/api.yaml": route("api", {"v2": 100})})
    number = shared.open_request("pipeline")
    shared.answered(number, sha)
    pipeline = {
        "GITEA_ACTIONS": "true",
        "GITHUB_API_URL": shared.forge.api_url,
        "GITHUB_REPOSITORY": REPOSITORY,
        "GITHUB_REF": f"refs/pull/{number}/head",
        "BACKSTAY_FORGE_TOKEN": shared.forge.token,
        "SSL_CERT_FILE": str(shared.forge.ca_file),
    }
    folder = str(shared.repo.clone)
    review = ("review", f"origin/main..{sha}", "--dir", folder, "-w", str(shared.workloads), "--comment")
    for _ in range(2):
        done = subprocess.run(
            shared.command(*review), env=clean_environment() | pipeline, capture_output=True, text=True, timeout=60,
            check=False,
        )  # fmt: skip
        assert (done.returncode, "no comment was written" in done.stderr) == (0, False), done.stderr
    found = [item["body"].splitlines()[0] for item in shared.comments(number)]
    assert len(found) == 2, "the operator's and the pipeline's"
    assert found[1] == "<!-- backstay-review -->"
    shared.forge.api("PATCH", f"/repos/{REPOSITORY}/pulls/{number}", {"state": "closed"})


def test_a_commits_status_follows_its_rollout(mesh: Hosted) -> None:
    sha = mesh.push({"shop/api.yaml": route("api", {"v1": 50, "v2": 50})})
    mesh.wait(sha, "live")
    mesh.wait_status(sha, "success")
    told = mesh.statuses(sha)
    assert {item["status"] for item in told} == {"pending", "success"}
    waves = [item["description"] for item in told if item["description"].startswith("wave of ")]
    assert waves, told


def test_a_rollback_is_a_failure_with_the_sentence_why(mesh: Hosted) -> None:
    sha = mesh.push({"shop/api.yaml": route("api", {"v3": 100})}, "the buggy one")
    mesh.wait(sha, "rolled-back")
    assert "failed" in mesh.wait_status(sha, "failure")


def test_an_invalid_commit_is_a_failure_with_its_first_problem(mesh: Hosted) -> None:
    sha = mesh.push({"shop/api.yaml": route("api", {"v9": 100})})
    mesh.wait(sha, "invalid")
    assert mesh.wait_status(sha, "failure").startswith("shop/api.yaml:")


@pytest.mark.parametrize(
    ("scopes", "sentence"),
    [
        (
            ("read:repository", "read:issue"),
            "write comments of pull requests of keeper/mesh on gitea (403); it needs the scope `write:issue`",
        ),
        (
            ("read:user",),
            "list the pull requests of keeper/mesh on gitea (403); it needs the scope `read:repository`",
        ),
    ],
)
def test_a_token_without_the_scope_is_one_clear_sentence(
    shared: Hosted, scopes: tuple[str, ...], sentence: str
) -> None:
    forge = shared.forge
    place = Place(kind="gitea", api=forge.api_url, repository=REPOSITORY)
    token = forge.add_token(ADMIN, *scopes)
    number = forge.api("POST", f"/repos/{REPOSITORY}/issues", {"title": "to be commented on"})["number"]

    async def client() -> Forge:
        return Forge(place, token, ca_file=forge.ca_file)

    async def ask() -> None:
        desk = Desk(client, "backstay/default/review")
        await desk.open_requests()
        await desk.comment(number, "text")

    with pytest.raises(ForgeRefused) as refused:
        asyncio.run(ask())
    assert str(refused.value) == f"the token may not {sentence}"


def test_nobody_without_a_token_sees_the_repository(shared: Hosted) -> None:
    """That the repository is private is what the other tests stand on."""
    nobody = shared.forge.add_token("stranger", "read:user")
    with pytest.raises(Refused):
        shared.forge.api("GET", f"/repos/{REPOSITORY}/pulls", token=nobody)
