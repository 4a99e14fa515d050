"""The leader's socket, here: a unix socket in a folder of our own whose connections are carried into the pod.

Each connection is one exec of `relay`; the verbs that use this ask a handful of questions.
"""

import contextlib
import os
import shutil
import socket
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from backstay.cli.client import SOCKET_NAME
from backstay.cli.exits import Failed
from backstay.cli.kubectl.cluster import Target
from backstay.cli.kubectl.remote import Stream

RELAY: Final = ("python", "-m", "backstay.cli.kubectl.relay")


@contextlib.contextmanager
def opened(target: Target) -> Iterator[Path]:
    """A state folder whose socket is the operator's, as long as the context lasts."""
    folder = Path(tempfile.mkdtemp(prefix="backstay-"))
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(str(folder / SOCKET_NAME))
        listener.listen(8)
        threading.Thread(target=_accept, args=(listener, target), daemon=True, name="tunnel").start()
        yield folder
    finally:
        listener.close()
        shutil.rmtree(folder, ignore_errors=True)


def _accept(listener: socket.socket, target: Target) -> None:
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:  # closed: the command has ended
            return
        threading.Thread(target=_carry, args=(connection, target), daemon=True, name="connection").start()


def _carry(connection: socket.socket, target: Target) -> None:
    with connection:
        try:
            stream = Stream(target, [*RELAY, f"{target.state_dir}/{SOCKET_NAME}"])
        except Failed as error:
            error.show()
            return
        with contextlib.closing(stream):
            threading.Thread(target=_send, args=(connection, stream), daemon=True, name="sending").start()
            try:
                stream.copy_to(connection.fileno(), 2)
                if stream.exit_code():
                    Failed("the operator's socket does not answer").show()
            except Failed as error:
                error.show()
            except OSError:  # whoever asked has gone
                pass
            # While the other thread reads, closing alone would not tell the other side.
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


def _send(connection: socket.socket, stream: Stream) -> None:
    with contextlib.suppress(OSError):  # closed by the other thread: the answer is whole
        while data := os.read(connection.fileno(), 65536):
            stream.send(data)
    stream.finish()
