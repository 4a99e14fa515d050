"""What is asked of forges; GitHub's against its published OpenAPI description."""

import json
import re
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import jsonschema
import pytest

from backstay.adapters.forge.requests import (
    MOST_DESCRIPTION,
    Call,
    Place,
    create_comment,
    edit_comment,
    headers,
    list_comments,
    list_requests,
    set_status,
)

GITHUB = Place(kind="github", api="https://api.github.com", repository="o/r")
GITLAB = Place(kind="gitlab", api="https://gitlab.example/api/v4", repository="group/sub/r")
PATHS: dict[str, dict[str, Any]] = json.loads(Path(__file__).with_name("github_operations.json").read_text())["paths"]


def operation(call: Call) -> tuple[dict[str, Any], dict[str, str]]:
    """The published operation that a call is, and its query."""
    url = urlsplit(call.url)
    for path, methods in PATHS.items():
        pattern = re.sub(r"\\\{[a-z_]+\\\}", "[^/]+", re.escape(path))
        if re.fullmatch(pattern, url.path) and call.method.lower() in methods:
            found: dict[str, Any] = methods[call.method.lower()]
            return found, dict(parse_qsl(url.query))
    raise AssertionError(f"GitHub has no {call.method} {url.path}")


@pytest.mark.parametrize(
    "call",
    [
        list_requests(GITHUB),
        list_comments(GITHUB, 7, 2),
        create_comment(GITHUB, 7, "text"),
        edit_comment(GITHUB, 7, 9, "text"),
        set_status(GITHUB, "a" * 40, "failure", "backstay/rollout", "rolled back"),
    ],
    ids=["requests", "list", "create", "edit", "status"],
)
def test_githubs_description_knows_what_is_asked(call: Call) -> None:
    found, query = operation(call)
    if call.body is not None:
        jsonschema.validate(dict(call.body), found["requestBody"]["content"]["application/json"]["schema"])
    known = {item["name"]: item["schema"] for item in found["parameters"] if item["in"] == "query"}
    assert set(query) - {"limit"} <= known.keys(), "`limit` is Gitea's name for per_page"
    for name, value in query.items():
        if name in known:
            jsonschema.validate(int(value) if known[name]["type"] == "integer" else value, known[name])


def test_a_description_fits_everywhere() -> None:
    body = set_status(GITHUB, "a", "pending", "c", "x" * 500).body
    assert body is not None
    assert len(body["description"]) == MOST_DESCRIPTION


GITLAB_STATES = {"pending", "running", "success", "failed", "canceled", "skipped"}
"""Of a commit's status. GitLab publishes its description under CC BY-SA 4.0 (gitlab-org/gitlab, doc/api/openapi), so no copy of it
is kept here: comments and statuses were compared with it, and what is asked is pinned below."""


def test_gitlab_is_told_states_that_it_knows() -> None:
    for state in ("pending", "success", "failure", "error"):
        body = set_status(GITLAB, "a" * 40, state, "c", "d").body
        assert body is not None
        assert body["state"] in GITLAB_STATES


def test_gitlab_says_it_in_its_own_words() -> None:
    root = "https://gitlab.example/api/v4/projects/group%2Fsub%2Fr"
    assert create_comment(GITLAB, 7, "t") == Call(
        method="POST", url=f"{root}/merge_requests/7/notes", body={"body": "t"}
    )
    assert edit_comment(GITLAB, 7, 9, "t") == Call(
        method="PUT", url=f"{root}/merge_requests/7/notes/9", body={"body": "t"}
    )
    assert set_status(GITLAB, "abc", "failure", "c", "d") == Call(
        method="POST", url=f"{root}/statuses/abc", body={"state": "failed", "name": "c", "description": "d"}
    )


def test_open_requests_are_asked_for_in_each_forges_words() -> None:
    gitea = Place(kind="gitea", api="http://f/api/v1", repository="o/r")
    assert list_requests(gitea).url == "http://f/api/v1/repos/o/r/pulls?state=open&sort=recentupdate&limit=50"
    assert list_requests(GITLAB).url == (
        "https://gitlab.example/api/v4/projects/group%2Fsub%2Fr/merge_requests"
        "?state=opened&order_by=updated_at&sort=desc&per_page=50"
    )


def test_names_cannot_leave_their_place_in_a_path() -> None:
    assert (
        Place(kind="gitea", api="http://f/api/v1", repository="o/../../x").root == "http://f/api/v1/repos/o/..%2F..%2Fx"
    )


def test_a_token_goes_into_one_header() -> None:
    for kind in ("github", "gitea", "gitlab"):
        assert sum("secret" in value for value in headers(kind, "secret").values()) == 1
