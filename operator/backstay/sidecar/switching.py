"""One engine that another can take the traffic over from, when the config says so. Knows no engine, only the port.

The new one is told everything first and opens the same ports beside the old one (SO_REUSEPORT); then the old one closes its
own and finishes what it has begun. Where ports cannot be shared, the old one ends before the new one starts. A new engine that
does not come up is refused like any content that cannot be served, and the old one goes on.

Rule: whatever is told is kept here as well, so that an engine that comes later knows all of it.
"""

import asyncio
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol, runtime_checkable

from backstay.config.model import Config, Listeners
from backstay.config.wire import Endpoint, RefusalExpected
from backstay.redact import clean
from backstay.sidecar.engine import Address, ContentRefused, Engine, IdentityFiles, Observed, deaths, settled
from backstay.tasks import spawn, stop

__all__ = ["Make", "Switching", "engine_wanted"]

Make = Callable[[str, bool], Engine]
"""An engine by its name; True: it opens its ports beside those of another. Raises ValueError."""
UNAVAILABLE: Final = "EngineUnavailable"
_OVERLAPS: Final = sys.platform == "linux"
"""Only Linux spreads connections over sockets of one port whose owners came one after the other."""

_log: Final = logging.getLogger("backstay.sidecar")


@runtime_checkable
class Sharing(Protocol):
    """An engine whose ports another may open as well."""

    def share_ports(self) -> None: ...


@runtime_checkable
class Preparing(Protocol):
    """An engine that takes what it is told before it starts."""

    def prepare(self, address: Address) -> None: ...


