"""Every example of docs/sidecar.md, run as it stands there: its files, its commands, other ports."""

import asyncio
import contextlib
import json
import re
import socket
import ssl
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from backstay.sidecar.engines.python import new_event_loop
from e2e.engine.mesh import LOCALHOST, Authority, application, free_port, get, replying, send, spiffe
from e2e.engine.test_gateway import ask_tls, self_signed, trusting

REPOSITORY = Path(__file__).parents[3]
PAGE = (REPOSITORY / "docs" / "sidecar.md").read_text()
SCHEMA = REPOSITORY / "schemas" / "sidecar.json"
FILES = dict(re.findall(r"```json (\S+)\n(.*?)```", PAGE, re.DOTALL))
COMMANDS = {
    words[words.index("--config") + 1]: words[2:]
    for words in (line.split() for line in re.findall(r"^backstay sidecar .*$", PAGE, re.MULTILINE))
    if words[2] == "--config" and words[3] in FILES
}
WITHIN = 60.0


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {"best": new_event_loop}


class Example:
    """The page's ports as they are here."""

    def __init__(self, folder: Path, app: int) -> None:
        self.folder = folder
        self._ports = {9000: app}

    def port(self, documented: int) -> int:
        return self._ports.setdefault(documented, free_port())

    def _here(self, text: str) -> str:
        """Text of the page with this machine's ports: four and five digits that stand alone."""
        return re.sub(r"(?<![\w./-])(\d{4,5})(?![\w./-])", lambda found: self._number(found[1]), text)

    def _number(self, digits: str) -> str:
        ports = {8080, 8443, 9000, 15001, 15100, 15106, 15121, 15190}
        return str(self.port(int(digits))) if int(digits) in ports else digits

    @contextlib.asynccontextmanager
    async def running(self, file: str) -> AsyncIterator[int]:
        """The sidecar of one file; gives its admin port."""
        (self.folder / file).write_text(self._here(FILES[file]))
        words = [self._here(word) if "=" not in word else self._inbound(word) for word in COMMANDS[file]]
        settings = {"--admin-port": "", "--health-port": "", "--prometheus-port": ""}
        settings |= dict(zip(words[::2], words[1::2], strict=True))
        settings |= {name: str(free_port()) for name, value in settings.items() if not value}
        command = [part for pair in settings.items() for part in pair]
        with self.log(file).open("wb") as log:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "backstay.sidecar", *command, cwd=self.folder, stdout=log, stderr=log
            )
        admin = int(settings["--admin-port"])
        try:
            async with asyncio.timeout(WITHIN):
                while not is_open(admin):
                    assert process.returncode is None, self.log(file).read_text()
                    await asyncio.sleep(0.02)
            yield admin
        finally:
            if process.returncode is None:
                process.terminate()
            async with asyncio.timeout(WITHIN):
                assert await process.wait() == 0

    def log(self, file: str) -> Path:
        return self.folder / f"{file}.log"

    def _inbound(self, word: str) -> str:
        return "=".join(self._number(digits) for digits in word.split("="))


