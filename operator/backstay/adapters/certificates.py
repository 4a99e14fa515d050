"""The mesh's own certificate authority: a root that may be taken offline, an intermediate that signs, SVIDs for CSRs.

The folder has the form Istio users know (`cacerts`): root-cert.pem, ca-cert.pem, ca-key.pem, cert-chain.pem. Made
here on first use, or brought by the user. root-key.pem is needed only to make intermediates; without it everything
else goes on. Changes of several files are committed through a journal, so that a kill in the middle leaves the old set
or the new one.

Rule: what a certificate says comes from the caller's `identity`; of a CSR only the key and its signature count.
"""

import datetime as dt
import errno
import ipaddress
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.types import CertificateIssuerPrivateKeyTypes
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

LEAF_LIFETIME: Final = 24 * 3600.0  # Istio's and SPIRE's habit is 24 h and 1 h; renewal is at half life
MAX_LEAF_LIFETIME: Final = 7 * 24 * 3600.0  # threats.md S4: asking for more is an error, not a shorter certificate
INTERMEDIATE_LIFETIME: Final = 365 * 24 * 3600.0
ROOT_LIFETIME: Final = 3650 * 24 * 3600.0  # Istio's self-made root: 10 years
RENEW_INTERMEDIATE_AT: Final = 0.5  # of its life left: as leaves are renewed at half life
RENEW_ROOT_AT: Final = 0.2  # of its life left, as Istio's self-made root
CLOCK_SKEW: Final = dt.timedelta(minutes=1)  # a peer whose clock is behind must not refuse a fresh certificate
MIN_RSA_BITS: Final = 2048
MAX_CSR_BYTES: Final = 16 * 1024  # an RSA-4096 request with extensions is under 3 KiB
MAX_SPIFFE_ID: Final = 2048  # SPIFFE-ID 2.3

ROOT_CERT: Final = "root-cert.pem"
ROOT_KEY: Final = "root-key.pem"
NEXT_ROOT_CERT: Final = "next-root-cert.pem"
NEXT_ROOT_KEY: Final = "next-root-key.pem"
CA_CERT: Final = "ca-cert.pem"
CA_KEY: Final = "ca-key.pem"
CHAIN: Final = "cert-chain.pem"
RETIRE_AFTER: Final = "retire-after"
_NEEDED: Final = (CA_CERT, CA_KEY, ROOT_CERT, CHAIN)
_JOURNAL: Final = "commit"

_TRUST_DOMAIN: Final = re.compile(r"[a-z0-9._-]{1,255}")
_ID: Final = re.compile(r"spiffe://([a-z0-9._-]{1,255})((?:/[A-Za-z0-9._-]+)+)")


class CertificatesUnusable(Exception):
    """What lies in the CA's folder cannot be used; the text says which file and what was expected."""


def check_identity(identity: str, trust_domain: str) -> None:
    """Raises ValueError unless this is a workload's SPIFFE ID in the trust domain (threats.md S2)."""
    found = _ID.fullmatch(identity)
    if not found or len(identity) > MAX_SPIFFE_ID or {".", ".."} & set(identity.split("/")):
        raise ValueError(f"{identity!r} is not a SPIFFE ID with a path")
    if found[1] != trust_domain:
        raise ValueError(f"{identity!r} is not in the trust domain {trust_domain!r}")


def _utc() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


