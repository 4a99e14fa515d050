"""`backstay sidecar redirect`: rules of the kernel that take a pod's TCP connections to its proxy, or take them away again.

Runs once, before everything else in the pod, with the right to change the network (CAP_NET_ADMIN), and ends. What the rules
are is decided by pure functions; all of one address family are written in one transaction, and writing them twice leaves
the same rules. Chains and their order follow what the field does (Istio's), so that what people know holds.

Rule: no connection of the proxy itself is ever taken to where it came from. Its user is left alone; what it sends to its
own pod goes to the inbound side; what it sends to the application comes from an address that is left alone.
"""

import argparse
import enum
import errno
import fcntl
import ipaddress
import os
import re
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeAlias

from backstay.sidecar.engine import APP_SOURCES, Redirected

PROXY_UID: Final = 1337  # as Istio's: people have excluded it elsewhere already
OWN_PORTS: Final = (15000, 15020, 15021, 15090)
"""Of the proxy itself (admin, health, Prometheus): asked by the kubelet and by Prometheus, never by way of the proxy."""
INBOUND: Final = "BACKSTAY_INBOUND"
OUTBOUND: Final = "BACKSTAY_OUTPUT"
PROTOCOLS: Final = {4: "iptables", 6: "ip6tables"}
VARIANTS: Final = ("nft", "legacy")
COMMAND_SECONDS: Final = 30.0
"""A pod's tables have no other writer; longer means that something is wrong with the kernel."""
_SIOCSIFADDR: Final = 0x8916  # linux/sockios.h
_SIOCDIFADDR: Final = 0x8936

Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network