@runtime_checkable
class _Shown(Protocol):
    def metrics(self, *, exemplars: bool = False) -> bytes: ...

    def clusters(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Applied:
    stable: Config
    candidate: Config | None
    share: float
    expect_refused: Sequence[RefusalExpected]

    @property
    def served(self) -> Config:
        """The one of the two that counts where only one can be served."""
        return self.candidate if self.candidate is not None and self.share > 0 else self.stable


@dataclass(slots=True)
class Told:
    """All that an engine was told."""

    endpoints: dict[str, Sequence[Endpoint]] = field(default_factory=dict)
    addresses: Mapping[str, Sequence[str]] = field(default_factory=dict)
    trust: Mapping[str, str] = field(default_factory=dict)
    revoked: Sequence[str] = ()
    identity: IdentityFiles | None = None
    key_sets: Mapping[str, str] = field(default_factory=dict)
    secrets: Mapping[str, Path] = field(default_factory=dict)
    zone: str = ""
    samples: int = 0

    def tell(self, engine: Engine) -> None:
        engine.trust(self.trust, self.revoked)
        if self.identity is not None:
            engine.identity(self.identity)
        engine.secrets(self.secrets)
        engine.key_sets(self.key_sets)
        if self.zone:
            engine.place(self.zone)
        engine.endpoints(self.endpoints, full=True)
        engine.addresses(self.addresses)
        engine.sample(self.samples)


def engine_wanted(config: Config) -> str:
    """What a config says of its proxy's engine; empty: nothing."""
    part = config.parts.get("listeners")
    return part.engine if isinstance(part, Listeners) else ""


class Switching:
    """Implements `backstay.sidecar.engine.Engine` and `Confirming` by the engine that the config names."""

    def __init__(self, usual: str, make: Make, *, first: str = "", drain_s: float = 30.0) -> None:
        """`usual`: the engine of configs that name none; `first`: what to start with, if that is known."""
        self._usual = usual
        self._make = make
        self._drain_s = drain_s
        self._told = Told()
        self._address: Address | None = None
        self._current_name = first or usual
        self.current: Engine = make(self._current_name, False)
        self._coming: Engine | None = None
        self._leaving: Engine | None = None
        self._applied: Applied | None = None
        """What the current engine was given last."""
        self._wanted: Applied | None = None
        """What waits for another engine."""
        self._refused: ContentRefused | None = None
        self._changing: asyncio.Task[None] | None = None
        self._draining: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"Switching({self.current!r}, wanted={self._wanted is not None})"

    @property
    def name(self) -> str:
        return self.current.name

    @property
    def capabilities(self) -> tuple[str, ...]:
        return self.current.capabilities

    @property
    def deaths(self) -> int:
        return deaths(self.current)

    @property
    def _serving(self) -> list[Engine]:
        """Those that must hear what is new."""
        return [self.current] if self._coming is None else [self.current, self._coming]

    async def start(self, address: Address) -> None:
        self._address = address
        await self.current.start(address)

    # --- configs ---------------------------------------------------------------------------------------------------

    def apply(
        self, stable: Config, candidate: Config | None, share: float, expect_refused: Sequence[RefusalExpected] = ()
    ) -> None:
        given = _undivided(Applied(stable, candidate, share, expect_refused))
        self._refused = None
        is_changing = self._changing is not None and not self._changing.done()
        if not is_changing and self._name_of(given) == self._current_name:
            self._apply(given)
            return
        self._wanted = given
        if not is_changing:
            self._changing = spawn(self._change(), name="engine-change")

    def _name_of(self, given: Applied) -> str:
        return engine_wanted(given.served) or self._usual

    def _apply(self, given: Applied) -> None:
        self.current.apply(given.stable, given.candidate, given.share, given.expect_refused)
        self._applied = given

    async def settled(self) -> None:
        """Wait until the engine that was asked for last serves what was given. Raises ContentRefused."""
        while self._changing is not None and not self._changing.done():
            await asyncio.wait([self._changing])
        if self._refused is not None:
            raise self._refused
        await settled(self.current)

    async def _change(self) -> None:
        """Until the engine is the wanted one, whatever is wanted meanwhile."""
        while self._wanted is not None:
            wanted, self._wanted = self._wanted, None
            name = self._name_of(wanted)
            try:
                if name == self._current_name:
                    self._apply(wanted)
                else:
                    await self._take_over(name, wanted)
            except Exception as error:
                # Whatever an engine fails with: what could not be served must not be said to be.
                refusal = error if isinstance(error, ContentRefused) else ContentRefused(UNAVAILABLE, clean(str(error)))
                expected = isinstance(error, (ContentRefused, OSError, ValueError))
                said = clean(str(refusal))
                _log.warning(
                    "engine.refused engine=%s reason=%s error=%s", name, refusal.reason, said, exc_info=not expected
                )
                self._refused = refusal

    async def _take_over(self, name: str, wanted: Applied) -> None:
        """Raises ContentRefused, OSError, ValueError or whatever the engine fails with; then everything is as before."""
        if self._draining is not None:
            await asyncio.wait([self._draining])
        old, overlaps = self.current, _OVERLAPS and isinstance(self.current, Sharing)
        new = self._make(name, overlaps)
        _log.info("engine.changes from=%s to=%s beside=%s", self._current_name, name, overlaps)
        if isinstance(old, Sharing) and overlaps:
            old.share_ports()
        elif isinstance(new, Preparing):
            self._prepare(new, wanted)  # what it refuses it refuses before the old one ends
        if not overlaps:
            await old.drain(self._drain_s)
        self._coming = new
        try:
            await self._begin(new, wanted)
        except Exception:
            if not overlaps:
                await self._begin_again()
            raise
        finally:
            self._coming = None
        self.current, self._current_name = new, name
        self._applied = wanted
        _log.info("engine.changed engine=%s", name)
        if overlaps:
            self._see_off(old)

    async def replace(self, make: Callable[[Engine], Engine]) -> None:
        """Have another engine, made of the current one, go on in its place with the same sockets; the current one finishes
        what it has begun. One that does not come up changes nothing. `make` may raise ValueError, OSError."""
        while self._changing is not None and not self._changing.done():
            await asyncio.wait([self._changing])
        self._changing = spawn(self._replace(make), name="engine-replace")
        await asyncio.wait([self._changing])

    async def _replace(self, make: Callable[[Engine], Engine]) -> None:
        if self._draining is not None:
            await asyncio.wait([self._draining])
        if self._applied is None:
            _log.warning("engine.not-replaced reason=nothing is served yet")
            return
        old = self.current
        try:
            new = self._coming = make(old)
            await self._begin(new, self._applied)
        except (OSError, ValueError, ContentRefused) as error:
            _log.error("engine.not-replaced error=%s", clean(str(error)))
        else:
            self.current = new
            _log.info("engine.replaced by=%r", new)
            self._see_off(old)
        finally:
            self._coming = None
        await self._change()  # to what was asked for meanwhile

    def _see_off(self, old: Engine) -> None:
        self._leaving = old
        self._draining = spawn(self._leave(old), name="engine-leaves")

    async def _begin(self, engine: Engine, given: Applied) -> None:
        """Ports open with everything known: nobody meets an engine that has no config."""
        if isinstance(engine, Preparing):
            self._prepare(engine, given)
        await engine.start(self._place())
        try:
            if not isinstance(engine, Preparing):
                self._tell(engine, given)
            await settled(engine)
        except BaseException:
            await engine.drain(0)  # also where the proxy ends meanwhile: no engine may outlive it
            raise

    def _prepare(self, engine: Engine, given: Applied) -> None:
        if isinstance(engine, Preparing):
            engine.prepare(self._place())
        self._tell(engine, given)

    def _tell(self, engine: Engine, given: Applied) -> None:
        self._told.tell(engine)
        engine.apply(given.stable, given.candidate, given.share, given.expect_refused)

    async def _begin_again(self) -> None:
        """The engine before, anew, where it had to end first."""
        self.current = self._make(self._current_name, False)
        if self._applied is not None:
            await self._begin(self.current, self._applied)
        else:
            await self.current.start(self._place())
            self._told.tell(self.current)

    async def _leave(self, old: Engine) -> None:
        await old.drain(self._drain_s)

    def _place(self) -> Address:
        if self._address is None:
            raise RuntimeError("the engine was not started")
        return self._address

    # --- live data -------------------------------------------------------------------------------------------------

    def endpoints(self, changed: Mapping[str, Sequence[Endpoint]], *, full: bool) -> None:
        known = {} if full else self._told.endpoints
        self._told.endpoints = {name: each for name, each in {**known, **changed}.items() if each}
        for engine in self._serving:
            engine.endpoints(changed, full=full)

    def addresses(self, services: Mapping[str, Sequence[str]]) -> None:
        self._told.addresses = services
        for engine in self._serving:
            engine.addresses(services)

    def trust(self, bundles: Mapping[str, str], revoked: Sequence[str]) -> None:
        self._told.trust, self._told.revoked = bundles, revoked
        for engine in [*self._serving, *([self._leaving] if self._leaving is not None else [])]:
            engine.trust(bundles, revoked)

    def identity(self, files: IdentityFiles) -> None:
        self._told.identity = files
        for engine in self._serving:
            engine.identity(files)

    def key_sets(self, known: Mapping[str, str]) -> None:
        self._told.key_sets = known
        for engine in self._serving:
            engine.key_sets(known)

    def secrets(self, files: Mapping[str, Path]) -> None:
        self._told.secrets = files
        for engine in self._serving:
            engine.secrets(files)

    def place(self, zone: str) -> None:
        self._told.zone = zone
        for engine in self._serving:
            engine.place(zone)

    def sample(self, most: int) -> None:
        self._told.samples = most
        for engine in self._serving:
            engine.sample(most)

    # --- what is seen ----------------------------------------------------------------------------------------------

    def collect(self) -> Observed:
        found = [self.current.collect()]
        if self._leaving is not None:
            found.append(self._leaving.collect())
            if self._draining is not None and self._draining.done():
                self._leaving = None
        return merged(found)

    def metrics(self, *, exemplars: bool = False) -> bytes:
        return self.current.metrics(exemplars=exemplars) if isinstance(self.current, _Shown) else b""

    def clusters(self) -> str:
        return self.current.clusters() if isinstance(self.current, _Shown) else ""

    def level(self, name: str) -> None:
        """Of the log, for an engine that has more than one."""
        others: Callable[[str], None] | None = getattr(self.current, "level", None)
        if others is not None:
            others(name)

    async def drain(self, timeout: float) -> None:
        self._wanted = None
        if self._changing is not None:
            await stop(self._changing)
        leaving = [self._draining] if self._draining is not None else []
        await asyncio.gather(self.current.drain(timeout), *leaving)


def _undivided(given: Applied) -> Applied:
    """Two engines are never asked to share one proxy's requests: the candidate gets all of them."""
    if given.candidate is None or engine_wanted(given.candidate) == engine_wanted(given.stable) or not given.share:
        return given
    return Applied(given.stable, given.candidate, 1.0, given.expect_refused)


def merged(found: Sequence[Observed]) -> Observed:
    """All increments, added up; what is served is what the first one says."""
    if len(found) == 1:
        return found[0]
    from backstay.sidecar.workers.merge import observed  # noqa: PLC0415 - few proxies ever change their engine

    return observed(found)
