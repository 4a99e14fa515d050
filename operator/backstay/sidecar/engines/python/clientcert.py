"""What an application is told of the certificate its caller showed: X-Forwarded-Client-Cert, in Envoy's form.

Only mTLS callers are introduced; from everybody else the field has been taken away (framing.py). Rule: it stands beside the
fields that matchers see, never among them, so no policy can be met by what a caller says of itself.
"""

import ssl
from collections.abc import Iterable, Mapping
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from backstay.sidecar.engines.python.downstream import Downstream
    from backstay.sidecar.engines.python.flow import Exchange
    from backstay.sidecar.engines.python.runtime import Runtime

_SHORT: Final = {
    "commonName": "CN", "organizationName": "O", "organizationalUnitName": "OU", "countryName": "C",
    "localityName": "L", "stateOrProvinceName": "ST", "streetAddress": "STREET", "domainComponent": "DC", "userId": "UID",
}  # fmt: skip
_ESCAPED: Final = frozenset(b',+"\\<>;')  # RFC 2253, 2.4


def introduce(exchange: "Exchange", runtime: "Runtime") -> None:
    """Tell the application, in the head that goes to it, who asks; as the config says."""
    downstream, head = exchange.downstream, exchange.head
    if not downstream.secure:
        return
    value = forwarded(runtime.listeners.client_cert, head.client_cert, runtime.by, downstream)
    if value:
        head.block = b"%bX-Forwarded-Client-Cert: %b\r\n\r\n" % (head.block[:-2], value)


def forwarded(mode: str, sent: bytes, by: bytes, downstream: "Downstream") -> bytes:
    """The value; empty for none. `sent` is what the caller's side wrote."""
    if mode in ("sanitize", "forward_only"):
        return sent if mode == "forward_only" else b""
    own = by + (downstream.card or downstream.read_card())
    return b"%b,%b" % (sent, own) if sent and mode == "append_forward" else own


def card(tls: ssl.SSLSocket) -> bytes:
    """What an element says of the peer's certificate: hash, subject, names."""
    found: Mapping[str, Any] = tls.getpeercert() or {}
    names = found.get("subjectAltName", ())
    parts = [
        f"Hash={sha256(tls.getpeercert(binary_form=True) or b'').hexdigest()}",
        f'Subject="{distinguished(found.get("subject", ()))}"',
    ]
    parts += [f"URI={value}" for kind, value in names if kind == "URI"]
    parts += [f"DNS={value}" for kind, value in names if kind == "DNS" and value.isascii() and value.isprintable()]
    return ";".join(parts).encode()


def distinguished(name: Iterable[Iterable[tuple[str, str]]]) -> str:
    """A distinguished name by RFC 2253: the last part first. Workloads of this mesh have none."""
    parts = ["+".join(f"{_SHORT.get(kind, kind)}={_escaped(value)}" for kind, value in each) for each in name]
    return ",".join(reversed(parts))


def _escaped(value: str) -> str:
    return "".join(
        f"\\{chr(byte)}" if byte in _ESCAPED else chr(byte) if 0x20 <= byte < 0x7F else f"\\{byte:02X}"
        for byte in value.encode()
    )
