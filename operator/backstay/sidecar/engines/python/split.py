"""Which of two configs decides a request or a connection, and whether a refusal proves anything. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import ip_address, ip_network

from backstay.config.match import aliases
from backstay.config.wire import RefusalExpected


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a refusal was about."""

    source: str
    """SPIFFE ID of the caller; empty for plaintext."""
    address: str
    host: str
    path: str


def is_expected(expected: Sequence[RefusalExpected], asked: Asked) -> bool:
    """True if a document announced this refusal (`rollout.expectRefused`)."""
    return any(
        _is_source(entry.source, asked) and _is_host(entry.host, asked.host) and _is_path(entry.path, asked.path)
        for entry in expected
    )


def _is_source(source: str, asked: Asked) -> bool:
    if "://" in source:
        return source == asked.source
    try:
        return ip_address(asked.address) in ip_network(source, strict=False)
    except ValueError:
        return False


def _is_host(wanted: str, host: str) -> bool:
    """Any spelling of the name counts, the short one too: which namespace the caller spoke from is not in the request."""
    return wanted in ("", host) or host.lower() in aliases(wanted, wanted.partition(".")[2])


def _is_path(wanted: str, path: str) -> bool:
    if wanted.endswith("*"):
        return path.startswith(wanted[:-1])
    return wanted in ("", path)
