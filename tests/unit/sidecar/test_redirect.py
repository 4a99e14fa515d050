"""Which rules are written, and what is fed to iptables-restore for it. The kernel's side is in tests/e2e/redirect."""

import ipaddress

import pytest

from backstay.sidecar.redirect import (
    Failed,
    Reach,
    Wishes,
    ipv6_reach,
    parse,
    restore_input,
    rules,
    variant,
)

EMPTY = """*nat
:PREROUTING ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
COMMIT
"""
WRITTEN = """*nat
:PREROUTING ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:BACKSTAY_INBOUND - [0:0]
:BACKSTAY_OUTPUT - [0:0]
-A PREROUTING -p tcp -j BACKSTAY_INBOUND
-A OUTPUT -p tcp -j BACKSTAY_OUTPUT
-A OUTPUT -p tcp -j BACKSTAY_OUTPUT
-A POSTROUTING -j MASQUERADE
-A BACKSTAY_INBOUND -p tcp -j REDIRECT --to-ports 15006
COMMIT
"""
OWN = [f"-A BACKSTAY_INBOUND -p tcp -m tcp --dport {port} -j RETURN" for port in (15000, 15020, 15021, 15090)]


def test_everything_but_the_proxys_own_is_redirected() -> None:
    assert rules(Wishes(), 4) == [
        *OWN,
        "-A BACKSTAY_INBOUND -p tcp -j REDIRECT --to-ports 15006",
        "-A BACKSTAY_OUTPUT -s 127.0.0.6/32 -o lo -j RETURN",
        "-A BACKSTAY_OUTPUT ! -d 127.0.0.1/32 -o lo -p tcp -m owner --uid-owner 1337 -j BACKSTAY_INBOUND",
        "-A BACKSTAY_OUTPUT -o lo -m owner ! --uid-owner 1337 -j RETURN",
        "-A BACKSTAY_OUTPUT -m owner --uid-owner 1337 -j RETURN",
        "-A BACKSTAY_OUTPUT -d 127.0.0.1/32 -j RETURN",
        "-A BACKSTAY_OUTPUT -p tcp -j REDIRECT --to-ports 15001",
    ]


def test_exclusions_stand_before_what_they_exclude_and_networks_in_their_own_family() -> None:
    wishes = Wishes(
        inbound_ports=(8080, 80),
        exclude_inbound=(22,),
        exclude_outbound=(5432,),
        exclude_networks=(ipaddress.ip_network("10.0.0.0/8"), ipaddress.ip_network("fd00::/8")),
        uid=2000,
    )
    found = rules(wishes, 6)
    assert found == [
        "-A BACKSTAY_INBOUND -p tcp -m tcp --dport 22 -j RETURN",
        *OWN,
        "-A BACKSTAY_INBOUND -p tcp -m tcp --dport 80 -j REDIRECT --to-ports 15006",
        "-A BACKSTAY_INBOUND -p tcp -m tcp --dport 8080 -j REDIRECT --to-ports 15006",
        "-A BACKSTAY_OUTPUT -p tcp -m tcp --dport 5432 -j RETURN",
        "-A BACKSTAY_OUTPUT -s ::6/128 -o lo -j RETURN",
        "-A BACKSTAY_OUTPUT ! -d ::1/128 -o lo -p tcp -m owner --uid-owner 2000 -j BACKSTAY_INBOUND",
        "-A BACKSTAY_OUTPUT -o lo -m owner ! --uid-owner 2000 -j RETURN",
        "-A BACKSTAY_OUTPUT -m owner --uid-owner 2000 -j RETURN",
        "-A BACKSTAY_OUTPUT -d ::1/128 -j RETURN",
        "-A BACKSTAY_OUTPUT -d fd00::/8 -j RETURN",
        "-A BACKSTAY_OUTPUT -p tcp -j REDIRECT --to-ports 15001",
    ]
    assert "-A BACKSTAY_OUTPUT -d 10.0.0.0/8 -j RETURN" in rules(wishes, 4)


