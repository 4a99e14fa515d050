"""What the operator does at the API server, verb by verb, and what it must never be able to do.

The unit test holds the Roles of bootstrap/ to exactly this; the end-to-end test asks a real authorizer.
"""

from dataclasses import dataclass
from typing import Final, Literal

Scope = Literal["cluster", "own", "foreign"]
"""Cluster-wide, in the operator's namespace, or in somebody else's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Permission:
    verb: str
    resource: str
    """With its subresource: `meshrollouts/status`."""
    group: str = ""
    name: str = ""
    scope: Scope = "cluster"


def each(verbs: str, resources: str, *, group: str = "", name: str = "", scope: Scope = "cluster") -> set[Permission]:
    return {
        Permission(verb=verb, resource=resource, group=group, name=name, scope=scope)
        for verb in verbs.split()
        for resource in resources.split()
    }


BACKSTAY: Final = "backstay.dev"

NEEDED: Final[frozenset[Permission]] = frozenset(
    each("list watch", "pods services namespaces nodes")  # platform.py, watch.py
    | each("list watch", "endpointslices", group="discovery.k8s.io")
    | each("get", "pods namespaces")  # platform.py: who enrols, where a pod is made
    | each("create", "tokenreviews", group="authentication.k8s.io")  # tokens.py
    | each("list watch", "customresourcedefinitions", group="apiextensions.k8s.io")  # kopf
    | each("list watch", "meshrepositories", group=BACKSTAY)  # handlers.py
    | each("list watch create patch delete", "meshrollouts meshintents", group=BACKSTAY)  # objects.py
    | each("patch", "meshrepositories/status meshrollouts/status meshintents/status", group=BACKSTAY)
    | each("create patch", "events")
    | each("create patch", "configmaps", name="backstay-roots")  # roots.py
    | each(  # serving.py
        "get patch",
        "mutatingwebhookconfigurations",
        group="admissionregistration.k8s.io",
        name="backstay-injector",
    )
    | each("get list create update delete", "secrets", scope="own")  # state.py, cacerts.py
    | each("create", "leases", group="coordination.k8s.io", scope="own")  # lease.py
    | each("get list watch update", "leases", group="coordination.k8s.io", name="backstay-operator", scope="own")
)

NEVER: Final[frozenset[Permission]] = frozenset(
    each("get list watch create update patch delete", "secrets", scope="foreign")
    | each("get list create update patch delete", "configmaps", name="somebody-elses", scope="foreign")
    | each("create update patch delete", "pods services namespaces nodes serviceaccounts", scope="foreign")
    | each("create", "pods/exec pods/attach pods/portforward serviceaccounts/token", scope="foreign")
    | each("create", "pods/exec", scope="own")
    | each("create update patch delete", "deployments replicasets daemonsets statefulsets", group="apps", scope="own")
    | each("create update patch delete", "meshrepositories", group=BACKSTAY, scope="foreign")
    | each("create update patch delete", "customresourcedefinitions", group="apiextensions.k8s.io")
    | each("create update delete", "mutatingwebhookconfigurations", group="admissionregistration.k8s.io")
    | each(
        "patch", "mutatingwebhookconfigurations", group="admissionregistration.k8s.io", name="somebody-elses"
    )
    | each("escalate bind create update patch", "clusterroles roles", group="rbac.authorization.k8s.io", scope="own")
    | each("get update", "leases", group="coordination.k8s.io", scope="foreign")
    | each("impersonate", "users groups serviceaccounts")
    | each("get", "nodes/proxy")
)  # fmt: skip
