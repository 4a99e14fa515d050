"""The command line of every part and the files it reads. Values only; `lifecycle` starts them.

Each flag that is not a plain address or file says why it is here: most are what makes a whole node fit a machine that
already is a container or a small virtual machine.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cluster.layout import (
    CGROUP,
    NODE,
    PAUSE_IMAGE,
    POD_RANGE,
    SERVICE_DNS,
    SERVICE_RANGE,
    Layout,
)

CNI_PROGRAMS: Final = Path("/usr/lib/cni")
CONTROL_PLANE: Final = ("etcd", "kube-apiserver", "kube-controller-manager")
NODE_PARTS: Final = ("containerd", "kubelet", "kube-scheduler", "kube-proxy")
MAX_PODS: Final = 250
"""Kubernetes's own 110 is too few for a test that churns a hundred pods beside everything else; OpenShift uses 250."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One long-running program: its name, and what it is started with."""

    name: str
    command: tuple[str, ...]


def part(name: str, layout: Layout, kubernetes: Path) -> Part:
    """How this part is started."""
    if name == "containerd":
        return Part(name=name, command=("containerd", "--config", str(layout.folder / "containerd.toml")))
    flags = {
        "etcd": _etcd,
        "kube-apiserver": _apiserver,
        "kube-controller-manager": _controllers,
        "kube-scheduler": _scheduler,
        "kube-proxy": _proxy,
        "kubelet": _kubelet,
    }[name](layout)
    return Part(name=name, command=(str(kubernetes), name, *(f"--{flag}={value}" for flag, value in flags.items())))


def _etcd(layout: Layout) -> dict[str, object]:
    # Loopback without TLS: in namespaces of its own only root reaches it, elsewhere it holds nothing but tests.
    client, peer = f"http://127.0.0.1:{layout.etcd_port}", f"http://127.0.0.1:{layout.peer_port}"
    return {
        "name": "test",
        "data-dir": layout.folder / "etcd",
        "listen-client-urls": client,
        "advertise-client-urls": client,
        "listen-peer-urls": peer,
        "initial-advertise-peer-urls": peer,
        "initial-cluster": f"test={peer}",
        "unsafe-no-fsync": "true",  # nothing here outlives the machine; CI disks are slow
        "log-level": "warn",
    }


def _apiserver(layout: Layout) -> dict[str, object]:
    pki = layout.pki
    flags: dict[str, object] = {
        "etcd-servers": f"http://127.0.0.1:{layout.etcd_port}",
        "secure-port": layout.api_port,
        "advertise-address": layout.address,
        "service-cluster-ip-range": SERVICE_RANGE,
        "tls-cert-file": pki / "apiserver.crt",
        "tls-private-key-file": pki / "apiserver.key",
        "client-ca-file": pki / "ca.crt",
        "kubelet-client-certificate": pki / "apiserver-kubelet.crt",
        "kubelet-client-key": pki / "apiserver-kubelet.key",
        "kubelet-preferred-address-types": "InternalIP",  # else exec and logs look the node's name up
        "service-account-issuer": "https://kubernetes.default.svc.cluster.local",
        "service-account-key-file": pki / "tokens.pub",
        "service-account-signing-key-file": pki / "tokens.key",
        "authorization-mode": "Node,RBAC",
        "enable-admission-plugins": "NodeRestriction",
        "allow-privileged": "true",
        "profiling": "false",
        "shutdown-delay-duration": "0s",
    }
    if not layout.isolated:
        # Loopback may not stand in the endpoints of the Service "kubernetes"; nobody needs it there without pods.
        flags |= {"bind-address": layout.address, "endpoint-reconciler-type": "none"}
    return flags


