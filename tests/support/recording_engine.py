"""An engine that serves nothing and writes down what it was told, so that the agent can be tested as a real process.

Run with `--engine recording_engine:RecordingEngine`; the log is `$RECORDING`, one JSON object a line. A candidate that
has a route `crash.shop` kills the process, one with `refuse.shop` is refused, under one with `deadly.shop` a process of
the engine's own dies between any two reports: bad configs as real engines meet them.
"""

import json
import os
import ssl
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from backstay.config.model import Config
from backstay.config.wire import Endpoint, RefusalExpected, Row
from backstay.sidecar.engine import Address, ContentRefused, IdentityFiles, Observed


class RecordingEngine:
    name = "recording"
    capabilities: tuple[str, ...] = ("split",)

    def __init__(self) -> None:
        self._log = Path(os.environ["RECORDING"])
        self._serving: dict[str, float] = {}
        self._identities = 0
        self._is_deadly = False
        self.deaths = 0

    def _write(self, what: str, **fields: object) -> None:
        with self._log.open("a") as log:
            log.write(json.dumps({"what": what, "pid": os.getpid(), **fields}) + "\n")

    async def start(self, address: Address) -> None:
        self._write("start", host=address.host)

    def apply(
        self, stable: Config, candidate: Config | None, share: float, expect_refused: Sequence[RefusalExpected] = ()
    ) -> None:
        newest = candidate or stable
        if "routes/refuse.shop:80" in newest.parts:
            raise ContentRefused("MissingBackend", "route refuse.shop names no backend")
        self._write("apply", stable=stable.digest, candidate=candidate.digest if candidate else "", share=share)
        self._serving = {stable.digest: 1.0 - share} | ({candidate.digest: share} if candidate else {})
        self._is_deadly = "routes/deadly.shop:80" in newest.parts
        if "routes/crash.shop:80" in newest.parts:
            os._exit(70)

    def endpoints(self, changed: Mapping[str, Sequence[Endpoint]], *, full: bool) -> None:
        self._write("endpoints", full=full, names={name: len(each) for name, each in changed.items()})

    def key_sets(self, known: Mapping[str, str]) -> None:
        self._write("key_sets", names=sorted(known))

    def secrets(self, files: Mapping[str, Path]) -> None:
        self._write("secrets", names=sorted(files))

    def place(self, zone: str) -> None:
        self._write("place", zone=zone)

    def addresses(self, services: Mapping[str, Sequence[str]]) -> None:
        self._write("addresses", services={name: list(each) for name, each in services.items()})

    def trust(self, bundles: Mapping[str, str], revoked: Sequence[str]) -> None:
        self._write("trust", domains=sorted(bundles), revoked=list(revoked))

    def identity(self, files: IdentityFiles) -> None:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(files.certificate, files.key)
        self._identities += 1
        self._write("identity", count=self._identities)

    def sample(self, most: int) -> None:
        self._write("sample", most=most)

    def collect(self) -> Observed:
        self.deaths += self._is_deadly
        digest = next(iter(self._serving), "")
        rows = [Row(digest, "in", "inbound:80", "", 1, {}, 0, 0, [], [])] if digest else []
        return Observed(rows=rows, peers=[], serving=dict(self._serving), open_requests=0)

    async def drain(self, timeout: float) -> None:
        self._write("drain", timeout=timeout)
        self._write("modules", loaded=sorted({"aiohttp", "cryptography", "jsonschema", "yaml"} & sys.modules.keys()))
