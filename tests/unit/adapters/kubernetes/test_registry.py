from typing import Any

from backstay.adapters.kubernetes.facts import (
    EndpointFacts,
    PodFacts,
    PortFacts,
    ServiceFacts,
    SliceFacts,
)
from backstay.adapters.kubernetes.registry import Departed, Facts, build
from backstay.core.live import endpoints
from backstay.core.registry import Instance, Registry, Service, ServicePort, Update, Workload, under_way


def pod(name: str, workload: str = "web", **fields: Any) -> PodFacts:
    known: dict[str, Any] = {
        "namespace": "shop",
        "uid": f"uid-{name}",
        "account": "web",
        "node": "node-1",
        "ips": (f"10.0.0.{len(name)}",),
        "labels": {"app": workload},
        "ports": ((8080, "http"),),
        "is_ready": True,
        "is_leaving": False,
        "is_over": False,
        "has_proxy": True,
        "is_meshed": True,
        "started_at": 100.0,
    }
    return PodFacts(name=name, workload=workload, **known | fields)


def service(name: str = "web", *ports: PortFacts, addresses: tuple[str, ...] = ("10.1.0.1",)) -> ServiceFacts:
    own = ports or (PortFacts(port=80, name="http", target=8080, protocol="http"),)
    return ServiceFacts(name=name, namespace="shop", ports=own, addresses=addresses)


def slice_of(
    *pods: str, of: str = "web", ports: tuple[tuple[str, int], ...] = (("http", 8080),), ready: bool = True
) -> SliceFacts:
    found = tuple(EndpointFacts(pod=name, address="10.0.0.1", is_ready=ready) for name in pods)
    return SliceFacts(namespace="shop", service=f"{of}.shop", ports=ports, endpoints=found)


def registry_of(*facts: PodFacts | ServiceFacts | SliceFacts, zones: dict[str, str] | None = None) -> Registry:
    return build(
        Facts(
            pods={f"shop/{each.name}": each for each in facts if isinstance(each, PodFacts)},
            services={f"shop/{each.name}": each for each in facts if isinstance(each, ServiceFacts)},
            slices={f"shop/{number}": each for number, each in enumerate(facts) if isinstance(each, SliceFacts)},
            zones=zones or {},
        )
    )


def test_a_service_its_workload_and_a_pod() -> None:
    found = registry_of(pod("a"), service(), slice_of("a"), zones={"node-1": "eu-1a"})
    assert found == Registry(
        services={
            "web.shop": Service(
                name="web",
                namespace="shop",
                ports=(ServicePort(port=80, name="http", target_port=8080, protocol="http"),),
                addresses=("10.1.0.1",),
            )
        },
        workloads={
            "shop/web": Workload(
                name="web",
                namespace="shop",
                service_account="web",
                services=("web.shop",),
                ports=((8080, "http"),),
            )
        },
        instances={
            "a.shop": Instance(
                id="a.shop",
                workload="shop/web",
                address="10.0.0.1",
                inbound={8080: 8080},
                labels={"app": "web"},
                zone="eu-1a",
                started_at=100.0,
                service_account="web",
            )
        },
    )


def test_what_a_slice_says_of_a_pod_beats_what_the_pod_says() -> None:
    """The slice follows readiness gates and publishNotReadyAddresses."""
    found = registry_of(pod("a"), pod("bb", is_ready=False), service(), slice_of("a", ready=False), slice_of("bb"))
    assert {key: each.ready for key, each in found.instances.items()} == {"a.shop": False, "bb.shop": True}


def test_a_leaving_pod_is_not_ready_and_one_that_ended_is_gone() -> None:
    found = registry_of(pod("a", is_leaving=True), pod("bb", is_over=True), service(), slice_of("a", "bb"))
    assert {key: each.ready for key, each in found.instances.items()} == {"a.shop": False}


def test_a_pod_without_an_address_belongs_to_its_workload_already() -> None:
    found = registry_of(pod("a", ips=()), service())
    assert (list(found.workloads), dict(found.instances)) == (["shop/web"], {})


def test_a_port_that_nobody_declares_passes_everything() -> None:
    undeclared = PortFacts(port=80, name="", target=8080, protocol=None)
    found = registry_of(pod("a", ports=()), service("web", undeclared), slice_of("a", ports=(("", 8080),)))
    assert found.services["web.shop"].ports[0].protocol == "tcp"
    assert found.workloads["shop/web"].ports == ((8080, "tcp"),)


def test_a_declared_port_beats_silence_and_contradiction_is_tcp() -> None:
    silent = PortFacts(port=80, name="a", target=8080, protocol=None)
    http = PortFacts(port=80, name="b", target=8080, protocol="http")
    tcp = PortFacts(port=80, name="c", target=8080, protocol="tcp")
    plain = pod("a", ports=((8080, ""),))

    def ports(*declared: PortFacts) -> tuple[tuple[int, str], ...]:
        services = [service(each.name, each) for each in declared]
        slices = [slice_of("a", of=each.name, ports=((each.name, 8080),)) for each in declared]
        return registry_of(plain, *services, *slices).workloads["shop/web"].ports

    assert ports(silent, http) == ((8080, "http"),)
    assert ports(http, tcp) == ((8080, "tcp"),)


