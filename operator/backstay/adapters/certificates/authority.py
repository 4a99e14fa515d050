"""The mesh's own certificate authority: a root that may be taken offline, an intermediate that signs, SVIDs for CSRs.

Its files have the form Istio users know (`cacerts`): root-cert.pem, ca-cert.pem, ca-key.pem, cert-chain.pem. Made here on
first use, or brought by the user. root-key.pem is needed only to make intermediates; without it everything else goes on.
Where they lie is the vault's business: a folder, or a Secret that several operators share.

Rule: what a certificate says comes from the caller's `identity`; of a CSR only the key and its signature count.
"""

import datetime as dt
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final, Protocol

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.types import CertificateIssuerPrivateKeyTypes

from backstay.adapters.certificates.folder import FolderVault, create, is_empty
from backstay.adapters.certificates.making import (
    BACKDATED,
    CA_CERT,
    CA_KEY,
    CHAIN,
    CLOCK_SKEW,
    ROOT_CERT,
    ROOT_KEY,
    general_name,
    intermediate_files,
    make_leaf,
    make_root,
    new_material,
)
from backstay.adapters.certificates.reading import (
    CertificatesUnusable,
    checked_request,
    has_issued,
    is_ca,
    key_pem,
    must_have_issued,
    name_of,
    pem,
    public_bytes,
    read_certificates,
    read_key,
)

LEAF_LIFETIME: Final = 24 * 3600.0  # Istio's and SPIRE's habit is 24 h and 1 h; renewal is at half life
MAX_LEAF_LIFETIME: Final = 7 * 24 * 3600.0  # threats.md S4: asking for more is an error, not a shorter certificate
RENEW_INTERMEDIATE_AT: Final = 0.5  # of its life left: as leaves are renewed at half life
RENEW_ROOT_AT: Final = 0.2  # of its life left, as Istio's self-made root
MAX_SPIFFE_ID: Final = 2048  # SPIFFE-ID 2.3

NEXT_ROOT_CERT: Final = "next-root-cert.pem"
NEXT_ROOT_KEY: Final = "next-root-key.pem"
RETIRE_AFTER: Final = "retire-after"
_NEEDED: Final = (CA_CERT, CA_KEY, ROOT_CERT, CHAIN)

_TRUST_DOMAIN: Final = re.compile(r"[a-z0-9._-]{1,255}")
_ID: Final = re.compile(r"spiffe://([a-z0-9._-]{1,255})((?:/[A-Za-z0-9._-]+)+)")


class Vault(Protocol):
    """Where the CA's files lie; `str(vault)` names it in messages."""

    def read(self, name: str) -> bytes | None: ...

    def commit(self, files: Mapping[str, bytes | None]) -> None:
        """Replace, add and (None) remove files, all or nothing."""


def check_identity(identity: str, trust_domain: str) -> None:
    """Raises ValueError unless this is a workload's SPIFFE ID in the trust domain (threats.md S2)."""
    found = _ID.fullmatch(identity)
    if not found or len(identity) > MAX_SPIFFE_ID or {".", ".."} & set(identity.split("/")):
        raise ValueError(f"{identity!r} is not a SPIFFE ID with a path")
    if found[1] != trust_domain:
        raise ValueError(f"{identity!r} is not in the trust domain {trust_domain!r}")


def part_left(certificate: x509.Certificate, now: dt.datetime) -> float:
    """The part of a certificate's life that is left; below 0 after its end."""
    life = certificate.not_valid_after_utc - certificate.not_valid_before_utc
    return (certificate.not_valid_after_utc - now) / life


def check_trust_domain(trust_domain: str) -> None:
    """Raises ValueError."""
    if not _TRUST_DOMAIN.fullmatch(trust_domain):
        raise ValueError(f"{trust_domain!r} is not a trust domain: lower case letters, digits, dots and dashes")


def utc() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


