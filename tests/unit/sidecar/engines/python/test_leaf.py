"""Which certificates may be a workload's leaf, whatever the chain above them says."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from functools import cache

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from backstay.sidecar.engines.python.leaf import complaint

SERVER, CLIENT = ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH
BOTH = x509.ExtendedKeyUsage([SERVER, CLIENT])
USAGES = (
    "digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement",
    "key_cert_sign", "crl_sign", "encipher_only", "decipher_only",
)  # fmt: skip


def usage(*names: str) -> x509.KeyUsage:
    return x509.KeyUsage(**{name: name in names for name in USAGES})


@cache
def _key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def certificate(*extensions: x509.ExtensionType) -> bytes:
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(x509.Name([]))
        .public_key(_key().public_key())
        .serial_number(1)
        .not_valid_before(datetime.now(UTC))
        .not_valid_after(datetime.now(UTC) + timedelta(hours=1))
    )
    for extension in extensions:
        builder = builder.add_extension(extension, critical=isinstance(extension, x509.BasicConstraints))
    return builder.sign(_key(), hashes.SHA256()).public_bytes(serialization.Encoding.DER)


SIGNS = usage("digital_signature")


@pytest.mark.parametrize(
    ("extensions", "expected"),
    [
        ((SIGNS, BOTH), ""),
        ((x509.BasicConstraints(ca=False, path_length=None), usage(*USAGES[:3]), BOTH), ""),
        ((SIGNS, x509.ExtendedKeyUsage([CLIENT, ExtendedKeyUsageOID.CODE_SIGNING, SERVER])), ""),
        ((x509.BasicConstraints(ca=True, path_length=None), SIGNS, BOTH), "it is a CA"),
        ((x509.BasicConstraints(ca=True, path_length=0), SIGNS, BOTH), "it is a CA"),
        ((usage("digital_signature", "key_cert_sign"), BOTH), "its key may sign certificates or revocation lists"),
        ((usage("digital_signature", "crl_sign"), BOTH), "its key may sign certificates or revocation lists"),
        ((usage("key_encipherment"), BOTH), "its key usage lacks digitalSignature"),
        ((BOTH,), "its key usage lacks digitalSignature"),
        ((SIGNS,), "its extended key usage lacks serverAuth or clientAuth"),
        ((SIGNS, x509.ExtendedKeyUsage([CLIENT])), "its extended key usage lacks serverAuth or clientAuth"),
        ((), "its key usage lacks digitalSignature"),
    ],
)
def test_a_leaf_must_say_that_it_is_one(extensions: Sequence[x509.ExtensionType], expected: str) -> None:
    assert complaint(certificate(*extensions)) == expected


def test_every_cut_and_every_wrong_length_is_a_complaint_and_never_a_crash() -> None:
    good = certificate(SIGNS, BOTH)
    assert all(complaint(good[:end]) for end in range(len(good)))
    assert complaint(good + b"\x05\x00") == "it cannot be read (expected one value with tag 0x30)"
    for at in range(len(good)):
        complaint(good[:at] + bytes([good[at] ^ 0xFF]) + good[at + 1 :])
    for data in (b"", b"\x30\x00", b"\x30\x80", b"\x30\x84\x00\x00\x00\x01\x00", b"\x30\x02\x05\x00"):
        assert complaint(data)
