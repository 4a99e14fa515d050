"""Addresses and blocks of them (CIDR), and which address began a request.

Asked per request where a policy names blocks: addresses and blocks are remembered as numbers (0.3 instead of 3 us).
"""

from collections.abc import Iterable
from functools import lru_cache
from ipaddress import IPv6Address, ip_address, ip_network
from typing import Final

from backstay.config.match import Headers, joined

_REMEMBERED: Final = (
    4096  # callers of one proxy within a while; a stranger can fill it, and only costs the parsing then
)


@lru_cache(maxsize=_REMEMBERED)
def number_of(address: str) -> tuple[int, int] | None:
    """(bits, number) of an address; None for text that is none. IPv4 written as IPv6 (`::ffff:10.0.0.1`) is IPv4."""
    try:
        found = ip_address(address)
    except ValueError:
        return None
    if isinstance(found, IPv6Address) and found.ipv4_mapped is not None:
        found = found.ipv4_mapped
    return found.max_prefixlen, int(found)


@lru_cache(maxsize=_REMEMBERED)
def range_of(block: str) -> tuple[int, int, int]:
    """(bits, first, last) of a block or a single address. Raises ValueError."""
    network = ip_network(block, strict=False)
    return network.max_prefixlen, int(network.network_address), int(network.broadcast_address)


def in_blocks(address: str, blocks: Iterable[str]) -> bool:
    """Whether an address lies in one of these; unknown ones lie in none."""
    found = number_of(address)
    if found is None:
        return False
    bits, number = found
    return any(known == bits and first <= number <= last for known, first, last in map(range_of, blocks))


def common_blocks(ones: Iterable[str], others: Iterable[str]) -> tuple[str, ...]:
    """Blocks of what lies in both lists: of two blocks one holds the other, or they have nothing in common."""
    pairs = [(one, other, range_of(one), range_of(other)) for one in ones for other in others]
    found = [
        one if inner[1] >= outer[1] and inner[2] <= outer[2] else other
        for one, other, inner, outer in pairs
        if inner[0] == outer[0] and inner[1] <= outer[2] and outer[1] <= inner[2]
    ]
    return tuple(dict.fromkeys(found))


def remote_address(headers: Headers, address: str, trusted_hops: int) -> str:
    """Where a request began: of the addresses that proxies noted in X-Forwarded-For the one `trusted_hops` before the last;
    the connection's own where there are not so many. Empty where that entry is no address.

    Each proxy notes whom it heard from, so the last entry is what the proxy before this one saw (Envoy's rule).
    """
    noted = joined([field for field in headers if field[0].lower() == b"x-forwarded-for"]).get(b"x-forwarded-for")
    entries = [] if noted is None else noted.decode("latin-1").split(",")
    if len(entries) <= trusted_hops:
        return address
    entry = _without_port(entries[-1 - trusted_hops].strip())
    return entry if number_of(entry) is not None else ""


def _without_port(entry: str) -> str:
    if entry.startswith("["):
        return entry[1:].partition("]")[0]
    return entry.partition(":")[0] if entry.count(":") == 1 else entry
