"""From an entry of the workloads file and its place on this machine to what is run. Starts nothing.

Two launches per instance: the sidecar, told everything by flags (sidecar/settings.py), and the application, told by
environment variables where to listen and which proxy to use.
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from backstay.adapters.processes.addresses import Place
from backstay.adapters.processes.process import Launch
from backstay.adapters.processes.workloads_file import WorkloadEntry
from backstay.core.registry import Workload, qualify

_PRIVATE_PREFIXES: Final = ("BACKSTAY_", "GIT_", "SSH_")
"""The operator's own settings and credentials; no application inherits them."""
_PROXY_VARIABLES: Final = ("http_proxy", "https_proxy", "all_proxy", "no_proxy", "ftp_proxy")


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorEndpoint:
    """Where sidecars find the operator and what they recognize it by at first."""

    url: str
    """`https://127.0.0.1:15012`"""
    trust_file: Path
    """PEM roots."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InstancePlan:
    """One instance that should run, and where."""

    id: str
    workload: Workload
    entry: WorkloadEntry
    place: Place
    folder: Path
    """Its own folder: pid files, logs, token, the sidecar's state."""
    home: Path
    """Folder of the workloads file: working directory of the application and `{dir}`."""

    @property
    def token_file(self) -> Path:
        return self.folder / "token"

    @property
    def data(self) -> Path:
        """Where the application may keep things; made before it starts, kept over restarts."""
        return self.folder / "data"

    @property
    def sidecar_state(self) -> Path:
        return self.folder / "sidecar"


GATEWAY_HOST: Final = "127.0.0.1"
"""Where people look for a port of this machine."""
IDLE: Final = ("{python}", "-c", "import signal; signal.pause()")
"""The application of a gateway, which has none: what supervision and draining hold on to."""


def sidecar_launch(
    plan: InstancePlan, operator: OperatorEndpoint, trust_domain: str, drain: float, environ: Mapping[str, str]
) -> Launch:
    place = plan.place
    flags = {
        "proxy": plan.id,
        "state": str(plan.sidecar_state),
        "operator": operator.url,
        "trust-domain": trust_domain,
        "trust-file": str(operator.trust_file),
        "token-file": str(plan.token_file),
        "engine": plan.workload.engine,
        "host": place.address,
        "inbound": _pairs(place.inbound),
        "app-host": place.address,
        "app-ports": _pairs({port: real for port, real in place.app_ports.items() if port != real}),
        "outbound": str(place.outbound),
        "zone": plan.entry.zone,
        "gateway-host": GATEWAY_HOST if plan.entry.gateway and plan.entry.replicas == 1 else "",
        "explicit": ",".join(
            f"{place.listeners[entry.local_port]}={qualify(entry.host, plan.workload.namespace)}:{entry.port}"
            for entry in plan.entry.listen
        ),
        "admin-host": place.address,
        "health-host": place.address,
        "admin-port": str(place.admin),
        "health-port": str(place.admin),
        "prometheus-port": str(place.admin),
        "drain": f"{drain:g}",
    }
    given = tuple(f"--{name}={value}" for name, value in flags.items() if value)
    return Launch(
        argv=(sys.executable, "-m", "backstay.sidecar", *given),
        env={"PYTHONUNBUFFERED": "1"},
        inherited=inherited(environ),
        cwd=plan.folder,
        log_file=plan.folder / "sidecar.log",
        pid_file=plan.folder / "sidecar.pid",
    )


def app_launch(plan: InstancePlan, environ: Mapping[str, str]) -> Launch:
    return Launch(
        argv=tuple(_filled(argument, plan) for argument in plan.entry.command or IDLE),
        env=app_environment(plan),
        inherited=inherited(environ),
        cwd=plan.home,
        log_file=plan.folder / "app.log",
        pid_file=plan.folder / "app.pid",
    )


def app_environment(plan: InstancePlan) -> dict[str, str]:
    """What the application is told. The entry's own `env` wins, except over where it has to listen."""
    place = plan.place
    labels = ",".join(f"{key}={value}" for key, value in sorted(plan.entry.labels.items()))
    told = {
        "PYTHONUNBUFFERED": "1",
        "BACKSTAY_INSTANCE": plan.id,
        "BACKSTAY_WORKLOAD": plan.workload.name,
        "BACKSTAY_NAMESPACE": plan.workload.namespace,
        "BACKSTAY_LABELS": labels,
    }
    if plan.entry.sidecar:
        proxy = f"http://{place.address}:{place.outbound}"
        told |= {"HTTP_PROXY": proxy, "http_proxy": proxy, "NO_PROXY": "", "no_proxy": ""}
    own = {name: _filled(_text(value), plan) for name, value in plan.entry.env.items()}
    where = {"HOST": place.address, **{f"PORT_{port}": str(real) for port, real in place.app_ports.items()}}
    if place.app_ports:
        where["PORT"] = str(first_port(plan.entry, place))
    for entry in plan.entry.listen:
        name = entry.host.upper().replace("-", "_").replace(".", "_")
        where[f"LISTEN_{name}_{entry.port}"] = f"{place.address}:{place.listeners[entry.local_port]}"
    return told | own | where


def first_port(entry: WorkloadEntry, place: Place) -> int:
    """The real port of the port that the entry names first; without any, of the first port of its first service."""
    if entry.ports:
        first = entry.ports[0]
        return place.app_ports[first if isinstance(first, int) else first.port]
    return next(iter(place.app_ports.values()))


def inherited(environ: Mapping[str, str]) -> dict[str, str]:
    """The operator's environment without proxies (they would lead around the mesh) and without its secrets."""
    return {
        name: value
        for name, value in environ.items()
        if name.lower() not in _PROXY_VARIABLES and not name.startswith(_PRIVATE_PREFIXES)
    }


def _filled(text: str, plan: InstancePlan) -> str:
    """Placeholders by plain replacement: other braces (JSON in an argument) stay what they are."""
    values = {
        "{python}": sys.executable,
        "{dir}": str(plan.home),
        "{data}": str(plan.data),
        "{host}": plan.place.address,
    }
    if plan.place.app_ports:
        values["{port}"] = str(first_port(plan.entry, plan.place))
    for name, value in values.items():
        text = text.replace(name, value)
    return text


def _text(value: str | float) -> str:
    """As YAML shows it: booleans in lower case."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _pairs(ports: Mapping[int, int]) -> str:
    return ",".join(f"{port}={real}" for port, real in ports.items())
