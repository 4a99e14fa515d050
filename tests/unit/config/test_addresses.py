"""Addresses, blocks of them, and where a request began."""

import pytest

from backstay.config.addresses import in_blocks, remote_address


@pytest.mark.parametrize(
    ("address", "blocks", "inside"),
    [
        ("10.1.2.3", ("10.0.0.0/8",), True),
        ("10.1.2.3", ("192.0.2.0/24", "10.1.2.3"), True),
        ("11.0.0.0", ("10.0.0.0/8",), False),
        ("10.255.255.255", ("10.0.0.0/8",), True),
        ("10.1.2.3", ("10.9.9.9/8",), True),
        ("::ffff:10.1.2.3", ("10.0.0.0/8",), True),
        ("2001:db8::1", ("2001:db8::/32",), True),
        ("2001:db8::1", ("0.0.0.0/0",), False),
        ("10.1.2.3", ("::/0",), False),
        ("", ("0.0.0.0/0", "::/0"), False),
        ("junk", ("0.0.0.0/0",), False),
        ("10.1.2.3", (), False),
    ],
)
def test_blocks(address: str, blocks: tuple[str, ...], inside: bool) -> None:
    assert in_blocks(address, blocks) is inside


@pytest.mark.parametrize(
    ("noted", "hops", "remote"),
    [
        ([], 0, "192.0.2.1"),
        (["10.0.0.1"], 0, "10.0.0.1"),
        (["10.0.0.1, 10.0.0.2"], 0, "10.0.0.2"),
        (["10.0.0.1", "10.0.0.2"], 1, "10.0.0.1"),
        (["10.0.0.1"], 1, "192.0.2.1"),
        (["10.0.0.1:99"], 0, "10.0.0.1"),
        (["[2001:db8::1]:99"], 0, "2001:db8::1"),
        (["2001:db8::1"], 0, "2001:db8::1"),
        (["unknown"], 0, ""),
        ([""], 0, ""),
    ],
)
def test_where_a_request_began(noted: list[str], hops: int, remote: str) -> None:
    headers = [(b"X-Forwarded-For", value.encode()) for value in noted]
    assert remote_address(headers, "192.0.2.1", hops) == remote