class LocalCA:
    """Issues SVIDs from an intermediate in a folder. Implements the port CertificateAuthority."""

    def __init__(
        self, folder: Path, trust_domain: str, *, lifetime: float, now: Callable[[], dt.datetime] = _utc
    ) -> None:
        """Use `open` instead: it makes or mends the folder first."""
        self.folder = folder
        self.trust_domain = trust_domain
        self.lifetime = lifetime
        self._now = now
        self._load()

    @classmethod
    def open(
        cls,
        folder: Path,
        trust_domain: str,
        *,
        lifetime: float = LEAF_LIFETIME,
        now: Callable[[], dt.datetime] = _utc,
    ) -> "LocalCA":
        """The CA of this folder, made on first use. Raises CertificatesUnusable, OSError."""
        if not _TRUST_DOMAIN.fullmatch(trust_domain):
            raise ValueError(f"{trust_domain!r} is not a trust domain: lower case letters, digits, dots and dashes")
        if not folder.exists() or not any(folder.iterdir()):
            _create(folder, trust_domain, now())
        _finish_commit(folder)
        return cls(folder, trust_domain, lifetime=lifetime, now=now)

    def __repr__(self) -> str:
        return f"LocalCA({self.trust_domain}, roots={len(self._roots)}, until={self._issuer.not_valid_after_utc:%F})"

    # --- the port ---

    def sign(self, csr_pem: bytes, *, identity: str, lifetime: float | None = None) -> bytes:
        """PEM chain, leaf first. Raises ValueError for a bad CSR or identity, CertificatesUnusable when expired."""
        check_identity(identity, self.trust_domain)
        key = _checked_request(csr_pem).public_key()
        assert isinstance(key, (ec.EllipticCurvePublicKey, ed25519.Ed25519PublicKey, rsa.RSAPublicKey))  # noqa: S101 - checked
        return self._issue(key, [x509.UniformResourceIdentifier(identity)], lifetime)

    def trust_bundle(self) -> Mapping[str, str]:
        """Trust domain -> all PEM roots: those of live certificates and the one that is to come."""
        return {self.trust_domain: _pem(self._roots).decode()}

    # --- for the operator's own endpoints ---

    def server_certificate(self, hosts: Iterable[str] = ()) -> tuple[bytes, bytes]:
        """(private key, chain) in PEM for the operator: its SPIFFE ID plus DNS names and IP addresses."""
        key = ec.generate_private_key(ec.SECP256R1())
        names: list[x509.GeneralName] = [
            x509.UniformResourceIdentifier(f"spiffe://{self.trust_domain}/backstay/operator")
        ]
        names += [_general_name(host) for host in hosts]
        return _key_pem(key), self._issue(key.public_key(), names, None)

    # --- rotation ---

    def rotate_intermediate(self) -> None:
        """A new intermediate from the present root. Certificates of the old one stay good: the root is the same."""
        root_key, root = self._signing_root(ROOT_KEY)
        self._commit(_intermediate_files(self.trust_domain, root, root_key, self._now()))

    def add_root(self) -> None:
        """Step 1 of 3: a new root joins the trust bundle, nothing is issued from it until every proxy has the bundle."""
        if (self.folder / NEXT_ROOT_KEY).exists():
            raise CertificatesUnusable(
                f"{self.folder / NEXT_ROOT_KEY}: a new root is there already, switch to it first"
            )
        key, root = _make_root(self.trust_domain, self._now())
        self._commit(
            {NEXT_ROOT_KEY: _key_pem(key), NEXT_ROOT_CERT: _pem([root]), ROOT_CERT: _pem([*self._roots, root])}
        )

    def switch_root(self) -> None:
        """Step 2: issue from the new root; the old one stays trusted for what it has issued."""
        root_key, root = self._signing_root(NEXT_ROOT_KEY)
        others = [other for other in self._roots if other != root]
        last = self._now() + dt.timedelta(seconds=max(self.lifetime, MAX_LEAF_LIFETIME))
        files: dict[str, bytes | None] = dict(_intermediate_files(self.trust_domain, root, root_key, self._now()))
        files |= {
            ROOT_CERT: _pem([root, *others]),
            ROOT_KEY: _key_pem(root_key),
            RETIRE_AFTER: last.isoformat().encode(),
        }
        self._commit(files | {NEXT_ROOT_KEY: None, NEXT_ROOT_CERT: None})

    def retire_roots(self) -> bool:
        """Step 3: forget old roots once no certificate of theirs can be alive; says whether that was so."""
        mark = self.folder / RETIRE_AFTER
        if not mark.exists() or self._now() < dt.datetime.fromisoformat(mark.read_text()):
            return False
        self._commit({ROOT_CERT: _pem([self._own_root()]), RETIRE_AFTER: None})
        return True

    def maintain(self) -> list[str]:
        """Do what rotation is due now; says what was done. To be called every few hours; a CA whose root key is kept
        elsewhere is left alone. A new root signs only after it has been trusted for a leaf's whole life."""
        done = ["roots that nothing alive was issued from are forgotten"] if self.retire_roots() else []
        now = self._now()
        if (self.folder / NEXT_ROOT_KEY).exists():
            _, root = self._signing_root(NEXT_ROOT_KEY)
            if now - root.not_valid_before_utc >= dt.timedelta(seconds=LEAF_LIFETIME):
                self.switch_root()
                done.append("the new root signs from now on")
        elif (self.folder / ROOT_KEY).exists() and _left(self._own_root(), now) < RENEW_ROOT_AT:
            self.add_root()
            done.append("a new root is trusted beside the old one")
        if (self.folder / ROOT_KEY).exists() and _left(self._issuer, now) < RENEW_INTERMEDIATE_AT:
            self.rotate_intermediate()
            done.append("a new intermediate signs from now on")
        return done

    @property
    def expires_at(self) -> float:
        """Unix seconds when the signing chain ends; nothing issued lives longer."""
        return self._limit.timestamp()

    # --- inside ---

    def _load(self) -> None:
        missing = [name for name in _NEEDED if not (self.folder / name).exists()]
        if missing:
            raise CertificatesUnusable(
                f"{self.folder}: {missing[0]} is missing, expected {', '.join(_NEEDED)} or an empty folder"
            )
        self._roots = _read_certificates(self.folder / ROOT_CERT)
        self._issuer = _read_certificates(self.folder / CA_CERT)[0]
        self._key = _read_key(self.folder / CA_KEY)
        if _public_bytes(self._key.public_key()) != _public_bytes(self._issuer.public_key()):
            raise CertificatesUnusable(f"{self.folder / CA_KEY}: is not the key of {CA_CERT}")
        self._chain = self._chain_from_issuer(_read_certificates(self.folder / CHAIN))
        self._check_chain()

    def _chain_from_issuer(self, certificates: list[x509.Certificate]) -> list[x509.Certificate]:
        """The issuer and what stands between it and the root; some tools leave the issuer out, some put the root in."""
        rest = [each for each in certificates if each not in self._roots and each != self._issuer]
        return [] if self._issuer in self._roots else [self._issuer, *rest]

    def _check_chain(self) -> None:
        for certificate in self._chain or [self._issuer]:
            if not _is_ca(certificate):
                raise CertificatesUnusable(f"{self.folder / CHAIN}: {_name(certificate)} may not sign certificates")
        root = self._own_root()
        self._limit = min(each.not_valid_after_utc for each in [*self._chain, root])

    def _own_root(self) -> x509.Certificate:
        """The root that the signing chain ends in."""
        certificate = self._issuer
        for above in self._chain[1:]:
            _must_have_issued(above, certificate, self.folder / CHAIN)
            certificate = above
        for root in self._roots:
            if root == certificate or _has_issued(root, certificate):
                return root
        raise CertificatesUnusable(f"{self.folder / CHAIN}: does not lead to a root of {ROOT_CERT}")

    def _signing_root(self, key_name: str) -> tuple[CertificateIssuerPrivateKeyTypes, x509.Certificate]:
        path = self.folder / key_name
        if not path.exists():
            raise CertificatesUnusable(f"{path}: is missing, expected the root's key (only rotation needs it)")
        key = _read_key(path)
        for root in self._roots:
            if _public_bytes(root.public_key()) == _public_bytes(key.public_key()):
                return key, root
        raise CertificatesUnusable(f"{path}: is not the key of a root in {ROOT_CERT}")

    def _commit(self, files: Mapping[str, bytes | None]) -> None:
        _commit(self.folder, files)
        self._load()

    def _issue(
        self,
        key: ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey | rsa.RSAPublicKey,
        names: Sequence[x509.GeneralName],
        lifetime: float | None,
    ) -> bytes:
        wanted = self.lifetime if lifetime is None else lifetime
        if not 0 < wanted <= MAX_LEAF_LIFETIME:
            raise ValueError(f"a lifetime of {wanted:g} s is not allowed, expected at most {MAX_LEAF_LIFETIME:g} s")
        now = self._now()
        if now >= self._limit:
            raise CertificatesUnusable(f"{self.folder}: the signing chain ended at {self._limit:%FT%TZ}, rotate it")
        until = min(now + dt.timedelta(seconds=wanted), self._limit)
        leaf = _leaf(
            key, names, self._issuer, self._key, max(now - CLOCK_SKEW, self._issuer.not_valid_before_utc), until
        )
        self._check_leaf(leaf, key, names)
        return _pem([leaf, *self._chain])

    def _check_leaf(self, leaf: x509.Certificate, key: object, names: Sequence[x509.GeneralName]) -> None:
        """Read back what is about to leave: a mistake here would be everybody's identity."""
        san = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        says_more = list(san) != list(names) or _is_ca(leaf)
        other_key = _public_bytes(leaf.public_key()) != _public_bytes(key)
        if says_more or other_key or not _has_issued(self._issuer, leaf) or leaf.not_valid_after_utc > self._limit:
            raise CertificatesUnusable(f"{self.folder}: a certificate for {names[0].value!r} failed its own check")


