"""Certificates of the test cluster: one CA, a client certificate for each part and for the person at the keyboard.

Kubernetes reads the user from the certificate's common name and the groups from its organizations.
"""

import base64
import datetime
import ipaddress
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from cluster.layout import NODE, SERVICE_API, Layout

LIFETIME: Final = datetime.timedelta(days=7)
"""A test cluster that is older than a week has been forgotten, not used."""
USERS: Final = {
    "admin": ("backstay-test-admin", ("system:masters",)),
    "kube-controller-manager": ("system:kube-controller-manager", ()),
    "kube-scheduler": ("system:kube-scheduler", ()),
    "kube-proxy": ("system:kube-proxy", ()),
    "kubelet": (f"system:node:{NODE}", ("system:nodes",)),
}
SERVER_NAMES: Final = ("kubernetes", "kubernetes.default", "kubernetes.default.svc", "localhost")


@dataclass(frozen=True, slots=True, kw_only=True)
class Authority:
    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate


def write(layout: Layout) -> None:
    """Everything the parts read, and one kubeconfig per user."""
    layout.pki.mkdir(parents=True)
    authority = _authority()
    (layout.pki / "ca.crt").write_bytes(_pem(authority.certificate))
    _write_key(layout.pki / "ca.key", authority.key)
    _pair(layout.pki / "apiserver", authority, "kube-apiserver", (), _server_names(layout))
    _pair(layout.pki / "apiserver-kubelet", authority, "kube-apiserver-kubelet", ("system:masters",), None)
    tokens = ec.generate_private_key(ec.SECP256R1())
    _write_key(layout.pki / "tokens.key", tokens)
    (layout.pki / "tokens.pub").write_bytes(
        tokens.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    for name, (user, groups) in USERS.items():
        _pair(layout.pki / name, authority, user, groups, None)
        layout.user(name).write_text(kubeconfig(layout, name), encoding="utf-8")
        layout.user(name).chmod(0o600)


def kubeconfig(layout: Layout, name: str) -> str:
    """Credentials inline, so that the file can be copied to wherever a client runs."""

    def inline(path: Path) -> str:
        return base64.b64encode(path.read_bytes()).decode()

    cluster = {"server": layout.api, "certificate-authority-data": inline(layout.pki / "ca.crt")}
    user = {
        "client-certificate-data": inline(layout.pki / f"{name}.crt"),
        "client-key-data": inline(layout.pki / f"{name}.key"),
    }
    return json.dumps(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "backstay-test", "cluster": cluster}],
            "users": [{"name": name, "user": user}],
            "contexts": [{"name": "backstay-test", "context": {"cluster": "backstay-test", "user": name}}],
            "current-context": "backstay-test",
        },
        indent=1,
    )


def serving(names: tuple[str, ...]) -> tuple[str, str, str]:
    """A server's certificate from an authority of its own: the authority, the certificate and its key, PEM."""
    authority = _authority()
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = _signed(authority, key, names[0], (), x509.SubjectAlternativeName([x509.DNSName(n) for n in names]))
    return _pem(authority.certificate).decode(), _pem(certificate).decode(), _key_pem(key).decode()


def _server_names(layout: Layout) -> x509.SubjectAlternativeName:
    addresses = sorted({layout.address, SERVICE_API, "127.0.0.1"})
    names = [x509.DNSName(name) for name in (*SERVER_NAMES, "kubernetes.default.svc.cluster.local")]
    return x509.SubjectAlternativeName([*names, *(x509.IPAddress(ipaddress.ip_address(each)) for each in addresses)])


def _authority() -> Authority:
    key = ec.generate_private_key(ec.SECP256R1())
    name = _name("backstay-test-cluster", ())
    usage = x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=True,
        crl_sign=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
    certificate = (
        _builder(name, name, key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .sign(key, hashes.SHA256())
    )
    return Authority(key=key, certificate=certificate)


def _pair(
    path: Path, authority: Authority, user: str, groups: tuple[str, ...], names: x509.SubjectAlternativeName | None
) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    path.with_suffix(".crt").write_bytes(_pem(_signed(authority, key, user, groups, names)))
    _write_key(path.with_suffix(".key"), key)


def _signed(
    authority: Authority,
    key: ec.EllipticCurvePrivateKey,
    user: str,
    groups: tuple[str, ...],
    names: x509.SubjectAlternativeName | None,
) -> x509.Certificate:
    purposes = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH])
    builder = _builder(_name(user, groups), authority.certificate.subject, key.public_key())
    builder = builder.add_extension(purposes, critical=False)
    if names is not None:
        builder = builder.add_extension(names, critical=False)
    return builder.sign(authority.key, hashes.SHA256())


def _builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=5))
        .not_valid_after(now + LIFETIME)
    )


def _name(common: str, groups: tuple[str, ...]) -> x509.Name:
    organizations = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, group) for group in groups]
    return x509.Name([*organizations, x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _write_key(path: Path, key: ec.EllipticCurvePrivateKey) -> None:
    path.touch(mode=0o600)
    path.write_bytes(_key_pem(key))


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
