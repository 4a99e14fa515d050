"""The control channel from end to end: a real server, real sidecar processes, sockets, signals and disks."""

import asyncio
import contextlib
import json
import shutil
import signal
import stat
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import psutil
import pytest

from backstay.config.model import (
    DirectResponse,
    HostRoutes,
    Listeners,
    Manifest,
    Rule,
    assemble,
    config_digest,
    digest_of,
    encode_part,
)
from backstay.config.standalone import ConfigFile
from backstay.config.wire import Ack, Endpoint, Live, Nack, Report, WentBack
from backstay.core.ports import Joined, Left
from backstay.sidecar.store import read_live, read_state
from support.control_world import IDENTITY, Operator, Sidecar, World, assignment, config, free_port


def endpoints(*names: str) -> dict[str, list[Endpoint]]:
    return {name: [Endpoint(id="logic-1", address="127.0.0.1", port=1)] for name in names}


async def test_a_proxy_enrols_joins_takes_its_config_acks_and_reports(world: World) -> None:
    operator = await world.operator()
    sidecar = await world.sidecar()
    joined = await operator.until(lambda: [event for event in operator.events if isinstance(event, Joined)])
    assert (joined[0].proxy, joined[0].workload) == ("logic-1", "shop/logic")

    operator.server.publish(Live(epoch=1, full=True, endpoints=endpoints("logic.shop:80", "other.shop:80")))
    stable, candidate = config(1), config(2)
    operator.server.assign("logic-1", *assignment(stable, candidate))
    acks = await operator.until(lambda: operator.said(Ack))
    assert acks == [Ack(serial=1, stable=config_digest(stable[0]), candidate=config_digest(candidate[0]), share=0.5)]
    reports = await operator.until(lambda: [each for each in operator.said(Report) if each.serving])
    assert reports[0].serving == {config_digest(stable[0]): 0.5, config_digest(candidate[0]): 0.5}
    assert [each.sequence for each in operator.said(Report)] == list(range(1, reports[-1].sequence + 1))
    assert (await sidecar.page("/healthz/ready"))[0] == 200


async def test_no_key_leaves_the_proxy_or_is_readable_by_others(world: World) -> None:
    operator = await world.operator()
    sidecar = await world.sidecar()
    operator.server.assign("logic-1", *assignment(config()))
    await operator.until(lambda: operator.said(Ack))
    identity = sidecar.state / "identity.pem"
    assert stat.S_IMODE(identity.stat().st_mode) == 0o600
    assert stat.S_IMODE(sidecar.state.stat().st_mode) == 0o700
    status, dumped = await sidecar.page("/config_dump")
    assert status == 200
    assert json.loads(dumped)["identity"]["id"] == IDENTITY
    assert b"PRIVATE" not in dumped
    assert b"token-logic-1" not in dumped
    assert b"backstay_sidecar_connected 1" in (await sidecar.page("/stats/prometheus"))[1]
    assert (await sidecar.page("/quitquitquit"))[0] == 404


async def test_the_sidecar_loads_neither_aiohttp_nor_cryptography(world: World) -> None:
    operator = await world.operator()
    sidecar = await world.sidecar()
    operator.server.assign("logic-1", *assignment(config()))
    await operator.until(lambda: operator.said(Ack))
    assert sidecar.process is not None
    await sidecar.end(signal.SIGTERM)
    [heavy] = sidecar.recorded("modules")
    assert heavy["loaded"] == []
    assert "aiohttp" in sys.modules  # the check can fail: this process has them


async def test_a_token_is_good_for_one_proxy_once(world: World) -> None:
    operator = await world.operator()
    await world.sidecar("logic-1")
    await operator.until(lambda: operator.server.connected() == ["logic-1"])
    thief = await world.sidecar("logic-2")
    (world.folder / "logic-2.token").write_text("token-logic-1")
    await thief.until(lambda: operator.server.limiter.outcomes["refused"])
    assert operator.server.connected() == ["logic-1"]
    assert (await thief.page("/healthz/ready"))[0] == 503


