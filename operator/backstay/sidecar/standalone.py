"""A sidecar without an operator: serves one file, and serves it anew on SIGHUP and when it or a file it names has changed.

A file that cannot be served changes nothing; the log says why.
"""

import asyncio
import logging
import re
import ssl
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Final, get_args

import msgspec

from backstay.config.model import Config, Listeners, Part
from backstay.config.standalone import ConfigFile
from backstay.redact import clean
from backstay.sidecar.engine import ContentRefused, Engine, IdentityFiles, settled

LOOK_SECONDS: Final = 1.0  # between looks at the files' times; five calls of stat cost 10 us

Stamp = tuple[tuple[int, ...] | None, ...]

_log: Final = logging.getLogger("backstay.sidecar")


def read_config_file(path: Path) -> ConfigFile:
    """Raises ValueError that names file, line and column, OSError."""
    data = path.read_bytes()
    try:
        return msgspec.json.decode(data, type=ConfigFile)
    except msgspec.DecodeError as error:
        from backstay.config.jsonplace import located  # noqa: PLC0415 - only after a mistake

        said = located(data.decode("utf-8", "replace"), _with_choices(str(error)))
        raise ValueError(f"{path}:{said}" if said[:1].isdigit() else f"{path}: {said}") from error


def _with_choices(complaint: str) -> str:
    """The decoder does not say which kinds of parts there are."""
    kinds = ", ".join(str(kind.__struct_config__.tag) for kind in get_args(Part))
    return re.sub(
        r"^(Invalid value '[^']*')( - at `\$\.parts\[\d+\]\.part`)$", rf"\1, expected one of {kinds}\2", complaint
    )


class Served:
    """The file that is being served."""

    def __init__(self, engine: Engine, path: Path) -> None:
        self._engine = engine
        self._path = path
        self.found: ConfigFile = read_config_file(path)
        self._stamp = self._now()
        self._is_served = True

    @property
    def digest(self) -> str:
        return self.found.served().digest

    def dump(self) -> Mapping[str, object]:
        """For `/config_dump`; files are named, not shown."""
        return {"file": str(self._path), "stable": {"digest": self.digest}, **msgspec.structs.asdict(self.found)}

    async def begin(self) -> None:
        """Raises ValueError, OSError."""
        await self._serve(self.found)
        _log.info("config.serving file=%s digest=%s", self._path, self.digest[:12])

    async def reload(self) -> None:
        """Serve what the file says now, or go on as before."""
        now = self._now()
        if now == self._stamp and self._is_served:
            return  # a signal for what was seen already
        self._stamp, self._is_served = now, False
        try:
            found = read_config_file(self._path)
            await self._serve(found)
        except (ValueError, OSError) as error:
            _log.error("config.refused error=%s", clean(str(error)))
            return
        self.found, self._is_served = found, True
        self._stamp = (now[0], *self._now()[1:])  # it may name other files; and change while it is read
        _log.info("config.reloaded digest=%s", self.digest[:12])

    async def wait_for_change(self) -> None:
        """Until any of the files differs from what is served."""
        while self._now() == self._stamp:  # noqa: ASYNC110 - files have no event that works on every file system
            await asyncio.sleep(LOOK_SECONDS)

    def _now(self) -> Stamp:
        return stamp([self._path, *map(self._place, self.found.files.values())])

    def _place(self, path: str) -> Path:
        return self._path.parent / path

    async def _serve(self, found: ConfigFile) -> None:
        engine = self._engine
        self._check(found)
        bundles = {domain: self._place(path).read_text() for domain, path in found.trust.items()}
        try:
            engine.secrets({name: self._place(path) for name, path in found.secrets.items()})
            engine.apply(found.served(), None, 0.0)
            await settled(engine)
        except ContentRefused as error:
            raise ValueError(f"{self._path}: config refused: {error} [{error.reason}]") from error
        engine.endpoints(found.endpoints, full=True)
        engine.addresses(found.addresses)
        if found.identity is not None:
            paths = found.identity
            engine.identity(IdentityFiles(certificate=self._place(paths.certificate), key=self._place(paths.key)))
        engine.trust(bundles, found.revoked)

    def _check(self, found: ConfigFile) -> None:
        """All that the file names can be used, before any of it is. Raises ValueError."""
        for where, path in found.files.items():
            if not self._place(path).is_file():
                raise ValueError(f"{self._path}: {where}: {path!r} is not a file")
        for where, path, load in self._loads(found):
            try:
                load()
            except (OSError, ValueError, TypeError) as error:  # TypeError: roots that are not ASCII
                raise ValueError(f"{self._path}: {where}: {path!r} cannot be used: {error}") from error
        for name, secret in _secrets_named(found.served()):
            if secret not in found.secrets:
                raise ValueError(f"{self._path}: gateway {name} shows secret {secret!r}, which is not among `secrets`")

    def _loads(self, found: ConfigFile) -> Iterator[tuple[str, str, Callable[[], None]]]:
        """Where a file is named, its path, and a try to use it."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        pair = partial(context.load_cert_chain, password="")  # a locked key is an error; nobody is there to be asked
        for name, path in found.secrets.items():
            yield f"secrets.{name}", path, partial(pair, self._place(path))
        for domain, path in found.trust.items():
            yield f"trust.{domain}", path, partial(_load_roots, context, self._place(path))
        own = found.identity
        if own is not None:
            certificate, key = self._place(own.certificate), self._place(own.key)
            yield "identity", own.certificate, partial(pair, certificate, key)


def _load_roots(context: ssl.SSLContext, path: Path) -> None:
    context.load_verify_locations(cadata=path.read_text())


def _secrets_named(config: Config) -> Iterator[tuple[str, str]]:
    """Listeners that end TLS, and the secrets they show."""
    part = config.parts.get("listeners")
    for entry in part.gateway if isinstance(part, Listeners) else ():
        if entry.protocol == "https":
            yield entry.name, entry.secret


def stamp(paths: Iterable[Path]) -> Stamp:
    """What changes when any of these files does: also when it is replaced by another one, or gone."""
    return tuple(_stamp(path) for path in paths)


def _stamp(path: Path) -> tuple[int, ...] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
