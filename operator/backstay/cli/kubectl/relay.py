"""`python -m backstay.cli.kubectl.relay SOCKET`, in the operator's pod: standard input and output are the socket's.

The far end of a tunnel. Standard library only; it starts once per request.
"""

import os
import socket
import sys
import threading


def main(path: str) -> int:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        try:
            connection.connect(path)
        except OSError as error:
            print(f"{path}: {error.strerror}", file=sys.stderr)
            return 1
        threading.Thread(target=_sending, args=(connection,), daemon=True, name="sending").start()
        while data := connection.recv(65536):
            while data:
                data = data[os.write(1, data) :]
    return 0


def _sending(connection: socket.socket) -> None:
    try:
        while data := os.read(0, 65536):
            connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
    except OSError:  # the operator has closed; the other direction says so
        return


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
