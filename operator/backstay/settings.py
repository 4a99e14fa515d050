"""Settings of the operator on one machine: from flags over environment (`BACKSTAY_*`) to these defaults."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

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
    leave_running: bool = False
    """Leave sidecars and services running when the operator ends; the next start adopts them."""
    environment: Mapping[str, str] = field(default_factory=dict)


LOCAL_POLL_INTERVAL = 0.2
"""Seconds between looks at a folder of this machine: a look costs a few stat calls while nothing has moved."""
