"""Settings of the operator on one machine: from flags over environment (`BACKSTAY_*`) to these defaults."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

MOST_SAMPLES = 100
"""Requests a second that a sidecar may be made to tell of: 10 KB of a report, and a thousand of them are a core here."""
STATE_FILE = "state.db"
"""The operator's SQLite file in its state folder."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceSettings:
    """Where the mesh repository is and how to get at it."""

    url: str
    """A folder, or an https or ssh URL."""
    branch: str = ""
    tag: str = ""
    semver: str = ""
    commit: str = ""
    path: str = ""
    """Folder inside the repository that holds the documents; empty is all of it."""
    interval: float = 30.0
    """Seconds between looks at a remote. Half a minute keeps a bad push short without annoying a hosted forge."""
    username: str = ""
    password_file: Path | None = None
    bearer_file: Path | None = None
    ca_file: Path | None = None
    ssh_identity: Path | None = None
    ssh_known_hosts: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalSettings:
    """`backstay up`."""

    source: SourceSettings
    workloads: Path
    state_dir: Path
    mesh: str = "default"
    """Name of the mesh in status."""
    trust_domain: str = "backstay.local"
    """Trust domain of the CA. The Mesh document must say the same."""
    host: str = "127.0.0.1"
    control_port: int = 0
    """Where sidecars connect; 0 takes a free port, kept in the state folder for the next start. 15012 is the habit."""
    webhook_port: int = 0
    """Where forges knock; 0: nowhere."""
    webhook_secret_file: Path | None = None
    notify_url: str = ""
    """Where events are POSTed as JSON; empty: nowhere."""
    notify_secret_file: Path | None = None
    """Signs those posts (`X-Signature: sha256=<HMAC>`)."""
    commit_status: tuple[str, str, str] | None = None
    """Where commit statuses follow the rollout: (`github`, `gitea` or `gitlab`, its API's URL, `owner/name`)."""
    commit_status_token_file: Path | None = None
    reviews: bool = False
    """Answer pull requests there, by comment and status."""
    traffic_samples: int = 5
    """Requests a second that each sidecar tells of, for reviews; 0: none."""
    leave_running: bool = False
    """Leave sidecars and services running when the operator ends; the next start adopts them."""
    environment: Mapping[str, str] = field(default_factory=dict)


LOCAL_POLL_INTERVAL = 0.1
"""Seconds between looks at a folder of this machine: a look costs a few stat calls while nothing has moved."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KubernetesSettings:
    """`backstay operator`."""

    pod: str
    """Name of this replica."""
    namespace: str = "backstay-system"
    """The operator's own: its state, its Lease and its Secrets are here."""
    name: str = "backstay-operator"
    """Of its Service and of its Lease."""
    operator_class: str = ""
    """Only repositories and namespaces labelled `backstay.dev/operator-class` with it are this operator's; empty: only
    those without the label. Two installations in one cluster leave each other alone."""
    trust_domain: str = "backstay.local"
    sidecar_image: str = "backstay-sidecar:dev"
    cluster_domain: str = "cluster.local"
    kubeconfig: Path | None = None
    """Outside a cluster; else the pod's own account is used."""
    context: str = ""
    cache_dir: Path = Path("/var/lib/backstay")
    """Mirrors of repositories: made again where they are lost."""
    run_dir: Path = Path("/run/backstay")
    """The socket of each mesh, as `<namespace>/<name>/`, and files of credentials: best in memory."""
    host: str = "0.0.0.0"  # noqa: S104 - the API server and the proxies come from outside the pod
    control_port: int = 15012
    injection_port: int = 15017
    metrics_port: int = 15014
    hooks_port: int = 15018
    traffic_samples: int = 5
    """Requests a second that each sidecar tells of, for reviews; 0: none."""
    operator_url: str = ""
    """Where proxies find the operator; empty: its Service."""

    @property
    def service_host(self) -> str:
        return f"{self.name}.{self.namespace}.svc"

    @property
    def control_url(self) -> str:
        return self.operator_url or f"https://{self.service_host}:{self.control_port}"