async def test_only_the_change_travels_and_missing_parts_are_asked_for(world: World) -> None:
    operator = await world.operator()
    sidecar = await world.sidecar()
    first, second = config(1, hosts=300), config(2, hosts=300)
    operator.server.assign("logic-1", *assignment(first))
    await operator.until(lambda: len(operator.said(Ack)) == 1)
    before = operator.server.sent_bytes("logic-1")
    operator.server.assign("logic-1", *assignment(second))
    await operator.until(lambda: len(operator.said(Ack)) == 2)
    assert operator.server.sent_bytes("logic-1") - before < 2048

    # Its disk loses everything it had; what the operator believes is wrong now.
    await sidecar.end(signal.SIGKILL)
    for pack in (sidecar.state / "objects").iterdir():
        pack.write_bytes(b"damaged\n")
    operator.server.assign("logic-1", *assignment(config(3, hosts=300)))
    await sidecar.start()
    acks = await operator.until(lambda: [ack for ack in operator.said(Ack)[2:] if ack.serial > 2])
    assert acks[-1].stable == config_digest(config(3, hosts=300)[0])
    assert (await sidecar.page("/healthz/ready"))[0] == 200


async def test_after_kill_9_it_serves_from_disk_with_no_operator(world: World) -> None:
    operator = await world.operator()
    sidecar = await world.sidecar()
    stable, candidate = config(1), config(2)
    operator.server.publish(Live(epoch=1, full=True, endpoints=endpoints("logic.shop:80")))
    operator.server.assign("logic-1", *assignment(stable, candidate))
    await operator.until(lambda: operator.said(Ack))
    await sidecar.until((sidecar.state / "live.json").exists)
    await operator.server.close()
    await sidecar.end(signal.SIGKILL)
    await sidecar.start()
    applied = await sidecar.until(lambda: sidecar.recorded("apply")[1:])
    assert (applied[0]["stable"], applied[0]["candidate"]) == (config_digest(stable[0]), config_digest(candidate[0]))
    assert sidecar.recorded("endpoints")[-1]["names"] == {"logic.shop:80": 1}
    await sidecar.until(lambda: len(sidecar.recorded("identity")) == 2)


async def test_a_proxy_is_told_where_it_runs_and_knows_it_without_an_operator(world: World) -> None:
    operator = await world.operator()
    operator.enroller.zone = "eu-1a"
    sidecar = await world.sidecar()
    await sidecar.until(lambda: sidecar.recorded("place"))
    await sidecar.until((sidecar.state / "live.json").exists)
    await operator.server.close()
    await sidecar.end(signal.SIGKILL)
    await sidecar.start()
    places = await sidecar.until(lambda: sidecar.recorded("place")[1:])
    assert places[0]["zone"] == "eu-1a"


async def test_the_last_good_keys_outlive_operators_and_restarts(world: World) -> None:
    operator = await world.operator()
    sidecar = await world.sidecar()
    await operator.until(lambda: operator.server.connected() == ["logic-1"])
    one, two = "https://one.example/keys", "https://two.example/keys"
    operator.server.publish(Live(epoch=1, key_sets={one: "{}", two: "{}"}))
    await sidecar.until(lambda: sidecar.recorded("key_sets")[-1]["names"] == [one, two])
    operator.server.publish(Live(epoch=1, full=True))  # names no keys, and takes none away
    operator.server.publish(Live(epoch=1, key_sets={one: ""}))
    await sidecar.until(lambda: sidecar.recorded("key_sets")[-1]["names"] == [two])
    await sidecar.until(lambda: read_live(sidecar.state).key_sets == {two: "{}"})
    await operator.server.close()
    await sidecar.end(signal.SIGKILL)
    before = len(sidecar.recorded("key_sets"))
    await sidecar.start()
    found = await sidecar.until(lambda: sidecar.recorded("key_sets")[before:])
    assert [item["names"] for item in found] == [[two]]


