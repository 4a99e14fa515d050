"""Where an instance stands on this machine: one loopback address each, or ports of 127.0.0.1 where there is only that.

Addresses are drawn once, kept in the state folder by platform.py, and stay the same over restarts: a port of a running
application cannot move. Nothing here remembers anything; the caller passes what is taken already.
"""

import contextlib
import hashlib
import ipaddress
import os
import socket
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Final

import msgspec

OUTBOUND_PORT: Final = 15001  # the habit of the field (Istio, Envoy samples): 15001 outbound, 15006 inbound,
INBOUND_PORT: Final = 15006  # 15000 admin; several inbound ports count upwards from 15006
ADMIN_PORT: Final = 15000
MAX_TRIES: Final = 200
"""Addresses looked at before giving up: two operators that drew the same block rarely have more instances than that."""


class PortTaken(OSError):
    """A port that an application needs is in use by somebody else."""


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """Everything an instance binds. Two places never share an (address, port)."""

    address: str
    app_ports: dict[int, int]
    """Port the application declares -> port it really gets; equal wherever it has an address of its own."""
    inbound: dict[int, int]
    """Declared port -> the sidecar's port for it."""
    outbound: int
    admin: int
    listeners: dict[int, int] = {}
    """Declared local port of an explicit listener -> its real port."""

    def ports(self) -> Iterator[int]:
        yield from self.app_ports.values()
        yield from self.inbound.values()
        yield from (self.outbound, self.admin)
        yield from self.listeners.values()


def has_many_loopbacks() -> bool:
    """True where all of 127.0.0.0/8 can be bound (Linux); macOS has 127.0.0.1 only."""
    return is_free("127.83.1.1", 0)


def is_free(address: str, port: int) -> bool:
    """True if a server could listen there now. TIME_WAIT does not count: servers set SO_REUSEADDR, we too."""
    with contextlib.closing(socket.socket(socket.AF_INET, socket.SOCK_STREAM)) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
            probe.listen(1)
        except OSError:
            return False
    return True


def own_address(seed: Path, app: Collection[int], listeners: Collection[int], taken: Iterable[str]) -> Place:
    """A loopback address of its own, every port as declared. `seed` (the state folder) spreads operators of one machine
    over 127/8, so that two of them rarely look at the same address.

    An application port that is taken at every address (somebody listens on 0.0.0.0) is the caller's to report."""
    sidecar = _sidecar_ports(app, listeners)
    used = set(taken)
    usable = [address for address in _addresses(seed, len(used)) if address not in used]
    for wanted in ([*app, *listeners, *sidecar], sidecar):
        for address in usable:
            if all(is_free(address, port) for port in wanted):
                return _own_place(address, app, listeners, sidecar)
    raise PortTaken(f"no loopback address has ports {sorted(sidecar)} free, after {len(usable)} tries")


def _own_place(address: str, app: Collection[int], listeners: Collection[int], sidecar: list[int]) -> Place:
    return Place(
        address=address,
        app_ports={port: port for port in app},
        inbound=dict(zip(app, sidecar[2:], strict=True)),
        outbound=sidecar[0],
        admin=sidecar[1],
        listeners={port: port for port in listeners},
    )


def shared_address(app: Collection[int], listeners: Collection[int], taken: Iterable[int]) -> Place:
    """Free ports of 127.0.0.1. They are probed, not reserved: who takes one before the process starts is reported."""
    free = _free_ports(2 * len(app) + len(listeners) + 2, set(taken))
    return Place(
        address="127.0.0.1",
        app_ports={port: next(free) for port in app},
        inbound={port: next(free) for port in app},
        outbound=next(free),
        admin=next(free),
        listeners={port: next(free) for port in listeners},
    )


def _sidecar_ports(app: Collection[int], listeners: Collection[int]) -> list[int]:
    """Outbound, admin, then one inbound port per application port; an application's own choice always wins."""
    reserved = {*app, *listeners}
    chosen: list[int] = []
    for wanted in (OUTBOUND_PORT, ADMIN_PORT, *range(INBOUND_PORT, INBOUND_PORT + len(app))):
        port = wanted
        while port in reserved or port in chosen:
            port += 100
        chosen.append(port)
    return chosen


def _addresses(seed: Path, used: int) -> Iterator[str]:
    """127.a.b.c with a.b from the seed; c from 1. Walks on into the next block when one is full."""
    digest = hashlib.sha256(os.fsencode(seed.absolute())).digest()
    first = int.from_bytes(digest[:2]) % 0xFC00 + 0x0200  # stays clear of 127.0.x.y and 127.1.x.y, which people use
    base = int(ipaddress.IPv4Address("127.0.0.0")) + (first << 8)
    for offset in range(used + MAX_TRIES):
        block, last = divmod(offset, 254)
        yield str(ipaddress.IPv4Address(base + (block << 8) + last + 1))


def _free_ports(count: int, taken: set[int]) -> Iterator[int]:
    with contextlib.ExitStack() as open_until_all_are_known:
        found: list[int] = []
        while len(found) < count:
            probe = open_until_all_are_known.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
            if port not in taken:
                found.append(port)
    return iter(found)


# --- who has a port ---------------------------------------------------------------------------------------------------


def holder_of(port: int) -> str:
    """`pid 12 (nginx)` of a listener on this TCP port as far as the system tells us, else an empty text."""
    inodes = set(_listening_inodes(port))
    if not inodes:
        return ""
    for process in Path("/proc").glob("[0-9]*"):
        if _holds(process, inodes):
            return f"pid {process.name} ({_command_of(process)})"
    return ""


def _listening_inodes(port: int) -> Iterator[str]:
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(OSError):  # not Linux: the message goes without the holder
            for line in Path(table).read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == "0A" and int(fields[1].rpartition(":")[2], 16) == port:
                    yield fields[9]


def _holds(process: Path, inodes: set[str]) -> bool:
    with contextlib.suppress(OSError):  # it ended meanwhile, or belongs to another user
        for descriptor in (process / "fd").iterdir():
            with contextlib.suppress(OSError):
                target = os.readlink(descriptor)
                if target.startswith("socket:[") and target[8:-1] in inodes:
                    return True
    return False


def _command_of(process: Path) -> str:
    try:
        return (process / "comm").read_text().strip()
    except OSError:
        return "?"
