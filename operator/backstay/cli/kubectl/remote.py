"""Runs `backstay` in the leader's pod as if it ran here: terminal, size, interrupts and exit code.

The API server's exec carries it. Without a terminal the far end is told when we are gone by the end of its standard
input (see `attached`); else an interrupted `rollout watch` would go on asking in there for ever.
"""

import contextlib
import json
import os
import shutil
import signal
import sys
import termios
import threading
import tty
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import Any, Final
from urllib.parse import urlencode

import yaml
from kubernetes.stream import ws_client
from websocket import WebSocketBadStatusException, WebSocketException

from backstay.cli.exits import Exit, Failed
from backstay.cli.kubectl.cluster import CONTAINER, Target

PATIENCE: Final = 0.5
"""Seconds without output between looks at whether the terminal's size has changed."""


def run(target: Target, arguments: Sequence[str], *, has_terminal: bool) -> int:
    """Returns the exit code. Raises Failed when the pod could not be asked, or went away meanwhile."""
    stream = Stream(target, command(target, arguments, has_terminal=has_terminal), has_terminal=has_terminal)
    with contextlib.closing(stream), _as_terminal(stream) if has_terminal else contextlib.nullcontext():
        stream.copy_to(sys.stdout.fileno(), sys.stderr.fileno())
    return stream.exit_code()


def command(target: Target, arguments: Sequence[str], *, has_terminal: bool) -> list[str]:
    program = ["backstay"] if has_terminal else ["python", "-m", "backstay.cli.kubectl.attached"]
    color = [] if has_terminal else ["--color", "always" if sys.stdout.isatty() else "never"]
    return [*program, "--state-dir", target.state_dir, "--actor", target.user, *color, *arguments]


class Stream:
    """One command in the leader's pod. Raises Failed from every method."""

    def __init__(self, target: Target, command: Sequence[str], *, has_terminal: bool = False) -> None:
        self._pod = f"{target.system}/{target.pod}"
        query: list[tuple[str, str]] = [("command", word) for word in command]
        # stderr and a terminal exclude each other: a terminal has one output.
        flags = {"stdin": True, "stdout": True, "stderr": not has_terminal, "tty": has_terminal}
        query += [("container", CONTAINER), *((name, "true" if on else "false") for name, on in flags.items())]
        host = str(target.configuration.host).rstrip("/")
        path = f"/api/v1/namespaces/{target.system}/pods/{target.pod}/exec"
        token = target.configuration.get_api_key_with_prefix("BearerToken", alias="authorization")
        url = ws_client.get_websocket_url(f"{host}{path}?{urlencode(query)}")  # type: ignore[no-untyped-call] # half typed
        try:
            self._socket: Any = ws_client.WSClient(  # type: ignore[no-untyped-call] # half typed
                target.configuration, url, {"authorization": token} if token else {}, capture_all=False, binary=True
            )
        except WebSocketBadStatusException as error:
            raise self._refused(error) from error
        except (WebSocketException, OSError) as error:
            raise Failed(f"{self._pod}: no connection: {error}") from error
        self._reply = b""

    def copy_to(self, out: int, err: int) -> None:
        """Until the command has ended."""
        while self._socket.is_open():
            try:
                self._socket.update(timeout=PATIENCE)
            except (WebSocketException, OSError) as error:
                raise self._lost() from error
            for channel, target in ((ws_client.STDOUT_CHANNEL, out), (ws_client.STDERR_CHANNEL, err)):
                _write(target, self._taken(channel))
        self._reply = self._taken(ws_client.ERROR_CHANNEL)

    def send(self, data: bytes) -> None:
        """To the command's standard input; what comes after its end is dropped."""
        with contextlib.suppress(WebSocketException, OSError):
            self._socket.write_channel(ws_client.STDIN_CHANNEL, data)

    def finish(self) -> None:
        """Nothing more comes on its standard input."""
        with contextlib.suppress(WebSocketException, OSError):
            self._socket.close_channel(ws_client.STDIN_CHANNEL)

    def resize(self, columns: int, rows: int) -> None:
        size = json.dumps({"Width": columns, "Height": rows})
        with contextlib.suppress(WebSocketException, OSError):
            self._socket.write_channel(ws_client.RESIZE_CHANNEL, size.encode())

    def exit_code(self) -> int:
        return exit_code(self._reply, self._pod)

    def close(self) -> None:
        self._socket.close()

    def _taken(self, channel: int) -> bytes:
        # read_channel would wait for more; what is there was put there by update.
        found: bytes = self._socket._channels.pop(channel, b"")
        return found

    def _lost(self) -> Failed:
        return Failed(f"{self._pod}: the connection broke", hint="the operator may have moved; try again")

    def _refused(self, error: WebSocketBadStatusException) -> Failed:
        if error.status_code == 403:
            hint = "bind the Role backstay-user in the operator's namespace; docs/kubernetes.md shows how"
            return Failed(f"you may not run commands in {self._pod}", hint=hint)
        if error.status_code == 404:
            return Failed(f"pod {self._pod} is gone", hint="the next operator takes over within 15 s; try again")
        return Failed(f"{self._pod}: the API server answered {error.status_code}")


def exit_code(reply: bytes, pod: str) -> int:
    """From the Status object that ends an exec. Raises Failed when there is none, or the command did not even start."""
    status = yaml.safe_load(reply) if reply else None
    if not isinstance(status, dict):
        raise Failed(f"{pod}: the connection broke", hint="the operator may have moved; try again")
    if status.get("status") == "Success":
        return Exit.OK
    for cause in (status.get("details") or {}).get("causes") or ():
        if cause.get("reason") == "ExitCode":
            return int(cause["message"])
    raise Failed(f"{pod}: {status.get('message') or 'the command did not start'}")


def _write(target: int, data: bytes) -> None:
    while data:
        data = data[os.write(target, data) :]


@contextlib.contextmanager
def _as_terminal(stream: Stream) -> Iterator[None]:
    """Keys go there as they are typed, Ctrl-C included; the far end knows the size of the window."""
    before = termios.tcgetattr(sys.stdin.fileno())

    def resized(_signal: int = 0, _frame: FrameType | None = None) -> None:
        size = shutil.get_terminal_size()
        stream.resize(size.columns, size.lines)

    old = signal.signal(signal.SIGWINCH, resized)
    threading.Thread(target=_forward_keys, args=(stream,), daemon=True, name="keys").start()
    try:
        tty.setraw(sys.stdin.fileno())
        resized()
        yield
    finally:
        termios.tcsetattr(sys.stdin.fileno(), termios.TCSADRAIN, before)
        signal.signal(signal.SIGWINCH, old)


def _forward_keys(stream: Stream) -> None:
    while data := os.read(sys.stdin.fileno(), 4096):
        stream.send(data)
    stream.finish()
