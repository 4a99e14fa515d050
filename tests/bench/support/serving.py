"""One process of `make bench-proxy`: the application, or a proxy of ours as an agent would set it up.

`python serving.py ROLE PORTS FOLDER HOSTS`. It imports what a proxy needs and nothing of the benchmark, because its memory
is measured.
"""

import asyncio
import os
import sys
from pathlib import Path
from typing import Any, Final, NamedTuple

HOST: Final = "127.0.0.1"
DOMAIN: Final = "bench.mesh"
ISSUER: Final = "https://issuer.bench"
BODY: Final = b"x" * 1024
LARGE_BYTES: Final = 1024 * 1024


class Ports(NamedTuple):
    app: int
    plain: int
    client: int
    server: int
    tokens: int


class App(asyncio.Protocol):
    """Answers every head with 1 KiB, or with 1 MiB where the path ends in `large`; as little as possible, so that the
    proxies are what is measured. Asked for `/count`, it says how many it has answered."""

    HEAD: Final = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n"
    ANSWER: Final = HEAD % len(BODY) + BODY
    large = b""  # made by the application alone: proxies import this module too, and their memory is measured
    answered = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: asyncio.Transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        if data.startswith(b"GET /count "):
            said = b"%d" % App.answered
            self.transport.write(self.HEAD % len(said) + said)
            return
        answer = self.large if b"/large " in data else self.ANSWER
        heads = data.count(b"\r\n\r\n")
        App.answered += heads
        self.transport.write(answer * heads)


async def serve_app(port: int) -> None:
    App.large = App.HEAD % LARGE_BYTES + b"x" * LARGE_BYTES
    server = await asyncio.get_running_loop().create_server(App, HOST, port)
    await server.serve_forever()


async def serve_ours(role: str, ports: Ports, folder: Path, hosts: int) -> None:
    """One engine as the agent would set it up; `hosts` beside the one that is asked."""
    from backstay.config.model import Config, Manifest, digest_of, encode_part
    from backstay.config.wire import Endpoint
    from backstay.sidecar.engine import Address, IdentityFiles
    from backstay.sidecar.engines.python import PythonEngine

    engine = PythonEngine()
    listening = {"plain": ports.plain, "client": ports.client}.get(role, 0)
    inbound = {ports.app: getattr(ports, role)} if role in ("server", "tokens") else {}
    await engine.start(Address(host=HOST, inbound=inbound, outbound=listening))
    engine.identity(IdentityFiles(certificate=folder / f"{role}.crt", key=folder / f"{role}.key"))
    engine.trust({DOMAIN: (folder / "root.crt").read_text()}, [])
    parts = (
        own_parts(role, ports, hosts) if role != "tokens" else token_parts(ports, (folder / "jwks.json").read_text())
    )
    digests = {part.key: digest_of(encode_part(part)) for part in parts}
    manifest = Manifest(workload=f"shop/{role}", parts=digests)
    engine.apply(Config(manifest=manifest, parts={part.key: part for part in parts}), None, 0)
    plain = Endpoint(id="app", address=HOST, port=ports.app)
    mesh = Endpoint(id="server", address=HOST, port=ports.server, identity=spiffe("server"))
    engine.endpoints({"web.shop:80": [mesh if role == "client" else plain]}, full=True)
    while True:
        await asyncio.sleep(1)
        engine.collect()  # as the agent does every second


def own_parts(role: str, ports: Ports, hosts: int) -> list[Any]:
    from backstay.config.model import (
        Authorization,
        Backend,
        HostRoutes,
        InboundPort,
        Listeners,
        Match,
        Operation,
        PathMatch,
        Policy,
        PolicyRule,
        Retry,
        Rule,
        Source,
        ValueMatch,
        WeightedBackend,
    )

    inbound = (InboundPort(port=ports.app, mtls="strict"),) if role == "server" else ()
    listeners = Listeners(
        namespace="shop", identity=spiffe(role), trust_domain=DOMAIN, inbound=inbound, access_log="all"
    )
    if role == "server":
        asked = Operation(methods=("GET",), paths=("/path*", "/large"))
        rule = PolicyRule(sources=(Source(principals=(spiffe("client"),)),), operations=(asked,))
        return [listeners, Authorization(policies=(Policy(name="shop/web", action="allow", rules=(rule,)),))]
    retry = Retry(attempts=2, retry_on=("connect-failure", "gateway-error"))
    parts: list[Any] = [listeners]
    for name in ("web.shop", *(f"s{number}.shop" for number in range(hosts))):
        to = (WeightedBackend(backend=f"{name}:80"),)
        canary = Match(headers=(ValueMatch(name="x-canary", kind="exact", value="yes"),))
        rules = (
            Rule(name="canary", matches=(canary,), backends=to, retry=retry),
            Rule(name="api", matches=(Match(path=PathMatch(kind="prefix", value="/api")),), backends=to, retry=retry),
            Rule(name="all", backends=to, retry=retry),
        )
        parts += (HostRoutes(host=name, port=80, rules=rules), Backend(service=name, port=80))
    return parts


def token_parts(ports: Ports, keys: str) -> list[Any]:
    from backstay.config.model import InboundPort, Jwt, JwtProvider, Listeners

    believed = Jwt(providers=(JwtProvider(issuer=ISSUER, jwks=keys, forward=True),), required=("/*",))
    inbound = (InboundPort(port=ports.app, mtls="disable"),)
    return [
        Listeners(
            namespace="shop",
            identity=spiffe("tokens"),
            trust_domain=DOMAIN,
            inbound=inbound,
            access_log="all",
            jwt=believed,
        )
    ]


def spiffe(role: str) -> str:
    return f"spiffe://{DOMAIN}/ns/shop/sa/{role}"


def main(role: str, ports: str, folder: str, hosts: str) -> None:
    from backstay.sidecar.engines.python import new_event_loop
    from backstay.sidecar.heap import settle

    sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115 - the access log goes where Envoy's goes, until the process ends
    settle()
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        numbers = [int(port) for port in ports.split(",")]
        if role == "app":
            runner.run(serve_app(numbers[0]))
        else:
            runner.run(serve_ours(role, Ports(*numbers), Path(folder), int(hosts)))


if __name__ == "__main__":
    main(*sys.argv[1:])
