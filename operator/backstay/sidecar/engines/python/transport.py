"""TLS as a transport of the loop that reads and writes through `SSLSocket` itself.

The loops' own TLS goes through memory BIOs and costs 1.5 times as much per message (measured on relays of 1 KiB).
"""

import asyncio
import ssl
from collections import deque
from collections.abc import Callable
from typing import Any, Final

READ_BYTES: Final = 16 * 1024  # the most one TLS record holds, so that nothing stays pending inside OpenSSL
MOST_RECORDS: Final = 8  # read at once from one connection while others wait: 128 KiB
HIGH_WATER: Final = 64 * 1024  # asyncio's default for transports
LOW_WATER: Final = 16 * 1024
HANDSHAKE_SECONDS: Final = 10.0  # Envoy's transport_socket_connect_timeout default is none, Istio's 15 s, nginx's 60 s


class TlsTransport(asyncio.Transport):
    """A transport over a non-blocking SSLSocket. `ready` is called once: with None after the handshake, else with why not.

    `ready` must call `begin(protocol)` to start reading, or `abort()`.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sock: ssl.SSLSocket,
        ready: "Callable[[TlsTransport, Exception | None], None]",
    ) -> None:
        super().__init__()
        self.sock = sock
        self._loop = loop
        self._fd = sock.fileno()
        self._ready = ready
        self._protocol: asyncio.Protocol | None = None
        self._received: Callable[[bytes], None] = _nobody_reads
        connection: Any = sock._sslobj  # type: ignore[attr-defined]  # what SSLSocket.read and write call, 0.3 us later
        self._read: Callable[[int], bytes] = connection.read
        self._write: Callable[[bytes | bytearray | memoryview], int] = connection.write
        self._buffer: deque[bytes | memoryview] = deque()
        self._buffered = 0
        self._failed: Exception | None = None
        """Why nothing can be written any more."""
        self._reading = self._writing = self._closing = self._lost = self._pressed = False
        self._timer = loop.call_later(
            HANDSHAKE_SECONDS, self._handshake_failed, TimeoutError("TLS handshake took too long")
        )

    # --- handshake -------------------------------------------------------------------------------------------------

    def start(self) -> None:
        self._loop.add_reader(self._fd, self._shake)
        self._shake()

    def _shake(self) -> None:
        try:
            self.sock.do_handshake()
        except ssl.SSLWantReadError:
            return
        except ssl.SSLWantWriteError:
            self._loop.add_writer(self._fd, self._shake_after_write)
            return
        except (ssl.SSLError, OSError, ValueError) as error:
            self._handshake_failed(error)
            return
        self._timer.cancel()
        self._loop.remove_reader(self._fd)
        self._ready(self, None)

    def _shake_after_write(self) -> None:
        self._loop.remove_writer(self._fd)
        self._shake()

    def _handshake_failed(self, error: Exception) -> None:
        if self._lost:
            return
        self._release()
        self._ready(self, error)

    def begin(self, protocol: asyncio.Protocol) -> None:
        """Hand the connection to its protocol and read from now on."""
        self.set_protocol(protocol)
        self.resume_reading()
        protocol.connection_made(self)

    # --- reading ---------------------------------------------------------------------------------------------------

    def _readable(self) -> None:
        try:
            data = self._read(READ_BYTES)
            if len(data) == READ_BYTES:
                data = self._with_more(data)
        except ssl.SSLWantReadError:
            return
        except ssl.SSLWantWriteError:
            self._want_writer()
            return
        except (ssl.SSLError, OSError) as error:
            self._read_failed(error)
            return
        if not data:
            self._eof()
            return
        try:
            self._received(data)
        except BaseException:
            self.abort()  # as the loops' own transports: a connection in an unknown state is not used again
            raise

    def _with_more(self, first: bytes) -> bytes:
        """A full record, and those behind it that are there already: one write downstream for all of them, which for a large
        body is a third of the work."""
        records = [first]
        try:
            while len(records) < MOST_RECORDS and len(records[-1]) == READ_BYTES:
                records.append(self._read(READ_BYTES))
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            pass  # the loop says when there is more
        except (ssl.SSLError, OSError) as error:
            self._loop.call_soon(self._read_failed, error)  # after what came before it
        return b"".join(records)

    def _read_failed(self, error: Exception) -> None:
        if self._lost:
            return
        if isinstance(error, ssl.SSLEOFError):
            self._eof()  # no close_notify before the end; message framing says what is complete
        else:
            self._end(error)

    def _eof(self) -> None:
        protocol = self._protocol
        if protocol is not None and protocol.eof_received():
            self.pause_reading()
            return
        self.close()

    def pause_reading(self) -> None:
        if self._reading:
            self._reading = False
            self._loop.remove_reader(self._fd)

    def resume_reading(self) -> None:
        if not self._reading and not self._closing and not self._lost:
            self._reading = True
            self._loop.add_reader(self._fd, self._readable)

    def is_reading(self) -> bool:
        return self._reading

    # --- writing ---------------------------------------------------------------------------------------------------

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self._closing or self._lost or self._failed is not None or not data:
            return
        if self._buffer:
            self._keep(bytes(data))
            return
        try:
            sent = self._write(data)
        except (ssl.SSLWantWriteError, ssl.SSLWantReadError):
            sent = 0
        except (ssl.SSLError, OSError) as error:
            self._write_failed(error)
            return
        if sent < len(data):
            self._keep(memoryview(bytes(data))[sent:])
            if sent:
                self._flush()  # one call takes one record (16 KiB); go on until the socket is full

    def _keep(self, data: bytes | memoryview) -> None:
        self._buffer.append(data)
        self._buffered += len(data)
        self._want_writer()
        if self._buffered > HIGH_WATER and not self._pressed:
            self._pressed = True
            self._protocol.pause_writing()  # type: ignore[union-attr]

    def _want_writer(self) -> None:
        if not self._writing:
            self._writing = True
            self._loop.add_writer(self._fd, self._flush)

    def _flush(self) -> None:
        """Write what is kept. A refused piece is offered again with the same bytes: OpenSSL insists on that."""
        if self._lost:
            return
        try:
            while self._buffer:
                self._write_first()
        except (ssl.SSLWantWriteError, ssl.SSLWantReadError):
            self._relieve()
            return
        except (ssl.SSLError, OSError) as error:
            self._write_failed(error)
            return
        self._stop_writing()
        self._relieve()
        if self._closing:
            self._end(None)

    def _write_first(self) -> None:
        piece = self._buffer[0]
        sent = self._write(piece)
        self._buffered -= sent
        if sent == len(piece):
            self._buffer.popleft()
        else:
            self._buffer[0] = memoryview(piece)[sent:]

    def _write_failed(self, error: Exception) -> None:
        """The peer does not take any more. What it said before (an answer, or the alert that says why) may still be there
        to be read; the loop finds that, and then the end."""
        if self._reading and self._failed is None and isinstance(error, ConnectionError | ssl.SSLEOFError):
            self._failed = error
            self._buffer.clear()
            self._buffered = 0
            self._stop_writing()
            self._relieve()
            return
        self._end_soon(error)

    def _stop_writing(self) -> None:
        if self._writing:
            self._writing = False
            self._loop.remove_writer(self._fd)

    def _relieve(self) -> None:
        if self._pressed and self._buffered <= LOW_WATER:
            self._pressed = False
            self._protocol.resume_writing()  # type: ignore[union-attr]

    def get_write_buffer_size(self) -> int:
        return self._buffered

    def can_write_eof(self) -> bool:
        return False

    # --- ending ----------------------------------------------------------------------------------------------------

    def close(self) -> None:
        if self._closing or self._lost:
            return
        self._closing = True
        self.pause_reading()
        if not self._buffer:
            self._loop.call_soon(self._end, None)

    def abort(self) -> None:
        self._closing = True
        self._end_soon(None)

    def is_closing(self) -> bool:
        return self._closing or self._lost

    def _end_soon(self, error: Exception | None) -> None:
        """End after the current callback: a protocol must not lose its connection in the middle of its own write."""
        self._closing = True
        self.pause_reading()
        self._loop.call_soon(self._end, error)

    def _end(self, error: Exception | None) -> None:
        if self._lost:
            return
        if error is None and not self._buffer:
            self._say_goodbye()
        self._release()
        if self._protocol is not None:
            self._protocol.connection_lost(error)

    def _say_goodbye(self) -> None:
        """Send close_notify. The peer's own is not waited for: message framing says what is complete."""
        try:
            self.sock._sslobj.shutdown()  # type: ignore[attr-defined]  # unwrap() would detach the socket
        except (ssl.SSLError, OSError, ValueError):
            return

    def _release(self) -> None:
        self._lost = True
        self._closing = True
        self._reading = False
        self._timer.cancel()
        self._loop.remove_reader(self._fd)
        self._loop.remove_writer(self._fd)
        self._buffer.clear()
        self.sock.close()

    # --- the rest of the transport interface ------------------------------------------------------------------------

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self.sock if name in ("socket", "ssl_object") else default

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol = protocol  # type: ignore[assignment]
        self._received = protocol.data_received  # type: ignore[attr-defined]

    def get_protocol(self) -> asyncio.BaseProtocol:
        assert self._protocol is not None  # noqa: S101 - callers hold a transport only after begin()
        return self._protocol


def _nobody_reads(data: bytes) -> None:
    raise RuntimeError("a transport was read before anybody took it")
