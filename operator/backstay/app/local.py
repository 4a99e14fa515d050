"""The embedded default: one mesh, local processes, SQLite, a CA in the state folder, all in one process."""

import asyncio
import logging
import os
import stat
from pathlib import Path
from typing import Final

import msgspec
from aiohttp import web

from backstay.adapters.certificates import LocalCA
from backstay.adapters.forge import Desk, Forge, Kind, Place, StatusNotifier
from backstay.adapters.git import MIRROR_BYTES, Credentials, GitProposals, GitSource, Limits, RefSpec
from backstay.adapters.keysets import HttpKeySets
from backstay.adapters.notifications import WebhookNotifier
from backstay.adapters.processes import LocalPlatform, OperatorEndpoint
from backstay.adapters.secrets import FolderSecrets
from backstay.adapters.sqlite import SqliteStore
from backstay.adapters.workbench import ProcessBench
from backstay.app.common import Facade, Neighbours, SystemClock
from backstay.control import api
from backstay.control.server import ControlServer
from backstay.control.webhook import Knock, webhook_app
from backstay.core.ports import Fenced, ForgeUnavailable, SourceUnavailable, StateUnavailable
from backstay.reconciler.loop import LoopSettings, Ports, Reconciler
from backstay.reconciler.pulls import Reviews
from backstay.redact import clean
from backstay.settings import LOCAL_POLL_INTERVAL, STATE_FILE, LocalSettings, SourceSettings
from backstay.tasks import spawn, stop

_log: Final = logging.getLogger("backstay.app")


CA_CARE_INTERVAL: Final = 3600.0
"""Seconds between looks at what rotation is due: an hour is nothing to lifetimes of a year."""


def git_source(settings: SourceSettings, mirror: Path, limits: Limits | None = None) -> GitSource:
    """The mesh repository. Raises SourceRefused for an address, ref or path that is wrong, OSError for secret files."""
    return GitSource(
        settings.url,
        mirror=mirror,
        ref=RefSpec(branch=settings.branch, tag=settings.tag, semver=settings.semver, commit=settings.commit),
        path=settings.path,
        credentials=Credentials(
            username=settings.username,
            password=_secret(settings.password_file),
            bearer=_secret(settings.bearer_file),
            ca_file=settings.ca_file,
            ssh_identity=settings.ssh_identity,
            ssh_known_hosts=settings.ssh_known_hosts,
        ),
        limits=limits,
        allow_file=True,
    )


def _secret(file: Path | None) -> str:
    return file.read_text(encoding="utf-8") if file else ""


class LocalOperator:
    """Everything `backstay up` runs. `start`, then `run` until cancelled, then `close`."""

    def __init__(self, settings: LocalSettings) -> None:
        self.settings = settings
        self._is_first_start = not (settings.state_dir / STATE_FILE).exists()
        _private_folder(settings.state_dir)
        self.source = git_source(settings.source, settings.state_dir / "mirror.git")
        self.store = SqliteStore(settings.state_dir / STATE_FILE)
        self.platform = LocalPlatform(settings.workloads, settings.state_dir, trust_domain=settings.trust_domain)
        self.control: ControlServer | None = None
        self.reconciler: Reconciler | None = None
        self.api: api.ApiServer | None = None
        self._notifiers = _notifiers(settings)
        self._fenced = asyncio.Event()
        self._runners: list[web.AppRunner] = []
        self._tasks: list[asyncio.Task[None]] = []

    async def first_look(self) -> None:
        """At the very first start, find out whether the repository can be read at all: nothing is served yet that could
        go on without it. Raises SourceRefused, and SourceUnavailable where only a person can help."""
        if not self._is_first_start:
            return
        try:
            await self.source.resolve()
        except SourceUnavailable as error:
            if error.reason in ("DubiousOwnership", "AuthenticationFailed"):
                raise
            _log.warning("source.unavailable reason=%s message=%s", error.reason, clean(str(error)))

    async def start(self) -> None:
        """Claim the state, open all doors, start the workloads. Raises StateUnavailable, OSError, PortTaken."""
        settings = self.settings
        epoch = await self.store.claim()
        authority = LocalCA.open(settings.state_dir / "ca", settings.trust_domain)
        self.control = control = ControlServer(
            ca=authority,
            enroller=self.platform,
            epoch=epoch,
            mesh=settings.mesh,
            host=settings.host,
            port=settings.control_port or _remembered_port(settings.state_dir),
            samples=settings.traffic_samples,
        )
        self.reconciler = reconciler = Reconciler(
            self._loop_settings(),
            Ports(
                source=self.source,
                store=self.store,
                fleet=control,
                platform=self.platform,
                authority=authority,
                clock=SystemClock(),
                notifiers=self._notifiers,
                tls_secrets=FolderSecrets(settings.state_dir / "secrets"),
                key_sources=HttpKeySets(),
                reviews=_reviews(settings, control),
            ),
            epoch,
        )
        control.wake = self._woken
        await control.start()
        _remember_port(settings.state_dir, control.port)
        await self.platform.start(self._endpoint(authority, control.port))
        await reconciler.start()
        await self._open_doors(reconciler, control)
        self._tasks = [
            spawn(reconciler.run(), name="reconciler"),
            spawn(self._care_for(authority), name="certificate-care"),
            spawn(self._until_fenced(), name="fence"),
        ]

    def _woken(self) -> None:
        """The control port has heard something; perhaps that another operator is newer than this one."""
        if self.control is not None and self.control.fenced:
            self._fenced.set()
        if self.reconciler is not None:
            self.reconciler.wake()

    async def _until_fenced(self) -> None:
        await self._fenced.wait()
        raise Fenced("a proxy has heard of a newer operator; this one stops")

    async def _care_for(self, authority: LocalCA) -> None:
        """Rotate what is due; the control port tells proxies of new roots by itself."""
        while True:
            for done in authority.maintain():
                _log.info("ca.rotated %s", done)
            self._write_trust(authority)
            await asyncio.sleep(CA_CARE_INTERVAL)

    def _loop_settings(self) -> LoopSettings:
        source = self.settings.source
        return LoopSettings(
            mesh=self.settings.mesh,
            url=clean(source.url),
            ref=source.branch or source.tag or source.semver or source.commit or "HEAD",
            path=source.path,
            interval=LOCAL_POLL_INTERVAL if self.source.is_local else source.interval,
            default_namespace=self.platform.file.contents.namespace,
            trust_domain=self.settings.trust_domain,
        )

    def _endpoint(self, authority: LocalCA, port: int) -> OperatorEndpoint:
        trust = self._write_trust(authority)
        return OperatorEndpoint(url=f"https://{self.settings.host}:{port}", trust_file=trust)

    def _write_trust(self, authority: LocalCA) -> Path:
        """The roots as a file: what a sidecar that was never here before recognizes the operator by."""
        trust, fresh = self.settings.state_dir / "trust.pem", self.settings.state_dir / "trust.pem.new"
        fresh.write_text("".join(authority.trust_bundle().values()), encoding="ascii")
        fresh.replace(trust)
        return trust

    async def _open_doors(self, reconciler: Reconciler, control: ControlServer) -> None:
        control.runs_at = Neighbours(reconciler)
        self.api = api.ApiServer(
            Facade(reconciler), self.settings.state_dir, control.counts, traffic=control.traffic_of
        )
        reconciler.on_view = self.api.observe_soon
        await self.api.start()
        if self.settings.webhook_port:
            secret = _secret(self.settings.webhook_secret_file).strip().encode()
            app = webhook_app(lambda _mesh: (secret,) if secret else (), lambda knock: _knocked(knock, reconciler))
            runner = web.AppRunner(app)
            await runner.setup()
            await web.TCPSite(runner, self.settings.host, self.settings.webhook_port).start()
            self._runners.append(runner)

    async def run(self) -> None:
        """Until cancelled, or until the reconciler ends. Raises Fenced, StateUnavailable."""
        await asyncio.gather(*self._tasks)

    async def close(self) -> None:
        """Stop in the order that keeps promises: no more decisions, then workloads, then the doors."""
        await stop(*self._tasks)
        if self.reconciler is not None:
            await self.reconciler.close()
        if self.settings.leave_running:
            await self.platform.detach()
        else:
            await self.platform.close()
        for runner in self._runners:
            await runner.cleanup()
        if self.api is not None:
            await self.api.close()
        if self.control is not None:
            await self.control.close()
        for notifier in self._notifiers:
            await notifier.close()
        await self.source.close()
        await self.store.close()


