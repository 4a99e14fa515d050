"""The sidecar's own SVID: one private file with key and chain, when to renew it, and TLS contexts made from it.

Key and certificate share a file so that replacing both is one rename. PEM readers skip the line in front, which keeps
what would otherwise need an X.509 parser in this process.
"""

import asyncio
import os
import random
import ssl
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from backstay.config.wire import EnrolAnswer
from backstay.sidecar import files

KEYMAKER_WITHIN: Final = 30.0  # seconds; it takes 0.2, a machine that starts a hundred pods takes longer
RENEWAL_SPREAD: Final = 0.05  # of the lifetime, to both sides: proxies that started together must not renew together
CLOCK_SKEW: Final = 60.0  # seconds by which a certificate is older than it has to be: adapters/certificates/making.py
_REQUEST: Final = b"-----BEGIN CERTIFICATE REQUEST-----"


class Svid(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of the certificate in the file."""

    identity: str
    issued_at: float
    """Unix seconds."""
    expires_at: float

    def is_valid(self, wall: float) -> bool:
        """A certificate of tomorrow (the clock was ahead when it was made) is refused like one of yesterday."""
        return self.issued_at - CLOCK_SKEW <= wall < self.expires_at


def write(path: Path, key_pem: bytes, answer: EnrolAnswer, *, wall: float) -> Svid:
    """Replace key and chain at once. Raises OSError, then the former stays."""
    svid = Svid(identity=answer.identity, issued_at=wall, expires_at=answer.expires_at)
    files.write(path, msgspec.json.encode(svid) + b"\n" + key_pem + answer.certificate.encode())
    return svid


def read(path: Path) -> Svid | None:
    """None when there is none or it is damaged: the proxy then enrols anew."""
    try:
        head, _, rest = path.read_bytes().partition(b"\n")
        if b"PRIVATE KEY-----" not in rest or b"-----END CERTIFICATE-----" not in rest:
            return None
        return msgspec.json.decode(head, type=Svid)
    except (OSError, msgspec.DecodeError):
        return None


@dataclass(slots=True)
class Renewal:
    """When to renew: at half life, by whichever clock gets there first, and when the wall clock went back behind it."""

    svid: Svid
    since: float
    """Boot clock when it was taken into use."""
    fraction: float

    @classmethod
    def plan(cls, svid: Svid, *, now: float) -> "Renewal":
        fraction = 0.5 + random.uniform(-RENEWAL_SPREAD, RENEWAL_SPREAD)  # noqa: S311 - spreads load, hides nothing
        return cls(svid, now, fraction)

    def is_due(self, *, now: float, wall: float) -> bool:
        half = (self.svid.expires_at - self.svid.issued_at) * self.fraction
        return now - self.since >= half or wall >= self.svid.issued_at + half or not self.svid.is_valid(wall)


async def make_key() -> tuple[bytes, bytes]:
    """(private key, certificate request) in PEM, from a short-lived child. Raises OSError."""
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "backstay.sidecar.keymaker",
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    try:
        async with asyncio.timeout(KEYMAKER_WITHIN):
            output, errors = await child.communicate()
    except TimeoutError as error:
        child.kill()
        await child.wait()
        raise OSError("making a key took too long") from error
    key, mark, request = output.partition(_REQUEST)
    if child.returncode != 0 or not mark:
        raise OSError(f"making a key failed: {errors.decode(errors='replace').strip()[-300:]}")
    return key, mark + request


def context(roots: str, identity: Path | None) -> ssl.SSLContext:
    """For connections to the operator. Raises ssl.SSLError, OSError for damaged files."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    made.minimum_version = ssl.TLSVersion.TLSv1_3
    made.check_hostname = False  # the operator is known by its SPIFFE ID, wherever it runs; see is_operator
    made.load_verify_locations(cadata=roots)
    if identity is not None:
        made.load_cert_chain(identity)
    return made


def is_operator(writer: asyncio.StreamWriter, trust_domain: str) -> bool:
    """Whether the verified certificate at the other end is the operator's."""
    certificate = writer.get_extra_info("peercert") or {}
    uris = [value for kind, value in certificate.get("subjectAltName", ()) if kind == "URI"]
    return uris == [f"spiffe://{trust_domain}/backstay/operator"]


def roots_for(trust_domain: str, bundles: Mapping[str, str], trust_file: Path | None) -> str:
    """Roots to recognize the operator by: the last bundle it sent, and the platform's file, which may be newer."""
    known = bundles.get(trust_domain, "")
    try:
        given = trust_file.read_text() if trust_file else ""
    except OSError:
        given = ""
    return known + ("\n" if known and not known.endswith("\n") else "") + given
