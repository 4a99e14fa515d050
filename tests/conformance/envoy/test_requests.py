"""The hostile requests through Envoy: what the case says, what the RFC allows besides (`allows`), or a known difference."""

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from conformance.http.test_requests import CASES

from .cases import known
from .raw import Relay, merged, raw, relay

FILE = "http/requests.yaml"
ADDED = b"x-forwarded-proto"
"""What Envoy adds, as proxies may."""


def as_message(data: bytes, sent: bytes) -> tuple[bytes, Sequence[tuple[bytes, bytes]], bytes]:
    """Request line, fields, body: the order of fields of different names says nothing (RFC 9110, 5.3)."""
    usual = data.replace(b"\r\ntransfer-encoding: chunked\r\n", b"\r\nTransfer-Encoding: chunked\r\n")
    head, _, body = merged(usual).partition(b"\r\n\r\n")
    line, *lines = head.split(b"\r\n")
    fields = [(name.lower(), value.strip()) for name, _, value in (each.partition(b":") for each in lines)]
    kept = [field for field in fields if field[0] != ADDED or ADDED in sent.lower()]
    return line, sorted(kept, key=lambda field: field[0]), body


def fits(wanted: Mapping[str, Any], status: int, seen: bytes, sent: bytes) -> bool:
    if status != wanted["status"]:
        return False
    upstream = wanted["upstream"]
    if upstream is None:
        return seen == b""
    if upstream == "any":  # the head may have gone before its body broke; the body must never be complete
        return not seen.endswith(b"0\r\n\r\n")
    return as_message(seen, sent) == as_message(raw(upstream), sent)


async def decided(running: Relay, case: dict[str, Any], *, whole: bool) -> str:
    """What was wrong; empty: nothing."""
    data = raw(case["send"])
    pieces = [data] if whole else [data[at : at + 1] for at in range(len(data))]
    status, seen = await running.ask(pieces)
    if fits(case, status, seen, data) or ("allows" in case and fits({**case, **case["allows"]}, status, seen, data)):
        return ""
    return f"{status}, {seen!r} arrived"


@pytest.mark.long
@pytest.mark.parametrize("whole", [True, False], ids=["whole", "byte by byte"])
async def test_hostile_requests_end_as_the_rfc_allows_but_for_known_differences(whole: bool) -> None:
    async with relay() as running:
        found = {case["name"]: await decided(running, case, whole=whole) for case in CASES}
    differing = {name: why for name, why in found.items() if why}
    expected = {case["name"] for case in CASES if case["name"] in known(FILE)}
    assert {name: why for name, why in differing.items() if name not in expected} == {}
    assert expected - differing.keys() == set(), "no difference any more"


def test_what_is_allowed_besides_names_its_place_and_is_something_else() -> None:
    for case in CASES:
        allowed = case.get("allows")
        if allowed is not None:
            assert set(allowed) <= {"rfc", "status", "upstream"}, case["name"]
            assert str(allowed["rfc"]).split()[0] in ("9110", "9112", "9113"), case["name"]
            assert {**case, **allowed} != {**case, "rfc": allowed["rfc"]}, case["name"]
