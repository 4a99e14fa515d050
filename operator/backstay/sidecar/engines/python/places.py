"""Which ports an engine listens on, by where it stands. Pure; gateways' ports come from the config instead."""

from backstay.sidecar.engine import Address, Redirected


def places(address: Address) -> list[tuple[str, int]]:
    """(host, port) of all ports that are open from the start."""
    found = [
        *((address.host, listen) for listen in address.inbound.values()),
        *((address.app_host, entry.listen) for entry in address.explicit),
    ]
    if address.outbound:
        found.append((address.app_host, address.outbound))
    if address.redirected is not None:
        found += redirected_places(address.redirected)
    return found


def redirected_places(ports: Redirected) -> list[tuple[str, int]]:
    """The kernel hands over what comes in at the address it came to, and what goes out at the loopback."""
    return [
        ("0.0.0.0", ports.inbound),  # noqa: S104 - any address of this pod
        ("127.0.0.1", ports.outbound),
        ("::", ports.inbound),
        ("::1", ports.outbound),
    ]


def is_optional(address: Address, host: str) -> bool:
    """True for places that a machine without IPv6 does not have."""
    return address.redirected is not None and host in ("::", "::1")


def gateway_host(address: Address) -> str:
    """Where a gateway's ports are opened."""
    return address.gateway_host or address.host
