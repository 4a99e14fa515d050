"""Everything here runs on both event loops: uvloop as in production, asyncio as where there is no uvloop."""

import asyncio
from collections.abc import Callable, Mapping

import pytest

from backstay.sidecar.engines.python import new_event_loop


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {"best": new_event_loop, "asyncio": asyncio.new_event_loop}
