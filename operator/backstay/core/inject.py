"""Whether a pod gets a proxy, and the JSON patch that gives it one. Pure: the webhook and `backstay inject` call it.

Order in an injected pod: the redirect (the only container with NET_ADMIN), the proxy as a native sidecar, then the pod's
own init containers, which thus have network and identity already. Where a cluster has no native sidecars the proxy is
the first ordinary container and the redirect the last init container.

Rule: a pod is injected whole, left alone, or refused with a sentence; what somebody else injects is never touched.
"""

import enum
import ipaddress
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from backstay import __version__

PROXY_CONTAINER: Final = "backstay-proxy"
REDIRECT_CONTAINER: Final = "backstay-redirect"
PROXY_UID: Final = 1337  # as Istio: what people have excluded from their own firewall rules already
OUTBOUND_PORT: Final = 15001
INBOUND_PORT: Final = 15006
ADMIN_PORT: Final = 15000
HEALTH_PORT: Final = 15021
PROMETHEUS_PORT: Final = 15090

INJECT: Final = "backstay.dev/inject"
"""Label of a namespace or a pod, `enabled` or `disabled`; the pod's wins."""
INJECTED: Final = "backstay.dev/injected"
STATUS: Final = "backstay.dev/status"

TOKEN_VOLUME: Final = "backstay-token"  # noqa: S105 - a name
ROOTS_VOLUME: Final = "backstay-roots"
STATE_VOLUME: Final = "backstay-state"
ROOTS_CONFIG_MAP: Final = "backstay-roots"
ROOTS_FILE: Final = "root-cert.pem"
TOKEN_AUDIENCE: Final = "backstay-ca"  # noqa: S105 - a name
TOKEN_SECONDS: Final = 3600  # the kubelet renews it at 80 %; the API allows no less than 10 minutes
STATE_LIMIT: Final = "64Mi"  # configs of 1,000 services are under 2 MiB; in memory, since keys lie there

_TOKEN_FOLDER: Final = "/var/run/secrets/backstay"  # noqa: S105 - a path
_ROOTS_FOLDER: Final = "/var/run/backstay/roots"
_STATE_FOLDER: Final = "/var/lib/backstay"

_PROGRAM: Final = ["python", "-m", "backstay.sidecar"]  # `backstay sidecar` would load the command line as well

NEVER_IN: Final = frozenset({"kube-system", "kube-public", "kube-node-lease"})
"""Namespaces that a cluster needs before any webhook can run."""

EXCLUDE_INBOUND: Final = "backstay.dev/exclude-inbound-ports"
EXCLUDE_OUTBOUND: Final = "backstay.dev/exclude-outbound-ports"
EXCLUDE_CIDRS: Final = "backstay.dev/exclude-outbound-cidrs"
REDIRECT: Final = "backstay.dev/redirect"
"""`external`: something else (a CNI plug-in) writes the rules. `disabled`: nobody does; the application asks the proxy by
HTTP_PROXY, and callers reach it past the proxy."""
LOG_LEVEL: Final = "backstay.dev/proxy-log-level"
CONCURRENCY: Final = "backstay.dev/proxy-concurrency"
MAX_PROCESSES: Final = 64  # what `backstay sidecar --concurrency` takes
_RESOURCES: Final = {
    "backstay.dev/proxy-cpu": ("requests", "cpu"),
    "backstay.dev/proxy-memory": ("requests", "memory"),
    "backstay.dev/proxy-cpu-limit": ("limits", "cpu"),
    "backstay.dev/proxy-memory-limit": ("limits", "memory"),
}
_QUANTITY: Final = re.compile(r"\d+(\.\d+)?(m|k|M|G|Ki|Mi|Gi)?")
_LOG_LEVELS: Final = ("debug", "info", "warning", "error")