class Authority:
    """Issues SVIDs from an intermediate. Implements the port CertificateAuthority."""

    def __init__(
        self,
        vault: Vault,
        trust_domain: str,
        *,
        lifetime: float = LEAF_LIFETIME,
        now: Callable[[], dt.datetime] = utc,
    ) -> None:
        """Raises CertificatesUnusable, OSError."""
        check_trust_domain(trust_domain)
        self.trust_domain = trust_domain
        self.lifetime = lifetime
        self._vault = vault
        self._now = now
        self._load()

    def __repr__(self) -> str:
        name, until = type(self).__name__, self._issuer.not_valid_after_utc
        return f"{name}({self.trust_domain}, roots={len(self._roots)}, until={until:%F})"

    # --- the port ---

    def sign(self, csr_pem: bytes, *, identity: str, lifetime: float | None = None) -> bytes:
        """PEM chain, leaf first. Raises ValueError for a bad CSR or identity, CertificatesUnusable when expired."""
        check_identity(identity, self.trust_domain)
        key = checked_request(csr_pem).public_key()
        assert isinstance(key, (ec.EllipticCurvePublicKey, ed25519.Ed25519PublicKey, rsa.RSAPublicKey))  # noqa: S101 - checked
        return self._issue(key, [x509.UniformResourceIdentifier(identity)], lifetime)

    def trust_bundle(self) -> Mapping[str, str]:
        """Trust domain -> all PEM roots: those of live certificates and the one that is to come."""
        return {self.trust_domain: pem(self._roots).decode()}

    # --- for the operator's own endpoints ---

    def server_certificate(self, hosts: Iterable[str] = ()) -> tuple[bytes, bytes]:
        """(private key, chain) in PEM for the operator: its SPIFFE ID plus DNS names and IP addresses."""
        key = ec.generate_private_key(ec.SECP256R1())
        names: list[x509.GeneralName] = [
            x509.UniformResourceIdentifier(f"spiffe://{self.trust_domain}/backstay/operator")
        ]
        names += [general_name(host) for host in hosts]
        return key_pem(key), self._issue(key.public_key(), names, None)

    # --- rotation ---

    def rotate_intermediate(self) -> None:
        """A new intermediate from the present root. Certificates of the old one stay good: the root is the same."""
        root_key, root = self._signing_root(ROOT_KEY)
        self._commit(intermediate_files(self.trust_domain, root, root_key, self._now()))

    def add_root(self) -> None:
        """Step 1 of 3: a new root joins the trust bundle, nothing is issued from it until every proxy has the bundle."""
        if self._has(NEXT_ROOT_KEY):
            raise CertificatesUnusable(f"{self._place(NEXT_ROOT_KEY)}: a new root is there already, switch to it first")
        key, root = make_root(self.trust_domain, self._now())
        self._commit({NEXT_ROOT_KEY: key_pem(key), NEXT_ROOT_CERT: pem([root]), ROOT_CERT: pem([*self._roots, root])})

    def switch_root(self) -> None:
        """Step 2: issue from the new root; the old one stays trusted for what it has issued."""
        root_key, root = self._signing_root(NEXT_ROOT_KEY)
        others = [other for other in self._roots if other != root]
        last = self._now() + dt.timedelta(seconds=max(self.lifetime, MAX_LEAF_LIFETIME))
        files: dict[str, bytes | None] = dict(intermediate_files(self.trust_domain, root, root_key, self._now()))
        files |= {
            ROOT_CERT: pem([root, *others]),
            ROOT_KEY: key_pem(root_key),
            RETIRE_AFTER: last.isoformat().encode(),
        }
        self._commit(files | {NEXT_ROOT_KEY: None, NEXT_ROOT_CERT: None})

    def retire_roots(self) -> bool:
        """Step 3: forget old roots once no certificate of theirs can be alive; says whether that was so."""
        mark = self._vault.read(RETIRE_AFTER)
        if mark is None or self._now() < dt.datetime.fromisoformat(mark.decode()):
            return False
        self._commit({ROOT_CERT: pem([self._own_root()]), RETIRE_AFTER: None})
        return True

    def maintain(self) -> list[str]:
        """Do what rotation is due now; says what was done. To be called every few hours; a CA whose root key is kept
        elsewhere is left alone. A new root signs only after it has been trusted for a leaf's whole life."""
        done = ["roots that nothing alive was issued from are forgotten"] if self.retire_roots() else []
        now = self._now()
        if self._has(NEXT_ROOT_KEY):
            _, root = self._signing_root(NEXT_ROOT_KEY)
            if now - root.not_valid_before_utc - BACKDATED >= dt.timedelta(seconds=LEAF_LIFETIME):
                self.switch_root()
                done.append("the new root signs from now on")
        elif self._has(ROOT_KEY) and part_left(self._own_root(), now) < RENEW_ROOT_AT:
            self.add_root()
            done.append("a new root is trusted beside the old one")
        if self._has(ROOT_KEY) and part_left(self._issuer, now) < RENEW_INTERMEDIATE_AT:
            self.rotate_intermediate()
            done.append("a new intermediate signs from now on")
        return done

    @property
    def expires_at(self) -> float:
        """Unix seconds when the signing chain ends; nothing issued lives longer."""
        return self._limit.timestamp()

    # --- inside ---

    def _load(self) -> None:
        missing = [name for name in _NEEDED if not self._has(name)]
        if missing:
            raise CertificatesUnusable(
                f"{self._vault}: {missing[0]} is missing, expected {', '.join(_NEEDED)} or nothing at all"
            )
        self._roots = self._certificates(ROOT_CERT)
        self._issuer = self._certificates(CA_CERT)[0]
        self._key = read_key(self._place(CA_KEY), self._vault.read(CA_KEY) or b"")
        if public_bytes(self._key.public_key()) != public_bytes(self._issuer.public_key()):
            raise CertificatesUnusable(f"{self._place(CA_KEY)}: is not the key of {CA_CERT}")
        self._chain = self._chain_from_issuer(self._certificates(CHAIN))
        self._check_chain()

    def _has(self, name: str) -> bool:
        return self._vault.read(name) is not None

    def _place(self, name: str) -> str:
        return f"{self._vault}/{name}"

    def _certificates(self, name: str) -> list[x509.Certificate]:
        return read_certificates(self._place(name), self._vault.read(name) or b"")

    def _chain_from_issuer(self, certificates: list[x509.Certificate]) -> list[x509.Certificate]:
        """The issuer and what stands between it and the root; some tools leave the issuer out, some put the root in."""
        rest = [each for each in certificates if each not in self._roots and each != self._issuer]
        return [] if self._issuer in self._roots else [self._issuer, *rest]

    def _check_chain(self) -> None:
        for certificate in self._chain or [self._issuer]:
            if not is_ca(certificate):
                raise CertificatesUnusable(f"{self._place(CHAIN)}: {name_of(certificate)} may not sign certificates")
        root = self._own_root()
        self._limit = min(each.not_valid_after_utc for each in [*self._chain, root])

    def _own_root(self) -> x509.Certificate:
        """The root that the signing chain ends in."""
        certificate = self._issuer
        for above in self._chain[1:]:
            must_have_issued(above, certificate, self._place(CHAIN))
            certificate = above
        for root in self._roots:
            if root == certificate or has_issued(root, certificate):
                return root
        raise CertificatesUnusable(f"{self._place(CHAIN)}: does not lead to a root of {ROOT_CERT}")

    def _signing_root(self, key_name: str) -> tuple[CertificateIssuerPrivateKeyTypes, x509.Certificate]:
        path, data = self._place(key_name), self._vault.read(key_name)
        if data is None:
            raise CertificatesUnusable(f"{path}: is missing, expected the root's key (only rotation needs it)")
        key = read_key(path, data)
        for root in self._roots:
            if public_bytes(root.public_key()) == public_bytes(key.public_key()):
                return key, root
        raise CertificatesUnusable(f"{path}: is not the key of a root in {ROOT_CERT}")

    def _commit(self, files: Mapping[str, bytes | None]) -> None:
        self._vault.commit(files)
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
            raise CertificatesUnusable(f"{self._vault}: the signing chain ended at {self._limit:%FT%TZ}, rotate it")
        until = min(now + dt.timedelta(seconds=wanted), self._limit)
        leaf = make_leaf(
            key, names, self._issuer, self._key, max(now - CLOCK_SKEW, self._issuer.not_valid_before_utc), until
        )
        self._check_leaf(leaf, key, names)
        return pem([leaf, *self._chain])

    def _check_leaf(self, leaf: x509.Certificate, key: object, names: Sequence[x509.GeneralName]) -> None:
        """Read back what is about to leave: a mistake here would be everybody's identity."""
        san = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        says_more = list(san) != list(names) or is_ca(leaf)
        other_key = public_bytes(leaf.public_key()) != public_bytes(key)
        if says_more or other_key or not has_issued(self._issuer, leaf) or leaf.not_valid_after_utc > self._limit:
            raise CertificatesUnusable(f"{self._vault}: a certificate for {names[0].value!r} failed its own check")


class LocalCA(Authority):
    """The CA whose files lie in a folder."""

    def __init__(
        self, folder: Path, trust_domain: str, *, lifetime: float, now: Callable[[], dt.datetime] = utc
    ) -> None:
        """Use `open` instead: it makes or mends the folder first."""
        self.folder = folder
        super().__init__(FolderVault.open(folder), trust_domain, lifetime=lifetime, now=now)

    @classmethod
    def open(
        cls,
        folder: Path,
        trust_domain: str,
        *,
        lifetime: float = LEAF_LIFETIME,
        now: Callable[[], dt.datetime] = utc,
    ) -> "LocalCA":
        """The CA of this folder, made on first use. Raises CertificatesUnusable, OSError."""
        check_trust_domain(trust_domain)
        if is_empty(folder):
            create(folder, new_material(trust_domain, now()))
        return cls(folder, trust_domain, lifetime=lifetime, now=now)
