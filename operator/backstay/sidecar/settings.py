"""What a sidecar is told at its start: flags, each with an environment variable `BACKSTAY_SIDECAR_<FLAG>` behind it.

The platform sets these (local processes, the injection webhook); nothing here ever comes from a config. argparse, not
click: a sidecar starts with every pod, and the flags cost 13 ms instead of 35.
"""

import argparse
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from backstay.sidecar.engine import Address, ExplicitListener, Redirected

ENVIRONMENT_PREFIX: Final = "BACKSTAY_SIDECAR_"
MAX_PROCESSES: Final = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    proxy: str
    """Instance id, equal to the registry's."""
    address: Address
    state: Path
    """Folder of identity, configs, leases; private to this proxy and kept over restarts."""
    operator_host: str = ""
    operator_port: int = 0
    """0: no operator; then `config` names a file."""
    trust_domain: str = "backstay.local"
    """The operator must show `spiffe://<trust domain>/backstay/operator`."""
    token_file: Path | None = None
    """Holds the enrolment token; read anew at each enrolment, so the platform may replace it."""
    trust_file: Path | None = None
    """PEM roots to recognize the operator by before a first trust bundle has arrived; read anew at each connection."""
    config: Path | None = None
    """Standalone: serve this file, no operator; SIGHUP reads it again."""
    engine: str = "python"
    concurrency: int = 1
    """Processes that share the traffic; 0 is one for each core. Of more than one each costs 18 MB (PSS), and so does their parent."""
    admin_host: str = "127.0.0.1"
    admin_port: int = 15000
    """/config_dump, /clusters, /stats, /logging, /drain; 0 is off. Ports as in Envoy and Istio sidecars. Equal ports share one listener."""
    health_host: str = "127.0.0.1"
    """Kubernetes' kubelet asks from outside the pod's loopback: the injector sets the pod's address here."""
    health_port: int = 15021
    prometheus_port: int = 15090
    """/stats/prometheus and /metrics, at `health_host`."""
    app_probes: str = ""
    """JSON as probes.py reads it: pages of the health port that ask the application."""
    drain_s: float = 30.0
    """Longest wait for open requests after SIGTERM; the default of Kubernetes' grace period."""
    report_s: float = 1.0
    """Seconds between reports; the verdict counts in seconds."""
    log_level: str = "info"


def parse(arguments: Sequence[str], environment: Mapping[str, str] = os.environ) -> Settings:
    """Settings from flags and environment; flags win. Exits with status 2 and a sentence for what cannot be read."""
    parser = _parser(environment)
    found = parser.parse_args(arguments)
    if not found.operator and not found.config:
        parser.error("either --operator or --config is needed: nothing else says what to serve")
    if found.operator and not (found.proxy and found.state):
        parser.error(
            "with --operator, --proxy and --state are needed: who this is, and where it keeps what it was told"
        )
    try:
        return _settings(found)
    except ValueError as error:
        parser.error(str(error))