async def test_a_second_restart_within_a_minute_leaves_the_candidate(world: World) -> None:
    operator = await world.operator()
    sidecar = await world.sidecar()
    stable, crashing = config(1), config(1, extra="crash")
    operator.server.assign("logic-1", *assignment(stable))
    await operator.until(lambda: operator.said(Ack))
    operator.server.assign("logic-1", *assignment(stable, crashing))
    assert await sidecar.ended() == 70
    await sidecar.start()
    assert await sidecar.ended() == 70
    await sidecar.start()
    joined = await operator.until(lambda: [e for e in operator.events if isinstance(e, Joined) and e.hello.went_back])
    assert (joined[0].hello.went_back, joined[0].hello.went_back_from) == ("Restarts", config_digest(crashing[0]))
    assert sidecar.recorded("apply")[-1]["candidate"] == ""


def answering(status: int) -> tuple[Manifest, dict[str, bytes]]:
    """A config that answers everything itself."""
    answers = HostRoutes(host="here.shop", port=80, rules=(Rule(name="all", direct=DirectResponse(status=status)),))
    own = Listeners(namespace="shop", identity=IDENTITY, trust_domain="backstay.local")
    encoded = {part.key: encode_part(part) for part in (own, answers)}
    manifest = Manifest(workload="shop/logic", parts={key: digest_of(data) for key, data in encoded.items()})
    return manifest, {digest_of(data): data for data in encoded.values()}


