"""Logs of several kinds, read in portions."""

import io
import subprocess
from collections.abc import Iterable
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from backstay.cli import replay
from backstay.cli.exits import Failed
from backstay.cli.main import cli
from backstay.core.review.replay import Logged, Replay
from support.policy import compiled, document

SIDECAR = (
    b'{"time":1.5,"method":"GET","authority":"web","path":"/a","status":200,"route":"inbound:8080",'
    b'"source":"spiffe://td/ns/shop/sa/c","config":"00"}'
)
ENVOY = (
    b'{":method":"POST",":authority":"web:80",":path":"/b?x=1","downstream_peer_uri_san":"spiffe://td/ns/shop/sa/d",'
    b'"response_code":200}'
)


def test_sidecars_and_envoy_are_understood() -> None:
    assert replay.read_json(SIDECAR + b"\n" + ENVOY) == (
        [
            Logged("GET", "web", "/a", "spiffe://td/ns/shop/sa/c"),
            Logged("POST", "web:80", "/b?x=1", "spiffe://td/ns/shop/sa/d"),
        ],
        0,
    )


def test_lines_that_are_no_requests_are_counted() -> None:
    refused = b'{"time":1,"status":0,"reason":"plaintext-refused","source":"10.0.0.1"}'
    found, wrong = replay.read_json(b"\n".join([b"starting up", SIDECAR, refused, b'{"method":7}', b""]))
    assert (len(found), wrong) == (1, 3)


def test_a_table_names_its_columns() -> None:
    found, wrong = replay.read_csv(b"method,host,path,source\nGET,web,/a,shop/c\nGET,,/a,\n")
    assert (found, wrong) == ([Logged("GET", "web", "/a", "shop/c")], 1)
    with pytest.raises(Failed, match="neither JSON nor a table"):
        replay.read_csv(b"a,b\n1,2\n")


def test_portions_end_at_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay, "_CHUNK", 7)
    assert list(replay.chunks(io.BytesIO(b"one\ntwo\nthree\nfour"))) == [b"one", b"two\nthree", b"four"]


def test_a_file_without_lines_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay, "_MOST_LINE", 10)
    monkeypatch.setattr(replay, "_CHUNK", 10)
    with pytest.raises(Failed, match="longer than a megabyte"):
        list(replay.chunks(io.BytesIO(b"x" * 100)))


def test_a_log_of_one_application_gets_its_caller() -> None:
    class Kept:
        def __init__(self) -> None:
            self.seen: list[Logged] = []

        def feed(self, requests: Iterable[Logged]) -> None:
            self.seen += requests

    kept = Kept()
    line = b'{"method":"GET","authority":"web","path":"/a","source":"127.0.0.1"}\n'
    assert replay.feed(kept, io.BytesIO(line), "shop/c") == 0
    assert kept.seen == [Logged("GET", "web", "/a", "shop/c")]


def test_either_a_log_or_live_traffic_is_replayed() -> None:
    for arguments in ([], ["-", "--live"]):
        done = CliRunner().invoke(cli, ["replay", *arguments, "--against", "main"])
        assert (done.exit_code, "name a log, or --live" in done.output) == (2, True)


def test_live_traffic_needs_somebody_who_tells_it(tmp_path: Path) -> None:
    saved = tmp_path / "registry.json"
    saved.write_text("{}")
    empty = tmp_path / "mesh"
    empty.mkdir()
    subprocess.run(["git", "init", "-q", str(empty)], check=True)
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.com"]
    subprocess.run(["git", "-C", str(empty), *identity, "commit", "-q", "--allow-empty", "-m", "x"], check=True)
    arguments = ["replay", "--live", "--against", "HEAD", "--dir", str(empty), "--registry", str(saved)]
    done = CliRunner().invoke(cli, arguments)
    assert "nothing here tells of live traffic" in done.output


def test_a_hostile_log_moves_no_cursor() -> None:
    strict = document("Authentication", "all", {"mtls": {"mode": "STRICT"}})
    asked = Replay(compiled([]), compiled([strict]))
    asked.feed([Logged("GET", "web", "/?token=ghp_" + "a" * 36, "\x1b[31mred\u202e\r\n::error::forged")])
    lines = list(replay.result_lines(asked.finish()))
    text = click.unstyle("\n".join(lines))
    assert all(line.isprintable() for line in text.split("\n"))
    assert "\\u{1b}[31mred\\u{202e}\\u{d}\\u{a}::error::forged" in text
    assert "ghp_" not in text