def _left(certificate: x509.Certificate, now: dt.datetime) -> float:
    """The part of a certificate's life that is left; below 0 after its end."""
    life = certificate.not_valid_after_utc - certificate.not_valid_before_utc
    return (certificate.not_valid_after_utc - now) / life


# --- making certificates --------------------------------------------------------------------------


def _leaf(
    key: ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey | rsa.RSAPublicKey,
    names: Sequence[x509.GeneralName],
    issuer: x509.Certificate,
    issuer_key: CertificateIssuerPrivateKeyTypes,
    begin: dt.datetime,
    until: dt.datetime,
) -> x509.Certificate:
    usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(issuer.subject)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(until)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(leaf=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        # Critical because the subject is empty (RFC 5280 4.2.1.6).
        .add_extension(x509.SubjectAlternativeName(names), critical=True)
        .add_extension(_authority(issuer), critical=False)
    )
    return builder.sign(issuer_key, _hash_for(issuer_key))


def _make_root(trust_domain: str, now: dt.datetime) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = _subject(trust_domain, "root")
    until = now + dt.timedelta(seconds=ROOT_LIFETIME)
    builder = _ca_builder(name, name, key.public_key(), now, until, path_length=1, trust_domain=trust_domain)
    return key, builder.sign(key, hashes.SHA256())


