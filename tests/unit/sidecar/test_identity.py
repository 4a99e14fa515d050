from pathlib import Path

from backstay.config.wire import EnrolAnswer
from backstay.sidecar.identity import Renewal, Svid, read, roots_for, write

KEY = b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"
ANSWER = EnrolAnswer(
    certificate="-----BEGIN CERTIFICATE-----\nBBBB\n-----END CERTIFICATE-----\n",
    trust={"td": "ROOT"},
    identity="spiffe://td/ns/a/sa/b",
    expires_at=2000.0,
)


def test_key_and_chain_are_one_file_that_says_what_it_is(tmp_path: Path) -> None:
    path = tmp_path / "identity.pem"
    svid = write(path, KEY, ANSWER, wall=1000.0)
    assert svid == Svid(identity="spiffe://td/ns/a/sa/b", issued_at=1000.0, expires_at=2000.0)
    assert read(path) == svid
    assert path.read_bytes().partition(b"\n")[2] == KEY + ANSWER.certificate.encode()


def test_a_damaged_or_missing_file_is_no_identity(tmp_path: Path) -> None:
    path = tmp_path / "identity.pem"
    assert read(path) is None
    write(path, KEY, ANSWER, wall=1000.0)
    path.write_bytes(path.read_bytes()[:-20])
    assert read(path) is None


def test_renewal_is_due_at_half_life_by_either_clock() -> None:
    svid = Svid(identity="i", issued_at=1000.0, expires_at=2000.0)
    renewal = Renewal(svid, since=50.0, fraction=0.5)
    assert renewal.is_due(now=549.0, wall=1499.0) is False
    assert renewal.is_due(now=550.0, wall=1001.0) is True
    assert renewal.is_due(now=50.0, wall=1500.0) is True


def test_a_certificate_of_tomorrow_is_as_useless_as_one_of_yesterday() -> None:
    svid = Svid(identity="i", issued_at=1000.0, expires_at=2000.0)
    assert [svid.is_valid(wall) for wall in (939.0, 940.0, 1999.0, 2000.0)] == [False, True, True, False]
    assert Renewal(svid, since=50.0, fraction=0.5).is_due(now=51.0, wall=900.0) is True


def test_proxies_that_started_together_renew_at_different_times() -> None:
    svid = Svid(identity="i", issued_at=0.0, expires_at=1.0)
    fractions = {Renewal.plan(svid, now=0.0).fraction for _ in range(100)}
    assert len(fractions) > 50
    assert all(0.45 <= fraction <= 0.55 for fraction in fractions)


def test_the_operator_is_recognized_by_what_it_sent_or_by_the_platforms_file(tmp_path: Path) -> None:
    given = tmp_path / "roots.pem"
    given.write_text("GIVEN")
    assert roots_for("td", {"td": "SENT", "other": "X"}, given) == "SENT\nGIVEN"
    assert roots_for("td", {}, tmp_path / "absent") == ""
