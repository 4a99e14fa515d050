"""TLS to hosts outside of the mesh: whom to believe, and whether a certificate names who was asked."""

import ssl
from collections.abc import Iterable, Mapping
from typing import Any

from backstay.config.model import OriginTls


class Outside:
    """Contexts by what documents say, made when first needed: reading the system's roots takes milliseconds."""

    def __init__(self) -> None:
        self._contexts: dict[OriginTls, ssl.SSLContext] = {}

    def context(self, origin: OriginTls) -> ssl.SSLContext:
        """Raises ssl.SSLError for certificates that cannot be read."""
        found = self._contexts.get(origin)
        if found is None:
            found = self._contexts[origin] = make_context(origin)
        return found


def make_context(origin: OriginTls) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # checks the chain, and the name that was asked for
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    context.check_hostname = not origin.names  # other names than the SNI are looked for after the handshake
    if origin.ca:
        context.load_verify_locations(cadata=origin.ca)
    else:
        context.load_default_certs()
    return context


def check_names(certificate: Mapping[str, Any] | None, origin: OriginTls) -> None:
    """Raises ssl.SSLError if none of the names that a document lists is the certificate's."""
    if not origin.names:
        return  # OpenSSL has looked for the SNI
    shown = [value for kind, value in (certificate or {}).get("subjectAltName", ()) if kind == "DNS"]
    if not any(is_named(shown, wanted) for wanted in origin.names):
        raise ssl.SSLError(f"certificate names {shown!r}, expected one of {list(origin.names)!r}")


def is_named(shown: Iterable[str], wanted: str) -> bool:
    """Whether one of a certificate's names is this host; `*` stands for one whole label (RFC 6125, 6.4.3)."""
    name = wanted.lower()
    _, _, parent = name.partition(".")
    return any(each.lower() in (name, f"*.{parent}") for each in shown)
