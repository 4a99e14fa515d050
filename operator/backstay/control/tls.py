"""The operator's own side of TLS: an SVID that renews itself, and trust that can change while the port is open.

Client certificates are optional at the handshake (an enrolling proxy has none yet); the handlers that need one check.
"""

import asyncio
import datetime as dt
import ssl
import tempfile
from pathlib import Path
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from backstay.core.ports import CertificateAuthority

OPERATOR_PATH: Final = "/backstay/operator"
CLOCK_SKEW: Final = 60.0  # seconds by which a certificate is older than it has to be: adapters/certificates/making.py


def operator_id(trust_domain: str) -> str:
    """SPIFFE ID by which proxies recognize their operator."""
    return f"spiffe://{trust_domain}{OPERATOR_PATH}"


class OperatorTls:
    """Contexts for the control port. `context` stays the listener's for good; it hands each handshake the newest."""

    def __init__(self, ca: CertificateAuthority, trust_domain: str, *, now: float) -> None:
        self._ca = ca
        self._id = operator_id(trust_domain)
        self._roots = ""
        self.renew_at = 0.0
        """Unix seconds: half life of the present certificate."""
        self._made_at = now
        self._current = self._make(now)
        self.context = self._make(now)
        self.context.sni_callback = self._take_newest

    def refresh(self, now: float) -> bool:
        """Renew at half life and when the clock went back, follow the trust bundle; says whether trust changed."""
        trust_changed = self._roots != _all_roots(self._ca)
        # A clock that was put back has made it a certificate of tomorrow.
        if trust_changed or not self._made_at - CLOCK_SKEW <= now < self.renew_at:
            self._current = self._make(now)
        return trust_changed

    def _take_newest(
        self, connection: ssl.SSLObject | ssl.SSLSocket, _name: str | None, _context: ssl.SSLContext
    ) -> None:
        connection.context = self._current

    def _make(self, now: float) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        # A resumed session would keep a trust decision that may have been revoked since.
        context.num_tickets = 0
        context.verify_mode = ssl.CERT_OPTIONAL
        self._roots = _all_roots(self._ca)
        context.load_verify_locations(cadata=self._roots)
        self._load_own(context, now)
        return context

    def _load_own(self, context: ssl.SSLContext, now: float) -> None:
        key, request = _key_and_request()
        chain = self._ca.sign(request, identity=self._id)
        self.renew_at = now + (expiry(chain) - now) / 2
        self._made_at = now
        with tempfile.TemporaryDirectory(prefix="backstay-") as folder:  # 0700; the ssl module reads only files
            path = Path(folder, "own.pem")
            path.touch(0o600)
            path.write_bytes(key + chain)
            context.load_cert_chain(path)


def _all_roots(ca: CertificateAuthority) -> str:
    return "".join(ca.trust_bundle().values())


def _key_and_request() -> tuple[bytes, bytes]:
    key = ec.generate_private_key(ec.SECP256R1())
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
    encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    return key.private_bytes(encoding, form, serialization.NoEncryption()), request.public_bytes(encoding)


def expiry(chain: bytes) -> float:
    """Unix seconds when the leaf of a chain ends."""
    return x509.load_pem_x509_certificates(chain)[0].not_valid_after_utc.timestamp()


def peer_of(transport: asyncio.BaseTransport | None) -> tuple[str, float] | None:
    """(SPIFFE ID, Unix seconds of expiry) of the verified client certificate; None without one or with two names."""
    certificate: dict[str, Any] | None = transport.get_extra_info("peercert") if transport else None
    if not certificate:
        return None
    uris = [value for kind, value in certificate.get("subjectAltName", ()) if kind == "URI"]
    if len(uris) != 1:  # X509-SVID 2: exactly one
        return None
    ends = dt.datetime.strptime(certificate["notAfter"], "%b %d %H:%M:%S %Y %Z").replace(tzinfo=dt.UTC)
    return uris[0], ends.timestamp()
