"""The pull request that a pipeline runs for, told by the variables that forges set, and the comment on it."""

import asyncio
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from backstay.adapters.forge import Forge, ForgeRefused, ForgeUnavailable, Place
from backstay.cli.exits import Failed
from backstay.cli.session import Session
from backstay.core.review.formats import MARKER


@dataclass(frozen=True, slots=True, kw_only=True)
class PullRequest:
    place: Place
    number: int
    token: str


def pull_request(environment: Mapping[str, str]) -> PullRequest:
    """Raises Failed outside of a pull request's pipeline, or without a token."""
    token = environment.get("BACKSTAY_FORGE_TOKEN", "")
    if environment.get("CI_MERGE_REQUEST_IID"):
        place = Place(kind="gitlab", api=environment["CI_API_V4_URL"], repository=environment["CI_PROJECT_ID"])
        return _made(place, environment["CI_MERGE_REQUEST_IID"], token or environment.get("GITLAB_TOKEN", ""))
    number = re.fullmatch(r"refs/pull/([0-9]+)/[a-z]+", environment.get("GITHUB_REF", ""))
    if number is None:
        raise Failed("this is no pipeline of a pull request", hint="`-o markdown=FILE` writes the comment into a file")
    is_gitea = "GITEA_ACTIONS" in environment or "FORGEJO_ACTIONS" in environment
    api = environment.get("GITHUB_API_URL", "https://api.github.com")
    place = Place(kind="gitea" if is_gitea else "github", api=api, repository=environment["GITHUB_REPOSITORY"])
    return _made(place, number[1], token or environment.get("GITHUB_TOKEN", ""))


def _made(place: Place, number: str, token: str) -> PullRequest:
    if not token:
        raise Failed("no token to comment with", hint="put one into BACKSTAY_FORGE_TOKEN")
    return PullRequest(place=place, number=int(number), token=token)


def write_comment(session: Session, text: str) -> None:
    """Comment, or say why not: a fork's pipeline may not, and the job's summary then has the report."""
    _summarize(text, os.environ.get("GITHUB_STEP_SUMMARY", ""))
    try:
        asyncio.run(_comment(pull_request(os.environ), text))
    except (Failed, ForgeRefused, ForgeUnavailable) as error:
        session.say(f"no comment was written: {error}")


def _summarize(text: str, path: str) -> None:
    if path:
        with Path(path).open("a", encoding="utf-8") as summary:
            summary.write(text)


async def _comment(request: PullRequest, text: str) -> None:
    async with Forge(request.place, request.token) as forge:
        await forge.comment(request.number, MARKER, text)
