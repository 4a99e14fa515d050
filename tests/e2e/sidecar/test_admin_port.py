"""Who may keep a page of the admin, health or Prometheus port waiting, and for how long."""

import asyncio

import pytest

from backstay.sidecar import admin
from e2e.engine.mesh import LOCALHOST, until

PAGE = bytes(32 * 1024 * 1024)  # more than the buffers of both kernels hold


async def test_who_does_not_take_a_page_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admin, "REQUEST_WITHIN", 0.2)
    server = admin.AdminServer()
    port = await server.listen(LOCALHOST, 0, {"/": lambda: (200, admin.TEXT, PAGE)})
    try:
        tasks = len(asyncio.all_tasks())
        reader, writer = await asyncio.open_connection(LOCALHOST, port, limit=1024)
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        writer.write(b"GET / HTTP/1.1\r\n\r\n")
        await until(lambda: len(asyncio.all_tasks()) > tasks)
        await until(lambda: len(asyncio.all_tasks()) == tasks)
        writer.transport.resume_reading()  # type: ignore[attr-defined]
        got = 0
        try:
            while data := await reader.read(1024 * 1024):
                got += len(data)
        except ConnectionError:
            pass
        assert got < len(PAGE)
        writer.close()
    finally:
        server.close()
