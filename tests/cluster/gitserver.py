"""A git server in the cluster for tests and the demo, and a clone of one of its repositories to push from.

The operator reads it over https, as it would any forge. Pushing goes through `kubectl exec`, so that it works wherever
kubectl does, with no way in from outside.
"""

import json
import os
import shlex
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cluster import pki
from cluster.reach import Reach, kubectl_program

SCRIPT: Final = Path(__file__).resolve().parent / "git" / "server.py"
IMAGE: Final = "backstay-operator:dev"
"""Any image with git and Python; this one has to be in the cluster anyway."""
FOLDER: Final = "/repositories"
READY_S: Final = 120
REACH: Final = """
import socket, sys, time
last = time.monotonic() + float(sys.argv[2])
while True:
    try:
        sys.exit(socket.create_connection((sys.argv[1], 443), timeout=5).close())
    except OSError:
        if time.monotonic() > last:
            raise
        time.sleep(0.1)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class GitServer:
    """A running one. Its namespace is the caller's to make and to delete."""

    reach: Reach
    namespace: str
    ca: str
    """The certificate that whoever reads from it has to trust, PEM."""
    password: str

    def url(self, repository: str) -> str:
        return f"https://git.{self.namespace}.svc.cluster.local/{repository}.git"

    def stop(self) -> None:
        """As a forge that cannot be reached: its name has no address behind it. The repositories stay."""
        self._select("nobody")

    def start(self) -> None:
        self._select("git")

    def _select(self, app: str) -> None:
        patch = json.dumps({"spec": {"selector": {"app": app}}})
        self.reach.kubectl("patch", "-n", self.namespace, "service/git", "--type=merge", "-p", patch)


@dataclass(frozen=True, slots=True, kw_only=True)
class Clone:
    """What a person has on their disk: files, and a remote to push to."""

    folder: Path
    server: GitServer
    repository: str

    def commit(self, message: str) -> str:
        """Commit everything and push it; returns the commit."""
        self.git("add", "--all")
        self.git("commit", "--quiet", "--no-gpg-sign", "--allow-empty", "-m", message)
        self.git("push", "--quiet", "--force", "origin", "HEAD:main")
        return self.git("rev-parse", "HEAD")

    def write(self, file: str, text: str) -> None:
        path = self.folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")

    def edit(self, file: str, old: str, new: str) -> None:
        """Replace the first such text in this file, which has to be there."""
        text = (self.folder / file).read_text(encoding="utf-8")
        assert old in text, f"{file} does not contain {old!r}"
        self.write(file, text.replace(old, new, 1))

    def git(self, *arguments: str) -> str:
        environment = {
            **os.environ,
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_CONFIG_GLOBAL": os.devnull,
            "GIT_TERMINAL_PROMPT": "0",
            "GIT_AUTHOR_NAME": "A Developer",
            "GIT_AUTHOR_EMAIL": "developer@example.com",
            "GIT_COMMITTER_NAME": "A Developer",
            "GIT_COMMITTER_EMAIL": "developer@example.com",
        }
        done = subprocess.run(
            ("git", "-c", "protocol.ext.allow=always", *arguments),
            cwd=self.folder,
            check=False,
            capture_output=True,
            text=True,
            timeout=120,
            env=environment,
        )
        assert done.returncode == 0, f"git {' '.join(arguments)}: {done.stderr.strip()}"
        return done.stdout.strip()


def deploy(reach: Reach, namespace: str, *, password: str = "") -> GitServer:
    """Start the server in this namespace and wait until it answers."""
    ca, certificate, key = pki.serving((f"git.{namespace}.svc", f"git.{namespace}.svc.cluster.local"))
    for document in _objects(certificate, key, password):
        reach.kubectl("apply", "-n", namespace, "-f", "-", stdin=json.dumps(document))
    _wait_ready(reach, namespace)
    server = GitServer(reach=reach, namespace=namespace, ca=ca, password=password)
    _wait_reached(server)
    return server


