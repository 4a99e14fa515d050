"""TLS on the data path: the contexts that connections use, and whether a peer may be who it says (transport.py moves the bytes).

Contexts belong to one generation of identity and trust: a new generation means new contexts, so that nothing of an old
one (session tickets, roots) can be resumed. Who the peer is comes from its certificate's only URI name.
"""

import asyncio
import re
import socket
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from backstay.sidecar.engine import IdentityFiles
from backstay.sidecar.engines.python.leaf import REMEMBERED, complaint

MESH_PROTOCOL: Final = "backstay"
"""What our proxies offer and agree to by ALPN, so that at a port where the application speaks TLS itself the two can be told
apart, and so that proxies know each other from whatever else holds a certificate."""
MAX_ID_BYTES: Final = 2048  # SPIFFE ID, 2.3
_SPIFFE_ID: Final = re.compile(r"spiffe://[a-z0-9._-]{1,255}((/[A-Za-z0-9._-]+)+)")


class PeerRefused(ssl.SSLError):
    """The handshake went through, but this peer is not who it must be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Contexts:
    """One generation of identity and trust."""

    server: ssl.SSLContext
    client: Mapping[str, ssl.SSLContext]
    """By trust domain of the peer: a chain to another domain's root proves nothing (threats S3)."""
    revoked: frozenset[str]
    roots: Mapping[str, frozenset[bytes]]
    """Trust domain -> its roots (DER)."""


def make_contexts(files: IdentityFiles, bundles: Mapping[str, str], revoked: frozenset[str]) -> Contexts:
    """Raises OSError (ssl.SSLError included) for a certificate, key or bundle that cannot be used."""
    server = _context(ssl.PROTOCOL_TLS_SERVER, files, "\n".join(bundles.values()))
    server.num_tickets = 0  # a resumed session would outlive the trust it was made under
    server.set_alpn_protocols([MESH_PROTOCOL])  # agreed to where a client offers it; others may still offer nothing
    client = {domain: _context(ssl.PROTOCOL_TLS_CLIENT, files, bundle) for domain, bundle in bundles.items()}
    for context in client.values():
        context.set_alpn_protocols([MESH_PROTOCOL])
    roots = {domain: frozenset(context.get_ca_certs(binary_form=True)) for domain, context in client.items()}
    return Contexts(server=server, client=client, revoked=revoked, roots=roots)


def _context(protocol: int, files: IdentityFiles, bundle: str) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname = False  # peers are checked by SPIFFE ID, not by DNS name
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_cert_chain(files.certificate, files.key)
    context.load_verify_locations(cadata=bundle)
    return context


def speaks_mesh(transport: asyncio.BaseTransport) -> bool:
    """Whether the other end of a connection of ours is a proxy of the mesh."""
    tls = transport.get_extra_info("ssl_object")
    return isinstance(tls, ssl.SSLSocket) and tls.selected_alpn_protocol() == MESH_PROTOCOL


def trust_domain_of(identity: str) -> str:
    return identity.removeprefix("spiffe://").partition("/")[0]


def peer_identity(certificate: Mapping[str, Any] | None) -> str:
    """SPIFFE ID of a verified leaf: its only URI name. Raises PeerRefused if there is not exactly one good one."""
    names = (certificate or {}).get("subjectAltName", ())
    uris = [value for kind, value in names if kind == "URI"]
    if len(uris) != 1 or not is_workload_id(uris[0]):
        raise PeerRefused(f"peer certificate names {uris!r}, expected one SPIFFE ID")
    return str(uris[0])


def is_workload_id(identity: str) -> bool:
    """SPIFFE ID grammar with a path; dot segments and every other spelling of one ID are refused (threats S2)."""
    match = _SPIFFE_ID.fullmatch(identity)
    return match is not None and len(identity) <= MAX_ID_BYTES and {".", ".."}.isdisjoint(match[1].split("/"))


def check_peer(sock: ssl.SSLSocket, contexts: Contexts, expected: str = "") -> str:
    """The peer's SPIFFE ID after a handshake. Raises PeerRefused if it is revoked, foreign, not the expected one or no workload."""
    certificate = sock.getpeercert(binary_form=True) or b""
    identity = _identities.get(certificate) or _read_identity(certificate, sock)
    wrong = complaint(certificate)
    if wrong:
        raise PeerRefused(f"certificate of {identity!r} is no workload's: {wrong}")
    if expected and identity != expected:
        raise PeerRefused(f"peer is {identity!r}, expected {expected!r}")
    if identity in contexts.revoked:
        raise PeerRefused(f"peer {identity!r} is revoked")
    roots = contexts.roots.get(trust_domain_of(identity))
    if roots is None:
        raise PeerRefused(f"peer {identity!r} is of a trust domain that is not trusted")
    if len(contexts.roots) > 1 and not roots.intersection(_chain(sock)):
        raise PeerRefused(f"peer {identity!r} has a certificate of another trust domain's root")
    return identity


_identities: Final[dict[bytes, str]] = {}
"""By verified certificates (DER): to read one costs 0.1 ms, and a caller that connects again shows the same."""


def _read_identity(certificate: bytes, sock: ssl.SSLSocket) -> str:
    identity = peer_identity(sock.getpeercert())
    if len(_identities) >= REMEMBERED:
        _identities.clear()
    _identities[certificate] = identity
    return identity


def _chain(sock: ssl.SSLSocket) -> list[bytes]:
    """The verified chain in DER. The public method came with Python 3.13; the one beneath it is there since 3.10."""
    public = getattr(sock, "get_verified_chain", None)
    if public is not None:
        return list(public())
    chain = sock._sslobj.get_verified_chain()  # type: ignore[attr-defined]
    return [certificate.public_bytes(2) for certificate in chain]  # 2: _ssl.ENCODING_DER


def set_nodelay(sock: socket.socket) -> None:
    """A proxy writes whole messages; waiting to fill a segment only adds latency."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def is_alert(error: Exception | None) -> bool:
    """True for a TLS alert. Before any byte it says that the handshake was refused: with TLS 1.3 a client learns only after
    its own part that its certificate was not liked."""
    return isinstance(error, ssl.SSLError) and not isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError)
