"""Puts a sidecar together: engine, agent or config file, admin pages. The only module that knows all of them."""

import asyncio
import importlib
import logging
from pathlib import Path
from typing import Final

import msgspec

from backstay.config.model import Config, config_digest
from backstay.config.wire import Endpoint
from backstay.redact import clean
from backstay.sidecar.admin import AdminServer
from backstay.sidecar.agent import Agent
from backstay.sidecar.engine import ContentRefused, Engine
from backstay.sidecar.pages import agent_pages, file_pages, listen
from backstay.sidecar.settings import Settings
from backstay.sidecar.store import Store, StoreInUse
from backstay.tasks import spawn, stop

ENGINES: Final = {
    "python": "backstay.sidecar.engines.python:PythonEngine",
    "envoy": "backstay.sidecar.engines.envoy:EnvoyEngine",
}

_log: Final = logging.getLogger("backstay.sidecar")


def make_engine(name: str) -> Engine:
    """An engine by its name, or by `module:Class`. Raises ValueError."""
    module, _, attribute = ENGINES.get(name, name).partition(":")
    try:
        engine: Engine = getattr(importlib.import_module(module), attribute)()
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"--engine: {name!r} cannot be loaded ({error}), known are {', '.join(ENGINES)}") from error
    return engine


async def run(settings: Settings, stopping: asyncio.Event, reload: asyncio.Event) -> None:
    """Until `stopping` is set. Raises OSError (port or folder in use), ValueError (bad config file)."""
    engine = make_engine(settings.engine)
    if settings.config is not None:
        await run_file(settings, engine, settings.config, stopping, reload)
    else:
        await run_agent(settings, engine, stopping)


async def run_agent(settings: Settings, engine: Engine, stopping: asyncio.Event) -> None:
    try:
        agent = Agent(settings, engine, Store(settings.state))
    except StoreInUse as error:
        raise OSError(str(error)) from error
    await engine.start(settings.address)
    admin = AdminServer()
    await listen(admin, settings, agent_pages(agent))

    async def end() -> None:
        await stopping.wait()
        agent.stop()

    ending = spawn(end(), name="sidecar-end")
    try:
        await agent.run()
    finally:
        admin.close()
        await stop(ending)


# --- without an operator --------------------------------------------------------------------------


class ConfigFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What `--config FILE` holds: a config as on the stream, plus the endpoints that would be live data."""

    config: Config
    endpoints: dict[str, list[Endpoint]] = {}
    addresses: dict[str, list[str]] = {}
    """`service.namespace` -> virtual addresses that stand for it, where connections are redirected."""


def read_config_file(path: Path) -> ConfigFile:
    """Raises ValueError that names the file, OSError."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=ConfigFile)
    except msgspec.DecodeError as error:
        raise ValueError(f"{path}: {error}") from error


async def run_file(
    settings: Settings, engine: Engine, path: Path, stopping: asyncio.Event, reload: asyncio.Event
) -> None:
    """Serve one file; a reload that fails leaves everything as it was and says why."""
    found = read_config_file(path)
    await engine.start(settings.address)
    _apply_file(engine, found)
    admin = AdminServer()
    await listen(admin, settings, file_pages(engine, lambda: config_digest(found.config.manifest)))
    ended = spawn(stopping.wait(), name="sidecar-end")
    while not stopping.is_set():
        asked = spawn(reload.wait(), name="sidecar-reload")
        await asyncio.wait([ended, asked], return_when=asyncio.FIRST_COMPLETED)
        await stop(asked)
        if reload.is_set():
            reload.clear()
            found = _reloaded(engine, path, found)
    await engine.drain(settings.drain_s)
    admin.close()


def _reloaded(engine: Engine, path: Path, former: ConfigFile) -> ConfigFile:
    try:
        found = read_config_file(path)
        _apply_file(engine, found)
    except (ValueError, OSError) as error:
        _log.error("config.refused error=%s", clean(str(error)))
        return former
    return found


def _apply_file(engine: Engine, found: ConfigFile) -> None:
    engine.endpoints(found.endpoints, full=True)
    engine.addresses(found.addresses)
    try:
        engine.apply(found.config, None, 0.0)
    except ContentRefused as error:
        raise ValueError(f"config refused: {error} [{error.reason}]") from error
