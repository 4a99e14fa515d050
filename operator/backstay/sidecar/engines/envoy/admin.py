"""Asks Envoy's admin interface, a socket in the engine's own folder. One request per connection; every one has a time limit."""

import asyncio
from pathlib import Path
from typing import Final

ANSWER_SECONDS: Final = 5.0  # Envoy's main thread may be busy with a large config
MAX_ANSWER: Final = 64 * 1024 * 1024


class AdminUnavailable(Exception):
    """Envoy does not answer: not started yet, died, or stuck."""


class Admin:
    def __init__(self, socket: Path) -> None:
        self._socket = socket

    async def get(self, path: str) -> str:
        """Raises AdminUnavailable."""
        return await self._ask("GET", path)

    async def post(self, path: str) -> str:
        """Raises AdminUnavailable."""
        return await self._ask("POST", path)

    async def _ask(self, method: str, path: str) -> str:
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                return await self._exchange(method, path)
        except (TimeoutError, OSError, EOFError, ValueError) as error:
            raise AdminUnavailable(str(error) or type(error).__name__) from error

    async def _exchange(self, method: str, path: str) -> str:
        reader, writer = await asyncio.open_unix_connection(str(self._socket), limit=MAX_ANSWER)
        try:
            head = f"{method} {path} HTTP/1.1\r\nHost: admin\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
            writer.write(head.encode())
            status, body = await _answer(reader)
        finally:
            writer.close()
        if status != 200:
            raise ValueError(f"{path}: {status}")
        return body.decode("utf-8", "replace")


async def _answer(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
    status = int(head.split(" ", 2)[1])
    if "transfer-encoding: chunked" in head:
        return status, await _chunks(reader)
    return status, await reader.read()


async def _chunks(reader: asyncio.StreamReader) -> bytes:
    parts = []
    while size := int(await reader.readline(), 16):
        parts.append(await reader.readexactly(size))
        await reader.readexactly(2)
    return b"".join(parts)