def _intermediate_files(
    trust_domain: str, root: x509.Certificate, root_key: CertificateIssuerPrivateKeyTypes, now: dt.datetime
) -> dict[str, bytes | None]:
    key = ec.generate_private_key(ec.SECP256R1())
    until = min(now + dt.timedelta(seconds=INTERMEDIATE_LIFETIME), root.not_valid_after_utc)
    name = _subject(trust_domain, "intermediate")
    builder = _ca_builder(name, root.subject, key.public_key(), now, until, path_length=0, trust_domain=trust_domain)
    certificate = builder.add_extension(_authority(root), critical=False).sign(root_key, _hash_for(root_key))
    return {CA_KEY: _key_pem(key), CA_CERT: _pem([certificate]), CHAIN: _pem([certificate])}


def _ca_builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    now: dt.datetime,
    until: dt.datetime,
    *,
    path_length: int,
    trust_domain: str,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(until)
        .add_extension(x509.BasicConstraints(ca=True, path_length=path_length), critical=True)
        .add_extension(_key_usage(leaf=False), critical=True)
        .add_extension(
            x509.SubjectAlternativeName([x509.UniformResourceIdentifier(f"spiffe://{trust_domain}")]), critical=False
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _subject(trust_domain: str, role: str) -> x509.Name:
    # A random part: two roots of one name would be tried in any order by verifiers that look issuers up by name.
    unique = os.urandom(4).hex()
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Backstay"),
            x509.NameAttribute(NameOID.COMMON_NAME, f"{trust_domain[:40]} {role} {unique}"),
        ]
    )


def _key_usage(*, leaf: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=leaf,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=not leaf,
        crl_sign=not leaf,
        encipher_only=False,
        decipher_only=False,
    )