Json = Mapping[str, Any]
Operation = Mapping[str, Any]
"""One step of a JSON patch (RFC 6902): `add` or `replace`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InjectionSettings:
    """What every injected pod of a cluster has in common."""

    image: str
    operator: str
    """https://HOST:PORT of the control port, as pods reach it."""
    trust_domain: str
    system_namespace: str = "backstay-system"
    native_sidecar: bool = True
    """Kubernetes 1.29 and newer keep init containers with restartPolicy Always running."""
    image_pull_policy: str = "IfNotPresent"
    requests: Mapping[str, str] = field(default_factory=lambda: {"cpu": "50m", "memory": "64Mi"})
    limits: Mapping[str, str] = field(default_factory=lambda: {"cpu": "2", "memory": "256Mi"})
    """Some quotas ask for limits. One event loop cannot use two cores, so the first never throttles."""
    exclude_cidrs: tuple[str, ...] = ()
    drain_s: int = 30
    """Longest wait for open requests when the pod ends."""
    log_level: str = "info"


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """The pod's namespace, as far as it decides about injection."""

    name: str
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)


class Verdict(enum.Enum):
    INJECT = "inject"
    SKIP = "skip"
    REFUSE = "refuse"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    verdict: Verdict
    reason: str
    """CamelCase, counted."""
    message: str = ""
    """For the person who made the pod; empty where there is nothing to say."""
    patch: tuple[Operation, ...] = ()


class _Refused(Exception):
    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


# --- what of a pod is read ----------------------------------------------------------------------------------------


class _Shape(msgspec.Struct, rename="camel", kw_only=True):
    """A part of a pod; what is not named here is not looked at, and stays as it is."""


class _User(_Shape):
    run_as_user: int | None = None
    run_as_group: int | None = None


class _Port(_Shape):
    container_port: int
    name: str = ""


class _Mount(_Shape):
    name: str


class _Container(_Shape):
    name: str = ""
    ports: list[_Port] | None = None
    volume_mounts: list[_Mount] | None = None
    security_context: _User | None = None
    restart_policy: str | None = None
    liveness_probe: dict[str, Any] | None = None
    readiness_probe: dict[str, Any] | None = None
    startup_probe: dict[str, Any] | None = None
    lifecycle: dict[str, Any] | None = None


class _Metadata(_Shape):
    name: str | None = None
    generate_name: str | None = None
    labels: dict[str, str] | None = None
    annotations: dict[str, str] | None = None


class _OS(_Shape):
    name: str = "linux"


class _Spec(_Shape):
    containers: list[_Container]
    init_containers: list[_Container] | None = None
    volumes: list[_Mount] | None = None
    host_network: bool = False
    os: _OS | None = None
    security_context: _User | None = None


class _Pod(_Shape):
    spec: _Spec
    metadata: _Metadata | None = None

    @property
    def labels(self) -> Mapping[str, str]:
        return (self.metadata.labels if self.metadata else None) or {}

    @property
    def annotations(self) -> Mapping[str, str]:
        return (self.metadata.annotations if self.metadata else None) or {}

    @property
    def title(self) -> str:
        meta = self.metadata or _Metadata()
        return meta.name or f"{meta.generate_name or ''}*"

    def containers(self) -> Iterator[tuple[str, int, _Container]]:
        """Field of the spec, index, container; init containers first."""
        for index, container in enumerate(self.spec.init_containers or ()):
            yield "initContainers", index, container
        for index, container in enumerate(self.spec.containers):
            yield "containers", index, container


# --- the decision -------------------------------------------------------------------------------------------------


def decide(pod: Json, namespace: Surroundings, settings: InjectionSettings) -> Outcome:
    """What becomes of a pod that is about to be created. Never raises for what a person wrote."""
    try:
        shape = msgspec.convert(pod, _Pod)
    except msgspec.ValidationError as error:
        return _refusal("PodUnreadable", f"pod in {namespace.name}: {error}")
    skip = _reason_to_skip(shape, namespace, settings)
    if skip is not None:
        return skip
    try:
        _check(shape, namespace)
        wishes = _wishes(shape.annotations, settings)
    except _Refused as refused:
        return _refusal(refused.reason, f"pod {namespace.name}/{shape.title}: {refused}")
    return Outcome(verdict=Verdict.INJECT, reason="Injected", patch=tuple(_patch(shape, wishes, settings)))