class Failed(Exception):
    """The kernel or its tools did not do it; nothing the arguments could say better."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """What is to be redirected."""

    inbound_ports: tuple[int, ...] | None = None
    """None: all."""
    exclude_inbound: tuple[int, ...] = ()
    exclude_outbound: tuple[int, ...] = ()
    exclude_networks: tuple[Network, ...] = ()
    """Destinations that are left alone."""
    uid: int = PROXY_UID
    ports: Redirected = field(default_factory=Redirected)


# --- what to write, pure ------------------------------------------------------------------------------------------


def rules(wishes: Wishes, version: int) -> list[str]:
    """The rules of one address family in their order, as iptables-save shows them."""
    return [*_inbound_rules(wishes), *_outbound_rules(wishes, version)]


def _inbound_rules(wishes: Wishes) -> Iterator[str]:
    for port in sorted({*OWN_PORTS, *wishes.exclude_inbound}):
        yield f"-A {INBOUND} -p tcp -m tcp --dport {port} -j RETURN"
    to_proxy = f"-j REDIRECT --to-ports {wishes.ports.inbound}"
    if wishes.inbound_ports is None:
        yield f"-A {INBOUND} -p tcp {to_proxy}"
        return
    for port in sorted(set(wishes.inbound_ports)):
        yield f"-A {INBOUND} -p tcp -m tcp --dport {port} {to_proxy}"


def _outbound_rules(wishes: Wishes, version: int) -> Iterator[str]:
    loopback, source = ("127.0.0.1/32", APP_SOURCES[4]) if version == 4 else ("::1/128", APP_SOURCES[6])
    for port in sorted(set(wishes.exclude_outbound)):
        yield f"-A {OUTBOUND} -p tcp -m tcp --dport {port} -j RETURN"
    # From the proxy to its application.
    yield f"-A {OUTBOUND} -s {source}/{32 if version == 4 else 128} -o lo -j RETURN"
    # From the proxy to its own pod: a service chose the caller itself, which is asked like any other.
    yield f"-A {OUTBOUND} ! -d {loopback} -o lo -p tcp -m owner --uid-owner {wishes.uid} -j {INBOUND}"
    # From the application to itself.
    yield f"-A {OUTBOUND} -o lo -m owner ! --uid-owner {wishes.uid} -j RETURN"
    yield f"-A {OUTBOUND} -m owner --uid-owner {wishes.uid} -j RETURN"
    yield f"-A {OUTBOUND} -d {loopback} -j RETURN"
    for network in wishes.exclude_networks:
        if network.version == version:
            yield f"-A {OUTBOUND} -d {network} -j RETURN"
    yield f"-A {OUTBOUND} -p tcp -j REDIRECT --to-ports {wishes.ports.outbound}"


_JUMPS: Final = {"PREROUTING": INBOUND, "OUTPUT": OUTBOUND}


def restore_input(saved: str, wishes: Wishes | None, version: int) -> str:
    """What to feed iptables-restore --noflush, given what iptables-save shows of the nat table. No wishes: take all away.

    Jumps that are there are taken out first, however many; chains that are named are emptied by the tool.
    """
    chains = (INBOUND, OUTBOUND)
    lines = ["*nat"]
    there = [chain for chain in chains if f":{chain} " in saved]
    lines += [f":{chain} - [0:0]" for chain in (chains if wishes is not None else there)]
    lines += [f"-D{line[2:]}" for line in saved.splitlines() if _is_jump(line)]
    if wishes is None:
        lines += [f"-X {chain}" for chain in reversed(there)]
    else:
        lines += rules(wishes, version)
        lines += [f"-A {hook} -p tcp -j {chain}" for hook, chain in _JUMPS.items()]
    return "\n".join([*lines, "COMMIT", ""])


def _is_jump(line: str) -> bool:
    return any(line.startswith(f"-A {hook} ") and line.endswith(f"-j {chain}") for hook, chain in _JUMPS.items())


def variant(saved: Mapping[str, str | None]) -> str:
    """Which of the two tables to write: the one in which there are most rules already (a kernel obeys both, but people look
    into one), else the newer of those that work. `saved` is what each shows, None where it does not work. Raises Failed."""
    working = [name for name in VARIANTS if saved.get(name) is not None]
    if not working:
        raise Failed("neither iptables-nft nor iptables-legacy works here: is CAP_NET_ADMIN given?")
    return max(working, key=lambda name: _count(saved[name] or ""))


def _count(saved: str) -> int:
    return sum(line.startswith("-A ") for line in saved.splitlines())


class Reach(enum.Enum):
    NONE = "none"
    LINK = "link"
    WORLD = "world"


def ipv6_reach(addresses: str) -> Reach:
    """How far IPv6 goes from here, by /proc/net/if_inet6: one line an address, its scope in the fourth column."""
    scopes = {fields[3] for line in addresses.splitlines() if len(fields := line.split()) >= 6 and fields[5] != "lo"}
    if not scopes:
        return Reach.NONE
    return Reach.LINK if scopes == {"20"} else Reach.WORLD


# --- doing it -----------------------------------------------------------------------------------------------------


def apply(wishes: Wishes | None, say: "Printer") -> None:
    """Write or remove the rules of both families. Raises Failed."""
    for version in PROTOCOLS:
        reach = ipv6_reach(_ipv6_addresses()) if version == 6 else Reach.WORLD
        if reach is Reach.NONE:
            say("this network has no IPv6: only IPv4 is redirected")
            continue
        try:
            _apply_family(wishes, version, say)
        except Failed as error:
            if reach is Reach.WORLD:
                raise
            say(f"IPv6 is not redirected; it has link-local addresses only, which no service has ({error})")


def _apply_family(wishes: Wishes | None, version: int, say: "Printer") -> None:
    saved = _saved(version)
    if wishes is None:
        _remove(version, saved)
        if version == 6:
            _ipv6_source(_SIOCDIFADDR)
        return
    chosen = variant(saved)
    _remove(version, {name: text for name, text in saved.items() if name != chosen})
    _restore(version, chosen, restore_input(saved[chosen] or "", wishes, version))
    if version == 6:
        _ipv6_source(_SIOCSIFADDR)
    say(f"IPv{version}: redirected by {_tool(version, chosen)}")


def _remove(version: int, saved: Mapping[str, str | None]) -> None:
    for name, text in saved.items():
        if text is not None and INBOUND in text:
            _restore(version, name, restore_input(text, None, version))


def _ipv6_addresses() -> str:
    try:
        return Path("/proc/net/if_inet6").read_text()
    except FileNotFoundError:
        return ""  # a kernel without IPv6


def _ipv6_source(request: int) -> None:
    """Give the loopback the address from which the proxy asks the application (IPv4 has 127/8), or take it away. Raises
    Failed."""
    address = socket.inet_pton(socket.AF_INET6, APP_SOURCES[6])
    packed = struct.pack("16sIi", address, 128, socket.if_nametoindex("lo"))  # struct in6_ifreq
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
        try:
            fcntl.ioctl(sock, request, packed)
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.EADDRNOTAVAIL):  # it is as it should be
                raise Failed(f"cannot change the loopback's address {APP_SOURCES[6]}: {error.strerror}") from error


def _tool(version: int, name: str) -> str:
    return f"{PROTOCOLS[version]}-{name}"


def _saved(version: int) -> dict[str, str | None]:
    """The nat tables there are. The older tool makes its tables by looking at them, so it is only asked where it must be."""
    newer = _save(version, "nft")
    names = Path(f"/proc/net/{'ip' if version == 4 else 'ip6'}_tables_names")
    has_older = names.exists() and "nat" in names.read_text().split()
    return {"nft": newer, "legacy": _save(version, "legacy") if has_older or newer is None else None}


def _save(version: int, name: str) -> str | None:
    """The nat table as one of the tools shows it; None where that tool does not work."""
    try:
        done = _run([f"{_tool(version, name)}-save", "-t", "nat"])
    except FileNotFoundError:
        return None
    return done.stdout if done.returncode == 0 else None


def _restore(version: int, name: str, text: str) -> None:
    tool = f"{_tool(version, name)}-restore"
    done = _run([tool, "--noflush", *(["--wait"] if name == "legacy" else [])], text)
    if done.returncode:
        raise Failed(f"{tool} refused the rules: {' '.join(done.stderr.split())}")


def _run(command: Sequence[str], text: str = "") -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, "XTABLES_LOCKFILE": os.environ.get("XTABLES_LOCKFILE") or _lock_file()}
    try:
        return subprocess.run(
            command, input=text, capture_output=True, text=True, timeout=COMMAND_SECONDS, check=False, env=environment
        )
    except subprocess.TimeoutExpired as error:
        raise Failed(f"{command[0]} did not end within {COMMAND_SECONDS:.0f} s") from error


def _lock_file() -> str:
    """iptables-legacy locks a file in /run, which may be read-only in a container; nobody else writes this pod's tables."""
    return "/run/xtables.lock" if os.access("/run", os.W_OK) else os.devnull


