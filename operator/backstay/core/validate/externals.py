"""Rules about ExternalServices: hosts that are ours, said twice, or reached by TLS that cannot be checked."""

from collections.abc import Iterator

from backstay.core.externals import pem_of
from backstay.core.intents import ExternalServiceSpec
from backstay.core.problems import Problem
from backstay.core.snapshot import Document
from backstay.core.validate.facts import Facts, problem


def hosts_of_the_mesh(facts: Facts) -> Iterator[Problem]:
    services = facts.registry.services if facts.registry else {}
    for document, path, host in _hosts(facts):
        if host in services:
            message = f"{host!r} is a service of the mesh, expected a host outside of it"
            yield problem(document, path, "ExternalHostInMesh", message)


def repeated_hosts(facts: Facts) -> Iterator[Problem]:
    first: dict[tuple[str, int], tuple[Document, str]] = {}
    for document, spec in facts.of(ExternalServiceSpec):
        for index, host in enumerate(spec.hosts):
            for item in spec.ports:
                path = f"spec.hosts[{index}]"
                earlier, place = first.setdefault((host, item.port), (document, path))
                if (earlier, place) != (document, path):
                    message = (
                        f"port {item.port} of {host!r} is already given in {earlier.place(place)}, expected it once"
                    )
                    yield problem(document, path, "ConflictingExternalHosts", message)


def repeated_ports(facts: Facts) -> Iterator[Problem]:
    for document, spec in facts.of(ExternalServiceSpec):
        ports = [item.port for item in spec.ports]
        for index, port in enumerate(ports):
            if port in ports[:index]:
                message = f"port {port} is already given in spec.ports[{ports.index(port)}], expected it once"
                yield problem(document, f"spec.ports[{index}].port", "DuplicatePort", message)


def originated_tls(facts: Facts) -> Iterator[Problem]:
    for document, spec in facts.of(ExternalServiceSpec):
        if spec.tls is None:
            continue
        for index, host in enumerate(spec.hosts):
            if host.startswith("*"):
                message = (
                    f"TLS is begun to hosts that are known, {host!r} is a pattern; expected exact hosts beside `tls`"
                )
                yield problem(document, f"spec.hosts[{index}]", "OriginationWithoutHost", message)
        if all(item.protocol != "HTTP" for item in spec.ports):
            message = "no port of protocol HTTP, expected one: what is TLS already is not put into TLS again"
            yield problem(document, "spec.tls", "OriginationWithoutHost", message)
        if spec.tls.ca_certificates and not pem_of(spec.tls.ca_certificates):
            message = "no certificate in it, expected PEM (`-----BEGIN CERTIFICATE-----`...; `>-` joins its lines)"
            yield problem(document, "spec.tls.caCertificates", "BadCertificate", message)


def _hosts(facts: Facts) -> Iterator[tuple[Document, str, str]]:
    for document, spec in facts.of(ExternalServiceSpec):
        for index, host in enumerate(spec.hosts):
            yield document, f"spec.hosts[{index}]", host
