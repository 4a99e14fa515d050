import datetime as dt
import os
import stat
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID

from backstay.adapters.certificates import MAX_LEAF_LIFETIME, CertificatesUnusable, LocalCA

TD = "backstay.local"
ME = f"spiffe://{TD}/ns/shop/sa/logic"
START = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)


class Clock:
    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> dt.datetime:
        return self.now


def request(key: object = None, *extensions: x509.ExtensionType) -> bytes:
    own = key or ec.generate_private_key(ec.SECP256R1())
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    for extension in extensions:
        builder = builder.add_extension(extension, critical=False)
    algorithm = None if isinstance(own, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    return builder.sign(own, algorithm).public_bytes(serialization.Encoding.PEM)  # type: ignore[arg-type]


def leaf_of(chain: bytes) -> x509.Certificate:
    return x509.load_pem_x509_certificates(chain)[0]


def verify(chain: bytes, ca: LocalCA) -> None:
    """Raises unless the chain leads to one of the CA's roots."""
    leaf, *others = x509.load_pem_x509_certificates(chain)
    roots = x509.load_pem_x509_certificates(ca.trust_bundle()[TD].encode())
    for issuer in others:
        leaf.verify_directly_issued_by(issuer)
        leaf = issuer
    [root] = [root for root in roots if root.subject == leaf.issuer]
    leaf.verify_directly_issued_by(root)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def ca(tmp_path: Path, clock: Clock) -> LocalCA:
    return LocalCA.open(tmp_path / "ca", TD, now=clock)


def test_an_svid_says_exactly_who_the_caller_is(ca: LocalCA) -> None:
    chain = ca.sign(request(), identity=ME)
    verify(chain, ca)
    leaf = leaf_of(chain)
    get = leaf.extensions.get_extension_for_class
    san = get(x509.SubjectAlternativeName)
    assert (list(san.value), san.critical) == ([x509.UniformResourceIdentifier(ME)], True)
    assert get(x509.BasicConstraints).value == x509.BasicConstraints(ca=False, path_length=None)
    usage = get(x509.KeyUsage).value
    assert (usage.digital_signature, usage.key_cert_sign, usage.crl_sign) == (True, False, False)
    assert set(get(x509.ExtendedKeyUsage).value) == {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH}
    assert leaf.not_valid_after_utc == START + dt.timedelta(hours=24)
    assert leaf.not_valid_before_utc == START - dt.timedelta(minutes=1)


def test_names_and_powers_that_a_request_asks_for_are_ignored(ca: LocalCA) -> None:
    greedy = request(
        None,
        x509.SubjectAlternativeName([x509.UniformResourceIdentifier(f"spiffe://{TD}/ns/bank/sa/vault")]),
        x509.BasicConstraints(ca=True, path_length=None),
    )
    leaf = leaf_of(ca.sign(greedy, identity=ME))
    assert list(leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value) == [
        x509.UniformResourceIdentifier(ME)
    ]
    assert leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca is False


@pytest.mark.parametrize(
    "make",
    [
        lambda: ec.generate_private_key(ec.SECP256R1()),
        ed25519.Ed25519PrivateKey.generate,
        lambda: rsa.generate_private_key(65537, 2048),
    ],
    ids=["p256", "ed25519", "rsa2048"],
)
def test_good_keys_are_signed(ca: LocalCA, make: object) -> None:
    assert callable(make)
    verify(ca.sign(request(make()), identity=ME), ca)


@pytest.mark.parametrize(
    "make",
    [lambda: ec.generate_private_key(ec.SECP384R1()), lambda: rsa.generate_private_key(65537, 1024)],  # noqa: S505 - must be refused
    ids=["p384", "rsa1024"],
)
def test_other_keys_are_refused(ca: LocalCA, make: object) -> None:
    assert callable(make)
    with pytest.raises(ValueError, match=r"has a bad signature or key, expected P-256, Ed25519 or RSA >= 2048$"):
        ca.sign(request(make()), identity=ME)


def test_a_request_signed_by_another_key_is_refused(ca: LocalCA) -> None:
    good = x509.load_pem_x509_csr(request()).public_bytes(serialization.Encoding.DER)
    forged = x509.load_der_x509_csr(good[:-1] + bytes([good[-1] ^ 1]))
    with pytest.raises(ValueError, match="has a bad signature or key"):
        ca.sign(forged.public_bytes(serialization.Encoding.PEM), identity=ME)


@pytest.mark.parametrize("data", [b"", b"hello", b"-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END"])
def test_rubbish_is_refused(ca: LocalCA, data: bytes) -> None:
    with pytest.raises(ValueError, match="the certificate request cannot be read"):
        ca.sign(data, identity=ME)


@pytest.mark.parametrize(
    "identity",
    [
        "spiffe://other.domain/ns/a/sa/b",
        f"spiffe://{TD}",
        f"spiffe://{TD}/",
        f"spiffe://{TD}/a/../b",
        f"spiffe://{TD}/a b",
        f"spiffe://{TD}/a%2fb",
        f"spiffe://{TD}/a/",
        f"SPIFFE://{TD}/a",
        f"spiffe://user@{TD}/a",
        f"spiffe://{TD}:443/a",
        f"spiffe://{TD}/{'a' * 2048}",
        f"spiffe://{TD}/a\0b",
        "",
    ],
)
def test_only_workloads_of_the_own_trust_domain_get_a_name(ca: LocalCA, identity: str) -> None:
    with pytest.raises(ValueError, match="is not"):
        ca.sign(request(), identity=identity)


def test_asking_for_a_longer_life_than_allowed_is_an_error(ca: LocalCA) -> None:
    with pytest.raises(ValueError, match=r"a lifetime of 604801 s is not allowed, expected at most 604800 s$"):
        ca.sign(request(), identity=ME, lifetime=MAX_LEAF_LIFETIME + 1)


def test_no_leaf_outlives_its_issuers_and_after_them_none_is_made(ca: LocalCA, clock: Clock) -> None:
    end = dt.datetime.fromtimestamp(ca.expires_at, dt.UTC)
    clock.now = end - dt.timedelta(hours=1)
    assert leaf_of(ca.sign(request(), identity=ME)).not_valid_after_utc == end
    clock.now = end
    with pytest.raises(CertificatesUnusable, match="the signing chain ended at"):
        ca.sign(request(), identity=ME)


def test_a_second_start_uses_the_same_authority(ca: LocalCA) -> None:
    again = LocalCA.open(ca.folder, TD)
    assert again.trust_bundle() == ca.trust_bundle()
    verify(ca.sign(request(), identity=ME), again)


def test_keys_are_private(ca: LocalCA) -> None:
    assert {stat.S_IMODE(path.stat().st_mode) for path in ca.folder.iterdir()} == {0o600}


def test_without_the_roots_key_everything_but_rotation_goes_on(ca: LocalCA) -> None:
    (ca.folder / "root-key.pem").unlink()
    offline = LocalCA.open(ca.folder, TD)
    assert offline.sign(request(), identity=ME)
    with pytest.raises(CertificatesUnusable, match=r"root-key.pem: is missing, expected the root's key"):
        offline.rotate_intermediate()


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("ca-key.pem", None, "ca-key.pem is missing, expected ca-cert.pem, ca-key.pem, root-cert.pem, cert-chain.pem"),
        ("ca-key.pem", b"rubbish", "ca-key.pem: cannot be read as an unencrypted PEM private key"),
        ("ca-cert.pem", b"rubbish", "ca-cert.pem: cannot be read as PEM certificates"),
        ("root-cert.pem", b"", "root-cert.pem: cannot be read as PEM certificates"),
    ],
)
def test_a_damaged_folder_is_named_and_left_alone(ca: LocalCA, name: str, content: bytes | None, sentence: str) -> None:
    path = ca.folder / name
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    before = {each.name: each.read_bytes() for each in ca.folder.iterdir()}
    with pytest.raises(CertificatesUnusable) as caught:
        LocalCA.open(ca.folder, TD)
    assert sentence in str(caught.value)
    assert {each.name: each.read_bytes() for each in ca.folder.iterdir()} == before


