"""Opens connections to endpoints: TCP, and mTLS where the endpoint has an identity.

Requests that find no idle connection wait at the pool and share what is opened: a handshake costs more CPU than a short
request, so one connection a request would make a cold endpoint look as if it did not answer. How many are opened at a time
the pool says (`Pool.wants_connection`); what becomes of a connection or a failure is decided here.
"""

import asyncio
import socket
import ssl
from typing import TYPE_CHECKING, Final

from backstay.config.model import OriginTls
from backstay.sidecar.engines.python.outside import check_names
from backstay.sidecar.engines.python.pool import Group, Pool
from backstay.sidecar.engines.python.tls import check_peer, set_nodelay, trust_domain_of
from backstay.sidecar.engines.python.transport import TlsTransport
from backstay.sidecar.engines.python.upstream import Upstream
from backstay.tasks import spawn

IP_BIND_ADDRESS_NO_PORT: Final = 24  # linux/in.h; for IPv6 sockets as well

if TYPE_CHECKING:
    from backstay.sidecar.engines.python.flow import Exchange
    from backstay.sidecar.engines.python.server import Server


def seek(server: "Server", pool: Pool, group: Group, exchange: "Exchange", digest: str) -> None:
    """Get a connection for this exchange: a new one, or one that another request is done with. The exchange hears of it by
    `connected` or `connect_failed`."""
    if exchange.method == b"CONNECT" or group.max_connections:
        # A tunnel needs a connection of its own anyhow; with a limit the quota says how many there may be.
        _open(server, pool, group, digest, exchange, is_shared=False)
        return
    pool.waiting[exchange] = False
    _open_more(server, pool)


def _open_more(server: "Server", pool: Pool) -> None:
    while pool.wants_connection:
        opener: Exchange = pool.attend()  # type: ignore[assignment]  # only `seek` adds to the queue
        lane = opener.lane
        assert lane is not None  # noqa: S101 - who waits has been given a lane
        _open(server, pool, lane.group, lane.digest, opener, is_shared=True)


def _open(server: "Server", pool: Pool, group: Group, digest: str, opener: "Exchange", *, is_shared: bool) -> None:
    group.count(pool, 1)
    pool.connecting += 1
    upstream = Upstream(server, pool, group)
    upstream.early = b"" if opener.method == b"CONNECT" else None
    spawn(_connect(upstream, digest, opener, is_shared), name=f"connect {pool.key.address}:{pool.key.port}")


async def _connect(upstream: Upstream, digest: str, opener: "Exchange", is_shared: bool) -> None:
    server, pool, group = upstream.server, upstream.pool, upstream.group
    failed: Exception | None = None
    try:
        async with asyncio.timeout(group.connect_seconds):
            await _opened(upstream)
    except (OSError, TimeoutError, ValueError) as error:
        failed = error
        _give_up(upstream)
    except asyncio.CancelledError:
        pool.connecting -= 1
        _give_up(upstream)
        raise
    if failed is None and upstream.transport is None:
        failed = ConnectionResetError("closed as soon as it was open")
    pool.connecting -= 1
    if pool.key.id:
        server.ledger.connected(pool.key.id, digest, failed=failed is not None)
    if failed is None:
        _hand_over(upstream, opener, is_shared)
    else:
        _tell_failed(pool, opener, failed, is_shared)
    _open_more(server, pool)
    if failed is not None:
        group.quota.wake()


def _give_up(upstream: Upstream) -> None:
    if upstream.transport is None:
        upstream.group.count(upstream.pool, -1)
    upstream.close()


def _hand_over(upstream: Upstream, opener: "Exchange", is_shared: bool) -> None:
    """To who waits longest; to the pool if nobody waits any more."""
    seeker = upstream.pool.next_for_new() if is_shared else opener
    if seeker is not None:
        seeker.connected(upstream)
    else:
        upstream.release(reusable=True)


