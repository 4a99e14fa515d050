"""What applies to one workload, and who may ask what of it."""

from backstay.core.review.scope import Policy, scope_of
from support.policy import BACKENDS, GATEWAY, Json, compiled, document, gateway_listener, with_gateway


def allow(*rules: Json) -> Json:
    return document("Authorization", "web", {"selector": {"workloads": ["web-v1"]}, "rules": list(rules)})


STRICT = document("Authentication", "all", {"selector": {"workloads": ["web-v1"]}, "mtls": {"mode": "STRICT"}})
READERS = {"from": [{"serviceAccounts": ["client"]}], "to": [{"methods": ["GET"], "paths": ["/a/*"]}]}
ROUTE = document("Route", "api", {"hosts": ["api"], "rules": [{"backendRefs": [{"name": "api", "port": 80}]}]})


def test_a_workload_without_policies_is_open_to_all() -> None:
    found = scope_of(compiled([*BACKENDS, ROUTE]), "shop/web-v1")
    assert {(caller.name, caller.extent) for caller in found.callers} == {
        (name, "everything") for name in ("shop/api-v2", "shop/batch", "shop/client", "shop/web-v2", "plaintext")
    }
    assert found.reaches == (("api.shop:80", "02.yaml:8"), ("web.shop:80", ""))
    assert found.mtls == ((8080, "permissive"),)


def test_policies_say_who_may_what() -> None:
    found = scope_of(compiled([allow(READERS), STRICT]), "shop/web-v1")
    callers = {caller.name: (caller.extent, caller.requests) for caller in found.callers}
    assert callers["shop/client"] == ("some", ("GET starting with /a/",))
    assert callers["shop/batch"] == callers["plaintext"] == ("nothing", ())
    assert found.policies == (Policy(name="shop/web", action="allow", place="00.yaml:1"),)
    assert (found.mtls, found.mtls_place) == (((8080, "strict"),), "01.yaml:14")


def test_a_gateway_says_whom_it_takes_in_and_where_they_go() -> None:
    listeners = [
        gateway_listener("open", 8081, "HTTP", ["*.example"], redirect=True),
        gateway_listener("secure", 8443, "HTTPS", ["a.example"]),
    ]
    rule = {"backendRefs": [{"name": "web", "port": 80}]}
    routed = {"hosts": ["a.example"], "parentRefs": [{"name": "public", "sectionName": "secure"}], "rules": [rule]}
    documents = [document("Gateway", "public", {"listeners": listeners}), document("Route", "a", routed)]
    found = scope_of(compiled([*BACKENDS, *documents], with_gateway()), f"shop/{GATEWAY}")
    assert [text for text, _ in found.outside] == [
        "port 8081 for *.example: plaintext, sent to https at port 8443",
        "port 8443 for a.example: TLS with certificate shop/secure-cert, 1.2 or newer",
        "port 8443, a.example to web.shop:80",
    ]
    assert all(place for _, place in found.outside)