def test_the_key_of_another_authority_is_noticed(ca: LocalCA, tmp_path: Path) -> None:
    other = LocalCA.open(tmp_path / "other", TD)
    (ca.folder / "ca-key.pem").write_bytes((other.folder / "ca-key.pem").read_bytes())
    with pytest.raises(CertificatesUnusable, match=r"ca-key.pem: is not the key of ca-cert.pem$"):
        LocalCA.open(ca.folder, TD)


def test_a_chain_to_a_foreign_root_is_noticed(ca: LocalCA, tmp_path: Path) -> None:
    other = LocalCA.open(tmp_path / "other", TD)
    (ca.folder / "root-cert.pem").write_bytes((other.folder / "root-cert.pem").read_bytes())
    with pytest.raises(CertificatesUnusable, match=r"cert-chain.pem: does not lead to a root of root-cert.pem$"):
        LocalCA.open(ca.folder, TD)


def test_a_users_authority_is_used_as_it_is(ca: LocalCA, tmp_path: Path) -> None:
    """Istio's `cacerts`: no root key, and a chain file that ends in the root."""
    given = tmp_path / "cacerts"
    given.mkdir()
    for name in ("ca-cert.pem", "ca-key.pem", "root-cert.pem"):
        (given / name).write_bytes((ca.folder / name).read_bytes())
    (given / "cert-chain.pem").write_bytes(
        (ca.folder / "ca-cert.pem").read_bytes() + (ca.folder / "root-cert.pem").read_bytes()
    )
    theirs = LocalCA.open(given, TD)
    chain = theirs.sign(request(), identity=ME)
    assert len(x509.load_pem_x509_certificates(chain)) == 2
    verify(chain, ca)


