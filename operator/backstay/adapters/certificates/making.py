"""Certificates as they leave the CA: roots, intermediates, leaves. Pure but for keys and serial numbers.

Rule: what a certificate says comes from the caller; of a request only its key counts.
"""

import datetime as dt
import ipaddress
import os
from collections.abc import Sequence
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.types import CertificateIssuerPrivateKeyTypes
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from backstay.adapters.certificates.reading import key_pem, pem

INTERMEDIATE_LIFETIME: Final = 365 * 24 * 3600.0
ROOT_LIFETIME: Final = 3650 * 24 * 3600.0  # Istio's self-made root: 10 years
CLOCK_SKEW: Final = dt.timedelta(minutes=1)  # a peer whose clock is behind must not refuse a fresh certificate
BACKDATED: Final = dt.timedelta(days=1)
"""How much older roots and intermediates say they are: a machine that starts hours ahead (its hardware clock holds another
zone's time) and is put right must not wait these hours until its own authority counts."""

ROOT_CERT: Final = "root-cert.pem"
ROOT_KEY: Final = "root-key.pem"
CA_CERT: Final = "ca-cert.pem"
CA_KEY: Final = "ca-key.pem"
CHAIN: Final = "cert-chain.pem"


def new_material(trust_domain: str, now: dt.datetime) -> dict[str, bytes]:
    """A whole CA by file name: a new root, and an intermediate that signs."""
    key, root = make_root(trust_domain, now)
    intermediate = intermediate_files(trust_domain, root, key, now)
    return {ROOT_KEY: key_pem(key), ROOT_CERT: pem([root]), **intermediate}


def make_leaf(
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


def make_root(trust_domain: str, now: dt.datetime) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = _subject(trust_domain, "root")
    until = now + dt.timedelta(seconds=ROOT_LIFETIME)
    builder = _ca_builder(name, name, key.public_key(), now, until, path_length=1, trust_domain=trust_domain)
    return key, builder.sign(key, hashes.SHA256())


def intermediate_files(
    trust_domain: str, root: x509.Certificate, root_key: CertificateIssuerPrivateKeyTypes, now: dt.datetime
) -> dict[str, bytes]:
    key = ec.generate_private_key(ec.SECP256R1())
    until = min(now + dt.timedelta(seconds=INTERMEDIATE_LIFETIME), root.not_valid_after_utc)
    name = _subject(trust_domain, "intermediate")
    builder = _ca_builder(name, root.subject, key.public_key(), now, until, path_length=0, trust_domain=trust_domain)
    certificate = builder.add_extension(_authority(root), critical=False).sign(root_key, _hash_for(root_key))
    return {CA_KEY: key_pem(key), CA_CERT: pem([certificate]), CHAIN: pem([certificate])}


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
        .not_valid_before(now - BACKDATED)
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


def general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)