def is_open(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex((LOCALHOST, port)) == 0


@pytest.fixture
async def example(tmp_path: Path) -> AsyncIterator[Example]:
    async with application(replying(b"hello")) as app:
        yield Example(tmp_path, app)


def test_every_file_has_a_command() -> None:
    assert FILES.keys() == {"reverse.json", "tls.json", "forward.json", "server.json", "client.json"}
    assert COMMANDS.keys() == FILES.keys()


@pytest.mark.parametrize("name", FILES)
def test_every_file_is_what_the_schema_says(name: str) -> None:
    Draft202012Validator(json.loads(SCHEMA.read_text())).validate(json.loads(FILES[name]))


async def test_reverse_proxy_and_its_pages(example: Example) -> None:
    async with example.running("reverse.json") as admin:
        port = example.port(8080)
        assert (await send(port, get("/api/orders"))).body == b"hello"
        assert (await send(port, get("/else"))).body == b"nothing here"
        clusters = (await send(admin, get("/clusters"))).body.decode()
        assert f"::127.0.0.1:{example.port(9000)}::health_flags::healthy\n" in clusters
        assert b"istio_requests_total" in (await send(admin, get("/stats"))).body
        dumped = json.loads((await send(admin, get("/config_dump"))).body)
        assert dumped["workload"] == "edge/web"
        assert (await send(admin, get("/logging?level=debug", method="POST"))).body == b"level: debug\n"
        assert (await send(admin, get("/ready"))).status == 200
        assert (await send(admin, get("/drain", method="POST"))).body == b"draining\n"
        async with asyncio.timeout(WITHIN):
            while is_open(port):
                await asyncio.sleep(0.02)


async def test_a_changed_file_is_served_and_a_broken_one_is_not(example: Example) -> None:
    async with example.running("reverse.json"):
        port, path = example.port(8080), example.folder / "reverse.json"

        async def says(wanted: bytes) -> None:
            async with asyncio.timeout(WITHIN):
                while (await send(port, get("/else"))).body != wanted:
                    await asyncio.sleep(0.05)

        good = path.read_text()
        path.write_text(good.replace("nothing here", "something"))
        await says(b"something")
        path.write_text(good.replace('"part": "backend"', '"part": "back"'))
        async with asyncio.timeout(WITHIN):
            while (
                "parts[2].part: invalid value 'back', expected one of routes, backend"
                not in example.log("reverse.json").read_text()
            ):
                await asyncio.sleep(0.05)
        assert (await send(port, get("/else"))).body == b"something"
        path.with_suffix(".new").write_text(good.replace("nothing here", "in the end"))
        path.with_suffix(".new").replace(path)
        await says(b"in the end")


async def test_reverse_proxy_with_tls(example: Example) -> None:
    certificate = self_signed(example.folder, "shop.example.com", "shop")
    async with example.running("tls.json"):
        context = trusting(certificate)
        request = get("/", host="shop.example.com")
        assert (await ask_tls(example.port(8443), context, "shop.example.com", request))[0].body == b"hello"
        moved = await send(example.port(8080), request)
        assert moved.status == 301
        assert b"Location: https://shop.example.com/\r\n" in moved.head
        renewed = self_signed(example.folder, "shop.example.com", "renewed")
        renewed.replace(certificate)
        context = trusting(certificate)
        async with asyncio.timeout(WITHIN):
            while not await takes(example.port(8443), context):
                await asyncio.sleep(0.05)


async def takes(port: int, context: ssl.SSLContext) -> bool:
    try:
        answer, _ = await ask_tls(port, context, "shop.example.com", get("/", host="shop.example.com"))
    except ssl.SSLError:
        return False
    return answer.status == 200


async def test_forward_proxy(example: Example) -> None:
    async with example.running("forward.json"):
        port = example.port(15001)
        assert (await send(port, get("http://orders.shop/", host="orders.shop"))).body == b"hello"
        assert (await send(port, get("http://elsewhere.example/", host="elsewhere.example"))).status == 502


async def test_mtls_between_two(example: Example) -> None:
    authority = Authority(example.folder)
    (example.folder / "roots.pem").write_text(authority.pem)
    for name in ("web", "client"):
        files = authority.issue(spiffe(name))
        files.certificate.rename(example.folder / f"{name}.crt")
        files.key.rename(example.folder / f"{name}.key")
    async with example.running("server.json"), example.running("client.json"):
        answer = await send(example.port(15001), get("http://web.shop/", host="web.shop"))
        assert (answer.status, answer.body) == (200, b"hello")
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):  # plaintext is refused
            await send(example.port(15106), get("/"))


async def test_roots_that_cannot_be_used_change_nothing_and_good_ones_heal(example: Example) -> None:
    authority = Authority(example.folder)
    roots, log = example.folder / "roots.pem", example.log("server.json")
    roots.write_text(authority.pem)
    files = authority.issue(spiffe("web"))
    files.certificate.rename(example.folder / "web.crt")
    files.key.rename(example.folder / "web.key")

    async def says(what: str) -> None:
        async with asyncio.timeout(WITHIN):
            while what not in log.read_text():
                await asyncio.sleep(0.05)

    async with example.running("server.json"):
        roots.write_text("no roots")
        await says("server.json: trust.test.mesh: 'roots.pem' cannot be used: ")
        roots.write_text(authority.pem)
        await says("config.reloaded")


@pytest.mark.parametrize(
    ("pem", "secret", "said"),
    [
        ("", "edge/shop", "tls.json: secrets.edge/shop: 'shop.pem' cannot be used: "),
        (
            None,
            "edge/other",
            "tls.json: gateway edge/web/https shows secret 'edge/other', which is not among `secrets`",
        ),
    ],
)
async def test_a_certificate_that_cannot_be_shown_keeps_the_sidecar_from_starting(
    tmp_path: Path, pem: str | None, secret: str, said: str
) -> None:
    certificate = self_signed(tmp_path, "shop.example.com", "shop")
    if pem is not None:
        certificate.write_text(pem)
    (tmp_path / "tls.json").write_text(FILES["tls.json"].replace('"secret": "edge/shop"', f'"secret": "{secret}"'))
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "backstay.sidecar", "--config", "tls.json", "--outbound", "0", "--admin-port", "0"),
        *("--health-port", "0", "--prometheus-port", "0"),
        cwd=tmp_path,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(WITHIN):
        _, error = await process.communicate()
    assert (process.returncode, error.decode().partition(said)[:2]) == (1, ("backstay sidecar: ", said))