def _authority(issuer: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    try:
        own = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    except x509.ExtensionNotFound:
        key = issuer.public_key()
        assert isinstance(key, (ec.EllipticCurvePublicKey, rsa.RSAPublicKey, ed25519.Ed25519PublicKey))  # noqa: S101 - _is_ca
        return x509.AuthorityKeyIdentifier.from_issuer_public_key(key)
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(own)


def _hash_for(key: CertificateIssuerPrivateKeyTypes) -> hashes.SHA256 | None:
    return None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


# --- checking what comes in -----------------------------------------------------------------------


def _checked_request(csr_pem: bytes) -> x509.CertificateSigningRequest:
    if len(csr_pem) > MAX_CSR_BYTES:
        raise ValueError(f"the certificate request has {len(csr_pem)} bytes, expected at most {MAX_CSR_BYTES}")
    try:
        request = x509.load_pem_x509_csr(csr_pem)
        good = request.is_signature_valid and _is_good_key(request.public_key())
    except (ValueError, UnsupportedAlgorithm, InvalidSignature) as error:
        raise ValueError(f"the certificate request cannot be read: {error}") from error
    if not good:
        raise ValueError("the certificate request has a bad signature or key, expected P-256, Ed25519 or RSA >= 2048")
    return request


def _is_good_key(key: object) -> bool:
    match key:
        case ec.EllipticCurvePublicKey():
            return isinstance(key.curve, ec.SECP256R1)
        case ed25519.Ed25519PublicKey():
            return True
        case rsa.RSAPublicKey():
            return key.key_size >= MIN_RSA_BITS
        case _:
            return False


def _is_ca(certificate: x509.Certificate) -> bool:
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        return False


def _has_issued(issuer: x509.Certificate, certificate: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _must_have_issued(issuer: x509.Certificate, certificate: x509.Certificate, path: Path) -> None:
    if not _has_issued(issuer, certificate):
        raise CertificatesUnusable(f"{path}: {_name(certificate)} was not issued by {_name(issuer)}, which follows it")


def _name(certificate: x509.Certificate) -> str:
    return certificate.subject.rfc4514_string() or "a certificate without a subject"


# --- files ----------------------------------------------------------------------------------------


def _create(folder: Path, trust_domain: str, now: dt.datetime) -> None:
    """Make a whole folder beside its place and move it in: nobody ever sees half a CA, nothing is overwritten."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    new = Path(tempfile.mkdtemp(prefix=".new-ca-", dir=folder.parent))
    try:
        key, root = _make_root(trust_domain, now)
        files = {ROOT_KEY: _key_pem(key), ROOT_CERT: _pem([root])} | _intermediate_files(trust_domain, root, key, now)
        for name, data in files.items():
            _write_private(new / name, data or b"")
        _sync_folder(new)
        # Fails on a folder that somebody has filled in the meantime: then theirs counts.
        try:
            new.rename(folder)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        _sync_folder(folder.parent)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _commit(folder: Path, files: Mapping[str, bytes | None]) -> None:
    """Replace several files as one: all new ones lie ready before the journal that names them appears."""
    for name, data in files.items():
        if data is not None:
            _write_private(folder / f"{name}.next", data)
    _sync_folder(folder)
    _write_private(folder / f"{_JOURNAL}.next", "\n".join(_journal_lines(files)).encode())
    os.replace(folder / f"{_JOURNAL}.next", folder / _JOURNAL)
    _finish_commit(folder)


def _finish_commit(folder: Path) -> None:
    """Carry through a commit whose journal is there, drop what never got that far."""
    journal = folder / _JOURNAL
    if journal.exists():
        _sync_folder(folder)
        for line in journal.read_text().split("\n"):
            _take_over(folder, line[0], line[1:])
        _sync_folder(folder)
        journal.unlink()
    for leftover in folder.glob("*.next"):
        leftover.unlink()


def _journal_lines(files: Mapping[str, bytes | None]) -> list[str]:
    return [f"-{name}" if data is None else f"+{name}" for name, data in files.items()]


def _take_over(folder: Path, sign: str, name: str) -> None:
    """One line of the journal; doing it twice is harmless, since a kill may come between any two."""
    ready = folder / f"{name}.next"
    if sign == "-":
        (folder / name).unlink(missing_ok=True)
    elif ready.exists():
        os.replace(ready, folder / name)


def _write_private(path: Path, data: bytes) -> None:
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _read_certificates(path: Path) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(path.read_bytes())
    except (ValueError, OSError) as error:
        raise CertificatesUnusable(f"{path}: cannot be read as PEM certificates: {error}") from error


def _read_key(path: Path) -> CertificateIssuerPrivateKeyTypes:
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm, OSError) as error:
        raise CertificatesUnusable(f"{path}: cannot be read as an unencrypted PEM private key") from error
    if isinstance(key, (ec.EllipticCurvePrivateKey, rsa.RSAPrivateKey, ed25519.Ed25519PrivateKey)):
        return key
    raise CertificatesUnusable(f"{path}: is a {type(key).__name__}, expected an EC, RSA or Ed25519 key")


def _key_pem(key: CertificateIssuerPrivateKeyTypes) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _pem(certificates: Iterable[x509.Certificate]) -> bytes:
    return b"".join(each.public_bytes(serialization.Encoding.PEM) for each in certificates)


def _public_bytes(key: object) -> bytes:
    assert hasattr(key, "public_bytes")  # noqa: S101 - every public key of cryptography has it
    data: bytes = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return data
