"""Where everything of the cluster is: folders, addresses, ports. Values only.

All addresses are from 198.18.0.0/15, which RFC 2544 sets aside for tests inside one laboratory: no network that a
machine is really connected to uses them.
"""

import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Final

NODE: Final = "node-1"
HOST_ADDRESS: Final = "198.18.0.1"
NODE_ADDRESS: Final = "198.18.0.2"
LINK_PREFIX: Final = 30
POD_RANGE: Final = "198.18.16.0/20"
SERVICE_RANGE: Final = "198.19.0.0/16"
SERVICE_API: Final = "198.19.0.1"
SERVICE_DNS: Final = "198.19.0.10"
HOST_DEVICE: Final = "backstay0"
NODE_DEVICE: Final = "node0"
CGROUP: Final = "backstay-cluster"
PAUSE_IMAGE: Final = "docker.io/library/backstay-pause:test"
COREDNS_IMAGE: Final = "docker.io/library/backstay-coredns:test"


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """One cluster's places. `isolated` says that it has namespaces of its own, which takes root."""

    folder: Path
    address: str
    api_port: int
    etcd_port: int
    peer_port: int
    controllers_port: int
    isolated: bool

    @property
    def pki(self) -> Path:
        return self.folder / "pki"

    @property
    def logs(self) -> Path:
        return self.folder / "logs"

    @property
    def containerd_socket(self) -> Path:
        return self.folder / "containerd.sock"

    @property
    def kubeconfig(self) -> Path:
        return self.user("admin")

    @property
    def api(self) -> str:
        return f"https://{self.address}:{self.api_port}"

    def user(self, name: str) -> Path:
        return self.folder / f"{name}.kubeconfig"


def isolated(folder: Path) -> Layout:
    """A machine of its own: the ports that everybody knows."""
    return Layout(
        folder=folder,
        address=NODE_ADDRESS,
        api_port=6443,
        etcd_port=2379,
        peer_port=2380,
        controllers_port=10257,
        isolated=True,
    )


def shared(folder: Path) -> Layout:
    """Among the machine's other programs: loopback, and ports that are free now."""
    api, etcd, peer, controllers = _free_ports(4)
    return Layout(
        folder=folder,
        address="127.0.0.1",
        api_port=api,
        etcd_port=etcd,
        peer_port=peer,
        controllers_port=controllers,
        isolated=False,
    )


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [int(each.getsockname()[1]) for each in sockets]
    for each in sockets:
        each.close()
    return ports
