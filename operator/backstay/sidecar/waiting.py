"""`backstay sidecar wait`: ends when the proxy of this pod is ready, so that the application starts after it.

For clusters without native sidecars, where the kubelet waits for a container's postStart hook before it starts the next
container. Reads the same environment as the proxy beside it.
"""

import argparse
import http.client
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from backstay.sidecar.settings import ENVIRONMENT_PREFIX

LOOK_SECONDS: Final = 0.1  # between two questions; a start takes about one second
GIVE_UP_SECONDS: Final = 600.0  # as many as a native sidecar's startup probe has


def main(arguments: Sequence[str], environment: Mapping[str, str] = os.environ) -> int:
    def default(name: str, otherwise: str) -> str:
        return environment.get(ENVIRONMENT_PREFIX + name) or otherwise

    parser = argparse.ArgumentParser(prog="backstay sidecar wait", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--host", default=default("HEALTH_HOST", "127.0.0.1"), help="address of the health port")
    parser.add_argument("--port", type=int, default=default("HEALTH_PORT", "15021"), help="the health port")
    parser.add_argument("--timeout", type=float, default=GIVE_UP_SECONDS, help="seconds to wait")
    found = parser.parse_args(arguments)
    if wait(lambda: is_ready(found.host, found.port), found.timeout):
        return 0
    print(f"backstay sidecar wait: the proxy was not ready within {found.timeout:g} s", file=sys.stderr)
    return 1


def wait(
    ready: Callable[[], bool],
    timeout: float,
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> bool:
    """Ask until the answer is yes; False if the time is over first."""
    ends = clock() + timeout
    while not ready():
        if clock() >= ends:
            return False
        sleep(LOOK_SECONDS)
    return True


def is_ready(host: str, port: int) -> bool:
    connection = http.client.HTTPConnection(host, port, timeout=3.0)
    try:
        connection.request("GET", "/healthz/ready")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False  # it has not come that far
    finally:
        connection.close()
