"""The control port against clients that are wrong, slow, many or strangers; real TLS on loopback, no sidecar process."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest

from backstay.config.model import config_digest
from backstay.config.wire import (
    ENROL_PATH,
    RENEW_PATH,
    Ack,
    Assign,
    Endpoint,
    EnrolAnswer,
    EnrolRequest,
    Goodbye,
    Hello,
    Live,
    Need,
    Parts,
    PlaintextRow,
    Report,
    Sample,
    ToProxy,
    Welcome,
)
from backstay.control import enrolment, links
from backstay.core.ports import Certified, Joined, Left, Said, TurnedAway
from backstay.core.review.traffic import Seen
from backstay.sidecar import identity
from backstay.sidecar.connect import Channel, ChannelClosed, OperatorRefused, OperatorUnreachable, ask_certificate
from support.control_world import IDENTITY, Operator, assignment, config

TD = "backstay.local"


class Client:
    """A proxy's side of the control port, with a certificate of its own."""

    def __init__(self, operator: Operator, folder: Path) -> None:
        self.operator = operator
        self.roots = operator.ca.trust_bundle()[TD]
        self.file = folder / "id.pem"

    async def request(self, proxy: str, *, token: str = "") -> EnrolRequest:
        self.key, csr = await identity.make_key()
        return EnrolRequest(proxy=proxy, csr=csr.decode(), token=token)

    async def post(self, asked: EnrolRequest, path: str = ENROL_PATH, *, own: Path | None = None) -> EnrolAnswer:
        port, context = self.operator.server.port, identity.context(self.roots, own)
        return await ask_certificate("127.0.0.1", port, path, asked, context=context, trust_domain=TD)

    async def enrol(self, proxy: str = "p0") -> EnrolAnswer:
        answer = await self.post(await self.request(proxy, token=f"token-{proxy}"))
        identity.write(self.file, self.key, answer, wall=0.0)
        return answer

    async def open(self, *, own: bool = True, trust_domain: str = TD) -> Channel:
        context = identity.context(self.roots, self.file if own else None)
        return await Channel.open("127.0.0.1", self.operator.server.port, context=context, trust_domain=trust_domain)

    async def join(self, proxy: str = "p0", *, stable: str = "", left: str = "") -> Channel:
        channel = await self.open()
        channel.send(hello(proxy, stable=stable, left=left))
        return channel


def hello(proxy: str, *, protocol: int = 1, stable: str = "", left: str = "") -> Hello:
    return Hello(
        proxy=proxy,
        boot="b",
        protocol_min=protocol,
        protocol_max=protocol,
        version="0",
        engine="test",
        capabilities=["split"],
        stable=stable,
        went_back="Restarts" if left else "",
        went_back_from=left,
    )


async def heard(channel: Channel, kind: type[ToProxy]) -> ToProxy:
    """The next message of a kind."""
    async with asyncio.timeout(10):
        while not isinstance(message := await channel.receive(), kind):
            pass
        return message


@pytest.fixture
async def operator(tmp_path: Path) -> AsyncIterator[Operator]:
    made = Operator(tmp_path, epoch=7, port=0)
    await made.server.start()
    yield made
    await made.server.close()


@pytest.fixture
async def client(operator: Operator, tmp_path: Path) -> Client:
    made = Client(operator, tmp_path)
    await made.enrol()
    return made


async def test_the_order_is_welcome_live_assign(operator: Operator, client: Client) -> None:
    operator.server.assign("p0", *assignment(config()))
    channel = await client.join()
    first, second, third = [await channel.receive() for _ in range(3)]
    assert first == Welcome(protocol=1, epoch=7, mesh="demo", samples=5)
    assert second == Live(epoch=7, trust={TD: client.roots}, revoked=[])
    assert isinstance(third, Assign)
    assert (third.epoch, third.serial, third.stable.digest) == (7, 1, config_digest(config()[0]))


async def test_a_protocol_that_is_not_spoken_is_said(operator: Operator, client: Client) -> None:
    channel = await client.open()
    channel.send(hello("p0", protocol=9))
    assert await channel.receive() == Goodbye(
        reason="ProtocolMismatch", message="the proxy speaks protocol 9-9, this operator 1-1"
    )
    with pytest.raises(ChannelClosed):
        await channel.receive()
    told = await operator.until(lambda: next((e for e in operator.events if isinstance(e, TurnedAway)), None))
    assert (told.proxy, told.reason) == ("p0", "ProtocolMismatch")
    assert operator.server.connected() == []


async def test_without_a_certificate_there_is_no_stream_and_no_renewal(client: Client) -> None:
    with pytest.raises(OperatorRefused) as caught:
        await client.open(own=False)
    assert caught.value.status == 401
    with pytest.raises(OperatorRefused, match="CertificateNeeded"):
        await client.post(await client.request("p0"), RENEW_PATH)


async def test_a_proxy_talks_only_to_the_operator_of_its_trust_domain(client: Client) -> None:
    with pytest.raises(OperatorUnreachable, match=r"its certificate is not the operator's of other\.domain$"):
        await client.open(trust_domain="other.domain")