def _parser(environment: Mapping[str, str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="backstay sidecar", description="One proxy of the mesh, beside one workload instance.", allow_abbrev=False
    )

    def flag(name: str, help_text: str, default: str = "") -> None:
        variable = ENVIRONMENT_PREFIX + name.upper().replace("-", "_")
        parser.add_argument(f"--{name}", default=environment.get(variable, default), help=f"{help_text} [{variable}]")

    flag("proxy", "id of this instance; not needed with --config")
    flag("state", "folder for identity and configs; not needed with --config")
    flag("operator", "https://HOST:PORT of the operator")
    flag("trust-domain", "the mesh's SPIFFE trust domain", "backstay.local")
    flag("token-file", "file with the enrolment token")
    flag("trust-file", "PEM roots to recognize the operator by at first")
    flag("config", "serve this config file, without an operator")
    flag("engine", "what does the traffic: python or envoy", "python")
    flag("concurrency", "processes that share the traffic; 0 is one for each core", "1")
    flag("host", "address for mesh traffic", "127.0.0.1")
    flag("inbound", "APP_PORT=LISTEN_PORT, comma separated: ports of the application and where the proxy takes them")
    flag("app-host", "where the application listens", "127.0.0.1")
    flag("app-ports", "APP_PORT=REAL_PORT, comma separated: where the application really listens, if not there")
    flag("outbound", "HTTP proxy port for the application", "15001")
    flag(
        "intercept", "true, or OUTBOUND_PORT,INBOUND_PORT: where the kernel redirects the application's connections to"
    )
    flag("zone", "zone of this instance, for backends that prefer the caller's own")
    flag("gateway-host", "where a gateway's ports are opened, if not at --host")
    flag("explicit", "LISTEN_PORT=HOST:PORT, comma separated: one host without proxy settings")
    flag("admin-host", "address of the admin port", "127.0.0.1")
    flag("admin-port", "admin port, 0 is off", "15000")
    flag("health-host", "address of the health and Prometheus ports", "127.0.0.1")
    flag("health-port", "health port, 0 is off", "15021")
    flag("prometheus-port", "Prometheus port, 0 is off", "15090")
    flag("app-probes", "JSON: path on the health port -> what to ask the application when it is asked")
    flag("drain", "seconds to finish open requests after SIGTERM", "30")
    flag("report-interval", "seconds between reports", "1")
    flag("log-level", "debug, info, warning or error", "info")
    return parser


def _settings(found: argparse.Namespace) -> Settings:
    host, port = operator_address(found.operator) if found.operator else ("", 0)
    redirected = redirected_ports(found.intercept)
    return Settings(
        proxy=found.proxy,
        state=Path(found.state),
        address=Address(
            host=found.host,
            inbound=inbound_ports(found.inbound),
            app_host=found.app_host,
            app_ports=inbound_ports(found.app_ports, "--app-ports"),
            outbound=_proxy_port(_port(found.outbound, "--outbound"), redirected),
            explicit=explicit_listeners(found.explicit),
            gateway_host=found.gateway_host,
            zone=found.zone,
            redirected=redirected,
        ),
        operator_host=host,
        operator_port=port,
        trust_domain=found.trust_domain,
        token_file=Path(found.token_file) if found.token_file else None,
        trust_file=Path(found.trust_file) if found.trust_file else None,
        config=Path(found.config) if found.config else None,
        engine=found.engine,
        concurrency=_processes(found.concurrency),
        admin_host=_loopback(found.admin_host),
        admin_port=_port(found.admin_port, "--admin-port"),
        health_host=found.health_host,
        health_port=_port(found.health_port, "--health-port"),
        prometheus_port=_port(found.prometheus_port, "--prometheus-port"),
        app_probes=found.app_probes,
        drain_s=_seconds(found.drain, "--drain"),
        report_s=_seconds(found.report_interval, "--report-interval"),
        log_level=found.log_level,
    )


def operator_address(url: str) -> tuple[str, int]:
    """Host and port of `https://host:port`. Raises ValueError."""
    parts = urlsplit(url)
    if parts.scheme != "https" or not parts.hostname or parts.port is None or parts.path not in ("", "/"):
        raise ValueError(f"--operator: {url!r} is not of the form https://HOST:PORT")
    return parts.hostname, parts.port


def inbound_ports(text: str, flag: str = "--inbound") -> dict[int, int]:
    """`5000=15106,5001=15107` as application port -> listening port; a bare `5000` means both. Raises ValueError."""
    ports: dict[int, int] = {}
    for item in filter(None, (part.strip() for part in text.split(","))):
        application, _, listen = item.partition("=")
        ports[_port(application, flag)] = _port(listen or application, flag)
    return ports


_NO, _YES = ("", "false", "no", "0"), ("true", "yes", "1")


def redirected_ports(text: str) -> Redirected | None:
    """`true`, or `15001,15006` as outbound and inbound port; None where nothing is redirected. Raises ValueError."""
    if text.lower() in _NO:
        return None
    if text.lower() in _YES:
        return Redirected()
    outbound, comma, inbound = text.partition(",")
    if not comma:
        raise ValueError(f"--intercept: {text!r} is neither true nor of the form OUTBOUND_PORT,INBOUND_PORT")
    return Redirected(outbound=_port(outbound.strip(), "--intercept"), inbound=_port(inbound.strip(), "--intercept"))


def _proxy_port(port: int, redirected: Redirected | None) -> int:
    """The HTTP proxy's port; none where the application's connections come by themselves to the same port."""
    return 0 if redirected is not None and port == redirected.outbound else port


def explicit_listeners(text: str) -> tuple[ExplicitListener, ...]:
    """`15101=sa-logic.shop:80,...`. Raises ValueError."""
    listeners: list[ExplicitListener] = []
    for item in filter(None, (part.strip() for part in text.split(","))):
        listen, _, target = item.partition("=")
        host, _, port = target.rpartition(":")
        if not host:
            raise ValueError(f"--explicit: {item!r} is not of the form LISTEN_PORT=HOST:PORT")
        listeners.append(
            ExplicitListener(listen=_port(listen, "--explicit"), host=host, port=_port(port, "--explicit"))
        )
    return tuple(listeners)


def _processes(text: str) -> int:
    if not text.isdecimal() or int(text) > MAX_PROCESSES:
        raise ValueError(f"--concurrency: {text!r} is not a number of processes from 0 to {MAX_PROCESSES}")
    return int(text)


def _loopback(host: str) -> str:
    """Whoever reaches the admin port may end this proxy. Raises ValueError."""
    try:
        is_loopback = host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        is_loopback = False
    if not is_loopback:
        raise ValueError(f"--admin-host: {host!r} is not an address of the loopback")
    return host


def _port(text: str, flag: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise ValueError(f"{flag}: {text!r} is not a port number")
    return int(text)


def _seconds(text: str, flag: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 86400:
        raise ValueError(f"{flag}: {text!r} is not a number of seconds")
    return value