def is_wanted(pod_labels: Mapping[str, str], namespace_labels: Mapping[str, str]) -> bool:
    """The pod's own label wins over its namespace's."""
    return pod_labels.get(INJECT, namespace_labels.get(INJECT)) == "enabled"


def may_inject_in(namespace: str, settings: InjectionSettings) -> bool:
    return namespace not in NEVER_IN and namespace != settings.system_namespace


def _refusal(reason: str, message: str) -> Outcome:
    return Outcome(verdict=Verdict.REFUSE, reason=reason, message=f"{message} [{reason}]")


def _reason_to_skip(pod: _Pod, namespace: Surroundings, settings: InjectionSettings) -> Outcome | None:
    def skip(reason: str, message: str = "") -> Outcome:
        return Outcome(verdict=Verdict.SKIP, reason=reason, message=message)

    if not may_inject_in(namespace.name, settings):
        return skip("SystemNamespace")
    if not is_wanted(pod.labels, namespace.labels):
        return skip("NotAsked")
    if STATUS in pod.annotations and any(each.name == PROXY_CONTAINER for _, _, each in pod.containers()):
        return skip("AlreadyInjected")
    if pod.spec.host_network:
        return skip("HostNetwork", f"{pod.title}: not injected: it uses the node's network, whose traffic is not ours")
    if pod.spec.os is not None and pod.spec.os.name != "linux":
        return skip("OperatingSystem", f"{pod.title}: not injected: proxies run on Linux, not on {pod.spec.os.name}")
    return None


def _check(pod: _Pod, namespace: Surroundings) -> None:
    foreign = _foreign_mesh(pod, namespace)
    if foreign:
        mesh, sign = foreign
        raise _Refused(
            "ForeignMesh",
            f"{mesh} injects it as well ({sign}), and two proxies cannot share a pod's traffic; expected one of them "
            f"to be switched off for this pod or namespace",
        )
    for where, container in _places(pod):
        _check_names(where, container)
        _check_ports(where, container)
        _check_user(where, container.security_context)
    _check_user("spec", pod.spec.security_context)
    taken = [each.name for each in pod.spec.volumes or () if each.name in _VOLUMES]
    if taken:
        raise _Refused("ReservedName", f"spec.volumes: {taken[0]!r} is a name of the proxy's own volumes")


_VOLUMES: Final = frozenset({TOKEN_VOLUME, ROOTS_VOLUME, STATE_VOLUME})
_PORTS: Final = {
    OUTBOUND_PORT: "outbound",
    INBOUND_PORT: "inbound",
    ADMIN_PORT: "admin",
    HEALTH_PORT: "health",
    PROMETHEUS_PORT: "metrics",
}


def _places(pod: _Pod) -> Iterator[tuple[str, _Container]]:
    return ((f"spec.{field}[{index}]", container) for field, index, container in pod.containers())


def _check_names(where: str, container: _Container) -> None:
    if container.name in (PROXY_CONTAINER, REDIRECT_CONTAINER):
        raise _Refused("ReservedName", f"{where}: {container.name!r} is the name of a container of the mesh")
    for mount in container.volume_mounts or ():
        if mount.name in _VOLUMES:  # it would exist after injection, with the proxy's token or key in it
            raise _Refused("ReservedName", f"{where}: it mounts {mount.name!r}, which is the proxy's own volume")


def _check_ports(where: str, container: _Container) -> None:
    for port in container.ports or ():
        if port.container_port in _PORTS:
            use = _PORTS[port.container_port]
            raise _Refused("ReservedPort", f"{where}: port {port.container_port} is the proxy's {use} port")


def _check_user(where: str, user: _User | None) -> None:
    if user is not None and PROXY_UID in (user.run_as_user, user.run_as_group):
        raise _Refused(
            "ReservedUser",
            f"{where}: it runs as {PROXY_UID}, the proxy's own user, whose traffic is not redirected; expected another",
        )