def _notifiers(settings: LocalSettings) -> tuple[WebhookNotifier | StatusNotifier, ...]:
    found: list[WebhookNotifier | StatusNotifier] = []
    if settings.notify_url:
        secret = _secret(settings.notify_secret_file).strip().encode()
        found.append(WebhookNotifier(settings.notify_url, secret=secret))
    if settings.commit_status is not None:
        found.append(StatusNotifier(lambda: _forge(settings), f"backstay/{settings.mesh}"))
    return tuple(found)


async def _forge(settings: LocalSettings) -> Forge:
    """A client with the token as it is now: who renews the file needs no restart."""
    if settings.commit_status is None:
        raise ForgeUnavailable("no forge is named")
    kind, address, repository = settings.commit_status
    place = Place(kind=msgspec.convert(kind, Kind), api=address, repository=repository)
    try:
        token = _secret(settings.commit_status_token_file).strip()
    except OSError as error:
        raise ForgeUnavailable(f"the token cannot be read: {error}") from error
    return Forge(place, token, ca_file=settings.source.ca_file)


def _reviews(settings: LocalSettings, control: ControlServer) -> Reviews | None:
    if not settings.reviews or settings.commit_status is None:
        return None

    limits = Limits(mirror_bytes=MIRROR_BYTES)
    source = git_source(settings.source, settings.state_dir / "proposals.git", limits)
    return Reviews(
        desk=Desk(lambda: _forge(settings), f"backstay/{settings.mesh}/review"),
        proposals=GitProposals(source, msgspec.convert(settings.commit_status[0], Kind)),
        bench=ProcessBench(),
        interval=settings.source.interval,
        traffic=control.traffic_of,
    )


def _knocked(knock: Knock, reconciler: Reconciler) -> None:
    if knock.is_about_requests:
        reconciler.hint_reviews()
    else:
        reconciler.hint()


def _private_folder(folder: Path) -> None:
    """The state folder holds keys: it is its owner's alone. Raises StateUnavailable if it cannot be that."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.stat()
    if found.st_uid != os.geteuid():
        raise StateUnavailable(f"{folder} belongs to another user; choose another --state-dir or chown it")
    if stat.S_IMODE(found.st_mode) & 0o077:
        folder.chmod(0o700)


def _port_file(folder: Path) -> Path:
    return folder / "control.port"


def _remembered_port(folder: Path) -> int:
    """The port of the last start: sidecars that survived it look there."""
    try:
        return int(_port_file(folder).read_text(encoding="ascii"))
    except (OSError, ValueError):
        return 0


def _remember_port(folder: Path, port: int) -> None:
    _port_file(folder).write_text(str(port), encoding="ascii")
