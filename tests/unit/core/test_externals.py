"""Hosts outside of the mesh: what becomes of them in configs."""

from backstay.config.match import is_let_out
from backstay.config.model import Backend, External, HostRoutes, OriginTls, WeightedBackend
from backstay.core.evaluate import Request
from backstay.core.externals import pem_of
from support.policy import Json, compiled, document

CALLER = "shop/client"


def external(*hosts: str, name: str = "out", **spec: object) -> Json:
    return document("ExternalService", name, {"hosts": list(hosts), **spec})


ONLY = document("Mesh", "mesh", {"egress": "REGISTRY_ONLY"})
PAY = external("api.pay.example", ports=[{"port": 80}], tls={"sni": "pay.example", "subjectAltNames": ["pay.test"]})
REST = external("*.rest.example", name="rest", ports=[{"port": 443, "protocol": "TLS"}, {"port": 80}])


def test_an_exact_host_is_a_service_whose_endpoint_is_its_name() -> None:
    world = compiled([PAY])
    parts = world.manifest(CALLER).parts
    routes, backend = (world.part(parts[key]) for key in ("routes/api.pay.example:80", "backend/api.pay.example:80"))
    assert isinstance(routes, HostRoutes)
    assert routes.rules[0].backends == (WeightedBackend(backend="api.pay.example:80"),)
    tls = OriginTls(sni="pay.example", names=("pay.test",))
    assert backend == Backend(
        service="api.pay.example",
        port=80,
        tls="disable",
        external=External(host="api.pay.example", port=443, tls=tls),
    )


def test_only_what_is_listed_is_let_out() -> None:
    world = compiled([ONLY, PAY, REST])
    asked = ("api.pay.example", "a.rest.example:443", "a.b.rest.example", "rest.example:443", "api.pay.example:443")
    kinds = [world.sends(CALLER, Request(authority=authority)).kind for authority in asked]
    assert kinds == ["route", "pass-through", "pass-through", "unknown-host", "unknown-host"]
    assert world.listeners(CALLER).egress_hosts == (
        "*.rest.example:443", "*.rest.example:80", "api.pay.example:80",
    )  # fmt: skip


def test_where_everything_is_let_out_nothing_is_listed() -> None:
    assert compiled([PAY, REST]).listeners(CALLER).egress_hosts == ()


def test_the_port_of_a_url_without_one_is_80() -> None:
    assert is_let_out({"a.example:80"}, b"A.example.")
    assert not is_let_out({"a.example:443"}, b"a.example")


def test_pem_is_found_however_its_lines_were_joined() -> None:
    pem = f"-----BEGIN CERTIFICATE-----\n{'A' * 64}\nBB==\n-----END CERTIFICATE-----\n"
    assert pem_of(pem) == pem_of(" ".join(pem.split("\n"))) == pem
    assert pem_of("none") == ""
