"""What a token's claims say."""

from typing import Any

import pytest

from backstay.config.authorize import takes_claim
from backstay.config.claims import claim_values, principal_of
from backstay.config.model import ClaimMatch

CLAIMS: dict[str, Any] = {
    "iss": "https://a.example",
    "sub": "ann",
    "groups": ["admin", "staff"],
    "scope": "read write",
    "level": 3,
    "beta": True,
    "realm": {"roles": ["cook"], "name": "x"},
    "a.b": "literal",
    "a": {"b": "nested"},
    "nothing": None,
    "empty": "",
}


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("sub", ("ann",)),
        ("groups", ("admin", "staff")),
        ("scope", ("read", "write")),
        ("level", ("3",)),
        ("beta", ("true",)),
        ("realm.roles", ("cook",)),
        ("realm", ()),
        ("realm.roles.x", ()),
        ("a.b", ("literal",)),
        ("nothing", ()),
        ("empty", ()),
        ("missing", ()),
    ],
)
def test_the_values_of_a_claim(name: str, values: tuple[str, ...]) -> None:
    assert claim_values(CLAIMS, name) == values


@pytest.mark.parametrize(
    ("claims", "principal"),
    [(CLAIMS, "https://a.example/ann"), (None, ""), ({"iss": "a"}, ""), ({"iss": "a", "sub": 7}, "")],
)
def test_the_principal_of_a_token(claims: dict[str, Any] | None, principal: str) -> None:
    assert principal_of(claims) == principal


@pytest.mark.parametrize(
    ("claim", "holds"),
    [
        (ClaimMatch(name="groups", values=("admin",)), True),
        (ClaimMatch(name="groups", values=("boss", "st*")), True),
        (ClaimMatch(name="groups", values=("*min",)), True),
        (ClaimMatch(name="groups", values=("boss",)), False),
        (ClaimMatch(name="groups", values=("admin",), not_values=("staff",)), False),
        (ClaimMatch(name="groups"), True),
        (ClaimMatch(name="missing"), False),
        (ClaimMatch(name="missing", values=("*",)), False),
        (ClaimMatch(name="missing", not_values=("x",)), True),
    ],
)
def test_conditions(claim: ClaimMatch, holds: bool) -> None:
    assert takes_claim(claim, CLAIMS) is holds
    assert not takes_claim(claim, None)