def _foreign_mesh(pod: _Pod, namespace: Surroundings) -> tuple[str, str] | None:
    """Who else would inject this pod or has done so, and the sign of it."""
    for where, container in _places(pod):
        if container.name in ("istio-proxy", "istio-init", "linkerd-proxy", "linkerd-init"):
            return container.name.split("-")[0].title(), f"{where} is {container.name}"
    return _istio(pod, namespace) or _linkerd(pod, namespace)


def _istio(pod: _Pod, namespace: Surroundings) -> tuple[str, str] | None:
    own = pod.labels.get("sidecar.istio.io/inject", pod.annotations.get("sidecar.istio.io/inject"))
    if own == "false":
        return None
    if own == "true":
        return "Istio", "the pod says sidecar.istio.io/inject=true"
    for labels, whose in ((pod.labels, "pod"), (namespace.labels, "namespace")):
        if "istio.io/rev" in labels:
            return "Istio", f"the {whose} has the label istio.io/rev"
        if labels.get("istio.io/dataplane-mode") == "ambient":
            return "Istio", f"the {whose} says istio.io/dataplane-mode=ambient"
    if namespace.labels.get("istio-injection") == "enabled":
        return "Istio", "the namespace says istio-injection=enabled"
    return None


def _linkerd(pod: _Pod, namespace: Surroundings) -> tuple[str, str] | None:
    own = pod.annotations.get("linkerd.io/inject")
    if own is None and namespace.annotations.get("linkerd.io/inject") in ("enabled", "ingress"):
        return "Linkerd", "the namespace says linkerd.io/inject"
    return ("Linkerd", f"the pod says linkerd.io/inject: {own}") if own in ("enabled", "ingress") else None


# --- what a pod may ask for ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wishes:
    exclude_inbound: tuple[int, ...]
    exclude_outbound: tuple[int, ...]
    exclude_cidrs: tuple[str, ...]
    redirect: str
    log_level: str
    concurrency: int
    resources: Mapping[str, Mapping[str, str]]


def _wishes(annotations: Mapping[str, str], settings: InjectionSettings) -> _Wishes:
    """Raises _Refused for an annotation that cannot be read: a pod with half of its wishes is worse than none."""
    return _Wishes(
        exclude_inbound=_ports(annotations, EXCLUDE_INBOUND),
        exclude_outbound=_ports(annotations, EXCLUDE_OUTBOUND),
        exclude_cidrs=(*settings.exclude_cidrs, *_cidrs(annotations, EXCLUDE_CIDRS)),
        redirect=_one_of(annotations, REDIRECT, ("enabled", "external", "disabled"), "enabled"),
        log_level=_one_of(annotations, LOG_LEVEL, _LOG_LEVELS, settings.log_level),
        concurrency=_concurrency(annotations),
        resources=_resources(annotations, settings),
    )


def _ports(annotations: Mapping[str, str], key: str) -> tuple[int, ...]:
    ports = []
    for item in _items(annotations, key):
        if not item.isdecimal() or not 0 < int(item) < 65536:
            raise _invalid(key, item, "port numbers separated by commas")
        ports.append(int(item))
    return tuple(ports)


def _cidrs(annotations: Mapping[str, str], key: str) -> tuple[str, ...]:
    found = []
    for item in _items(annotations, key):
        try:
            found.append(str(ipaddress.ip_network(item)))
        except ValueError:
            raise _invalid(key, item, "networks such as 10.0.0.0/8 separated by commas") from None
    return tuple(found)


def _one_of(annotations: Mapping[str, str], key: str, known: Sequence[str], default: str) -> str:
    value = annotations.get(key, default)
    if value not in known:
        raise _invalid(key, value, f"one of {', '.join(known)}")
    return value


def _concurrency(annotations: Mapping[str, str]) -> int:
    """Not 0, which would be one for each core of the node, whatever the pod may use of them."""
    value = annotations.get(CONCURRENCY, "1")
    if not value.isdecimal() or not 0 < int(value) <= MAX_PROCESSES:
        raise _invalid(CONCURRENCY, value, f"a number of processes from 1 to {MAX_PROCESSES}")
    return int(value)