def ask(port: int) -> int:
    request = urllib.request.Request(f"http://127.0.0.1:{port}/", headers={"Host": "here.shop"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return int(answer.status)


def workers_of(sidecar: Sidecar) -> int:
    return len(psutil.Process(sidecar.process.pid).children()) if sidecar.process is not None else 0


def counted(operator: Operator) -> int:
    return sum(row.total for report in operator.said(Report) for row in report.rows)


async def test_several_processes_are_one_proxy_with_one_stream_and_one_set_of_counters(world: World) -> None:
    operator = await world.operator()
    port = free_port()
    sidecar = await world.sidecar("logic-1", *("--engine", "python", "--concurrency", "2", "--outbound", str(port)))
    operator.server.assign("logic-1", *assignment(answering(200)))
    await operator.until(lambda: operator.said(Ack), within=60)
    await sidecar.until(lambda: workers_of(sidecar) >= 2, within=60)
    assert [await asyncio.to_thread(ask, port) for _ in range(40)] == [200] * 40
    await operator.until(lambda: counted(operator) >= 40, within=30)
    assert counted(operator) == 40
    assert [event.proxy for event in operator.events if isinstance(event, Joined)] == ["logic-1"]
    assert [ack.serial for ack in operator.said(Ack)] == [1]


async def test_a_proxy_whose_process_is_replaced_keeps_its_stream_its_config_and_its_counts(world: World) -> None:
    operator = await world.operator()
    port = free_port()
    sidecar = await world.sidecar("logic-1", *("--engine", "python", "--outbound", str(port)))
    operator.server.assign("logic-1", *assignment(answering(200)))
    await operator.until(lambda: operator.said(Ack), within=60)
    assert await asyncio.to_thread(ask, port) == 200
    assert sidecar.process is not None
    sidecar.process.send_signal(signal.SIGUSR2)
    await sidecar.until(lambda: sidecar.said().count("engine.replaced"), within=60)
    assert [await asyncio.to_thread(ask, port) for _ in range(10)] == [200] * 10
    operator.server.assign("logic-1", *assignment(answering(204)))
    await operator.until(lambda: len(operator.said(Ack)) == 2, within=60)
    assert await asyncio.to_thread(ask, port) == 204
    await operator.until(lambda: counted(operator) >= 12, within=30)
    assert counted(operator) == 12
    assert [event.proxy for event in operator.events if isinstance(event, Joined)] == ["logic-1"]


async def test_a_candidate_under_which_the_engines_process_dies_twice_is_left(world: World) -> None:
    operator = await world.operator()
    sidecar = await world.sidecar()
    stable, deadly = config(1), config(1, extra="deadly")
    operator.server.assign("logic-1", *assignment(stable))
    await operator.until(lambda: operator.said(Ack))
    operator.server.assign("logic-1", *assignment(stable, deadly))
    left = await operator.until(lambda: operator.said(WentBack))
    assert [(each.candidate, each.reason) for each in left] == [(config_digest(deadly[0]), "Restarts")]
    assert sidecar.recorded("apply")[-1]["candidate"] == ""


async def test_a_dead_operator_means_stable_when_the_lease_ends(world: World) -> None:
    operator = await world.operator()
    sidecar = await world.sidecar()
    stable, candidate = config(1), config(2)
    operator.server.assign("logic-1", *assignment(stable, candidate, lease_s=2.0))
    await operator.until(lambda: operator.said(Ack))
    await operator.until(lambda: len(operator.said(Report)) > 3)
    await operator.server.close()
    applied = await sidecar.until(lambda: sidecar.recorded("apply")[1:])
    assert (applied[0]["stable"], applied[0]["candidate"]) == (config_digest(stable[0]), "")
    successor = await world.operator(epoch=2)
    joined = await successor.until(lambda: [event for event in successor.events if isinstance(event, Joined)])
    assert (joined[0].hello.went_back, joined[0].hello.went_back_from) == (
        "LeaseEnded",
        config_digest(candidate[0]),
    )


async def test_a_connection_lost_with_the_swap_is_lost_control(world: World) -> None:
    operator = await world.operator()
    operator.acknowledges = False
    sidecar = await world.sidecar()
    operator.server.assign("logic-1", *assignment(config(1), config(2), lease_s=5.0))
    await operator.until(lambda: operator.said(Ack))
    await operator.server.close()
    went_back = await sidecar.until(
        lambda: read_state(sidecar.state).saved.went_back
    )  # on its disk after it has applied
    assert went_back == "ControlLost"
    assert sidecar.recorded("apply")[1]["candidate"] == ""


async def test_without_acks_the_lease_ends_and_is_said_on_the_open_stream(world: World) -> None:
    operator = await world.operator()
    operator.acknowledges = False
    await world.sidecar()
    candidate = config(2)
    wanted = assignment(config(1), candidate, lease_s=1.0)
    operator.server.assign("logic-1", *wanted)
    said = await operator.until(lambda: operator.said(WentBack))
    assert said == [WentBack(candidate=config_digest(candidate[0]), reason="LeaseEnded")]
    # Who decides has heard of it; the same assignment is a new order now.
    operator.server.assign("logic-1", *wanted)
    assert await operator.until(lambda: operator.said(Ack)[1:])


async def test_an_operator_of_a_lower_epoch_is_refused_and_told(world: World) -> None:
    operator = await world.operator(epoch=5)
    sidecar = await world.sidecar()
    operator.server.assign("logic-1", *assignment(config(1)))
    await operator.until(lambda: operator.said(Ack))
    await operator.server.close()
    former = await world.operator(epoch=4)
    former.server.assign("logic-1", *assignment(config(2)))
    await former.until(lambda: former.server.fenced is True)
    assert former.said(Ack) == []
    assert [each["stable"] for each in sidecar.recorded("apply")] == [config_digest(config(1)[0])]
    assert read_state(sidecar.state).saved.epoch == 5


async def test_a_certificate_of_twenty_seconds_is_renewed_without_a_restart_or_a_new_stream(world: World) -> None:
    operator = await world.operator(lifetime=20.0)
    sidecar = await world.sidecar()
    operator.server.assign("logic-1", *assignment(config()))
    await sidecar.until(lambda: len(sidecar.recorded("identity")) >= 3, within=40.0)
    assert {entry["pid"] for entry in sidecar.recorded("identity")} == {sidecar.recorded("start")[0]["pid"]}
    assert len([event for event in operator.events if isinstance(event, Joined | Left)]) == 1


async def test_reports_of_an_outage_arrive_afterwards_in_order(world: World) -> None:
    operator = await world.operator()
    sidecar = await world.sidecar()
    operator.server.assign("logic-1", *assignment(config()))
    await operator.until(lambda: operator.said(Report))
    await operator.server.close()
    seen = operator.said(Report)[-1].sequence
    await sidecar.until((sidecar.state / "live.json").exists)
    successor = await world.operator(epoch=2)
    reports = await successor.until(lambda: len(successor.said(Report)) > 5 and successor.said(Report))
    numbers = [report.sequence for report in reports]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    assert numbers[0] <= seen + 1


async def test_a_refused_content_is_nacked_and_the_former_config_stays(world: World) -> None:
    operator = await world.operator()
    sidecar = await world.sidecar()
    stable, bad = config(1), config(1, extra="refuse")
    operator.server.assign("logic-1", *assignment(stable))
    await operator.until(lambda: operator.said(Ack))
    operator.server.assign("logic-1", *assignment(stable, bad))
    [nack] = await operator.until(lambda: operator.said(Nack))
    assert nack == Nack(
        serial=2,
        digest=config_digest(bad[0]),
        fault="content",
        reason="MissingBackend",
        message="route refuse.shop names no backend",
    )
    assert read_state(sidecar.state).saved.candidate == ""


async def test_a_full_disk_is_the_environments_fault_and_the_former_config_stays(world: World) -> None:
    operator = await world.operator()
    sidecar = await world.sidecar("logic-1")
    operator.server.assign("logic-1", *assignment(config(1)))
    await operator.until(lambda: operator.said(Ack))
    await sidecar.end(signal.SIGKILL)
    # Room for 16 KiB a file: the small files fit, 300 routes do not.
    await sidecar.start(limit_file_bytes=16 * 1024)
    operator.server.assign("logic-1", *assignment(config(1, hosts=300)))
    nacks = await operator.until(lambda: operator.said(Nack))
    assert (nacks[0].fault, nacks[0].reason) == ("environment", "DiskFull")
    assert read_state(sidecar.state).saved.stable == config_digest(config(1)[0])
    assert (await sidecar.page("/healthz/ready"))[0] == 200


@contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """A file system of 256 KiB at `folder`; skips the test where none may be mounted."""
    folder.mkdir()
    made = subprocess.run(
        ("mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)), capture_output=True, check=False
    )
    if made.returncode != 0:
        pytest.skip("mounting a file system needs root on Linux")
    try:
        yield
    finally:
        subprocess.run(("umount", "--lazy", str(folder)), check=True)


def fill(folder: Path) -> Path:
    """Leaves not a byte free."""
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    return ballast


@pytest.mark.skipif(shutil.which("mount") is None, reason="there is no mount command")
async def test_a_file_system_without_a_byte_left_changes_nothing_until_there_is_room(world: World) -> None:
    operator = await world.operator()
    with small_disk(world.folder / "logic-1"):
        sidecar = await world.sidecar("logic-1")
        operator.server.assign("logic-1", *assignment(config(1)))
        await operator.until(lambda: operator.said(Ack))
        ballast = fill(sidecar.state)
        operator.server.assign("logic-1", *assignment(config(2)))
        nacks = await operator.until(lambda: operator.said(Nack))
        assert (nacks[0].fault, nacks[0].reason) == ("environment", "DiskFull")
        assert read_state(sidecar.state).saved.stable == config_digest(config(1)[0])
        ballast.unlink()
        operator.server.assign("logic-1", *assignment(config(3)))
        await operator.until(lambda: [ack for ack in operator.said(Ack) if ack.stable == config_digest(config(3)[0])])
        assert read_state(sidecar.state).saved.stable == config_digest(config(3)[0])
        await sidecar.end(signal.SIGKILL)


async def test_sigterm_drains_says_so_and_ends_with_zero(world: World) -> None:
    operator = await world.operator()
    sidecar = await world.sidecar()
    operator.server.assign("logic-1", *assignment(config()))
    await operator.until(lambda: operator.said(Ack))
    assert await sidecar.end(signal.SIGTERM) == 0
    left = await operator.until(lambda: [event for event in operator.events if isinstance(event, Left)])
    assert left == [Left(proxy="logic-1", workload="shop/logic", draining=True)]
    assert sidecar.recorded("drain")[0]["timeout"] == 1.0


async def test_a_revoked_identity_is_cut_off_and_stays_out(world: World) -> None:
    operator = await world.operator()
    await world.sidecar()
    await operator.until(lambda: operator.server.connected() == ["logic-1"])
    operator.server.publish(Live(epoch=1, revoked=[IDENTITY]))
    await operator.until(lambda: [event for event in operator.events if isinstance(event, Left)])
    assert operator.server.connected() == []


async def test_a_new_root_reaches_proxies_before_it_signs_and_no_stream_breaks(world: World) -> None:
    operator = await world.operator(lifetime=20.0)
    sidecar = await world.sidecar()
    operator.server.assign("logic-1", *assignment(config()))
    await operator.until(lambda: operator.said(Ack))
    operator.ca.add_root()
    await sidecar.until(
        lambda: read_state(sidecar.state).live.trust.get("backstay.local", "").count("BEGIN CERT") == 2, within=10.0
    )
    operator.ca.switch_root()
    identities = len(sidecar.recorded("identity"))
    await sidecar.until(lambda: len(sidecar.recorded("identity")) > identities, within=20.0)
    assert len([event for event in operator.events if isinstance(event, Joined | Left)]) == 1


async def test_two_sidecars_do_not_share_a_state_folder(world: World) -> None:
    await world.operator()
    sidecar = await world.sidecar()
    await sidecar.until((sidecar.state / "lock").exists)
    first = sidecar.process
    await sidecar.start()
    assert await sidecar.ended() == 1
    assert "another sidecar uses this state folder" in (world.folder / "logic-1.log").read_text()
    sidecar.process = first


async def test_a_proxy_enrols_anew_when_the_authority_was_replaced(world: World) -> None:
    operator = await world.operator()
    sidecar = await world.sidecar()
    operator.server.assign("logic-1", *assignment(config()))
    await operator.until(lambda: operator.said(Ack))
    await operator.server.close()
    shutil.rmtree(world.folder / "ca")
    successor = await world.operator(epoch=2)
    await successor.until(lambda: successor.server.connected() == ["logic-1"], within=40.0)
    assert {entry["pid"] for entry in sidecar.recorded("identity")} == {sidecar.recorded("start")[0]["pid"]}


async def test_a_config_file_is_served_without_an_operator_and_read_again_on_sighup(world: World) -> None:
    def written(weight: int, extra: str = "") -> str:
        manifest, parts = config(weight, extra=extra)
        whole = ConfigFile(config=assemble(manifest, parts), endpoints=endpoints("logic.shop:80"))
        path.write_bytes(msgspec.json.encode(whole))
        return config_digest(manifest)

    path = world.folder / "config.json"
    first = written(1)
    sidecar = await world.sidecar("logic-1", "--config", str(path))
    await sidecar.until(lambda: [each["stable"] for each in sidecar.recorded("apply")] == [first])
    await sidecar.until(sidecar.admin_is_open)
    assert (await sidecar.page("/healthz/ready"))[0] == 200
    assert sidecar.process is not None
    second = written(2)
    sidecar.process.send_signal(signal.SIGHUP)
    await sidecar.until(lambda: [each["stable"] for each in sidecar.recorded("apply")] == [first, second])
    path.write_text("{")
    sidecar.process.send_signal(signal.SIGHUP)
    await sidecar.until(lambda: "config.refused" in (world.folder / "logic-1.log").read_text())
    assert json.loads((await sidecar.page("/config_dump"))[1])["stable"] == {"digest": second}
    assert await sidecar.end(signal.SIGTERM) == 0
