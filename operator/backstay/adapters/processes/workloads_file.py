"""The workloads file of the local platform: which services there are and which processes run them.

Reads one YAML file into types, or raises WorkloadsFileInvalid with every problem and its place. Starts nothing and
allocates nothing; platform.py turns the result into a registry and processes. YAML is read by the 1.2 core schema (no
`yes`/`on` booleans), without anchors, tags or duplicate keys, like the mesh repository's own documents.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeAlias

import msgspec
import yaml
from msgspec import Meta

from backstay.core.problems import Problem
from backstay.core.registry import Service, ServicePort, Workload, qualify

MAX_FILE_BYTES: Final = 1024 * 1024
"""A workload takes about 300 bytes; a thousand of them fit three times."""
MAX_DEPTH: Final = 16
"""The deepest place in a file is 6 deep; PyYAML's time grows with the square of the depth."""
MAX_REPLICAS: Final = 200
"""Each replica is two processes on this machine; 200 is already beyond a large workstation's memory."""

Protocol: TypeAlias = Literal["http", "tcp"]
Engine: TypeAlias = Literal["python", "envoy"]
Name = Annotated[str, Meta(pattern=r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$")]
Host = Annotated[str, Meta(pattern=r"^[a-z0-9]([-.a-z0-9]{0,251}[a-z0-9])?$")]
Port = Annotated[int, Meta(ge=1, le=65535)]


class Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel", kw_only=True):
    """Common options of everything in the file."""


class PortEntry(Entry, frozen=True, kw_only=True):
    """One port of a service."""

    port: Port
    target_port: Port | None = None
    """The port the application listens on; left out: the same."""
    name: str = ""
    protocol: Protocol = "http"


class ServiceEntry(Entry, frozen=True, kw_only=True):
    name: Name
    namespace: Name | None = None
    ports: Annotated[tuple[PortEntry, ...], Meta(min_length=1, max_length=64)]


class AppPort(Entry, frozen=True, kw_only=True):
    """A port of the application that is not behind a service, with its protocol."""

    port: Port
    protocol: Protocol = "http"


class ListenEntry(Entry, frozen=True, kw_only=True):
    """A local port on which the application finds one host without any proxy setting."""

    local_port: Port
    host: Host
    port: Port = 80


class WorkloadEntry(Entry, frozen=True, kw_only=True):
    name: Name
    namespace: Name | None = None
    service_account: Name | None = None
    """Left out: the workload's name."""
    services: tuple[Host, ...] = ()
    """Services its instances are behind: `name`, or `name.namespace`."""
    labels: dict[str, str] = {}
    replicas: Annotated[int, Meta(ge=0, le=MAX_REPLICAS)] = 1
    command: tuple[str, ...] = ()
    """`{python}` (this interpreter), `{dir}` (the file's folder), `{data}` (a folder of the instance), `{host}` and
    `{port}` (where to listen) are replaced, here and in `env`. Only a gateway needs none."""
    env: dict[str, str | int | float | bool] = {}
    ports: tuple[Port | AppPort, ...] = ()
    """Left out: the target ports of its services."""
    reaches: tuple[Host, ...] | None = None
    """Hosts it calls; left out: every service."""
    listen: tuple[ListenEntry, ...] = ()
    zone: str = ""
    sidecar: bool = True
    """False: outside the mesh."""
    engine: Engine | None = None
    """What does its proxy's traffic; left out: as the whole file says."""
    gateway: bool = False
    """True: its proxy takes callers from outside, at the ports that Gateway documents say. One replica listens on 127.0.0.1,
    several each at its own address."""


class Contents(Entry, frozen=True, kw_only=True):
    namespace: Name = "default"
    engine: Engine = "python"
    """What does the traffic of every proxy whose workload does not say otherwise."""
    services: tuple[ServiceEntry, ...] = ()
    workloads: Annotated[tuple[WorkloadEntry, ...], Meta(min_length=1)]


class WorkloadsFileInvalid(ValueError):
    """The file cannot be used; `problems` says everything that is wrong with it, in the order of the file."""

    def __init__(self, problems: tuple[Problem, ...]) -> None:
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = problems


class WorkloadsFile(msgspec.Struct, frozen=True, kw_only=True):
    """A valid file: every reference in it resolves."""

    path: Path
    contents: Contents

    def namespace_of(self, entry: ServiceEntry | WorkloadEntry) -> str:
        return entry.namespace or self.contents.namespace

    def services(self) -> dict[str, Service]:
        """By key `name.namespace`."""
        found = (_service(entry, self.namespace_of(entry)) for entry in self.contents.services)
        return {service.key: service for service in found}

    def workloads(self) -> dict[str, Workload]:
        """By key `namespace/name`."""
        services = self.services()
        default = self.contents.engine
        found = (_workload(entry, self.namespace_of(entry), services, default) for entry in self.contents.workloads)
        return {workload.key: workload for workload in found}

    def entries(self) -> dict[str, WorkloadEntry]:
        """The entry of every workload, by its key."""
        return {f"{self.namespace_of(entry)}/{entry.name}": entry for entry in self.contents.workloads}


def read(path: Path) -> WorkloadsFile:
    """Read a workloads file. Raises WorkloadsFileInvalid, or OSError where it cannot be read at all."""
    with path.open("rb") as file:
        data = file.read(MAX_FILE_BYTES + 1)
    return parse(data, path)


def parse(data: bytes, path: Path) -> WorkloadsFile:
    """Parse a file's bytes; `path` is for messages and for `{dir}`. Raises WorkloadsFileInvalid."""
    if len(data) > MAX_FILE_BYTES:
        message = f"the file is larger than {MAX_FILE_BYTES} bytes"
        raise WorkloadsFileInvalid((Problem(file=str(path), message=message, reason="LimitExceeded"),))
    values, places = _load(data, path)
    contents = _convert(values, places, path)
    file = WorkloadsFile(path=path, contents=contents)
    problems = sorted(_rules(file, places))
    if problems:
        raise WorkloadsFileInvalid(tuple(problems))
    return file


# --- YAML -> plain values with places ---------------------------------------------------------------------------------

_Places: TypeAlias = dict[str, tuple[int, int]]
"""Path as msgspec writes it (`$.services[0].ports[0].port`) -> line and column."""


class _Loader(yaml.SafeLoader):
    """YAML 1.2 core schema: only true/false, null, integers and floats are not strings."""

    yaml_implicit_resolvers: dict[Any, Any] = {}  # PyYAML copies it on write


for _tag, _pattern, _first in (
    ("bool", r"^(?:true|True|TRUE|false|False|FALSE)$", "tTfF"),
    ("null", r"^(?:~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    ("int", r"^[-+]?[0-9]+$", "-+0123456789"),
    ("float", r"^[-+]?(?:\.[0-9]+|[0-9]+\.[0-9]*)(?:[eE][-+]?[0-9]+)?$", "-+.0123456789"),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(_pattern), list(_first))


def _load(data: bytes, path: Path) -> tuple[Any, _Places]:
    try:
        root = _compose(data, path)
        places: _Places = {}
        return _value(root, "$", places, path), places
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line, column = (mark.line + 1, mark.column + 1) if mark else (0, 0)
        message = f"not YAML: {error.problem or error.context}"
        problem = Problem(file=str(path), line=line, column=column, message=message, reason="YAMLInvalid")
        raise WorkloadsFileInvalid((problem,)) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        problem = Problem(file=str(path), message=f"not YAML: {type(error).__name__}", reason="YAMLInvalid")
        raise WorkloadsFileInvalid((problem,)) from error


def _compose(data: bytes, path: Path) -> yaml.Node:
    """The node tree; looks at the events first, so that depth and anchors are refused before anything is built."""
    depth = 0
    for event in yaml.parse(data, Loader=_Loader):
        anchored = isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None
        if anchored or getattr(event, "tag", None) is not None:
            message = "anchors, aliases and tags are not allowed here"
            raise WorkloadsFileInvalid((_problem(path, event.start_mark, "", message, "YAMLFeature"),))
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            message = f"nested more than {MAX_DEPTH} deep"
            raise WorkloadsFileInvalid((_problem(path, event.start_mark, "", message, "LimitExceeded"),))
    root = yaml.compose(data, Loader=_Loader)
    if root is None:
        message = "the file is empty, expected `workloads:`"
        raise WorkloadsFileInvalid((Problem(file=str(path), line=1, column=1, message=message, reason="EmptyFile"),))
    return root


def _value(node: yaml.Node, at: str, places: _Places, path: Path) -> Any:
    places[at] = (node.start_mark.line + 1, node.start_mark.column + 1)
    match node:
        case yaml.MappingNode():
            return _mapping(node, at, places, path)
        case yaml.SequenceNode():
            return [_value(item, f"{at}[{index}]", places, path) for index, item in enumerate(node.value)]
        case _:
            return _scalar(node)


def _mapping(node: yaml.MappingNode, at: str, places: _Places, path: Path) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key_node, value_node in node.value:
        key = str(key_node.value)
        if key in values:
            message = f"duplicate key {key!r}"
            raise WorkloadsFileInvalid((_problem(path, key_node.start_mark, _shown(at), message, "DuplicateKey"),))
        values[key] = _value(value_node, f"{at}.{key}", places, path)
    return values


def _scalar(node: yaml.Node) -> Any:
    text = str(node.value)
    match str(node.tag).rpartition(":")[2]:
        case "bool":
            return text.lower() == "true"
        case "null":
            return None
        case "int":
            return int(text)
        case "float":
            return float(text)
        case _:
            return text


def _problem(path: Path, mark: Any, at: str, message: str, reason: str) -> Problem:
    return Problem(file=str(path), line=mark.line + 1, column=mark.column + 1, path=at, message=message, reason=reason)


def _shown(at: str) -> str:
    """A msgspec path as people write it (msgspec writes `[...]` for a value of a mapping: its parent is shown)."""
    return at.removeprefix("$").removeprefix(".")


# --- plain values -> types --------------------------------------------------------------------------------------------

_WHERE: Final = re.compile(r"^(?P<what>.*?)(?: - at `(?P<at>[^`]*)`)?$", re.DOTALL)


def _convert(values: Any, places: _Places, path: Path) -> Contents:
    try:
        return msgspec.convert(values, Contents)
    except msgspec.ValidationError as error:
        found = _WHERE.match(str(error))
        what, at = (found["what"], found["at"] or "$") if found else (str(error), "$")
        message = what[:1].lower() + what[1:]
        raise WorkloadsFileInvalid((_at(path, places, at.partition("[...]")[0], message, "SchemaInvalid"),)) from error


def _at(path: Path, places: _Places, at: str, message: str, reason: str) -> Problem:
    known = at
    while known not in places and known != "$":
        known = known[: max(known.rfind("."), known.rfind("["), 1)]
    line, column = places.get(known, (1, 1))
    return Problem(file=str(path), line=line, column=column, path=_shown(at), message=message, reason=reason)


# --- rules across entries ---------------------------------------------------------------------------------------------


def _rules(file: WorkloadsFile, places: _Places) -> Iterator[Problem]:
    yield from _unique(file, places)
    services = file.services()
    for index, entry in enumerate(file.contents.workloads):
        at = f"$.workloads[{index}]"
        if not entry.command and not entry.gateway:
            yield _at(file.path, places, at, "object missing required field `command`", "SchemaInvalid")
        yield from _known_services(file, entry, services, at, places)
        yield from _known_ports(file, entry, services, at, places)
        yield from _free_listeners(file, entry, at, places)


def _unique(file: WorkloadsFile, places: _Places) -> Iterator[Problem]:
    groups: tuple[tuple[str, tuple[ServiceEntry | WorkloadEntry, ...]], ...] = (
        ("services", file.contents.services),
        ("workloads", file.contents.workloads),
    )
    for group, entries in groups:
        seen: set[tuple[str, str]] = set()
        for index, entry in enumerate(entries):
            key = (file.namespace_of(entry), entry.name)
            if key in seen:
                message = f"{entry.name!r} is defined twice in namespace {key[0]!r}"
                yield _at(file.path, places, f"$.{group}[{index}].name", message, "DuplicateName")
            seen.add(key)


def _known_services(
    file: WorkloadsFile, entry: WorkloadEntry, services: Mapping[str, Service], at: str, places: _Places
) -> Iterator[Problem]:
    for number, name in enumerate(entry.services):
        if qualify(name, file.namespace_of(entry)) not in services:
            known = ", ".join(sorted(services)) or "none"
            message = f"service {name!r} is not defined, expected one of: {known}"
            yield _at(file.path, places, f"{at}.services[{number}]", message, "ServiceNotFound")


def _known_ports(
    file: WorkloadsFile, entry: WorkloadEntry, services: Mapping[str, Service], at: str, places: _Places
) -> Iterator[Problem]:
    if not entry.ports:
        return
    declared = {port if isinstance(port, int) else port.port for port in entry.ports}
    for name in entry.services:
        service = services.get(qualify(name, file.namespace_of(entry)))
        for port in service.ports if service else ():
            if port.target_port not in declared:
                message = (
                    f"port {port.target_port} of service {name!r} is missing, expected it among {sorted(declared)}"
                )
                yield _at(file.path, places, f"{at}.ports", message, "PortNotFound")


def _free_listeners(file: WorkloadsFile, entry: WorkloadEntry, at: str, places: _Places) -> Iterator[Problem]:
    taken = {port if isinstance(port, int) else port.port for port in entry.ports}
    for number, listener in enumerate(entry.listen):
        if listener.local_port in taken:
            message = f"port {listener.local_port} is used twice by this workload"
            yield _at(file.path, places, f"{at}.listen[{number}].localPort", message, "PortConflict")
        taken.add(listener.local_port)


# --- entries -> registry values ---------------------------------------------------------------------------------------


def _service(entry: ServiceEntry, namespace: str) -> Service:
    ports = tuple(
        ServicePort(port=port.port, name=port.name, target_port=port.target_port or port.port, protocol=port.protocol)
        for port in entry.ports
    )
    return Service(name=entry.name, namespace=namespace, ports=ports)


def _workload(entry: WorkloadEntry, namespace: str, services: Mapping[str, Service], engine: Engine) -> Workload:
    behind = tuple(qualify(name, namespace) for name in entry.services)
    ports: dict[int, Protocol] = {
        port if isinstance(port, int) else port.port: "http" if isinstance(port, int) else port.protocol
        for port in entry.ports
    }
    for key in behind:
        ports.update({port.target_port: port.protocol for port in services[key].ports})
    return Workload(
        name=entry.name,
        namespace=namespace,
        service_account=entry.service_account or entry.name,
        services=behind,
        ports=tuple(sorted(ports.items())),
        reaches=entry.reaches,
        is_gateway=entry.gateway,
        engine=entry.engine or engine,
    )