def test_a_new_intermediate_leaves_old_certificates_good(ca: LocalCA) -> None:
    old = ca.sign(request(), identity=ME)
    ca.rotate_intermediate()
    new = ca.sign(request(), identity=ME)
    verify(old, ca)
    verify(new, ca)
    assert leaf_of(old).issuer != leaf_of(new).issuer


def test_a_root_is_trusted_before_it_signs_and_until_nothing_of_it_lives(ca: LocalCA, clock: Clock) -> None:
    old = ca.sign(request(), identity=ME)
    before = ca.trust_bundle()[TD]
    ca.add_root()
    assert ca.trust_bundle()[TD].startswith(before)
    verify(ca.sign(request(), identity=ME), ca)
    ca.switch_root()
    new = ca.sign(request(), identity=ME)
    verify(old, ca)
    verify(new, ca)
    assert ca.retire_roots() is False
    clock.now += dt.timedelta(seconds=MAX_LEAF_LIFETIME)
    assert ca.retire_roots() is True
    assert ca.trust_bundle()[TD].count("BEGIN CERTIFICATE") == 1
    verify(new, ca)
    with pytest.raises(ValueError, match="not enough values"):
        verify(old, ca)


def test_maintenance_does_nothing_before_its_time(ca: LocalCA, clock: Clock) -> None:
    clock.now += dt.timedelta(days=180)
    assert ca.maintain() == []


def test_maintenance_renews_the_intermediate_at_half_life(ca: LocalCA, clock: Clock) -> None:
    clock.now += dt.timedelta(days=190)
    assert ca.maintain() == ["a new intermediate signs from now on"]
    assert ca.maintain() == []


def test_maintenance_changes_the_root_in_three_steps_a_leafs_life_apart(ca: LocalCA, clock: Clock) -> None:
    clock.now += dt.timedelta(days=3650 * 0.81)
    assert ca.maintain() == ["a new root is trusted beside the old one", "a new intermediate signs from now on"]
    assert ca.maintain() == []
    clock.now += dt.timedelta(days=1, minutes=1)
    assert ca.maintain() == ["the new root signs from now on"]
    clock.now += dt.timedelta(days=8)
    assert ca.maintain() == ["roots that nothing alive was issued from are forgotten"]


def test_a_kill_in_the_middle_of_a_rotation_is_the_old_set_or_the_new_one(
    ca: LocalCA, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    done = 0
    real = os.replace

    def replace(source: str, target: str) -> None:
        nonlocal done
        if done == allowed:
            raise Killed
        done += 1
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    for allowed in range(4):  # the journal and three files  # noqa: B007 - read by `replace`
        done = 0
        with pytest.raises(Killed):
            ca.rotate_intermediate()
        done = -100
        verify(LocalCA.open(ca.folder, TD).sign(request(), identity=ME), ca)


def test_the_operators_certificate_carries_its_id_and_its_addresses(ca: LocalCA) -> None:
    key, chain = ca.server_certificate(["127.0.0.1", "backstay.backstay-system.svc"])
    leaf = leaf_of(chain)
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == [f"spiffe://{TD}/backstay/operator"]
    assert names.get_values_for_type(x509.DNSName) == ["backstay.backstay-system.svc"]
    assert [str(each) for each in names.get_values_for_type(x509.IPAddress)] == ["127.0.0.1"]
    own = serialization.load_pem_private_key(key, None).public_key()
    assert own == leaf.public_key()