# --- command line -------------------------------------------------------------------------------------------------


class Printer:
    """Says what was done, on standard error: this program's log."""

    def __call__(self, text: str) -> None:
        print(f"backstay sidecar redirect: {text}", file=sys.stderr)


def parse(arguments: Sequence[str]) -> Wishes | None:
    """The wishes; None to take everything away. Exits with status 2 and a sentence for what cannot be read."""
    parser = argparse.ArgumentParser(
        prog="backstay sidecar redirect", description=(__doc__ or "").split("\n", 1)[0], allow_abbrev=False
    )
    ports = Redirected()
    parser.add_argument("--inbound-ports", default="*", help="ports of the application to redirect, `*` is all")
    parser.add_argument("--exclude-inbound", default="", help="ports of the application to leave alone")
    parser.add_argument("--exclude-outbound-ports", default="", help="ports anywhere to leave alone")
    parser.add_argument("--exclude-cidr", default="", help="networks to leave alone, as destinations")
    parser.add_argument("--uid", default=str(PROXY_UID), help="user of the proxy, whose connections are left alone")
    parser.add_argument(
        "--to-inbound", default=str(ports.inbound), help="port where the proxy takes inbound connections"
    )
    parser.add_argument("--to-outbound", default=str(ports.outbound), help="and outbound ones")
    parser.add_argument("--remove", action="store_true", help="take all of it away")
    found = parser.parse_args(arguments)
    try:
        return None if found.remove else _wishes(found)
    except ValueError as error:
        parser.error(str(error))


def _wishes(found: argparse.Namespace) -> Wishes:
    everything = found.inbound_ports.strip() == "*"
    to_outbound, to_inbound = (
        _port(getattr(found, name), f"--{name.replace('_', '-')}") for name in ("to_outbound", "to_inbound")
    )
    return Wishes(
        inbound_ports=None if everything else _ports(found.inbound_ports, "--inbound-ports"),
        exclude_inbound=_ports(found.exclude_inbound, "--exclude-inbound"),
        exclude_outbound=_ports(found.exclude_outbound_ports, "--exclude-outbound-ports"),
        exclude_networks=_networks(found.exclude_cidr),
        uid=_number(found.uid, "--uid", 2**32 - 2, "a user's number"),
        ports=Redirected(outbound=to_outbound, inbound=to_inbound),
    )


def _items(text: str) -> list[str]:
    return [item for item in re.split(r"[,\s]+", text) if item]


def _ports(text: str, flag: str) -> tuple[int, ...]:
    return tuple(_port(item, flag) for item in _items(text))


def _port(text: str, flag: str) -> int:
    return _number(text, flag, 65535, "a port number")


def _number(text: str, flag: str, most: int, what: str) -> int:
    if not (text.isascii() and text.isdecimal()) or not 0 < int(text) <= most:
        raise ValueError(f"{flag}: {text!r} is not {what}")
    return int(text)


def _networks(text: str) -> tuple[Network, ...]:
    found: list[Network] = []
    for item in _items(text):
        try:
            found.append(ipaddress.ip_network(item, strict=False))
        except ValueError as error:
            raise ValueError(f"--exclude-cidr: {item!r} is not a network such as 10.0.0.0/8") from error
    return tuple(found)


def main(arguments: Sequence[str]) -> int:
    wishes = parse(arguments)
    say = Printer()
    if not sys.platform.startswith("linux"):
        say("only Linux can redirect connections")
        return 1
    try:
        apply(wishes, say)
    except Failed as error:
        say(str(error))
        return 1
    return 0
