"""What lives in the namespaces of these tests, each a process of its own: applications, their clients, and proxies.

serve KIND:PORT...        http answers with who asks and what was asked; banner speaks first; echo; tls has a certificate
ask                       takes questions, a JSON list a line, and answers each with a JSON string a line:
                            http HOST PORT NAME   "STATUS BODY" or what went wrong
                            raw HOST PORT TEXT    what comes after TEXT was sent
                            tls HOST PORT         the certificate that is shown
proxy FILE ENGINE         an engine as FILE says
"""

import asyncio
import contextlib
import json
import socket
import ssl
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec

BANNER = b"220 ready\n"
Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
PATIENCE = 10.0


async def http(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while head := await reader.readuntil(b"\r\n\r\n"):
        host = head.lower().split(b"host: ")[1].split(b"\r\n")[0].decode()
        peer, own = writer.get_extra_info("peername"), writer.get_extra_info("sockname")
        body = json.dumps({"from": peer[0], "at": own[0], "host": host}).encode()
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))


async def banner(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(BANNER)
    writer.write(b"you said " + await reader.readline())


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    line = await reader.readline()
    writer.write(f"{writer.get_extra_info('peername')[0]} ".encode() + line)


KINDS: dict[str, Serve] = {"http": http, "tls": http, "banner": banner, "echo": echo}


def guarded(serve: Serve) -> Serve:
    async def guard(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):  # the client has gone
            await serve(reader, writer)
        writer.close()

    return guard


async def serve_all(wanted: list[str]) -> None:
    for each in wanted:
        kind, port, *certificate = each.split(":")
        context = None
        if kind == "tls":
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            context.load_cert_chain(*certificate)
        for family, address in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
            await asyncio.start_server(guarded(KINDS[kind]), address, int(port), family=family, ssl=context)
    await ready()


async def ready() -> None:
    print("ready", flush=True)
    await asyncio.Event().wait()


async def ask(kind: str, host: str, port: int, *more: str) -> str:
    context = None
    if kind == "tls":
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    async with asyncio.timeout(PATIENCE):
        reader, writer = await asyncio.open_connection(host, port, ssl=context)
        if kind == "tls":
            return ssl.DER_cert_to_PEM_cert(writer.get_extra_info("ssl_object").getpeercert(binary_form=True))
        writer.write(f"GET / HTTP/1.1\r\nHost: {more[0]}\r\n\r\n".encode() if kind == "http" else more[0].encode())
        if kind == "raw":
            return (await reader.read()).decode()
        head = await reader.readuntil(b"\r\n\r\n")
        size = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        return f"{head.split()[1].decode()} {(await reader.readexactly(size)).decode()}"


async def proxy(path: Path, name: str) -> None:
    from backstay.config.model import Config
    from backstay.config.wire import Endpoint
    from backstay.sidecar.engine import Address, Engine, IdentityFiles, Redirected, settled
    from backstay.sidecar.engines.envoy import EnvoyEngine
    from backstay.sidecar.engines.python import PythonEngine

    told = json.loads(path.read_text())
    engine: Engine = PythonEngine() if name == "python" else EnvoyEngine({"BACKSTAY_ENVOY_CONCURRENCY": "1"})
    await engine.start(Address(host="127.0.0.1", inbound={}, outbound=0, redirected=Redirected()))
    engine.addresses(told["addresses"])
    engine.endpoints(msgspec.convert(told["endpoints"], dict[str, list[Endpoint]]), full=True)
    engine.trust(told["trust"], ())
    engine.identity(IdentityFiles(certificate=Path(told["certificate"]), key=Path(told["key"])))
    engine.apply(msgspec.convert(told["config"], Config), None, 0.0)
    await settled(engine)
    print("ready", flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)  # until whoever started this has gone
    await engine.drain(0)


async def answer(question: list[str]) -> str:
    kind, host, port, *rest = question
    try:
        return await ask(kind, host, int(port), *rest)
    except (OSError, TimeoutError, asyncio.IncompleteReadError) as error:
        return type(error).__name__


async def take_questions() -> None:
    print("ready", flush=True)
    while line := await asyncio.to_thread(sys.stdin.readline):
        print(json.dumps(await answer(json.loads(line))), flush=True)


async def main(kind: str, *rest: str) -> None:
    if kind == "serve":
        await serve_all(list(rest))
    elif kind == "proxy":
        await proxy(Path(rest[0]), rest[1])
    else:
        await take_questions()


if __name__ == "__main__":
    from backstay.sidecar.engines.python import new_event_loop

    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(main(*sys.argv[1:]))
