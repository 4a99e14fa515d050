"""What is asked of each forge, as values: paths, bodies and the words they use for states. Pure.

Checked against GitHub's published OpenAPI description in the tests; Gitea's and Forgejo's API is the same where it is used
here, GitLab's differs in names only.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias
from urllib.parse import quote

Kind: TypeAlias = Literal["github", "gitea", "gitlab"]
State: TypeAlias = Literal["pending", "success", "failure", "error"]

MOST_REQUESTS: Final = (
    50  # open pull requests looked at; one is some 20 KiB in GitHub's answer, and Gitea gives no more
)
MOST_DESCRIPTION: Final = 140  # characters of a status; GitHub refuses longer ones, GitLab takes 255
PAGE: Final = 100  # comments asked for at once; the most that GitHub and GitLab give
_GITLAB_STATES: Final = {"pending": "running", "success": "success", "failure": "failed", "error": "failed"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a repository lives."""

    kind: Kind
    api: str
    """`https://api.github.com`, `https://gitea.example/api/v1`, `https://gitlab.example/api/v4`."""
    repository: str
    """`owner/name`; on GitLab also the project's number."""

    @property
    def root(self) -> str:
        if self.kind == "gitlab":
            return f"{self.api.rstrip('/')}/projects/{quote(self.repository, safe='')}"
        owner, _, name = self.repository.partition("/")
        return f"{self.api.rstrip('/')}/repos/{quote(owner, safe='')}/{quote(name, safe='')}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    method: Literal["GET", "POST", "PATCH", "PUT"]
    url: str
    body: Mapping[str, Any] | None = None


def headers(kind: Kind, token: str) -> dict[str, str]:
    if kind == "github":
        return {
            "Authorization": f"Bearer {token}",
            "Accept": "application/vnd.github+json",
            "X-GitHub-Api-Version": "2022-11-28",
        }
    return {"PRIVATE-TOKEN": token} if kind == "gitlab" else {"Authorization": f"token {token}"}


def list_comments(place: Place, request: int, page: int) -> Call:
    return Call(method="GET", url=f"{_comments(place, request)}?per_page={PAGE}&limit={PAGE}&page={page}")


def list_requests(place: Place) -> Call:
    """Open ones, lately changed first: a bounded page of them."""
    if place.kind == "gitlab":
        url = f"{place.root}/merge_requests?state=opened&order_by=updated_at&sort=desc&per_page={MOST_REQUESTS}"
    elif place.kind == "gitea":
        url = f"{place.root}/pulls?state=open&sort=recentupdate&limit={MOST_REQUESTS}"
    else:
        url = f"{place.root}/pulls?state=open&sort=updated&direction=desc&per_page={MOST_REQUESTS}"
    return Call(method="GET", url=url)


def create_comment(place: Place, request: int, text: str) -> Call:
    return Call(method="POST", url=_comments(place, request), body={"body": text})


def edit_comment(place: Place, request: int, comment: int, text: str) -> Call:
    if place.kind == "gitlab":
        return Call(method="PUT", url=f"{_comments(place, request)}/{comment}", body={"body": text})
    return Call(method="PATCH", url=f"{place.root}/issues/comments/{comment}", body={"body": text})


def _comments(place: Place, request: int) -> str:
    if place.kind == "gitlab":
        return f"{place.root}/merge_requests/{request}/notes"
    return f"{place.root}/issues/{request}/comments"


def set_status(place: Place, sha: str, state: State, context: str, description: str) -> Call:
    short = description if len(description) <= MOST_DESCRIPTION else f"{description[: MOST_DESCRIPTION - 1]}…"
    if place.kind == "gitlab":
        body = {"state": _GITLAB_STATES[state], "name": context, "description": short}
    else:
        body = {"state": state, "context": context, "description": short}
    return Call(method="POST", url=f"{place.root}/statuses/{quote(sha, safe='')}", body=body)
