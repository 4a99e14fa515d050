"""Runs tokens.yaml: which tokens are believed, and what becomes of the request. README.md describes the form."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from . import signing
from .runner import ENGINES, Authority, groups, world

CASES = Path(__file__).parent / "tokens.yaml"
FETCHED = "https://issuer.example/keys"


def cases() -> Iterator[Any]:
    for number, group in enumerate(groups(CASES)):
        for case in group["cases"]:
            yield pytest.param(group, case, id=f"{number}: {case['name']}")


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"))


def intents(group: dict[str, Any]) -> str:
    """With the key set in place of KEYS. Without intents of its own a group has one provider."""
    keys = signing.key_set(group.get("keys", ["rsa", "ec", "ec384", "ec521", "ed"]))
    if "intents" in group:
        return str(group["intents"]).replace("KEYS", yaml.safe_dump(keys, width=100_000).strip().partition("\n")[0])
    provider = {"issuer": signing.ISSUER, "jwks": keys, **group.get("provider", {})}
    rules = {"providers": [provider], **group.get("rules", {})}
    return yaml.safe_dump({"kind": "Authentication", "name": "a", "spec": {"jwt": rules}})


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("group", "case"), list(cases()))
async def test_the_case_holds(authority: Authority, group: dict[str, Any], case: dict[str, Any], engine: str) -> None:
    made = [signing.token(said) for said in case.get("tokens", [case["token"]] if "token" in case else [])]
    send = dict(case.get("send", {}))
    usual = [["Authorization", "Bearer {0}"]] if made and "send" not in case else []
    send["headers"] = [[name, value.format(*made)] for name, value in send.get("headers", usual)]
    send["path"] = send.get("path", "/").format(*made)
    fetched = {FETCHED: signing.key_set(group["fetched"])} if "fetched" in group else {}
    async with world(intents(group), authority, engine, prepare=lambda running: running.key_sets(fetched)) as running:
        answers = [await running.ask(send) for _ in range(case.get("times", 1))]
        assert {answer.status for answer in answers} == {case.get("status", 200)}
        challenge = {401: "Bearer" if case.get("why") == "a token is required" else 'Bearer error="invalid_token"'}
        assert answers[-1].headers.get("www-authenticate") == challenge.get(answers[-1].status)
        if answers[-1].status == 200:
            check_forwarded(running.application.got[-1], case)
        line = (await running.lines())[-1]
        assert line.get("policy", "") == case.get("why", "")
        assert line.get("flags", "") == {401: "UAEX", 403: "RBAC"}.get(answers[-1].status, "")
        assert not any(token and token in f"{line} {answers[-1].body}" for token in made)


def check_forwarded(got: tuple[str, dict[str, str]], case: dict[str, Any]) -> None:
    line, headers = got
    assert line == case.get("line", line)
    assert {name: headers.get(name) for name in case.get("sees", {})} == case.get("sees", {})
    assert [name for name in case.get("misses", []) if name in headers] == []


def test_there_are_as_many_cases_as_promised() -> None:
    found = list(cases())
    assert len({case.id for case in found}) == len(found) >= 80


async def test_a_key_that_was_not_fetched_is_reported_once_and_nothing_else_is(authority: Authority) -> None:
    """Only for the bundled engine: Envoy tells nobody of single tokens."""
    group: dict[str, Any] = {"provider": {"jwks": "", "jwksUri": FETCHED}}
    fetched = {FETCHED: signing.key_set(["rsa"])}
    async with world(intents(group), authority, "python", prepare=lambda made: made.key_sets(fetched)) as running:
        for said in ({}, {"claims": {"aud": "other", "exp": 1}}, {"by": "ec"}):
            send = {"headers": [["Authorization", f"Bearer {signing.token(said)}"]]}
            await running.ask(send)
            missing = list(running.engine.collect().missing_keys)
            assert missing == ([FETCHED] if "by" in said else [])
        assert list(running.engine.collect().missing_keys) == []