def _tell_failed(pool: Pool, opener: "Exchange", error: Exception, is_shared: bool) -> None:
    """Fail the request this attempt was made for, if it still waits. The others wait for theirs, unless the whole time
    allowed went by and nothing is reached there: they would only wait as long again."""
    if not is_shared:
        opener.connect_failed(error)
    elif isinstance(error, TimeoutError) and not pool.established:
        for seeker in pool.dismiss():
            seeker.connect_failed(error)
    elif pool.waiting.pop(opener, None) is not None:
        opener.connect_failed(error)


async def _opened(upstream: Upstream) -> None:
    """Connect in the way that the endpoint is reached."""
    if upstream.pool.key.identity:
        await _open_tls(upstream)
    elif upstream.pool.origin is not None:
        await _open_outside(upstream, upstream.pool.origin)
    else:
        await _open_plain(upstream)


async def _open_outside(upstream: Upstream, origin: OriginTls) -> None:
    """TLS to a host outside of the mesh, whose certificate must name it. All its addresses are tried."""
    key, server = upstream.pool.key, upstream.server
    found = await server.loop.getaddrinfo(key.address, key.port, type=socket.SOCK_STREAM)
    sock = await _first_that_answers(server.loop, [(str(place[0]), int(place[1])) for *_, place in found])
    try:
        wrapped = server.outside.context(origin).wrap_socket(
            sock, server_hostname=origin.sni, do_handshake_on_connect=False
        )
    except (OSError, ValueError):
        sock.close()
        raise
    transport = await _shake(server.loop, wrapped)
    try:
        check_names(wrapped.getpeercert(), origin)
    except ssl.SSLError:
        transport.abort()
        raise
    transport.begin(upstream)


async def _first_that_answers(loop: asyncio.AbstractEventLoop, places: "list[tuple[str, int]]") -> socket.socket:
    """Raises the last place's error."""
    failed: OSError = ConnectionError("the name has no address")
    for address, port in places:
        try:
            return await _connect_socket(loop, address, port)
        except OSError as error:
            failed = error
    raise failed


async def _open_plain(upstream: Upstream) -> None:
    key, loop, source = upstream.pool.key, upstream.server.loop, upstream.pool.source
    if not source:
        await loop.create_connection(lambda: upstream, key.address, key.port)
        return
    sock = await _connect_socket(loop, key.address, key.port, source)
    try:
        await loop.create_connection(lambda: upstream, sock=sock)
    except BaseException:
        sock.close()
        raise


async def _open_tls(upstream: Upstream) -> None:
    key, server = upstream.pool.key, upstream.server
    contexts = server.contexts
    context = contexts.client.get(trust_domain_of(key.identity)) if contexts is not None else None
    if contexts is None or context is None:
        raise ConnectionError(f"no identity or trust bundle for {key.identity!r} yet")
    sock = await _connect_socket(server.loop, key.address, key.port)
    try:
        wrapped = context.wrap_socket(sock, do_handshake_on_connect=False)
    except (OSError, ValueError):
        sock.close()
        raise
    transport = await _shake(server.loop, wrapped)
    try:
        upstream.peer = check_peer(wrapped, contexts, key.identity)
    except ssl.SSLError:
        transport.abort()
        raise
    transport.begin(upstream)


async def _connect_socket(loop: asyncio.AbstractEventLoop, address: str, port: int, source: str = "") -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        set_nodelay(sock)
        if source:
            # Without the option the kernel takes a port that no other connection has, and there are 28,000 of those.
            sock.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
            sock.bind((source, 0))
        await loop.sock_connect(sock, (address, port))
    except BaseException:
        sock.close()
        raise
    return sock


async def _shake(loop: asyncio.AbstractEventLoop, sock: ssl.SSLSocket) -> TlsTransport:
    done: asyncio.Future[None] = loop.create_future()

    def ready(_: TlsTransport, error: Exception | None) -> None:
        if done.done():
            return
        if error is None:
            done.set_result(None)
        else:
            done.set_exception(error)

    transport = TlsTransport(loop, sock, ready)
    try:
        transport.start()
        await done
    except BaseException:
        transport.abort()
        raise
    return transport