def clone(server: GitServer, repository: str, folder: Path, content: Path) -> Clone:
    """A new repository on the server, and a clone of it that holds a copy of these files, not yet committed."""
    remote = f"{FOLDER}/{repository}.git"
    _exec(server, "git", "init", "--quiet", "--bare", "--initial-branch=main", remote)
    shutil.copytree(content, folder)
    made = Clone(folder=folder, server=server, repository=repository)
    made.git("init", "--quiet", "--initial-branch=main")
    made.git("remote", "add", "origin", f"ext::{_tunnel(server)} %S {remote}")
    return made


def _exec(server: GitServer, *command: str) -> None:
    server.reach.kubectl("exec", "-n", server.namespace, "deployment/git", "--", *command)


def _tunnel(server: GitServer) -> str:
    """git's ext transport: what it starts speaks the protocol on its standard input and output. %S is git's verb."""
    kubectl = (*kubectl_program(), "--kubeconfig", str(server.reach.kubeconfig))
    return shlex.join((*kubectl, "exec", "-i", "-n", server.namespace, "deployment/git", "--"))


def _wait_ready(reach: Reach, namespace: str) -> None:
    limit = f"--timeout={READY_S}s"
    reach.kubectl("rollout", "status", "-n", namespace, "deployment/git", limit, timeout=READY_S + 10)


def _wait_reached(server: GitServer) -> None:
    """A ready pod is behind its Service only when the node has heard of it: wait until a connection by name succeeds."""
    _exec(server, "python", "-c", REACH, f"git.{server.namespace}.svc.cluster.local", str(READY_S))


def _objects(certificate: str, key: str, password: str) -> tuple[Mapping[str, Any], ...]:
    volumes = [
        {"name": "script", "configMap": {"name": "git-server"}},
        {"name": "tls", "secret": {"secretName": "git-tls"}},
        {"name": "repositories", "emptyDir": {}},
    ]
    mounts = [
        {"name": "script", "mountPath": "/server", "readOnly": True},
        {"name": "tls", "mountPath": "/tls", "readOnly": True},
        {"name": "repositories", "mountPath": FOLDER},
    ]
    container = {
        "name": "git",
        "image": IMAGE,
        "imagePullPolicy": "IfNotPresent",
        "command": ["python", "/server/server.py"],
        "env": [
            {"name": "REPOSITORIES", "value": FOLDER},
            {"name": "CERTIFICATE", "value": "/tls/tls.crt"},
            {"name": "KEY", "value": "/tls/tls.key"},
            {"name": "PASSWORD", "value": password},
        ],
        "ports": [{"containerPort": 8443}],
        "readinessProbe": {
            "httpGet": {"path": "/healthz", "port": 8443, "scheme": "HTTPS"},
            "periodSeconds": 1,
            "timeoutSeconds": 5,
        },
        "volumeMounts": mounts,
    }
    labels = {"app": "git"}
    template = {
        "metadata": {"labels": labels, "annotations": {"backstay.dev/inject": "disabled"}},
        "spec": {
            "containers": [container],
            "volumes": volumes,
            "securityContext": {"runAsUser": 65532, "fsGroup": 65532},
            "terminationGracePeriodSeconds": 1,
            "automountServiceAccountToken": False,
        },
    }
    return (
        _object("v1", "ConfigMap", "git-server", data={"server.py": SCRIPT.read_text(encoding="utf-8")}),
        _object(
            "v1", "Secret", "git-tls", type="kubernetes.io/tls", stringData={"tls.crt": certificate, "tls.key": key}
        ),
        _object(
            "apps/v1",
            "Deployment",
            "git",
            spec={"selector": {"matchLabels": labels}, "template": template, "strategy": {"type": "Recreate"}},
        ),
        _object("v1", "Service", "git", spec={"selector": labels, "ports": [{"port": 443, "targetPort": 8443}]}),
    )


def _object(version: str, kind: str, name: str, **rest: object) -> dict[str, Any]:
    return {"apiVersion": version, "kind": kind, "metadata": {"name": name}, **rest}
