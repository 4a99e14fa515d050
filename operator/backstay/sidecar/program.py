"""Puts a sidecar together: engine, agent or config file, admin pages. The only module that knows all of them."""

import asyncio
import importlib
import logging
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol, runtime_checkable

import msgspec

from backstay.sidecar.admin import AdminServer
from backstay.sidecar.agent import Agent
from backstay.sidecar.engine import Engine
from backstay.sidecar.pages import agent_pages, file_pages, listen
from backstay.sidecar.settings import Settings
from backstay.sidecar.standalone import Served, read_config_file
from backstay.sidecar.store import Store, StoreInUse, load_config
from backstay.sidecar.switching import Switching, engine_wanted
from backstay.tasks import spawn, stop

ENGINES: Final = {
    "python": "backstay.sidecar.engines.python:PythonEngine",
    "envoy": "backstay.sidecar.engines.envoy:EnvoyEngine",
}

_log: Final = logging.getLogger("backstay.sidecar")


def make_engine(name: str, *, beside: bool = False) -> Engine:
    """An engine by its name, or by `module:Class`. `beside`: it opens ports that another has open. Raises ValueError."""
    module, _, attribute = ENGINES.get(name, name).partition(":")
    try:
        kind = getattr(importlib.import_module(module), attribute)
        engine: Engine = kind(beside=True) if beside else kind()
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"--engine: {name!r} cannot be loaded ({error}), known are {', '.join(ENGINES)}") from error
    return engine


@runtime_checkable
class Replaceable(Protocol):
    """An engine of several processes."""

    async def replace(self, timeout: float) -> None: ...


@runtime_checkable
class Listening(Protocol):
    """An engine of this process, whose sockets another can go on with."""

    @property
    def ports(self) -> Mapping[tuple[str, int], socket.socket]: ...


@dataclass(frozen=True, slots=True)
class Events:
    """What signals ask for."""

    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    reload: asyncio.Event = field(default_factory=asyncio.Event)
    replace: asyncio.Event = field(default_factory=asyncio.Event)


def engine_of(settings: Settings, first: str = "") -> Switching:
    """The engine that starts, and those that configs may ask for. Raises ValueError."""

    def make(name: str, beside: bool) -> Engine:
        return _one_engine(name, settings, beside=beside)

    return Switching(settings.engine, make, first=first, drain_s=settings.drain_s)


def _one_engine(name: str, settings: Settings, *, beside: bool) -> Engine:
    """One process, or several. Raises ValueError."""
    if name != "python" or settings.concurrency == 1:
        return make_engine(name, beside=beside)
    from backstay.sidecar.workers.parent import Workers, workers_wanted  # noqa: PLC0415 - most proxies have none

    return Workers(workers_wanted(settings.concurrency), log_level=settings.log_level, beside=beside)


def _heir(engine: Engine) -> Engine:
    """A process of its own that goes on with an engine's sockets; from then on this one carries no traffic. Raises ValueError,
    OSError."""
    if not isinstance(engine, Listening):
        raise ValueError(f"{engine.name} does not hand its ports over")
    from backstay.sidecar.workers.parent import Workers  # noqa: PLC0415 - few proxies are ever replaced

    level = logging.getLevelName(logging.getLogger().level)
    return Workers(1, log_level=level, inherited={place: sock.dup() for place, sock in engine.ports.items()})


async def run(settings: Settings, events: Events) -> None:
    """Until `stopping` is set. Raises OSError (port or folder in use), ValueError (bad config file)."""
    if settings.config is not None:
        await run_file(settings, settings.config, events)
    else:
        await run_agent(settings, events)


def _last_engine(kept: Store) -> str:
    """What the config on disk asks for: a restart need not begin with another."""
    try:
        stable = load_config(kept.objects, kept.saved.stable)
    except msgspec.DecodeError:
        return ""  # of another version of this program; the agent says so
    return engine_wanted(stable) if stable is not None else ""


async def run_agent(settings: Settings, events: Events) -> None:
    try:
        kept = Store(settings.state)
    except StoreInUse as error:
        raise OSError(str(error)) from error
    engine = engine_of(settings, _last_engine(kept))
    agent = Agent(settings, engine, kept)
    await engine.start(settings.address)
    admin = AdminServer()
    await listen(admin, settings, agent_pages(agent))

    async def end() -> None:
        await events.stopping.wait()
        agent.stop()

    ending = spawn(end(), name="sidecar-end")
    replacing = spawn(_replace_when_asked(settings, engine, events.replace), name="sidecar-replace")
    try:
        await agent.run()
    finally:
        admin.close()
        await stop(ending, replacing)


# --- without an operator --------------------------------------------------------------------------


async def run_file(settings: Settings, path: Path, events: Events) -> None:
    """Serve one file."""
    engine = engine_of(settings, engine_wanted(read_config_file(path).served()))
    served = Served(engine, path)
    await engine.start(settings.address)
    try:
        await served.begin()
        admin = AdminServer()
        await listen(admin, settings, file_pages(engine, served.dump, events.stopping.set))
    except (OSError, ValueError):
        await engine.drain(0)
        raise
    reloading = spawn(_reload_when_asked(served, events.reload), name="sidecar-reload")
    replacing = spawn(_replace_when_asked(settings, engine, events.replace), name="sidecar-replace")
    await events.stopping.wait()
    await stop(reloading, replacing)
    await engine.drain(settings.drain_s)
    admin.close()


async def _reload_when_asked(served: Served, asked: asyncio.Event) -> None:
    """By SIGHUP, or by a change of a file."""
    while True:
        waits = [spawn(asked.wait(), name="reload-asked"), spawn(served.wait_for_change(), name="reload-changed")]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await stop(*waits)
        asked.clear()
        await served.reload()


async def _replace_when_asked(settings: Settings, engine: Switching, asked: asyncio.Event) -> None:
    """By SIGUSR2: new processes take the traffic over, the old ones finish what they have begun."""
    while True:
        await asked.wait()
        asked.clear()
        current = engine.current
        if isinstance(current, Replaceable):
            await current.replace(settings.drain_s)
        else:
            await engine.replace(_heir)
