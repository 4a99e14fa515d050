"""What a proxy of which nobody has spoken yet gets, and what one repository's loop sees of the cluster."""

from backstay.app.feed import defaults
from backstay.app.tenants import limited
from backstay.core.compile import compile_mesh
from backstay.core.registry import Registry
from support import meshes


def test_the_defaults_have_the_authoritys_trust_domain_and_a_config_for_everybody() -> None:
    registry = meshes.registry(("a", "b"), replicas=2)
    snapshot = defaults("prod.example")
    assert snapshot.mesh.trust_domain == "prod.example"
    compiled = compile_mesh(snapshot, registry)
    assert sorted(compiled.manifests) == ["shop/a", "shop/b"]


def test_a_loop_sees_all_services_and_its_own_workloads() -> None:
    registry = meshes.registry(("a", "b"), replicas=2)
    own = limited(registry, lambda workload: workload == "shop/a")
    assert own.services == registry.services
    assert list(own.workloads) == ["shop/a"]
    assert {instance.workload for instance in own.instances.values()} == {"shop/a"}
    assert limited(registry, lambda workload: False) == Registry(services=registry.services)
