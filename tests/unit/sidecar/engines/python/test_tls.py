"""Which names of a certificate are an identity."""

import pytest

from backstay.sidecar.engines.python.tls import PeerRefused, is_workload_id, peer_identity, trust_domain_of


@pytest.mark.parametrize("identity", ["spiffe://td/ns/shop/sa/web", "spiffe://a.b-c_d/x", "spiffe://td/a.b/..c"])
def test_workload_ids(identity: str) -> None:
    assert is_workload_id(identity)


@pytest.mark.parametrize(
    "identity",
    [
        "", "spiffe://td", "spiffe://td/", "spiffe://td/a/", "spiffe://td//a", "spiffe://td/a/../b", "spiffe://td/./a",
        "spiffe://TD/a", "SPIFFE://td/a", "spiffe://td:80/a", "spiffe://u@td/a", "spiffe://td/a%2fb", "spiffe://td/a?b",
        "spiffe://td/a#b", "https://td/a", "spiffe://td/" + "a" * 2048, "spiffe://td/a\n",
    ],
)  # fmt: skip
def test_what_is_no_workload_id(identity: str) -> None:
    assert not is_workload_id(identity)


def test_a_certificate_has_exactly_one_identity() -> None:
    one = ("URI", "spiffe://td/a")
    assert peer_identity({"subjectAltName": (("DNS", "x"), one)}) == "spiffe://td/a"
    for names in ((), (("DNS", "x"),), (one, ("URI", "spiffe://td/b")), (one, one), (("URI", "https://x"),)):
        with pytest.raises(PeerRefused):
            peer_identity({"subjectAltName": names})
    with pytest.raises(PeerRefused):
        peer_identity(None)


def test_the_trust_domain_of_an_id() -> None:
    assert trust_domain_of("spiffe://a.b/ns/x/sa/y") == "a.b"
