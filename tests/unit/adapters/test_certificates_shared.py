"""One CA for several operators. The place its files lie in is a dict here; tests/e2e/kubernetes has the real Secret."""

import datetime as dt
from collections.abc import Mapping

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from backstay.adapters.certificates import CertificatesUnusable, Material, SharedCA
from backstay.adapters.certificates.making import new_material

TD = "backstay.local"
ME = f"spiffe://{TD}/ns/shop/sa/logic"
START = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)


class Clock:
    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> dt.datetime:
        return self.now


class Place:
    """Keeps one set of files, as a Secret does."""

    def __init__(self, files: Mapping[str, bytes] | None = None, trusted: bytes = b"") -> None:
        self.files = files
        self.version = 0
        self.trusted = trusted
        self.rival: Mapping[str, bytes] | None = None
        """Saved by somebody else just before the next save."""

    async def load(self) -> Material | None:
        if self.files is None:
            return None
        return Material(name="Secret x/y", files=self.files, version=str(self.version), trusted=self.trusted)

    async def save(self, files: Mapping[str, bytes], version: str) -> bool:
        if self.rival is not None:
            self._put(self.rival)
            self.rival = None
        if version != ("" if self.files is None else str(self.version)):
            return False
        self._put(files)
        return True

    def _put(self, files: Mapping[str, bytes]) -> None:
        self.files, self.version = files, self.version + 1


def request() -> bytes:
    key = ec.generate_private_key(ec.SECP256R1())
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def is_trusted(chain: bytes, bundle: Mapping[str, str]) -> bool:
    """Whether the last certificate of a chain was issued by a root of the bundle."""
    last = x509.load_pem_x509_certificates(chain)[-1]
    roots = x509.load_pem_x509_certificates(bundle[TD].encode())
    return any(root.subject == last.issuer for root in roots)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def place() -> Place:
    return Place()


async def test_the_first_operator_makes_the_files_and_the_second_uses_them(place: Place, clock: Clock) -> None:
    one = await SharedCA.open(place, TD, now=clock)
    other = await SharedCA.open(place, TD, now=clock)
    assert one.trust_bundle() == other.trust_bundle()
    assert is_trusted(one.sign(request(), identity=ME), other.trust_bundle())


async def test_of_two_that_start_together_one_wins(place: Place, clock: Clock) -> None:
    place.rival = theirs = new_material(TD, START)
    ca = await SharedCA.open(place, TD, now=clock)
    assert ca.trust_bundle() == {TD: theirs["root-cert.pem"].decode()}


async def test_the_leader_rotates_and_the_standby_follows(place: Place, clock: Clock) -> None:
    leader = await SharedCA.open(place, TD, now=clock)
    standby = await SharedCA.open(place, TD, now=clock)
    clock.now += dt.timedelta(days=200)
    assert await standby.tend(may_change=False) == []
    assert await leader.tend(may_change=True) == ["a new intermediate signs from now on"]
    assert await standby.tend(may_change=False) == ["the certificates of the CA were replaced"]
    assert standby.expires_at == leader.expires_at
    assert is_trusted(standby.sign(request(), identity=ME), leader.trust_bundle())


async def test_a_rotation_that_somebody_else_was_first_with_has_not_happened(place: Place, clock: Clock) -> None:
    ca = await SharedCA.open(place, TD, now=clock)
    clock.now += dt.timedelta(days=200)
    before = ca.expires_at
    place.rival = new_material(TD, clock.now)
    assert await ca.tend(may_change=True) == []
    assert ca.expires_at == before
    assert await ca.tend(may_change=False) == ["the certificates of the CA were replaced"]


async def test_files_that_cannot_be_used_leave_the_former_in_force(place: Place, clock: Clock) -> None:
    ca = await SharedCA.open(place, TD, now=clock)
    bundle = ca.trust_bundle()
    assert place.files is not None
    place._put({**place.files, "ca-key.pem": b"rubbish"})
    with pytest.raises(CertificatesUnusable) as caught:
        await ca.tend(may_change=True)
    assert str(caught.value) == "Secret x/y/ca-key.pem: cannot be read as an unencrypted PEM private key"
    assert ca.trust_bundle() == bundle
    assert is_trusted(ca.sign(request(), identity=ME), bundle)


async def test_a_ca_brought_by_the_user_is_never_changed(clock: Clock) -> None:
    """Without its root's key; and `cacerts` has exactly these four."""
    files = {name: data for name, data in new_material(TD, START).items() if name != "root-key.pem"}
    assert sorted(files) == ["ca-cert.pem", "ca-key.pem", "cert-chain.pem", "root-cert.pem"]
    place = Place(files)
    ca = await SharedCA.open(place, TD, now=clock)
    clock.now += dt.timedelta(days=364)
    assert await ca.tend(may_change=True) == []
    assert place.version == 0


async def test_roots_of_the_ca_before_stay_trusted_but_sign_nothing(clock: Clock) -> None:
    old = new_material(TD, START)
    ca = await SharedCA.open(Place(new_material(TD, START), trusted=old["root-cert.pem"]), TD, now=clock)
    assert ca.trust_bundle()[TD].endswith(old["root-cert.pem"].decode())
    assert ca.trust_bundle()[TD].count("BEGIN CERTIFICATE") == 2
    assert not is_trusted(ca.sign(request(), identity=ME), {TD: old["root-cert.pem"].decode()})
