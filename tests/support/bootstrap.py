"""bootstrap/ as Kubernetes objects: by kustomize, by Helm, and moved into a namespace of a test's own."""

import copy
import json
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

import yaml
from kubernetes.client import Configuration
from kubernetes.config import load_kube_config

from backstay.adapters.kubernetes.client import ApiClient, Credentials
from cluster import build
from cluster.reach import Reach

ROOT: Final = Path(__file__).resolve().parents[2]
BOOTSTRAP: Final = ROOT / "bootstrap"
SYSTEM: Final = "backstay-system"
Object = dict[str, Any]


def parsed(text: str) -> list[Object]:
    return [found for found in yaml.safe_load_all(text) if found]


def kustomized(reach: Reach, folder: Path = BOOTSTRAP) -> list[Object]:
    return parsed(reach.kubectl("kustomize", str(folder)))


def helm() -> Path | None:
    """The Helm built with the test cluster; None where it is not built."""
    program = build.binary("helm")
    return program if program.exists() else None


def templated(program: Path, *arguments: str) -> list[Object]:
    """What the chart makes; a failure raises with what Helm said."""
    command = (str(program), "template", "backstay", str(BOOTSTRAP / "helm"), *arguments)
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    if done.returncode:
        raise AssertionError(done.stderr.strip())
    return parsed(done.stdout)


def moved(objects: Iterable[Object], namespace: str) -> list[Object]:
    """The same, with the operator in that namespace, and cluster-wide objects under a name of their own."""
    text = json.dumps(list(objects)).replace(f'"{SYSTEM}"', json.dumps(namespace))
    found: list[Object] = json.loads(text)
    for each in found:
        if each["kind"] in ("ClusterRole", "ClusterRoleBinding", "PriorityClass", "MutatingWebhookConfiguration"):
            each["metadata"]["name"] += f"-{namespace}"
        if each["kind"] == "ClusterRoleBinding":
            each["roleRef"]["name"] += f"-{namespace}"
    return found


def of_kinds(objects: Iterable[Object], *kinds: str) -> list[Object]:
    return [copy.deepcopy(each) for each in objects if each["kind"] in kinds]


def as_json(objects: Sequence[Object]) -> str:
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": list(objects)})


def with_token(reach: Reach, token: str) -> ApiClient:
    """The administrator's way to the server, somebody else's token."""
    found = Configuration()
    load_kube_config(config_file=str(reach.kubeconfig), client_configuration=found)  # type: ignore[no-untyped-call] # half typed
    found.cert_file = found.key_file = None
    found.api_key = {"authorization": token}
    found.api_key_prefix = {"authorization": "Bearer"}
    return ApiClient(Credentials(found))
