"""Asks the API server what the plugin has to know: who we are to it, which operator leads, which mesh is meant.

Answers come as plain objects; what follows from them is decided by pure functions below.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

from kubernetes.client import Configuration
from kubernetes.config import ConfigException, list_kube_config_contexts, load_kube_config

from backstay.adapters.kubernetes.client import ApiClient, ApiError, Credentials
from backstay.cli.exits import Exit, Failed
from backstay.cli.kubectl.calls import Where

OPERATOR: Final = "backstay-operator"
"""Name of the Deployment, its Service, ServiceAccount, container group and Lease."""
CONTAINER: Final = "operator"
STATE: Final = "/run/backstay"
"""Where the leader keeps the socket of each mesh, as <namespace>/<name>/."""
REPOSITORIES: Final = "/apis/backstay.dev/v1alpha1"
Object: TypeAlias = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One mesh, and the pod that answers for it."""

    configuration: Configuration
    pod: str
    system: str
    namespace: str
    repository: str
    user: str
    """Who we are, in the API server's words."""

    @property
    def state_dir(self) -> str:
        return f"{STATE}/{self.namespace}/{self.repository}"


async def find(where: Where) -> Target:
    """Raises Failed."""
    async with connected(where) as client:
        try:
            lease, repositories, user = await asyncio.gather(
                client.get(f"/apis/coordination.k8s.io/v1/namespaces/{where.system}/leases/{OPERATOR}"),
                _repositories(client, namespace_of(where)),
                who_am_i(client),
            )
        except ApiError as error:
            raise failed(error) from error
    chosen = choose(repositories, namespace_of(where), where.repository)
    return Target(
        configuration=configuration(where),
        pod=leader(lease),
        system=where.system,
        namespace=chosen["metadata"]["namespace"],
        repository=chosen["metadata"]["name"],
        user=user,
    )


class connected:  # noqa: N801 - reads as a statement
    """A client of the API server, closed at the end."""

    def __init__(self, where: Where) -> None:
        self._where = where
        self._client: ApiClient | None = None

    async def __aenter__(self) -> ApiClient:
        kubeconfig = Path(self._where.kubeconfig) if self._where.kubeconfig else None
        try:
            self._client = ApiClient(Credentials.find(kubeconfig, self._where.context))
        except ApiError as error:
            raise failed(error) from error
        return self._client

    async def __aexit__(self, *_: object) -> None:
        if self._client is not None:
            await self._client.close()


async def who_am_i(client: ApiClient) -> str:
    review = {"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}
    answer = await client.create("/apis/authentication.k8s.io/v1/selfsubjectreviews", review)
    return str(answer["status"]["userInfo"]["username"])


async def _repositories(client: ApiClient, namespace: str) -> Sequence[Object]:
    """All of the cluster, or for those who may not see them the namespace's."""
    try:
        return (await client.list(f"{REPOSITORIES}/meshrepositories")).items
    except ApiError as error:
        if error.status != 403:
            raise
    return (await client.list(f"{REPOSITORIES}/namespaces/{namespace}/meshrepositories")).items


def configuration(where: Where) -> Configuration:
    """For the `kubernetes` package, whose streams we use. Raises Failed."""
    found = Configuration()
    try:
        load_kube_config(  # type: ignore[no-untyped-call] # half typed
            config_file=where.kubeconfig or None, context=where.context or None, client_configuration=found
        )
    except (ConfigException, OSError) as error:
        raise Failed(f"no way to the API server: {error}", hint="name a kubeconfig with --kubeconfig") from error
    return found


def namespace_of(where: Where) -> str:
    """The one that was named, or the context's. Raises Failed."""
    if where.namespace:
        return where.namespace
    try:
        contexts, active = list_kube_config_contexts(where.kubeconfig or None)  # type: ignore[no-untyped-call] # half typed
    except (ConfigException, OSError) as error:
        raise Failed(f"no way to the API server: {error}", hint="name a kubeconfig with --kubeconfig") from error
    if where.context:
        active = next((each for each in contexts if each["name"] == where.context), active)
    return str(active["context"].get("namespace") or "default")


def failed(error: ApiError) -> Failed:
    """The API server's no, with what to do about it."""
    hints = {
        0: "is the cluster up, and is the kubeconfig for it?",
        401: "the API server does not know you: log in again",
        403: "you lack a permission; docs/kubernetes.md says which role gives it",
        404: "is Backstay installed? `kubectl backstay check` finds out",
    }
    return Failed(error.message, hint=hints.get(error.status, ""))


# --- pure -------------------------------------------------------------------------------------------------------------


def leader(lease: Object) -> str:
    """The pod that leads. Raises Failed."""
    holder = str((lease.get("spec") or {}).get("holderIdentity") or "")
    if not holder:
        raise Failed("no operator leads at the moment", hint="`kubectl backstay check` says why")
    return holder.partition("_")[0]  # the rest tells processes of one pod apart


def choose(repositories: Sequence[Object], namespace: str, name: str) -> Object:
    """The MeshRepository that is meant: in that namespace, else in charge of it, else the only one. Raises Failed."""
    named = [each for each in repositories if name in ("", each["metadata"]["name"])]
    inside = [each for each in named if each["metadata"]["namespace"] == namespace]
    in_charge = [each for each in named if namespace in ((each.get("status") or {}).get("namespaces") or ())]
    found = next((some for some in (inside, in_charge, named) if some), [])
    if len(found) == 1:
        return found[0]
    if not found:
        wanted = f"no MeshRepository {name!r}" if name else "there is no MeshRepository"
        raise Failed(wanted, hint="`kubectl get meshrepositories -A` lists them", code=Exit.NO)
    known = ", ".join(sorted(f"{each['metadata']['namespace']}/{each['metadata']['name']}" for each in found))
    raise Failed(f"which MeshRepository? {known}", hint="choose with -n NAMESPACE and --repository NAME")