def _controllers(layout: Layout) -> dict[str, object]:
    pki = layout.pki
    return {
        "kubeconfig": layout.user("kube-controller-manager"),
        "bind-address": "127.0.0.1",
        "secure-port": layout.controllers_port,
        "service-account-private-key-file": pki / "tokens.key",
        "root-ca-file": pki / "ca.crt",
        "cluster-signing-cert-file": pki / "ca.crt",
        "cluster-signing-key-file": pki / "ca.key",
        "use-service-account-credentials": "true",
        "leader-elect": "false",
        "profiling": "false",
    }


def _scheduler(layout: Layout) -> dict[str, object]:
    return {
        "kubeconfig": layout.user("kube-scheduler"),
        "bind-address": "127.0.0.1",
        "leader-elect": "false",
        "profiling": "false",
    }


def _proxy(layout: Layout) -> dict[str, object]:
    return {
        "kubeconfig": layout.user("kube-proxy"),
        "proxy-mode": "iptables",
        "cluster-cidr": POD_RANGE,
        "hostname-override": NODE,
        "conntrack-max-per-core": 0,  # the limit is the machine's, not this namespace's to set
        "bind-address": layout.address,
    }


def _kubelet(layout: Layout) -> dict[str, object]:
    return {
        "config": layout.folder / "kubelet.json",
        "kubeconfig": layout.user("kubelet"),
        "hostname-override": NODE,
        "node-ip": layout.address,
        "housekeeping-interval": "30s",  # cAdvisor's look at every container costs a tenth of a core at 10 s
    }


# --- files the node's parts read -----------------------------------------------------------------------------------


def containerd_config(layout: Layout, snapshotter: str) -> str:
    return f"""version = 2
root = "{layout.folder}/containerd"
state = "{layout.folder}/containerd-state"
disabled_plugins = ["io.containerd.internal.v1.opt"]

[grpc]
address = "{layout.containerd_socket}"

[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{PAUSE_IMAGE}"
# Without CAP_SYS_RESOURCE a score may not be lowered, and runc dies of trying.
restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{CNI_PROGRAMS}"
conf_dir = "{layout.folder}/cni"
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "{snapshotter}"
"""


def cni_config(layout: Layout) -> str:
    """Pods by point-to-point links.

    A bridge would need br_netfilter for answers between two pods behind one Service to pass the address translation.
    """
    addresses = {
        "type": "host-local",
        "ranges": [[{"subnet": POD_RANGE}]],
        "routes": [{"dst": "0.0.0.0/0"}],
        "dataDir": str(layout.folder / "cni-addresses"),
    }
    plugins = [
        {"type": "ptp", "ipMasq": False, "ipam": addresses},
        {"type": "portmap", "capabilities": {"portMappings": True}},
    ]
    return json.dumps({"cniVersion": "0.4.0", "name": "pods", "plugins": plugins}, indent=1)


def kubelet_config(layout: Layout) -> str:
    config: dict[str, Any] = {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {
            "x509": {"clientCAFile": str(layout.pki / "ca.crt")},
            "webhook": {"enabled": True},
            "anonymous": {"enabled": False},
        },
        "authorization": {"mode": "Webhook"},
        "containerRuntimeEndpoint": f"unix://{layout.containerd_socket}",
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": f"/{CGROUP}",
        "failCgroupV1": False,
        "failSwapOn": False,
        "clusterDNS": [SERVICE_DNS],
        "clusterDomain": "cluster.local",
        "resolvConf": str(layout.folder / "resolv.conf"),
        "podLogsDir": str(layout.folder / "pods"),
        "maxPods": MAX_PODS,
        "serializeImagePulls": False,
        "registryPullQPS": 0,
        "syncFrequency": "10s",  # how late a changed ConfigMap or Secret may reach a volume
        # The disk is the machine's and often nearly full: no pod should be evicted for what is not the cluster's.
        "evictionHard": {"imagefs.available": "0%", "nodefs.available": "0%", "nodefs.inodesFree": "0%"},
        "imageGCHighThresholdPercent": 100,
    }
    return json.dumps(config, indent=1)
