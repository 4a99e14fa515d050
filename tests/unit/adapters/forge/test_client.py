"""A forge that answers, one that says no, one that is away: over real sockets, against a small recorded server."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from backstay.adapters.forge import Desk, Forge, ForgeRefused, ForgeUnavailable, Place
from backstay.core.ports import PullRequest

MARKER = "<!-- backstay-review -->"


class Recorded:
    """A pull request's comments and a commit's statuses, as the four calls show them."""

    def __init__(self) -> None:
        self.comments: dict[int, dict[str, Any]] = {}
        self.statuses: list[dict[str, Any]] = []
        self.calls: list[str] = []
        self.answers: list[tuple[int, dict[str, str]]] = []
        """What the next calls get instead."""
        self.foreign: set[int] = set()
        self.requests: Any = []
        self.url = ""

    def forge(self, **options: Any) -> Forge:
        place = Place(kind="gitea", api=f"{self.url}/api/v1", repository="o/r")
        return Forge(place, "secret-token", **{"backoff": 0.001, "draw": lambda: 0.0, **options})

    async def handle(self, request: web.Request) -> web.Response:
        self.calls.append(f"{request.method} {request.path.removeprefix('/api/v1/repos/o/r')}")
        assert request.headers["Authorization"] == "token secret-token"
        if self.answers:
            status, headers = self.answers.pop(0)
            return web.Response(status=status, headers=headers, text="<html>no</html>")
        if "/statuses/" in request.path:
            self.statuses.append(await request.json())
            return web.json_response({}, status=201)
        if request.path.endswith("/pulls"):
            return web.json_response(self.requests)
        if request.method == "GET":
            page = int(request.query["page"])
            items = list(self.comments.values())[(page - 1) * 100 : page * 100]
            return web.json_response(items)
        number = int(request.path.rpartition("/")[2]) if request.method == "PATCH" else len(self.comments) + 1
        if number in self.foreign:
            return web.Response(status=403)
        self.comments[number] = {"id": number, **(await request.json()), "user": {"login": "bot"}}
        return web.json_response(self.comments[number], status=201)


@pytest.fixture
async def forge() -> AsyncIterator[Recorded]:
    recorded = Recorded()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", recorded.handle)
    async with TestServer(app) as server:
        recorded.url = str(server.make_url("")).rstrip("/")
        yield recorded


async def test_the_one_comment_is_edited_in_place(forge: Recorded) -> None:
    forge.comments[1] = {"id": 1, "body": "nice change"}
    async with forge.forge() as client:
        await client.comment(7, MARKER, f"{MARKER}\nfirst")
        await client.comment(7, MARKER, f"{MARKER}\nsecond")
    assert [item["body"] for item in forge.comments.values()] == ["nice change", f"{MARKER}\nsecond"]


async def test_it_is_found_beyond_the_first_page(forge: Recorded) -> None:
    forge.comments |= {number: {"id": number, "body": "talk"} for number in range(1, 131)}
    forge.comments[131] = {"id": 131, "body": f"{MARKER}\nold"}
    async with forge.forge() as client:
        await client.comment(7, MARKER, f"{MARKER}\nnew")
    assert forge.comments[131]["body"] == f"{MARKER}\nnew"
    assert len(forge.comments) == 131


async def test_a_comment_of_somebody_else_with_our_marker_is_passed_over(forge: Recorded) -> None:
    forge.comments[1] = {"id": 1, "body": f"{MARKER}\nfake"}
    forge.foreign = {1}
    async with forge.forge() as client:
        await client.comment(7, MARKER, f"{MARKER}\nreal")
    assert forge.comments[2]["body"] == f"{MARKER}\nreal"


@pytest.mark.parametrize("answer", [(503, {}), (429, {"Retry-After": "0"}), (403, {"X-RateLimit-Remaining": "0"})])
async def test_a_forge_that_is_busy_is_asked_again(forge: Recorded, answer: tuple[int, dict[str, str]]) -> None:
    forge.answers = [answer, answer]
    async with forge.forge() as client:
        await client.status("a" * 40, "pending", "backstay", "wave 1 of 4")
    assert forge.statuses == [{"state": "pending", "context": "backstay", "description": "wave 1 of 4"}]
    assert len(forge.calls) == 3


async def test_a_forge_that_stays_away_is_given_up(forge: Recorded) -> None:
    forge.answers = [(502, {})] * 9
    async with forge.forge(attempts=3) as client:
        with pytest.raises(ForgeUnavailable, match=r"^gitea cannot be reached: it answered 502; tried 3 times$"):
            await client.status("a", "pending", "c", "d")


async def test_a_long_rate_limit_is_not_waited_for(forge: Recorded) -> None:
    forge.answers = [(429, {"Retry-After": "3600"})]
    async with forge.forge() as client:
        with pytest.raises(ForgeUnavailable, match="limits our requests for another 3600 s"):
            await client.status("a", "pending", "c", "d")


@pytest.mark.parametrize(
    ("status", "sentence"),
    [
        (401, "gitea does not know the token (401)"),
        (403, "the token may not write a commit status of o/r on gitea (403); it needs the scope `write:repository`"),
        (422, "gitea refused to write a commit status of o/r with 422: <html>no</html>"),
    ],
)
async def test_a_no_is_one_clear_sentence(forge: Recorded, status: int, sentence: str) -> None:
    forge.answers = [(status, {})]
    async with forge.forge() as client:
        with pytest.raises(ForgeRefused) as refused:
            await client.status("a", "pending", "c", "d")
    assert str(refused.value) == sentence
    assert len(forge.calls) == 1


async def test_what_is_no_forge_is_said_to_be_none(forge: Recorded) -> None:
    forge.answers = [(200, {})]
    async with forge.forge() as client:
        with pytest.raises(ForgeUnavailable, match="what answers there is no forge"):
            await client.comment(7, MARKER, "x")


async def test_nobody_listens() -> None:
    place = Place(kind="github", api="http://127.0.0.1:1", repository="o/r")
    async with Forge(place, "secret-token", attempts=2, backoff=0.001) as client:
        with pytest.raises(ForgeUnavailable) as away:
            await client.status("a", "pending", "c", "d")
    assert "secret-token" not in str(away.value) + repr(client)


async def test_secrets_in_descriptions_are_cleaned(forge: Recorded) -> None:
    async with forge.forge() as client:
        await client.status("a", "failure", "c", "git said password=hunter2")
    assert "hunter2" not in json.dumps(forge.statuses)


GITHUBS = [{"number": 7, "head": {"sha": "a" * 40, "ref": "feature"}, "base": {"sha": "b" * 40, "ref": "main"}}]
GITLABS = [{"iid": 7, "sha": "a" * 40, "target_branch": "main", "diff_refs": None}]


@pytest.mark.parametrize("answer", [GITHUBS, GITLABS], ids=["github, gitea", "gitlab"])
async def test_open_requests_are_read_from_every_forges_answer(forge: Recorded, answer: list[dict[str, Any]]) -> None:
    forge.requests = answer
    async with forge.forge() as client:
        assert await client.open_requests() == [PullRequest(number=7, head="a" * 40, base="main")]


def test_githubs_description_has_what_is_read_of_a_request() -> None:
    described = json.loads(Path(__file__).with_name("github_operations.json").read_text())
    jsonschema.validate(GITHUBS, described["paths"]["/repos/{owner}/{repo}/pulls"]["get"]["answer"])


async def test_what_is_no_forge_is_said_so(forge: Recorded) -> None:
    forge.requests = {"message": "hello"}
    async with forge.forge() as client:
        with pytest.raises(ForgeUnavailable) as error:
            await client.open_requests()
    assert str(error.value) == "what answers there is no forge: its list of pull requests cannot be read"


async def test_a_desk_edits_the_comment_that_only_it_can_have_written(forge: Recorded) -> None:
    async def client() -> Forge:
        return forge.forge()

    desk = Desk(client, "backstay/shop/review")
    forge.comments[1] = {"id": 1, "body": "<!-- backstay/shop/review 0123 -->\nall is well, says a stranger"}
    await desk.comment(7, "first")
    await desk.comment(7, "second")
    marker = forge.forge().marker("backstay/shop/review", 7)
    assert [item["body"] for item in forge.comments.values()][1:] == [f"{marker}\nsecond"]
    assert marker != forge.forge().marker("backstay/shop/review", 8), "nor can it be copied from another request"
    await desk.status("a" * 40, good=False, description="INVALID")
    assert forge.statuses == [{"state": "failure", "context": "backstay/shop/review", "description": "INVALID"}]