async def test_a_lost_answer_is_repeated_for_the_same_key_and_a_token_is_not(client: Client) -> None:
    asked = await client.request("p1", token="token-p1")
    assert await client.post(asked) == await client.post(asked)
    with pytest.raises(OperatorRefused) as caught:
        await client.post(await client.request("p1", token="token-p1"))
    assert (caught.value.status, "EnrolmentRefused" in str(caught.value)) == (403, True)


async def test_guessing_tokens_is_limited_and_counted(
    operator: Operator, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(enrolment, "REFUSALS_AT_ONCE", 3.0)
    monkeypatch.setattr(enrolment, "REFUSALS_PER_SECOND", 0.001)
    asked = await client.request("p1", token="guess")
    statuses = []
    for _ in range(4):
        with pytest.raises(OperatorRefused) as caught:
            await client.post(asked)
        statuses.append(caught.value.status)
    assert statuses == [403, 403, 403, 429]
    assert operator.server.limiter.outcomes == {"granted": 1, "refused": 3, "limited": 1}


async def test_a_renewal_needs_no_token_and_keeps_the_name(client: Client) -> None:
    answer = await client.post(await client.request("p0"), RENEW_PATH, own=client.file)
    assert answer.identity == IDENTITY


async def test_the_newer_stream_of_a_proxy_supersedes_the_older(operator: Operator, client: Client) -> None:
    first = await client.join()
    await heard(first, Welcome)
    second = await client.join()
    await heard(second, Welcome)
    goodbye = await heard(first, Goodbye)
    assert isinstance(goodbye, Goodbye)
    assert goodbye.reason == "Superseded"
    operator.server.assign("p0", *assignment(config()))
    assert await heard(second, Assign)
    assert [type(event) for event in operator.events] == [Certified, Joined, Joined]


async def test_one_change_is_encoded_once_for_fifty_proxies_and_stays_under_5_kib_each(
    operator: Operator, client: Client
) -> None:
    first, second = config(1, hosts=1000), config(2, hosts=1000)
    channels = [await client.join(f"p{number}") for number in range(50)]
    before: dict[str, int] = {}
    for acked, pushed in ((50, first), (100, second)):
        before = {f"p{number}": operator.server.sent_bytes(f"p{number}") for number in range(50)}
        for number in range(50):
            operator.server.assign(f"p{number}", *assignment(pushed))
        for channel in channels:
            assign = await heard(channel, Assign)
            assert isinstance(assign, Assign)
            channel.send(Ack(serial=assign.serial, stable=assign.stable.digest))
        await operator.until(partial(_has_acks, operator, acked))
    spent = [operator.server.sent_bytes(proxy) - bytes_before for proxy, bytes_before in before.items()]
    assert max(spent) < 5 * 1024
    assert repr(operator.server._library) == "Library(manifests=2, offers=2)"


def _has_acks(operator: Operator, count: int) -> bool:
    return len(operator.said(Ack)) == count


async def test_a_proxy_learns_only_of_services_its_configs_name(operator: Operator, client: Client) -> None:
    at = [Endpoint(id="i", address="127.0.0.1", port=1)]
    operator.server.publish(Live(epoch=7, full=True, endpoints={"logic.shop:80": at, "other.shop:80": at}))
    operator.server.assign("p0", *assignment(config()))
    channel = await client.join()
    live = await heard(channel, Live)
    assert live == Live(epoch=7, full=True, endpoints={"logic.shop:80": at}, trust={TD: client.roots}, revoked=[])
    operator.server.publish(Live(epoch=7, endpoints={"other.shop:80": []}))
    operator.server.publish(Live(epoch=7, endpoints={"logic.shop:80": []}))
    assert await heard(channel, Live) == Live(epoch=7, endpoints={"logic.shop:80": []})


async def test_what_is_needed_is_answered_and_what_does_not_exist_too(operator: Operator, client: Client) -> None:
    manifest, parts = config()
    operator.server.assign("p0", *assignment((manifest, parts)))
    channel = await client.join(stable=config_digest(manifest))
    assign = await heard(channel, Assign)
    assert isinstance(assign, Assign)
    assert assign.stable.parts == {}
    some = next(iter(parts))
    channel.send(Need(parts=[some], manifests=[config_digest(manifest)]))
    manifests, bodies = await heard(channel, Parts), await heard(channel, Parts)
    assert isinstance(manifests, Parts)
    assert isinstance(bodies, Parts)
    assert list(manifests.manifests) == [config_digest(manifest)]
    assert {name: bytes(raw) for name, raw in bodies.parts.items()} == {some: parts[some]}
    channel.send(Need(parts=["0" * 64]))
    assert await heard(channel, Parts) == Parts(epoch=7)


async def test_a_candidate_a_proxy_fled_is_not_sent_to_it_before_that_was_heard(
    operator: Operator, client: Client
) -> None:
    operator.server.wake = lambda: None  # nobody drains
    wanted = assignment(config(1), config(2))
    fled = config_digest(config(2)[0])
    operator.server.assign("p0", *wanted)
    channel = await client.join(left=fled)
    assign = await heard(channel, Assign)
    assert isinstance(assign, Assign)
    assert (assign.candidate, assign.share) == (None, 0.0)
    assert [type(event) for event in operator.server.drain()] == [Joined]
    operator.server.assign("p0", *wanted)
    again = await heard(channel, Assign)
    assert isinstance(again, Assign)
    assert again.candidate is not None
    assert again.candidate.digest == fled


async def test_samples_count_once_though_a_report_comes_again(operator: Operator, client: Client) -> None:
    """Under the name of whose certificate it is, and no more of them than were asked for."""
    channel = await client.join()
    sample, row = Sample("GET", "web", "/a", "", 0, 200, 3), PlaintextRow(8080, "10.0.0.7", 1, 0)
    operator.server.runs_at = {"10.0.0.7": "shop/old"}.__getitem__
    for sequence in (1, 2, 1, 2):
        channel.send(Report(boot="b", sequence=sequence, at=0.0, samples=[sample] * 9, plaintext=[row]))
    await operator.until(lambda: sum(isinstance(each, Said) for each in operator.events) >= 4)
    workload = next(event.workload for event in operator.events if isinstance(event, Said))
    told = operator.server.traffic_of([workload])
    assert told.requests == (Seen("GET", "web", "/a", workload, "", 200, 2 * 5 * 3),)
    (caller,) = told.plaintext
    assert (caller.workload, caller.address, caller.name, caller.accepted) == (workload, "10.0.0.7", "shop/old", 2)


async def test_the_same_assignment_is_not_sent_twice(operator: Operator, client: Client) -> None:
    channel = await client.join()
    for weight in (1, 1, 1, 2):
        operator.server.assign("p0", *assignment(config(weight)))
        await operator.until(lambda: operator.server.connected() == ["p0"])
        operator.server.assign("p0", *assignment(config(weight)))
    serials = [(await heard(channel, Assign)).serial for _ in range(2)]  # type: ignore[union-attr]
    assert serials == [1, 2]


async def test_a_proxy_that_does_not_read_is_cut_and_the_others_go_on(
    operator: Operator, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(links, "MAX_QUEUED_BYTES", 64 * 1024)
    monkeypatch.setattr(links, "SEND_WITHIN", 2.0)
    slow, good = await client.join("slow"), await client.join("good")
    await heard(good, Welcome)
    await operator.until(lambda: operator.server.connected() == ["good", "slow"])
    slow._reader._transport.pause_reading()  # type: ignore[attr-defined]
    at = [Endpoint(id="i" * 1000, address="127.0.0.1", port=1)]

    async def flood() -> None:
        number = 0
        while "slow" in operator.server.connected():
            number += 1
            operator.server.publish(Live(epoch=7, endpoints={f"s{number}.shop:80": at * 20}))
            await heard(good, Live)

    async with asyncio.timeout(40):
        await flood()
    left = await operator.until(lambda: [event for event in operator.events if isinstance(event, Left)])
    assert left == [Left(proxy="slow", workload="shop/logic", draining=False)]
    assert operator.server.connected() == ["good"]


async def test_a_proxy_of_which_nothing_is_heard_is_cut_and_the_others_go_on(
    operator: Operator, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(links, "SILENT_AFTER", 1.5)
    silent, good = await client.join("silent"), await client.join("good")
    await operator.until(lambda: operator.server.connected() == ["good", "silent"])

    async def report() -> None:
        sequence = 0
        while True:
            good.send(Report(boot="b", sequence=(sequence := sequence + 1), at=0.0))
            await asyncio.sleep(0.1)

    reporting = asyncio.create_task(report())
    left = await operator.until(lambda: [event for event in operator.events if isinstance(event, Left)])
    reporting.cancel()
    with pytest.raises(ChannelClosed):
        await heard(silent, Assign)
    assert left == [Left(proxy="silent", workload="shop/logic", draining=False)]
    assert operator.server.connected() == ["good"]


@pytest.mark.parametrize("rubbish", [b"", b"{}", b'{"type":"assign"}', b"\xff\xfe", b"[" * 100_000])
async def test_rubbish_ends_that_stream_only(operator: Operator, client: Client, rubbish: bytes) -> None:
    good = await client.join("good")
    await heard(good, Welcome)
    bad = await client.join("bad")
    await heard(bad, Welcome)
    bad._protocol.send_text(rubbish)
    bad._flush()
    goodbye = await heard(bad, Goodbye)
    assert isinstance(goodbye, Goodbye)
    assert goodbye.reason == "ProtocolMismatch"
    await operator.until(lambda: operator.server.connected() == ["good"])


async def test_old_tls_is_not_spoken(operator: Operator) -> None:
    context = ssl.create_default_context(cadata=operator.ca.trust_bundle()[TD])
    context.check_hostname = False
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises((ssl.SSLError, ConnectionResetError)):
        await asyncio.open_connection("127.0.0.1", operator.server.port, ssl=context)


async def test_a_port_in_use_is_named(operator: Operator, tmp_path: Path) -> None:
    second = Operator(tmp_path / "second", epoch=1, port=operator.server.port)
    with pytest.raises(OSError, match=rf"control port 127\.0\.0\.1:{operator.server.port}: "):
        await second.server.start()
