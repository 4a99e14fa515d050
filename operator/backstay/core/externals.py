"""Hosts outside of the mesh that documents name: as services of their own, and as what may be passed through.

An exact host with an HTTP port is a service like any other to callers (routes, timeouts, retries, limits), only that its
endpoint is its name; everything else (patterns, TLS, TCP) can be let out or not, and nothing more.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Final

from backstay.core.intents import ExternalServiceSpec
from backstay.core.registry import Service, ServicePort
from backstay.core.snapshot import Document

_PEM: Final = re.compile(r"-----BEGIN CERTIFICATE-----\s*([A-Za-z0-9+/=\s]+?)\s*-----END CERTIFICATE-----")


def external_services(documents: Iterable[Document]) -> Mapping[str, tuple[Service, Document]]:
    """Host -> what callers know of it, and the document that says so."""
    found: dict[str, tuple[Service, Document]] = {}
    for document in documents:
        spec = document.spec
        if not isinstance(spec, ExternalServiceSpec):
            continue
        ports = tuple(
            ServicePort(port=item.port, target_port=item.port) for item in spec.ports if item.protocol == "HTTP"
        )
        for host in spec.hosts if ports else ():
            if not host.startswith("*"):
                name, _, rest = host.partition(".")
                found.setdefault(host, (Service(name=name, namespace=rest, ports=ports), document))
    return found


def let_out(documents: Iterable[Document]) -> tuple[str, ...]:
    """`host:port` of everything that may be passed through, patterns included, sorted."""
    specs = (document.spec for document in documents)
    return tuple(
        sorted(
            {
                f"{host}:{item.port}"
                for spec in specs
                if isinstance(spec, ExternalServiceSpec)
                for host in spec.hosts
                for item in spec.ports
            }
        )
    )


def pem_of(text: str) -> str:
    """Certificates as PEM, however their lines were joined; empty if there is none."""
    blocks = ("".join(body.split()) for body in _PEM.findall(text))
    return "".join(
        "-----BEGIN CERTIFICATE-----\n"
        + "\n".join(body[at : at + 64] for at in range(0, len(body), 64))
        + "\n-----END CERTIFICATE-----\n"
        for body in blocks
    )
