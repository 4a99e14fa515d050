"""`kubectl backstay` through a real API server and kubelet: where it goes, what comes back, and that it ends.

The pod is the operator's image with a small program on the operator's socket: what is proven here is the way there.
"""

import asyncio
import contextlib
import json
import os
import pty
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from backstay.cli.client import Client
from backstay.cli.exits import Exit, Failed
from backstay.cli.kubectl import cluster as way
from backstay.cli.kubectl import tunnel
from backstay.cli.kubectl.calls import Where
from backstay.cli.kubectl.remote import Stream
from cluster.reach import Reach
from support.bootstrap import BOOTSTRAP, as_json

PLUGIN = (sys.executable, "-c", "from backstay.cli.kubectl import main; main()")
SERVER = """
import json, os, socketserver, http.server
folder = "/run/backstay/{namespace}/shop"
os.makedirs(folder)
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.0"
    def address_string(self): return "-"
    def do_GET(self):
        body = json.dumps({{"path": self.path, "version": "from the pod"}}).encode()
        self.send_response(200); self.end_headers(); self.wfile.write(body)
socketserver.ThreadingUnixStreamServer(folder + "/operator.sock", Handler).serve_forever()
"""


@pytest.fixture(scope="module")
def system(images: Reach) -> Iterator[str]:
    """A namespace with what the plugin looks for: a Lease, the pod that it names, a MeshRepository."""
    name = f"test-plugin-{os.getpid()}"
    images.kubectl("apply", "-k", str(BOOTSTRAP / "crds"))
    images.kubectl("create", "namespace", name)
    container = {
        "name": "operator",
        "image": "backstay-operator:dev",
        "imagePullPolicy": "IfNotPresent",
        "command": ["python", "-c", SERVER.format(namespace=name)],
        "volumeMounts": [{"name": "run", "mountPath": "/run/backstay"}],
    }
    spec = {
        "containers": [container],
        "volumes": [{"name": "run", "emptyDir": {}}],
        "securityContext": {"fsGroup": 65532},
        "terminationGracePeriodSeconds": 1,
        "automountServiceAccountToken": False,
    }
    objects = [
        {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "leader"}, "spec": spec},
        {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {"name": "backstay-operator"},
            "spec": {"holderIdentity": "leader_0a1b2c3d"},
        },
        {
            "apiVersion": "backstay.dev/v1alpha1",
            "kind": "MeshRepository",
            "metadata": {"name": "shop"},
            "spec": {"url": "https://git.invalid/mesh.git"},
        },
    ]
    images.kubectl("apply", "-n", name, "-f", "-", stdin=as_json(objects))
    images.kubectl("wait", "-n", name, "--for=condition=Ready", "pod/leader", "--timeout=120s", timeout=130)
    yield name
    images.kubectl("delete", "namespace", name, "--wait=false")


@pytest.fixture(scope="module")
def where(images: Reach, system: str) -> Where:
    return Where(namespace=system, kubeconfig=str(images.kubeconfig), system=system)


@pytest.fixture(scope="module")
def target(where: Where) -> way.Target:
    return asyncio.run(way.find(where))


def plugin(where: Where, *arguments: str) -> tuple[str, ...]:
    options = ("-n", where.namespace, "--kubeconfig", where.kubeconfig, "--operator-namespace", where.system)
    return (*PLUGIN, *options, *arguments)


def ran(target: way.Target, command: Sequence[str]) -> tuple[bytes, bytes, int]:
    """What a command in the pod wrote, and how it ended."""
    with contextlib.closing(Stream(target, command)) as stream, Pipe() as out, Pipe() as err:
        stream.copy_to(out.write_end, err.write_end)
        return out.read(), err.read(), stream.exit_code()


class Pipe:
    """A pipe that somebody reads all the time, so that a writer never waits."""

    def __enter__(self) -> "Pipe":
        self._read_end, self.write_end = os.pipe()
        self._found: list[bytes] = []
        self._reader = threading.Thread(target=self._collect, daemon=True)
        self._reader.start()
        self._is_open = True
        return self

    def _collect(self) -> None:
        while data := os.read(self._read_end, 65536):
            self._found.append(data)

    def read(self) -> bytes:
        self._finish()
        return b"".join(self._found)

    def _finish(self) -> None:
        if self._is_open:
            self._is_open = False
            os.close(self.write_end)
            self._reader.join()
            os.close(self._read_end)

    def __exit__(self, *_: object) -> None:
        self._finish()


