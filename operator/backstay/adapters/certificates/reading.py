"""Reading what others wrote: PEM files, keys, certificate requests. Every refusal says which file and what was expected."""

from collections.abc import Iterable
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.types import CertificateIssuerPrivateKeyTypes

MIN_RSA_BITS: Final = 2048
MAX_CSR_BYTES: Final = 16 * 1024  # an RSA-4096 request with extensions is under 3 KiB


class CertificatesUnusable(Exception):
    """What is kept of the CA cannot be used; the text says which file and what was expected."""


def checked_request(csr_pem: bytes) -> x509.CertificateSigningRequest:
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


def is_ca(certificate: x509.Certificate) -> bool:
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        return False


def has_issued(issuer: x509.Certificate, certificate: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def must_have_issued(issuer: x509.Certificate, certificate: x509.Certificate, place: str) -> None:
    if not has_issued(issuer, certificate):
        raise CertificatesUnusable(
            f"{place}: {name_of(certificate)} was not issued by {name_of(issuer)}, which follows it"
        )


def name_of(certificate: x509.Certificate) -> str:
    return certificate.subject.rfc4514_string() or "a certificate without a subject"


def read_certificates(place: str, data: bytes) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(data)
    except ValueError as error:
        raise CertificatesUnusable(f"{place}: cannot be read as PEM certificates: {error}") from error


def read_key(place: str, data: bytes) -> CertificateIssuerPrivateKeyTypes:
    try:
        key = serialization.load_pem_private_key(data, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise CertificatesUnusable(f"{place}: cannot be read as an unencrypted PEM private key") from error
    if isinstance(key, (ec.EllipticCurvePrivateKey, rsa.RSAPrivateKey, ed25519.Ed25519PrivateKey)):
        return key
    raise CertificatesUnusable(f"{place}: is a {type(key).__name__}, expected an EC, RSA or Ed25519 key")


def key_pem(key: CertificateIssuerPrivateKeyTypes) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def pem(certificates: Iterable[x509.Certificate]) -> bytes:
    return b"".join(each.public_bytes(serialization.Encoding.PEM) for each in certificates)


def public_bytes(key: object) -> bytes:
    assert hasattr(key, "public_bytes")  # noqa: S101 - every public key of cryptography has it
    data: bytes = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return data