def test_a_first_writing_makes_chains_and_jumps() -> None:
    lines = restore_input(EMPTY, Wishes(), 4).splitlines()
    assert lines[:3] == ["*nat", ":BACKSTAY_INBOUND - [0:0]", ":BACKSTAY_OUTPUT - [0:0]"]
    assert lines[3:-3] == rules(Wishes(), 4)
    assert lines[-3:] == [
        "-A PREROUTING -p tcp -j BACKSTAY_INBOUND",
        "-A OUTPUT -p tcp -j BACKSTAY_OUTPUT",
        "COMMIT",
    ]


def test_a_second_writing_first_takes_out_every_jump_there_is() -> None:
    lines = restore_input(WRITTEN, Wishes(), 4).splitlines()
    assert lines[3:6] == [
        "-D PREROUTING -p tcp -j BACKSTAY_INBOUND",
        "-D OUTPUT -p tcp -j BACKSTAY_OUTPUT",
        "-D OUTPUT -p tcp -j BACKSTAY_OUTPUT",
    ]
    assert lines.count("-A OUTPUT -p tcp -j BACKSTAY_OUTPUT") == 1


def test_removal_leaves_what_is_not_ours() -> None:
    assert restore_input(WRITTEN, None, 4).splitlines() == [
        "*nat",
        ":BACKSTAY_INBOUND - [0:0]",
        ":BACKSTAY_OUTPUT - [0:0]",
        "-D PREROUTING -p tcp -j BACKSTAY_INBOUND",
        "-D OUTPUT -p tcp -j BACKSTAY_OUTPUT",
        "-D OUTPUT -p tcp -j BACKSTAY_OUTPUT",
        "-X BACKSTAY_OUTPUT",
        "-X BACKSTAY_INBOUND",
        "COMMIT",
    ]
    assert restore_input(EMPTY, None, 4).splitlines() == ["*nat", "COMMIT"]


def test_the_tables_that_have_rules_are_written_else_the_newer_ones() -> None:
    assert variant({"nft": EMPTY, "legacy": EMPTY}) == "nft"
    assert variant({"nft": EMPTY, "legacy": WRITTEN}) == "legacy"
    assert variant({"nft": WRITTEN, "legacy": WRITTEN}) == "nft"
    assert variant({"nft": None, "legacy": EMPTY}) == "legacy"
    with pytest.raises(Failed, match="neither iptables-nft nor iptables-legacy works here: is CAP_NET_ADMIN given"):
        variant({"nft": None, "legacy": None})


LOOPBACK = "00000000000000000000000000000001 01 80 10 80       lo\n"
LINK = "fe80000000000000a8bbccfffeddeeff 02 40 20 80     eth0\n"
GLOBAL = "fd000000000000000000000000000005 02 40 00 80     eth0\n"


def test_how_far_ipv6_goes_decides_whether_it_must_be_redirected() -> None:
    assert ipv6_reach("") is Reach.NONE
    assert ipv6_reach(LOOPBACK) is Reach.NONE
    assert ipv6_reach(LOOPBACK + LINK) is Reach.LINK
    assert ipv6_reach(LOOPBACK + LINK + GLOBAL) is Reach.WORLD


def test_arguments_are_lists_separated_by_commas_or_blanks() -> None:
    given = ["--inbound-ports", "80, 81", "--exclude-inbound", "22,23", "--exclude-cidr", "10.1.2.3/8", "--uid", "5"]
    assert parse(given) == Wishes(
        inbound_ports=(80, 81),
        exclude_inbound=(22, 23),
        exclude_networks=(ipaddress.ip_network("10.0.0.0/8"),),
        uid=5,
    )
    assert parse([]) == Wishes()
    assert parse(["--remove"]) is None


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--exclude-inbound", "http"], "--exclude-inbound: 'http' is not a port number"),
        (["--inbound-ports", "0"], "--inbound-ports: '0' is not a port number"),
        (["--exclude-cidr", "10.0.0.0/99"], "--exclude-cidr: '10.0.0.0/99' is not a network such as 10.0.0.0/8"),
        (["--uid", "root"], "--uid: 'root' is not a user's number"),
        (["--to-inbound", "70000"], "--to-inbound: '70000' is not a port number"),
    ],
)
def test_what_cannot_be_read_is_said(arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        parse(arguments)
    assert stopped.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1] == f"backstay sidecar redirect: error: {sentence}"
