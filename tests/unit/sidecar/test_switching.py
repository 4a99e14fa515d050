"""Which engine serves, what a new one is told, and what happens when it does not come up."""

import sys
from collections.abc import Sequence
from typing import Any

import pytest

from backstay.config.model import Config, Listeners, Manifest, digest_of, encode_part
from backstay.config.wire import Endpoint, Row
from backstay.sidecar import switching
from backstay.sidecar.engine import Address, ContentRefused, Observed, settled
from backstay.sidecar.switching import Switching


class Written:
    """An engine that writes down what it was told."""

    capabilities: tuple[str, ...] = ()

    def __init__(self, name: str, log: list[str], refuses: str = "") -> None:
        self.name = name
        self._log = log
        self._refuses = refuses
        self.rows: list[Row] = []

    def _write(self, what: str) -> None:
        self._log.append(f"{self.name}: {what}")

    async def start(self, address: Address) -> None:
        self._write("start")
        if self._refuses == "start":
            raise OSError("no such program")

    def apply(self, stable: Config, candidate: Config | None, share: float, expect_refused: Sequence[Any] = ()) -> None:
        self._write(f"apply {share:g}")
        if self._refuses == "apply":
            raise ContentRefused("Unsupported", "not served here")
        if self._refuses == "by mistake":
            raise RuntimeError("a mistake of ours")

    def endpoints(self, changed: Any, *, full: bool) -> None:
        self._write(f"endpoints {sorted(changed)} full={full}")

    def key_sets(self, known: Any) -> None: ...
    def secrets(self, files: Any) -> None: ...
    def place(self, zone: str) -> None: ...
    def addresses(self, services: Any) -> None: ...
    def trust(self, bundles: Any, revoked: Any) -> None: ...
    def identity(self, files: Any) -> None: ...
    def sample(self, most: int) -> None: ...

    def collect(self) -> Observed:
        rows, self.rows = self.rows, []
        return Observed(rows=rows, peers=[], serving={self.name: 1.0}, open_requests=0)

    async def drain(self, timeout: float) -> None:
        self._write(f"drain {timeout:g}")


class Sharing(Written):
    def share_ports(self) -> None:
        self._write("share")


def asking(engine: str) -> Config:
    part = Listeners(namespace="shop", identity="i", trust_domain="t", engine=engine)  # type: ignore[arg-type]
    manifest = Manifest(workload="shop/web", parts={part.key: digest_of(encode_part(part))})
    return Config(manifest=manifest, parts={part.key: part})


async def begun(log: list[str], *, kind: type[Written] = Sharing, refuses: str = "") -> Switching:
    def make(name: str, beside: bool) -> Written:
        return kind(name, log, refuses if name == "envoy" else "")

    engine = Switching("python", make, drain_s=7)
    await engine.start(Address(host="127.0.0.1", inbound={}))
    engine.endpoints({"web.shop:80": [Endpoint(id="a", address="10.0.0.1", port=1)]}, full=True)
    engine.apply(asking(""), None, 0)
    await settled(engine)
    log.clear()
    return engine


TOLD = "envoy: endpoints ['web.shop:80'] full=True"


@pytest.mark.skipif(sys.platform != "linux", reason="ports are shared on Linux only")
async def test_the_new_engine_knows_everything_before_the_old_one_leaves() -> None:
    log: list[str] = []
    engine = await begun(log)
    engine.apply(asking(""), asking("envoy"), 1)
    await settled(engine)
    assert engine.name == "envoy"
    await engine.drain(3)
    assert sorted(log) == sorted(
        ["python: share", "envoy: start", TOLD, "envoy: apply 1", "python: drain 7", "envoy: drain 3"]
    )
    assert log.index("envoy: apply 1") < log.index("python: drain 7")


async def test_where_ports_cannot_be_shared_the_old_one_ends_first() -> None:
    log: list[str] = []
    engine = await begun(log, kind=Written)
    engine.apply(asking("envoy"), None, 0)
    await settled(engine)
    assert log == ["python: drain 7", "envoy: start", TOLD, "envoy: apply 0"]


async def test_a_part_of_the_requests_of_one_proxy_never_goes_to_another_engine() -> None:
    log: list[str] = []
    engine = await begun(log)
    engine.apply(asking(""), asking("envoy"), 0.05)
    await settled(engine)
    assert "envoy: apply 1" in log


@pytest.mark.parametrize(
    ("refuses", "reason"),
    [("start", "EngineUnavailable"), ("apply", "Unsupported"), ("by mistake", "EngineUnavailable")],
)
async def test_an_engine_that_does_not_come_up_is_refused_and_the_former_serves(refuses: str, reason: str) -> None:
    log: list[str] = []
    engine = await begun(log, refuses=refuses)
    engine.apply(asking(""), asking("envoy"), 1)
    with pytest.raises(ContentRefused) as refused:
        await settled(engine)
    assert (refused.value.reason, engine.name) == (reason, "python")
    engine.apply(asking(""), None, 0)
    await settled(engine)
    assert "python: drain 7" not in log


async def test_without_shared_ports_the_former_engine_starts_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(switching, "_OVERLAPS", False)
    log: list[str] = []
    engine = await begun(log, refuses="start")
    engine.apply(asking("envoy"), None, 0)
    with pytest.raises(ContentRefused):
        await settled(engine)
    again = ["python: start", TOLD.replace("envoy", "python"), "python: apply 0"]
    assert (engine.name, log) == ("python", ["python: drain 7", "envoy: start", *again])


async def test_a_change_that_is_taken_back_at_once_ends_where_it_was() -> None:
    log: list[str] = []
    engine = await begun(log)
    engine.apply(asking("envoy"), None, 0)
    engine.apply(asking("python"), None, 0)
    await settled(engine)
    assert (engine.name, log[-1]) == ("python", "python: apply 0")


async def test_what_the_old_engine_still_counts_is_not_lost() -> None:
    log: list[str] = []
    engine = await begun(log)
    old = engine.current
    engine.apply(asking("envoy"), None, 0)
    await settled(engine)
    assert isinstance(old, Written)
    old.rows = [Row("digest", "out", "r", "b", 3, {}, 0, 3, [], [])]
    found = engine.collect()
    assert ([row.total for row in found.rows], found.serving) == ([3], {"envoy": 1.0})
