"""Bytes that are nearly right: pieces of messages put together, and the cases of the conformance suite with mistakes."""

from pathlib import Path
from typing import Any, Final

import msgspec
import yaml
from hypothesis import strategies as st

HTTP: Final = Path(__file__).parents[1] / "conformance" / "http"
REQUESTS: Final = [
    case["send"].encode("latin-1")
    for name in ("requests.yaml", "exchanges.yaml")
    for case in yaml.safe_load((HTTP / name).read_text(encoding="utf-8"))
    if "send" in case
]
ANSWERS: Final = [
    answer.encode("latin-1")
    for case in yaml.safe_load((HTTP / "exchanges.yaml").read_text(encoding="utf-8"))
    for answer in [*case.get("answers", ()), *([case["answer"]] if "answer" in case else [])]
]
PIECES: Final = [
    b"\r\n", b"\n", b"\r", b"\0", b" ", b"\t", b":", b",", b";", b"0\r\n\r\n", b"3\r\nabc\r\n", b"Content-Length: 3\r\n",
    b"Content-Length: 0\r\n", b"Transfer-Encoding: chunked\r\n", b"Connection: close\r\n", b"Connection: upgrade\r\n",
    b"Upgrade: websocket\r\n", b"Upgrade: h2c\r\n", b"Expect: 100-continue\r\n", b"Host: web\r\n", b"HTTP/1.0", b"HTTP/1.1",
    b"GET / HTTP/1.1\r\nHost: web\r\n\r\n", b"HEAD / HTTP/1.1\r\nHost: web\r\n\r\n", b"abc", b"x: y\r\n", b"\xff",
    b"0\r\nx: y\r\n\r\n", b"Connection: upgrade, x\r\n",
    b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 304 Not Modified\r\n\r\n", b"CONNECT web:80 ",
]  # fmt: skip
CUTS: Final = st.lists(st.integers(0, 2000), max_size=6)


@st.composite
def mistaken(draw: Any, seeds: list[bytes]) -> bytes:
    """A seed, or two in a row, with pieces put in, taken out and put over."""
    data = b"".join(draw(st.lists(st.sampled_from(seeds), min_size=1, max_size=2)))
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(data)))
        gone = draw(st.sampled_from([0, 0, 1, 2, 5]))
        data = data[:at] + draw(st.sampled_from([b"", *PIECES])) + data[at + gone :]
    return data


def composed() -> st.SearchStrategy[bytes]:
    return st.lists(st.sampled_from(PIECES), max_size=12).map(b"".join)


def messages(seeds: list[bytes]) -> st.SearchStrategy[bytes]:
    return mistaken(seeds) | composed() | st.binary(max_size=80)


LEAF: Final = st.one_of(
    st.none(), st.booleans(), st.integers(-1, 70_000), st.sampled_from(["", "web.shop", "web.shop:80", "*", "(", "/a", "é"])
)  # fmt: skip
CONFIG: Final[dict[str, Any]] = {
    "workload": "shop/a",
    "parts": [
        {"part": "listeners", "namespace": "shop", "identity": "spiffe://a/ns/shop/sa/a", "trust_domain": "a"},
        {"part": "routes", "host": "web.shop", "port": 80, "rules": [
            {"name": "r", "backends": [{"backend": "web.shop:80", "subset": "", "weight": 1}], "timeout_ms": 15000}]},
        {"part": "backend", "service": "web.shop", "port": 80, "balance": "least_request"},
    ],
}  # fmt: skip


def encoded(tree: dict[str, Any]) -> bytes:
    return bytes(msgspec.json.encode(tree))


@st.composite
def configs(draw: Any) -> bytes:
    tree = msgspec.json.decode(encoded(CONFIG))
    for _ in range(draw(st.integers(0, 3))):
        place: Any = tree
        while isinstance(place, dict | list) and place:
            key = draw(st.sampled_from(sorted(place) if isinstance(place, dict) else list(range(len(place)))))
            if not isinstance(place[key], dict | list) or draw(st.integers(0, 4)) == 0:
                place[key] = draw(LEAF)
                break
            place = place[key]
    return encoded(tree)
