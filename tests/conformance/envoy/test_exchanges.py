"""Whole conversations through Envoy, over one Envoy for all cases: nothing of one may be left for the next."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from conformance.http.test_exchanges import CASES, LOCALHOST, PARTS, PATIENCE, PLAIN, Application, Client, hold

from .cases import before, known

pytestmark = pytest.mark.long
FILE = "http/exchanges.yaml"


@dataclass
class Behind:
    """The one port that Envoy knows; who answers there changes with the case."""

    application: Application = field(default_factory=lambda: Application([PLAIN]))
    open: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = field(default_factory=list)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open.append((reader, writer))
        await self.application.serve(reader, writer)

    async def leave(self) -> None:
        """Close what is open, and wait until Envoy has: a kept connection would lead to the application before."""
        for reader, writer in self.open:
            with contextlib.suppress(ConnectionError, RuntimeError):
                writer.close()
                async with asyncio.timeout(PATIENCE):
                    await writer.wait_closed()
                    while await reader.read(65536):
                        pass
        self.open.clear()


@dataclass
class Stage:
    port: int
    behind: Behind

    async def decided(self, case: dict[str, Any]) -> str:
        """As the case says, or as the RFC allows besides, which is what Envoy does most often. What was wrong; empty: nothing."""
        if "allows" in case and not await self.play({**case, **case["allows"]}, whole=True):
            return ""
        return await self.play(case, whole=True)

    async def play(self, case: dict[str, Any], *, whole: bool) -> str:
        """What was wrong; empty: nothing."""
        application = self.behind.application = Application(
            case.get("answers", [PLAIN]), hangs_up=case.get("hangs_up", False), answers_early=case.get("early", False)
        )
        client = Client(*await asyncio.open_connection(LOCALHOST, self.port))
        try:
            async with asyncio.timeout(PATIENCE):
                await hold(client, application, case, whole=whole, adds_fields=True)
        except (AssertionError, TimeoutError, asyncio.IncompleteReadError, ConnectionError) as error:
            return str(error).partition("\n")[0] or type(error).__name__
        finally:
            client.writer.close()
            await self.behind.leave()
        return ""


@contextlib.asynccontextmanager
async def stage() -> AsyncIterator[Stage]:
    behind = Behind()
    async with before(behind.serve, PARTS) as (_, port):
        yield Stage(port, behind)


async def test_conversations_go_as_the_cases_say_but_for_known_differences() -> None:
    async with stage() as running:
        found = {case["name"]: await running.decided(case) for case in CASES}
    differing = {name: why for name, why in found.items() if why}
    expected = {case["name"] for case in CASES if case["name"] in known(FILE)}
    assert {name: why for name, why in differing.items() if name not in expected} == {}
    assert expected - differing.keys() == set(), "no difference any more"