def test_a_named_port_may_be_another_number_in_each_pod() -> None:
    """While a Deployment rolls from 8080 to 9090: callers reach each pod where it listens."""
    named = PortFacts(port=80, name="http", target="web", protocol="http")
    old, older = pod("a", ports=((8080, "web"),)), pod("bb", ports=((8080, "web"),))
    new = pod("ccc", ports=((9090, "web"),), started_at=200.0)
    found = registry_of(
        old, older, new, service("web", named), slice_of("a", "bb"), slice_of("ccc", ports=(("http", 9090),))
    )
    assert found.services["web.shop"].ports[0].target_port == 8080
    assert found.workloads["shop/web"].ports == ((8080, "http"), (9090, "http"))
    reached = {each.id: each.port for each in endpoints(found, "td")["web.shop:80"]}
    assert reached == {"a.shop": 8080, "bb.shop": 8080, "ccc.shop": 9090}


def test_each_pod_has_its_own_accounts_identity() -> None:
    """While a Deployment rolls to another ServiceAccount; the workload is known by the newest."""
    found = registry_of(pod("a"), pod("bb", account="new", started_at=200.0), service(), slice_of("a", "bb"))
    assert found.workloads["shop/web"].service_account == "new"
    identities = {each.id: each.identity for each in endpoints(found, "td")["web.shop:80"]}
    assert identities == {"a.shop": "spiffe://td/ns/shop/sa/web", "bb.shop": "spiffe://td/ns/shop/sa/new"}


def test_a_pod_without_a_proxy_has_no_identity() -> None:
    found = registry_of(pod("a", is_meshed=False), service(), slice_of("a"))
    assert [each.identity for each in endpoints(found, "td")["web.shop:80"]] == [""]


def test_addresses_written_by_hand_are_endpoints_outside_the_mesh() -> None:
    outside = SliceFacts(
        namespace="shop",
        service="db.shop",
        ports=(("", 5432),),
        endpoints=(EndpointFacts(pod="", address="192.0.2.1", is_ready=True, zone="z"),),
    )
    port = PortFacts(port=5432, name="", target=5432, protocol=None)
    found = registry_of(service("db", port), outside)
    assert [(each.address, each.port, each.identity) for each in endpoints(found, "td")["db.shop:5432"]] == [
        ("192.0.2.1", 5432, "")
    ]
    assert list(found.workloads) == ["shop/endpoints:db"]


def test_a_slice_of_a_service_that_is_not_there_leads_nowhere() -> None:
    found = registry_of(pod("a"), slice_of("a", of="gone"))
    assert found.workloads["shop/web"].services == ()


# --- workloads whose pods are away ----------------------------------------------------------------------------------

OWNED = registry_of(pod("a"), service(), slice_of("a"))
WEB = OWNED.workloads["shop/web"]


def test_a_workload_scaled_to_zero_is_remembered_for_a_while() -> None:
    departed = Departed(remember=60.0)
    assert departed.after(Registry(), {"shop/web"}, 0.0) == []
    assert departed.after(OWNED, set(), 1.0) == [WEB]
    kept = build(Facts(), [WEB])
    assert departed.after(kept, set(), 60.0) == [WEB]
    assert departed.after(kept, set(), 61.0) == []
    assert departed.after(Registry(), set(), 62.0) == []


def test_a_workload_that_returns_is_as_it_is_now() -> None:
    departed = Departed(remember=60.0)
    departed.after(Registry(), {"shop/web"}, 0.0)
    departed.after(OWNED, set(), 1.0)
    assert departed.after(OWNED, {"shop/web"}, 2.0) == []


def test_a_pod_of_its_own_does_not_return() -> None:
    departed = Departed(remember=60.0)
    alone = registry_of(pod("alone", workload="alone"))
    departed.after(Registry(), {"shop/alone"}, 0.0)
    assert departed.after(alone, set(), 1.0) == []


def of_template(name: str, template: str, created: float, **fields: Any) -> PodFacts:
    return pod(name, labels={"pod-template-hash": template}, created_at=created, **fields)


def test_pods_of_two_templates_are_a_workload_that_is_updated_itself() -> None:
    """Those that leave are gone already; what has no address yet counts."""
    old = [
        of_template("a", "v1", 100.0),
        of_template("bb", "v1", 400.0),
        of_template("ccc", "v1", 90.0, is_leaving=True),
    ]
    new = [of_template("dddd", "v2", 300.0, ips=()), of_template("eeeee", "v2", 310.0)]
    found = registry_of(*old, *new)
    assert found.updates == {"shop/web": Update(began_at=300.0, updated=2, total=4)}
    assert under_way(found, 310.0) == {"shop/web": "shop/web is being updated itself, 2 of 4 instances so far"}


def test_two_templates_for_longer_than_kubernetes_calls_it_stuck_are_no_update() -> None:
    found = registry_of(of_template("a", "v1", 100.0), of_template("bb", "v2", 300.0))
    assert (list(under_way(found, 899.0)), list(under_way(found, 900.0))) == (["shop/web"], [])


def test_a_workload_of_one_template_is_not_updated_whatever_its_pods_ages() -> None:
    found = registry_of(
        of_template("a", "v1", 1.0), of_template("bb", "v1", 9e9), pod("ccc", "job"), pod("dddd", "job")
    )
    assert dict(found.updates) == {}