def _resources(annotations: Mapping[str, str], settings: InjectionSettings) -> dict[str, dict[str, str]]:
    resources = {"requests": dict(settings.requests), "limits": dict(settings.limits)}
    for key, (kind, name) in _RESOURCES.items():
        value = annotations.get(key)
        if value is None:
            continue
        if not _QUANTITY.fullmatch(value):
            raise _invalid(key, value, "a quantity such as 100m or 128Mi")
        resources[kind][name] = value
    return resources


def _items(annotations: Mapping[str, str], key: str) -> Iterator[str]:
    return filter(None, (each.strip() for each in annotations.get(key, "").split(",")))


def _invalid(key: str, value: str, expected: str) -> _Refused:
    return _Refused("AnnotationInvalid", f"metadata.annotations.{key}: {value!r} was found, expected {expected}")


# --- the patch ----------------------------------------------------------------------------------------------------


def _patch(pod: _Pod, wishes: _Wishes, settings: InjectionSettings) -> Iterator[Operation]:
    probes: dict[str, Json] = {}
    # First what is addressed by index, then what moves indices.
    yield from _rewrites(pod, probes)
    redirect = [_redirect_container(wishes, settings)] if wishes.redirect == "enabled" else []
    proxy = _proxy_container(probes, wishes, settings)
    own = pod.spec.init_containers or []
    if settings.native_sidecar:
        yield from _insert("/spec/initContainers", [*redirect, proxy], has_list=pod.spec.init_containers is not None)
    else:
        yield from _insert("/spec/initContainers", redirect, has_list=pod.spec.init_containers is not None, at=len(own))
        yield from _insert("/spec/containers", [proxy], has_list=True)
    has_volumes = pod.spec.volumes is not None
    yield from _insert("/spec/volumes", _volumes(), has_list=has_volumes, at=len(pod.spec.volumes or ()))
    yield from _marks(pod, settings)


def _insert(path: str, values: Sequence[Json], *, has_list: bool, at: int = 0) -> Iterator[Operation]:
    if values and not has_list:
        yield {"op": "add", "path": path, "value": list(values)}
        return
    for number, value in enumerate(values, at):
        yield {"op": "add", "path": f"{path}/{number}", "value": value}


def _marks(pod: _Pod, settings: InjectionSettings) -> Iterator[Operation]:
    status = {"version": __version__, "image": settings.image, "native": settings.native_sidecar}
    annotations = {STATUS: msgspec.json.encode(status).decode()}
    if not settings.native_sidecar and "kubectl.kubernetes.io/default-container" not in pod.annotations:
        annotations["kubectl.kubernetes.io/default-container"] = pod.spec.containers[0].name
    if pod.metadata is None:
        yield {"op": "add", "path": "/metadata", "value": {}}
    yield from _add_keys("/metadata/labels", {INJECTED: "true"}, has_map=bool(pod.labels))
    yield from _add_keys("/metadata/annotations", annotations, has_map=bool(pod.annotations))


def _add_keys(path: str, values: Mapping[str, str], *, has_map: bool) -> Iterator[Operation]:
    if not has_map:
        yield {"op": "add", "path": path, "value": dict(values)}
        return
    for key, value in values.items():
        yield {"op": "add", "path": f"{path}/{key.replace('~', '~0').replace('/', '~1')}", "value": value}


_PROBES: Final = (("livenessProbe", "livez"), ("readinessProbe", "readyz"), ("startupProbe", "startupz"))
_HOOKS: Final = (("postStart", "poststart"), ("preStop", "prestop"))
_HANDLERS: Final = ("httpGet", "tcpSocket", "grpc")


