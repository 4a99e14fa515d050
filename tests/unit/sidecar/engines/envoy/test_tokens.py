"""What policies ask of a token, in Envoy's matchers; and which keys Envoy is given."""

import json
from typing import Any

import pytest

from backstay.config.model import ClaimMatch, Jwt, JwtProvider, TokenPlace
from backstay.sidecar.engines.envoy import scripts, tokens

ISSUER = "https://issuer.example"


def claim(*path: str, **value: Any) -> dict[str, Any]:
    keys = [{"key": key} for key in (tokens.PAYLOAD, *path)]
    return {"metadata": {"filter": tokens.FILTER, "path": keys, "value": value}}


def is_issued(subject: dict[str, Any]) -> dict[str, Any]:
    return {"and_ids": {"ids": [claim("iss", string_match={"exact": ISSUER}), subject]}}


PRESENT = claim("sub", present_match=True)


@pytest.mark.parametrize(
    ("pattern", "subjects"),
    [
        ("*", [PRESENT]),
        (f"{ISSUER}/ann", [claim("sub", string_match={"exact": "ann"})]),
        (f"{ISSUER}/an*", [claim("sub", string_match={"prefix": "an"})]),
        (f"{ISSUER}/*", [PRESENT]),
        ("https://issuer*", [PRESENT]),
        ("https://other*", []),
        ("https://other.example/ann", []),
        ("*bob", [claim("sub", string_match={"suffix": "bob"})]),
        (
            "*.example/bob",
            [claim("sub", string_match={"suffix": ".example/bob"}), claim("sub", string_match={"exact": "bob"})],
        ),
    ],
)
def test_a_principal_is_an_issuer_and_a_subject(pattern: str, subjects: list[dict[str, Any]]) -> None:
    assert tokens.principal(pattern, (ISSUER,)) == [is_issued(each) for each in subjects]


def test_a_claim_is_text_or_a_number_or_a_list_with_one() -> None:
    found = tokens.claim(ClaimMatch(name="level", values=("9",)))
    values = ({"string_match": {"exact": "9"}}, {"double_match": {"exact": 9.0}})
    assert found == {
        "or_ids": {
            "ids": [claim("level", **each) for value in values for each in (value, {"list_match": {"one_of": value}})]
        }
    }


def test_a_claim_without_values_must_be_there_and_one_that_is_only_excluded_need_not() -> None:
    assert tokens.claim(ClaimMatch(name="a")) == claim("a", present_match=True)
    assert tokens.claim(ClaimMatch(name="a", not_values=("*",))) == {"not_id": claim("a", present_match=True)}


@pytest.mark.parametrize("text", ["", "no JSON", '{"keys": 7}', '{"keys": [{"kty": "oct", "kid": "a", "k": "AAAA"}]}'])
def test_without_a_usable_key_envoy_gets_one_that_proves_nothing(text: str) -> None:
    (key,) = json.loads(tokens.usable_keys(text))["keys"]
    assert key["kid"] == "nobody"


def test_a_clients_fields_of_claims_are_removed_however_they_are_spelt() -> None:
    provider = JwtProvider(issuer=ISSUER, claim_headers=(("x-user_name", "sub"), ("x-role", "role")))
    assert tokens.own_fields(Jwt(providers=(provider,))) == "x[-_]user[-_]name|x[-_]role"


def test_what_applications_see_of_a_token_is_written_where_there_is_something_to_write() -> None:
    cookie = JwtProvider(issuer=ISSUER, places=(TokenPlace(kind="cookie", name="session"),))
    kept = JwtProvider(issuer=ISSUER, places=cookie.places, forward=True)
    read = ["backstay.token-header", "backstay.token-places", tokens.FILTER, "backstay.token-times"]
    names = [[each["name"] for each in tokens.filters(Jwt(providers=(one,)), {})] for one in (cookie, kept)]
    assert names == [[*read, "backstay.token-fields"], read]


@pytest.mark.parametrize(
    ("text", "literal"),
    [
        ("https://issuer.example", '"https://issuer.example"'),
        ('") os.exit() --', r'"\034\041 os.exit\040\041 --"'),
        ("a\nb\\", r'"a\010b\092"'),
        ("ä", r'"\195\164"'),
    ],
)
def test_no_text_of_a_config_ends_its_literal_in_a_script(text: str, literal: str) -> None:
    assert scripts.quoted(text) == literal
