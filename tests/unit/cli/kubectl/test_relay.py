"""The far end of the tunnel carries bytes both ways, and says when nobody listens."""

import socket
import subprocess
import sys
import threading
from pathlib import Path

RELAY = (sys.executable, "-m", "backstay.cli.kubectl.relay")


def test_bytes_go_both_ways_until_the_operator_closes(tmp_path: Path) -> None:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "s"))
    listener.listen(1)

    def answer() -> None:
        connection, _ = listener.accept()
        with connection:
            asked = b""
            while data := connection.recv(65536):
                asked += data
            connection.sendall(asked[::-1])

    threading.Thread(target=answer, daemon=True).start()
    question = bytes(range(256)) * 1000
    done = subprocess.run((*RELAY, str(tmp_path / "s")), input=question, capture_output=True, timeout=30, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, question[::-1], b"")
    listener.close()


def test_without_an_operator_it_fails(tmp_path: Path) -> None:
    done = subprocess.run((*RELAY, str(tmp_path / "s")), input=b"", capture_output=True, timeout=30, check=False)
    assert (done.returncode, done.stderr.decode().strip()) == (1, f"{tmp_path / 's'}: No such file or directory")