def _rewrites(pod: _Pod, found: dict[str, Json]) -> Iterator[Operation]:
    """Let the kubelet ask the proxy, which asks the application: under STRICT nobody else gets an answer. Fills `found`
    with what the proxy is to do for each path. Programs run inside the container need no help."""
    for fields, index, container in pod.containers():
        probes = (container.liveness_probe, container.readiness_probe, container.startup_probe)
        for (field_name, word), probe in zip(_PROBES, probes, strict=True):
            path = f"/app-health/{container.name}/{word}"
            question = _question(probe, container)
            if probe is not None and question is not None:
                found[path] = question
                rest = {key: value for key, value in probe.items() if key not in _HANDLERS}
                value = rest | {"httpGet": {"path": path, "port": HEALTH_PORT}}
                yield {"op": "replace", "path": f"/spec/{fields}/{index}/{field_name}", "value": value}
        for hook, word in _HOOKS:
            path = f"/app-lifecycle/{container.name}/{word}"
            handler = (container.lifecycle or {}).get(hook)
            # A socket as a hook is deprecated and does nothing.
            question = _question(handler, container) if handler and "httpGet" in handler else None
            if question is not None:
                found[path] = question
                value = {"httpGet": {"path": path, "port": HEALTH_PORT}}
                yield {"op": "replace", "path": f"/spec/{fields}/{index}/lifecycle/{hook}", "value": value}


def _question(handler: Json | None, container: _Container) -> Json | None:
    """What to ask the application; None for what the kubelet can do without us."""
    kind = next((each for each in _HANDLERS if handler and each in handler), None)
    if handler is None or kind is None:
        return None
    asked = handler[kind]
    port = _number(asked.get("port"), container)
    if port is None or asked.get("host"):  # another host's health is not behind our proxy
        return None
    timeout = handler.get("timeoutSeconds", 1)
    match kind:
        case "httpGet":
            return {
                "type": "http",
                "port": port,
                "path": asked.get("path") or "/",
                "scheme": asked.get("scheme") or "HTTP",
                "headers": [[each["name"], each.get("value", "")] for each in asked.get("httpHeaders") or ()],
                "timeoutSeconds": timeout,
            }
        case "tcpSocket":
            return {"type": "tcp", "port": port, "timeoutSeconds": timeout}
        case _:
            return {"type": "grpc", "port": port, "service": asked.get("service") or "", "timeoutSeconds": timeout}


def _number(port: object, container: _Container) -> int | None:
    if isinstance(port, int):
        return port
    named = (each.container_port for each in container.ports or () if each.name == port)
    return next(named, int(port) if isinstance(port, str) and port.isdecimal() else None)


# --- containers and volumes ---------------------------------------------------------------------------------------


