"""Talks to the operator's API on its unix socket.

The standard library's HTTP client is enough and costs 20 ms of start-up where aiohttp costs 200. Foreign errors become
`OperatorAway` (nobody answers) or `Failed` (it answered no), each with a sentence that says what to do.
"""

import getpass
import http.client
import json
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, TypeAlias
from urllib.parse import quote, urlencode

from backstay.cli.exits import Exit, Failed, OperatorAway

SOCKET_NAME: Final = "operator.sock"  # control/api.py binds it; importing that module would import aiohttp
Json: TypeAlias = dict[str, Any]


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout: float) -> None:
        super().__init__("backstay", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


class Client:
    """One connection per request: a person types slower than a socket opens."""

    def __init__(self, state_dir: Path, *, timeout: float = 10.0, actor: str = "") -> None:
        self._path: Final = state_dir / SOCKET_NAME
        self._actor: Final = actor
        self._timeout: Final = timeout

    def get(self, path: str, **query: str) -> Json:
        """JSON of a GET. Raises OperatorAway, Failed."""
        return _object(self.text(path, **query))

    def text(self, path: str, **query: str) -> bytes:
        return self._ask("GET", _target(path, query)).read()

    def items(self, path: str) -> list[Json]:
        found: list[Json] = self.get(path)["items"]
        return found

    def act(self, verb: str, *, reason: str = "", args: Mapping[str, str] | None = None) -> Json:
        """Give an order. Raises Failed with exit code 1 when the operator says no."""
        body = json.dumps({"verb": verb, "actor": self._actor or actor(), "reason": reason, "args": dict(args or {})})
        return _object(self._ask("POST", "/v1/actions", body.encode()).read())

    def events(self, *, after: int = 0, since: float = 0.0, follow: bool = False) -> Iterator[Json]:
        """Events oldest first; with `follow` until the operator goes away or the caller stops."""
        query = {"after": str(after), "since": repr(since), "follow": "1" if follow else ""}
        answer = self._ask("GET", _target("/v1/events", query))
        try:
            for line in iter(answer.readline, b""):
                if line.strip():
                    yield _object(line)
        except (OSError, http.client.HTTPException) as error:
            raise self._away(error) from error
        finally:
            answer.close()

    def _ask(self, method: str, target: str, body: bytes | None = None) -> http.client.HTTPResponse:
        connection = _UnixConnection(self._path, self._timeout)
        try:
            connection.request(method, target, body=body, headers={"Content-Type": "application/json"} if body else {})
            answer = connection.getresponse()
            if answer.status == http.client.OK:
                return answer
            raise _refusal(answer.status, answer.read())
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise self._away(error) from error

    def _away(self, error: Exception) -> OperatorAway:
        if isinstance(error, PermissionError):
            hint = "the socket belongs to the user who runs the operator; ask as that user"
            return OperatorAway(f"may not open {self._path}: {error.strerror}", hint=hint)
        if isinstance(error, TimeoutError):
            return OperatorAway(f"the operator on {self._path} did not answer within {self._timeout:g} s")
        return OperatorAway(
            f"no operator is running for the state folder {self._path.parent}",
            hint="start one with `backstay up REPOSITORY --workloads FILE`, or name its folder with --state-dir",
        )


def actor() -> str:
    """Who gives an order, as the operator records it."""
    try:
        return f"{getpass.getuser()}@{socket.gethostname()}"
    except (OSError, KeyError):  # a container's user id without a name
        return "unknown"


def segment(text: str) -> str:
    """Text as one segment of a path."""
    return quote(text, safe="")


def _target(path: str, query: Mapping[str, str]) -> str:
    filled = {key: value for key, value in query.items() if value}
    return f"{path}?{urlencode(filled)}" if filled else path


def _object(data: bytes) -> Json:
    try:
        found = json.loads(data)
    except ValueError as error:
        raise Failed(
            f"the operator's answer is not JSON: {error}", hint="are `backstay` and the operator of one version?"
        ) from error
    if not isinstance(found, dict):
        raise Failed(f"the operator's answer is {type(found).__name__}, expected an object")
    return found


def _refusal(status: int, body: bytes) -> Failed:
    """An answer other than 200: 409 is a no to an order, the others mean it could not be asked."""
    try:
        said = str(json.loads(body).get("message", ""))
        reason = str(json.loads(body).get("reason", ""))
    except (ValueError, AttributeError):
        said, reason = body[:200].decode(errors="replace"), ""
    code = Exit.NO if status in (http.client.CONFLICT, http.client.NOT_FOUND) else Exit.TROUBLE
    return Failed(f"{said} [{reason}]" if reason else said or f"the operator answered {status}", code=code)