def until(true: Callable[[], object], seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"not within {seconds:.0f} s"
        time.sleep(0.1)


def test_the_leader_the_mesh_and_who_we_are_come_from_the_api(target: way.Target, system: str) -> None:
    assert (target.pod, target.namespace, target.repository) == ("leader", system, "shop")
    assert target.state_dir == f"/run/backstay/{system}/shop"
    assert target.user  # whoever the kubeconfig's certificate or token names


def test_output_errors_and_exit_code_come_back_apart(target: way.Target) -> None:
    assert ran(target, ["sh", "-c", "echo out; echo error >&2; exit 7"]) == (b"out\n", b"error\n", 7)


def test_much_output_comes_back_whole(target: way.Target) -> None:
    script = "import sys; sys.stdout.buffer.write(bytes(range(256)) * 20000)"
    out, err, code = ran(target, ["python", "-c", script])
    assert (len(out), out == bytes(range(256)) * 20000, err, code) == (256 * 20000, True, b"", 0)


def test_a_program_that_is_not_there_is_no_success(target: way.Target) -> None:
    with pytest.raises(Failed):
        ran(target, ["no-such-program"])


def test_a_pod_that_is_gone_says_so(target: way.Target) -> None:
    with pytest.raises(Failed, match="is gone"):
        Stream(replace(target, pod="another"), ["true"])


def test_what_runs_in_the_pod_ends_when_we_go_away(target: way.Target) -> None:
    """The kubelet closes its standard input: the only sign that it gets."""
    script = "import os, pathlib; pathlib.Path('/tmp/began').touch(); os.read(0, 1); pathlib.Path('/tmp/ended').touch()"
    stream = Stream(target, ["python", "-c", script])
    until(lambda: ran(target, ["test", "-e", "/tmp/began"])[2] == 0)
    assert ran(target, ["test", "-e", "/tmp/ended"])[2] == 1
    stream.close()
    until(lambda: ran(target, ["test", "-e", "/tmp/ended"])[2] == 0)


def test_the_operators_socket_is_here_while_a_tunnel_is_open(target: way.Target) -> None:
    with tunnel.opened(target) as folder:
        client = Client(folder)
        assert client.get("/v1/version") == {"path": "/v1/version", "version": "from the pod"}
        assert client.get("/v1/other")["path"] == "/v1/other"
    assert not folder.exists()


def test_a_verb_runs_in_the_pod(where: Where) -> None:
    done = subprocess.run(
        plugin(where, "status", "-o", "json"), capture_output=True, text=True, timeout=60, check=False
    )
    asked = ("/v1/meshrepository", "from the pod")  # the answer is none of an operator's, and names what was asked
    assert done.returncode == Exit.OK, done.stderr
    assert all(text in done.stdout for text in asked)


def test_a_terminal_is_carried_there_and_back(where: Where) -> None:
    ours, theirs = pty.openpty()
    shown = bytearray()
    with subprocess.Popen(plugin(where, "explain-nothing"), stdin=theirs, stdout=theirs, stderr=theirs) as refused:
        assert refused.wait(60) == Exit.TROUBLE
    with subprocess.Popen(plugin(where, "get", "nonsense"), stdin=theirs, stdout=theirs, stderr=theirs) as running:
        os.close(theirs)
        with contextlib.suppress(OSError):  # the last one on the other side has closed it
            while data := os.read(ours, 65536):
                shown += data
        assert running.wait(60) == Exit.TROUBLE
    os.close(ours)
    assert b"explain-nothing" in shown
    assert b"Invalid value" in shown or b"nonsense" in shown
    assert b"\r\n" in shown


def test_check_says_what_is_there(where: Where) -> None:
    done = subprocess.run(plugin(where, "check", "-o", "json"), capture_output=True, text=True, timeout=60, check=False)
    facts = {fact["name"]: fact for fact in json.loads(done.stdout)["facts"]}
    assert done.returncode == Exit.NO  # there is no Deployment in this namespace
    assert facts["cluster"]["level"] == facts["kinds"]["level"] == facts["permissions"]["level"] == "ok"
    assert facts["operator"]["level"] == "fail"
    assert facts["operator"]["hint"] == "install it: `kubectl apply -k bootstrap/`"


def test_without_the_right_to_exec_one_learns_which_role_gives_it(
    images: Reach, target: way.Target, tmp_path: Path
) -> None:
    """A ServiceAccount of the namespace: it may do nothing."""
    token = images.kubectl("create", "token", "-n", target.system, "default").strip()
    configuration = way.configuration(Where(kubeconfig=str(images.kubeconfig)))
    configuration.cert_file = configuration.key_file = None
    configuration.api_key = {"authorization": token}
    configuration.api_key_prefix = {"authorization": "Bearer"}
    with pytest.raises(Failed) as refused:
        Stream(replace(target, configuration=configuration), ["true"])
    assert refused.value.message == f"you may not run commands in {target.system}/leader"
    assert "backstay-user" in refused.value.hint