def _redirect_container(wishes: _Wishes, settings: InjectionSettings) -> Json:
    arguments = ["redirect"]
    for flag, values in (
        ("--exclude-inbound", wishes.exclude_inbound),
        ("--exclude-outbound-ports", wishes.exclude_outbound),
        ("--exclude-cidr", wishes.exclude_cidrs),
    ):
        if values:
            arguments += [flag, ",".join(map(str, values))]
    return {
        "name": REDIRECT_CONTAINER,
        "image": settings.image,
        "imagePullPolicy": settings.image_pull_policy,
        "command": _PROGRAM,
        "args": arguments,
        # iptables keeps a lock file, and the root file system is read-only.
        "env": [{"name": "XTABLES_LOCKFILE", "value": "/dev/shm/xtables.lock"}],  # noqa: S108 - this pod's own memory
        "resources": wishes.resources,
        "securityContext": {
            "runAsUser": 0,
            "runAsGroup": 0,
            "runAsNonRoot": False,
            "readOnlyRootFilesystem": True,
            "allowPrivilegeEscalation": False,
            # iptables-legacy opens a raw socket.
            "capabilities": {"drop": ["ALL"], "add": ["NET_ADMIN", "NET_RAW"]},
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "terminationMessagePolicy": "FallbackToLogsOnError",
    }


def _proxy_container(probes: Mapping[str, Json], wishes: _Wishes, settings: InjectionSettings) -> Json:
    health = {"path": "/healthz/ready", "port": HEALTH_PORT}
    container = {
        "name": PROXY_CONTAINER,
        "image": settings.image,
        "imagePullPolicy": settings.image_pull_policy,
        "command": _PROGRAM,
        "env": _environment(probes, wishes, settings),
        "ports": [
            {"name": "backstay-health", "containerPort": HEALTH_PORT, "protocol": "TCP"},
            {"name": "backstay-stats", "containerPort": PROMETHEUS_PORT, "protocol": "TCP"},
        ],
        "resources": wishes.resources,
        # The containers after it start when this succeeds: an application never runs without its proxy.
        "startupProbe": {"httpGet": health, "periodSeconds": 1, "failureThreshold": 600, "timeoutSeconds": 3},
        "readinessProbe": {"httpGet": health, "periodSeconds": 5, "failureThreshold": 3, "timeoutSeconds": 3},
        "securityContext": {
            "runAsUser": PROXY_UID,
            "runAsGroup": PROXY_UID,
            "runAsNonRoot": True,
            "readOnlyRootFilesystem": True,
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [
            {"name": TOKEN_VOLUME, "mountPath": _TOKEN_FOLDER, "readOnly": True},
            {"name": ROOTS_VOLUME, "mountPath": _ROOTS_FOLDER, "readOnly": True},
            {"name": STATE_VOLUME, "mountPath": _STATE_FOLDER},
        ],
    }
    if settings.native_sidecar:
        return container | {"restartPolicy": "Always"}
    # The kubelet starts ordinary containers in order and waits for this hook before the next.
    hook = {"postStart": {"exec": {"command": [*_PROGRAM, "wait"]}}}
    return container | {"lifecycle": hook}


def _environment(probes: Mapping[str, Json], wishes: _Wishes, settings: InjectionSettings) -> list[Json]:
    def of_pod(name: str, path: str) -> Json:
        return {"name": name, "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": path}}}

    values = {
        "PROXY": "$(POD_NAME).$(POD_NAMESPACE)",
        "STATE": _STATE_FOLDER,
        "OPERATOR": settings.operator,
        "TRUST_DOMAIN": settings.trust_domain,
        "TOKEN_FILE": f"{_TOKEN_FOLDER}/token",
        "TRUST_FILE": f"{_ROOTS_FOLDER}/{ROOTS_FILE}",
        "INTERCEPT": "false" if wishes.redirect == "disabled" else "true",
        "HEALTH_HOST": "$(POD_IP)",
        "DRAIN": str(settings.drain_s),
        "LOG_LEVEL": wishes.log_level,
    }
    if wishes.concurrency > 1:
        values["CONCURRENCY"] = str(wishes.concurrency)
    if probes:
        values["APP_PROBES"] = msgspec.json.encode(probes).decode()
    return [
        of_pod("POD_NAME", "metadata.name"),
        of_pod("POD_NAMESPACE", "metadata.namespace"),
        of_pod("POD_IP", "status.podIP"),
        *({"name": f"BACKSTAY_SIDECAR_{key}", "value": value} for key, value in values.items()),
    ]


def _volumes() -> list[Json]:
    token = {"audience": TOKEN_AUDIENCE, "expirationSeconds": TOKEN_SECONDS, "path": "token"}
    return [
        {"name": TOKEN_VOLUME, "projected": {"sources": [{"serviceAccountToken": token}]}},
        {"name": ROOTS_VOLUME, "configMap": {"name": ROOTS_CONFIG_MAP}},
        {"name": STATE_VOLUME, "emptyDir": {"medium": "Memory", "sizeLimit": STATE_LIMIT}},
    ]


# --- without an API server ----------------------------------------------------------------------------------------


def patched(document: Json, patch: Iterable[Operation]) -> dict[str, Any]:
    """The document after `add` and `replace` operations; the original is not touched. Raises KeyError for a path that
    is not there."""
    result: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(document))
    for operation in patch:
        *parents, last = [each.replace("~1", "/").replace("~0", "~") for each in operation["path"].split("/")[1:]]
        place: Any = result
        for key in parents:
            place = place[int(key)] if isinstance(place, list) else place[key]
        if not isinstance(place, list):
            place[last] = operation["value"]
        elif operation["op"] == "add":
            place.insert(int(last), operation["value"])
        else:
            place[int(last)] = operation["value"]
    return result
