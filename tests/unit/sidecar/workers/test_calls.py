"""Calls arrive as they were sent, with their sockets."""

import os
import socket

import pytest

from backstay.config.model import Backend, Config, Listeners, Manifest
from backstay.config.wire import Endpoint, RefusalExpected
from backstay.sidecar.engine import Address, Engine, ExplicitListener, Observed, Redirected
from backstay.sidecar.workers import calls
from backstay.sidecar.workers.calls import Answer, Last

PARTS = (Backend(service="web.shop", port=80), Listeners(namespace="shop", identity="", trust_domain="td"))
CONFIG = Config(manifest=Manifest(workload="shop/web", parts={"x": "y"}), parts={part.key: part for part in PARTS})
ADDRESS = Address(
    host="127.0.0.1",
    inbound={80: 15106},
    explicit=(ExplicitListener(listen=1, host="a.b", port=2),),
    redirected=Redirected(),
)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("start", (ADDRESS,)),
        ("apply", (CONFIG, None, 0.0, [])),
        ("apply", (CONFIG, CONFIG, 0.25, [RefusalExpected(source="10.0.0.0/8")])),
        ("endpoints", ({"web.shop:80": [Endpoint(id="a", address="10.0.0.1", port=80, workload="shop/web")]}, True)),
        ("ports", ([("127.0.0.1", 80), ("::", 81)],)),
        ("drain", (1.5,)),
    ],
)
def test_calls_arrive_as_they_were_sent(name: str, arguments: tuple[object, ...]) -> None:
    assert calls.decode_call(calls.encode_call(name, *arguments)) == (name, arguments)


def test_every_call_of_an_engine_can_be_made() -> None:
    """A method that the port gains must reach workers too."""
    ours = {"settled", "name", "capabilities"}
    assert {name for name in vars(Engine) if not name.startswith("_")} - ours <= calls.SIGNATURES.keys()


def test_answers_arrive_as_they_were_given() -> None:
    observed = Observed(
        rows=[], peers=[], serving={"c": 1.0}, open_requests=3, samples=[], plaintext=[], missing_keys=[]
    )
    answer = Answer(observed=observed, text="t", refused="r", failed="f")
    assert calls.decode_answer(calls.encode(answer)) == answer
    last = Last(observed, "m")
    assert calls.decode_last(calls.encode(last)) == last


def test_sockets_travel_with_a_call() -> None:
    one, other = socket.socketpair()
    with one, other, socket.socket() as carried:
        calls.send(one, b"x" * 70_000, [carried.fileno()])
        data, (found,) = calls.receive(other)
        assert data == b"x" * 70_000
        assert os.fstat(found).st_ino == os.fstat(carried.fileno()).st_ino
        os.close(found)


def test_the_end_of_the_other_side_is_told_apart() -> None:
    one, other = socket.socketpair()
    with other:
        one.close()
        with pytest.raises(EOFError):
            calls.receive(other)
