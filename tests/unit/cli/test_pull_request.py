"""Which pull request a pipeline runs for."""

import pytest

from backstay.adapters.forge import Place
from backstay.cli.exits import Failed
from backstay.cli.pull_request import PullRequest, pull_request

GITHUB = {"GITHUB_REF": "refs/pull/12/merge", "GITHUB_REPOSITORY": "o/r", "GITHUB_TOKEN": "t"}
GITLAB = {"CI_MERGE_REQUEST_IID": "3", "CI_API_V4_URL": "https://gitlab.example/api/v4", "CI_PROJECT_ID": "42"}


@pytest.mark.parametrize(
    ("environment", "found"),
    [
        (
            GITHUB,
            PullRequest(
                place=Place(kind="github", api="https://api.github.com", repository="o/r"), number=12, token="t"
            ),
        ),
        (
            {**GITHUB, "GITEA_ACTIONS": "true", "GITHUB_API_URL": "https://gitea.example/api/v1"},
            PullRequest(
                place=Place(kind="gitea", api="https://gitea.example/api/v1", repository="o/r"), number=12, token="t"
            ),
        ),
        (
            {**GITLAB, "BACKSTAY_FORGE_TOKEN": "mine"},
            PullRequest(
                place=Place(kind="gitlab", api="https://gitlab.example/api/v4", repository="42"), number=3, token="mine"
            ),
        ),
    ],
    ids=["github", "gitea", "gitlab"],
)
def test_the_pipeline_says_it(environment: dict[str, str], found: PullRequest) -> None:
    assert pull_request(environment) == found


def test_a_push_has_no_pull_request() -> None:
    with pytest.raises(Failed, match="no pipeline of a pull request"):
        pull_request({**GITHUB, "GITHUB_REF": "refs/heads/main"})


def test_without_a_token_nothing_is_tried() -> None:
    with pytest.raises(Failed, match="no token"):
        pull_request({**GITHUB, "GITHUB_TOKEN": ""})
