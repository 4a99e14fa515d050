"""`kubectl backstay check`: what is wrong with Backstay on this cluster, one line per fact, with what to do about it.

Everything is asked first, all at once; what a person may not see is said and is no fault. What follows from the answers
is decided by pure functions, each from answers to one fact.
"""

import asyncio
import base64
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, Final, TypeAlias

import click
from cryptography import x509

import backstay
from backstay.adapters.kubernetes.client import ApiClient, ApiError
from backstay.cli.check import Fact, lines
from backstay.cli.exits import Exit, Failed
from backstay.cli.kubectl.calls import Where
from backstay.cli.kubectl.cluster import OPERATOR, REPOSITORIES, connected, namespace_of
from backstay.cli.output import condition, emit

OLDEST: Final = (1, 30)  # docs/kubernetes.md
NATIVE: Final = (1, 29)  # native sidecars are on by default since
CA_ENDS_SOON: Final = 7 * 86400.0
"""Seconds: the operator makes roots and serving certificates anew months and days before; with a week left it did not."""
KINDS: Final = ("meshrepositories", "meshrollouts", "meshintents")
INJECT: Final = "backstay.dev/inject"
INJECTED: Final = "backstay.dev/injected"
CONFIGURATION: Final = "backstay-injector"
ROOTS: Final = "backstay-roots"
OTHERS: Final = (("istio-injection", "enabled", "Istio"), ("linkerd.io/inject", "enabled", "Linkerd"))

Object: TypeAlias = Mapping[str, Any]
Answer: TypeAlias = "Object | Sequence[Object] | ApiError"


@dataclass(frozen=True, slots=True, kw_only=True)
class Permission:
    """Something a user of Backstay does."""

    what: str
    verb: str
    resource: str
    group: str = ""
    subresource: str = ""
    in_system: bool = False
    """In the operator's namespace, not in the mesh's."""


PERMISSIONS: Final = (
    Permission(what="see meshes", verb="list", group="backstay.dev", resource="meshrepositories"),
    Permission(what="give orders", verb="patch", group="backstay.dev", resource="meshrollouts"),
    Permission(
        what="find the leader", verb="get", group="coordination.k8s.io", resource="leases", in_system=True
    ),
    Permission(what="`kubectl backstay`", verb="create", resource="pods", subresource="exec", in_system=True),
)  # fmt: skip


def run(where: Where, arguments: Sequence[str]) -> int:
    """Show every fact; 1 if any failed. Raises Failed for words it does not know, or without an API server."""
    output = _output(arguments)
    answers = asyncio.run(_ask(where))
    facts = facts_of(answers, where, time.time())
    data = {"apiVersion": "backstay.dev/v1alpha1", "kind": "CheckResult", "facts": [asdict(fact) for fact in facts]}
    emit(output, data, lambda _: "\n".join(line for fact in facts for line in lines(fact)))
    sys.stdout.flush()
    return Exit.NO if any(fact.level == "fail" for fact in facts) else Exit.OK


def _output(arguments: Sequence[str]) -> str:
    found = {"output": "table"}
    forms = click.Choice(("table", "wide", "json", "yaml"))

    @click.command(add_help_option=True)
    @click.option("-o", "--output", type=forms, default="table", show_default=True, help="Form of the answer.")
    def check(output: str) -> None:
        """Find out what is wrong with Backstay on this cluster. Exit code 1 if any check fails."""
        found["output"] = output

    try:
        if check.main(list(arguments), prog_name="kubectl backstay check", standalone_mode=False) == 0:
            sys.exit(Exit.OK)  # --help
    except click.UsageError as error:
        raise Failed(error.format_message(), hint="`kubectl backstay check --help`") from error
    return found["output"]


# --- asking -----------------------------------------------------------------------------------------------------------


async def _ask(where: Where) -> Mapping[str, Answer]:
    system = where.system
    async with connected(where) as client:
        version = await _or_error(client.get("/version"))
        if isinstance(version, ApiError):
            raise Failed(version.message, hint="is the cluster up, and is the kubeconfig for it?")
        crds = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
        asked = {
            **{kind: client.get(f"{crds}/{kind}.backstay.dev") for kind in KINDS},
            "deployment": client.get(f"/apis/apps/v1/namespaces/{system}/deployments/{OPERATOR}"),
            "lease": client.get(f"/apis/coordination.k8s.io/v1/namespaces/{system}/leases/{OPERATOR}"),
            "webhook": client.get(
                f"/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/{CONFIGURATION}"
            ),
            "namespaces": _items(client, "/api/v1/namespaces", labels=f"{INJECT}=enabled"),
            "pods": _items(client, "/api/v1/pods"),
            "roots": _items(client, "/api/v1/configmaps", fields=f"metadata.name={ROOTS}"),
            "repositories": _items(client, f"{REPOSITORIES}/meshrepositories"),
            "permissions": _permissions(client, namespace_of(where), system),
        }
        found = await asyncio.gather(*(_or_error(question) for question in asked.values()))
    return {"version": version, **dict(zip(asked, found, strict=True))}


async def _or_error(question: Any) -> Answer:
    try:
        answer: Answer = await question
    except ApiError as error:
        return error
    return answer


async def _items(client: ApiClient, path: str, *, labels: str = "", fields: str = "") -> Sequence[Object]:
    return (await client.list(path, labels=labels, fields=fields)).items


async def _permissions(client: ApiClient, namespace: str, system: str) -> Sequence[Object]:
    """What we may, as {what, allowed}."""

    async def one(wanted: Permission) -> Object:
        attributes = {
            "namespace": system if wanted.in_system else namespace,
            "verb": wanted.verb,
            "group": wanted.group,
            "resource": wanted.resource,
            "subresource": wanted.subresource,
        }
        review = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": attributes},
        }
        answer = await client.create("/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", review)
        return {"what": wanted.what, "allowed": bool(answer["status"].get("allowed"))}

    return await asyncio.gather(*map(one, PERMISSIONS))


# --- facts, pure ------------------------------------------------------------------------------------------------------


def facts_of(answers: Mapping[str, Answer], where: Where, now: float) -> list[Fact]:
    made: Sequence[tuple[str, Callable[..., Fact], tuple[str, ...]]] = (
        ("cluster", version_fact, ("version",)),
        ("kinds", kinds_fact, KINDS),
        ("operator", operator_fact, ("deployment",)),
        ("leader", lambda lease: leader_fact(lease, now), ("lease",)),
        ("webhook", lambda found: webhook_fact(found, now), ("webhook",)),
        ("roots", lambda found: roots_fact(found, now), ("roots",)),
        ("injection", injection_fact, ("namespaces", "pods")),
        ("meshes", meshes_fact, ("repositories",)),
        ("permissions", lambda found: permissions_fact(found, where), ("permissions",)),
    )
    return [_fact(name, decide, [answers[key] for key in keys]) for name, decide, keys in made]


def _fact(name: str, decide: Callable[..., Fact], found: Sequence[Answer]) -> Fact:
    """What a person may not see is no fault; what is not there is one."""
    for answer in found:
        if isinstance(answer, ApiError) and answer.status == 403:
            return Fact(name=name, level="warn", message="you may not look", hint=answer.message)
        if isinstance(answer, ApiError):
            missing = "install it: `kubectl apply -k bootstrap/`" if answer.is_missing else ""
            return Fact(name=name, level="fail", message=answer.message.strip(), hint=missing)
    return decide(*found) if name != "kinds" else decide(found)


def version_fact(version: Object) -> Fact:
    said = str(version.get("gitVersion", "?"))
    number = _number(str(version.get("major", "")), str(version.get("minor", "")))
    if number < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        return Fact(name="cluster", level="fail", message=f"Kubernetes {said}", hint=f"{oldest} or newer is needed")
    return Fact(name="cluster", level="ok", message=f"Kubernetes {said}; this command is {backstay.__version__}")


def _number(major: str, minor: str) -> tuple[int, int]:
    """Some clouds write `31+`."""
    digits = ["".join(filter(str.isdigit, text)) or "0" for text in (major, minor)]
    return int(digits[0]), int(digits[1])


def kinds_fact(definitions: Sequence[Object]) -> Fact:
    bad = [each["metadata"]["name"] for each in definitions if condition(each, "Established").get("status") != "True"]
    if bad:
        return Fact(
            name="kinds", level="fail", message=f"not established: {', '.join(bad)}", hint=_describe("crd", bad)
        )
    return Fact(name="kinds", level="ok", message=f"{len(definitions)} definitions, established")


def _describe(kind: str, names: Sequence[str]) -> str:
    return f"`kubectl describe {kind} {names[0]}` says why"


def operator_fact(deployment: Object) -> Fact:
    wanted = int(deployment["spec"].get("replicas", 1))
    ready = int((deployment.get("status") or {}).get("readyReplicas") or 0)
    image = deployment["spec"]["template"]["spec"]["containers"][0]["image"]
    message = f"{ready}/{wanted} replicas ready, image {image}"
    hint = f"`kubectl -n {deployment['metadata']['namespace']} describe pods -l app.kubernetes.io/name={OPERATOR}`"
    level = "fail" if not ready else "ok" if ready >= wanted else "warn"
    return Fact(name="operator", level=level, message=message, hint=hint)  # type: ignore[arg-type] # one of the three


def leader_fact(lease: Object, now: float) -> Fact:
    spec = lease.get("spec") or {}
    holder, renewed = spec.get("holderIdentity"), spec.get("renewTime")
    hint = f"`kubectl -n {lease['metadata']['namespace']} logs deploy/{OPERATOR}` says why"
    if not holder or not renewed:
        return Fact(name="leader", level="fail", message="nobody leads", hint=hint)
    ago = now - datetime.fromisoformat(renewed).timestamp()
    # Twice the lease: clocks of two machines differ.
    if ago > 2 * float(spec.get("leaseDurationSeconds") or 10):
        return Fact(name="leader", level="fail", message=f"{holder} has been silent for {ago:.0f} s", hint=hint)
    epoch = spec.get("leaseTransitions", 0)
    return Fact(name="leader", level="ok", message=f"{str(holder).partition('_')[0]}, epoch {epoch}")


def webhook_fact(found: Object, now: float) -> Fact:
    hooks = found.get("webhooks") or ()
    bundles = [(hook.get("clientConfig") or {}).get("caBundle") or "" for hook in hooks]
    if not hooks or not all(bundles):
        hint = "pods with injection cannot be created until the operator has written it; its log says why it has not"
        return Fact(name="webhook", level="fail", message=f"{CONFIGURATION} has no caBundle", hint=hint)
    ends = min(_earliest_end(base64.b64decode(bundle)) for bundle in bundles)
    policy = ", ".join(sorted({str(hook.get("failurePolicy")) for hook in hooks}))
    return _ending("webhook", ends, now, f"{len(hooks)} rules, failurePolicy {policy}")


def roots_fact(maps: Sequence[Object], now: float) -> Fact:
    """Sidecars recognize the operator by these."""
    pems = {each["metadata"]["namespace"]: (each.get("data") or {}).get("root-cert.pem", "") for each in maps}
    if not pems:
        return Fact(name="roots", level="ok", message="none published; no namespace has injection yet")
    ends = min(_earliest_end(pem.encode()) for pem in pems.values())
    if len(set(pems.values())) > 1:
        hint = "for more than a minute this is an error: the operator's log says which namespace it cannot write to"
        return Fact(name="roots", level="warn", message=f"they differ among {len(pems)} namespaces", hint=hint)
    return _ending("roots", ends, now, f"the same in {len(pems)} namespaces")


def _ending(name: str, ends: float, now: float, message: str) -> Fact:
    if ends <= 0:
        return Fact(name=name, level="fail", message=f"{message}; no certificate can be read in it")
    left = ends - now
    told = (
        f"{message}; certificates end in {left / 86400:.0f} days" if left > 0 else f"{message}; a certificate has ended"
    )
    level = "ok" if left > CA_ENDS_SOON else "fail" if left <= 0 else "warn"
    return Fact(name=name, level=level, message=told, hint="the operator renews them; its log says why it does not")  # type: ignore[arg-type] # one of the three


def _earliest_end(pem: bytes) -> float:
    """Unix seconds; 0: there is no certificate in it."""
    try:
        certificates = x509.load_pem_x509_certificates(pem)
    except ValueError:
        return 0.0
    return min(each.not_valid_after_utc.timestamp() for each in certificates)


def injection_fact(namespaces: Sequence[Object], pods: Sequence[Object]) -> Fact:
    names = {each["metadata"]["name"] for each in namespaces}
    rivals = [f"{each['metadata']['name']} ({rival})" for each in namespaces if (rival := _rival(each))]
    if rivals:
        hint = "one mesh per namespace: remove the other's label"
        return Fact(name="injection", level="fail", message=f"two meshes inject: {', '.join(rivals)}", hint=hint)
    concerned = [pod for pod in pods if pod["metadata"]["namespace"] in names and _is_running(pod)]
    outside = [pod for pod in concerned if not _is_injected(pod) and not _declines(pod)]
    injected = sum(_is_injected(pod) for pod in pods if _is_running(pod))
    message = f"{injected} pods in the mesh, {len(names)} namespaces with injection"
    if outside:
        shown = ", ".join(f"{pod['metadata']['namespace']}/{pod['metadata']['name']}" for pod in outside[:3])
        hint = "pods get their sidecar when they are created: `kubectl -n NAMESPACE rollout restart deployment`"
        return Fact(name="injection", level="warn", message=f"{message}; {len(outside)} without: {shown}", hint=hint)
    return Fact(name="injection", level="ok", message=message)


def _rival(namespace: Object) -> str:
    metadata = namespace["metadata"]
    told = {**(metadata.get("labels") or {}), **(metadata.get("annotations") or {})}
    return next((name for key, value, name in OTHERS if told.get(key) == value), "")


def _is_running(pod: Object) -> bool:
    return (pod.get("status") or {}).get("phase") in ("Pending", "Running")


def _is_injected(pod: Object) -> bool:
    return (pod["metadata"].get("labels") or {}).get(INJECTED) == "true"


def _declines(pod: Object) -> bool:
    is_outside = bool((pod.get("spec") or {}).get("hostNetwork"))
    return is_outside or (pod["metadata"].get("labels") or {}).get(INJECT) == "disabled"


def meshes_fact(repositories: Sequence[Object]) -> Fact:
    if not repositories:
        hint = "`kubectl apply -f mesh-repository.yaml`; bootstrap/examples has one"
        return Fact(name="meshes", level="warn", message="there is no MeshRepository", hint=hint)
    bad = [each for each in repositories if condition(each, "Ready").get("status") != "True"]
    if not bad:
        return Fact(name="meshes", level="ok", message=f"{len(repositories)}, all ready")
    told = "; ".join(map(_told, bad[:3]))
    stuck = any(condition(each, "Stalled").get("status") == "True" for each in bad)
    hint = "`kubectl describe meshrepository` has the events; `kubectl backstay explain REASON` says what one means"
    return Fact(name="meshes", level="fail" if stuck else "warn", message=told, hint=hint)


def _told(repository: Object) -> str:
    metadata, ready = repository["metadata"], condition(repository, "Ready")
    why = f"{ready['reason']}: {ready.get('message', '')}" if ready else "nobody has looked at it yet"
    return f"{metadata['namespace']}/{metadata['name']} {why}"


def permissions_fact(found: Sequence[Object], where: Where) -> Fact:
    lacking = [each["what"] for each in found if not each["allowed"]]
    if lacking:
        hint = f"ask for the Role backstay-user in {where.system} and the ClusterRole edit in the mesh's namespace"
        return Fact(name="permissions", level="warn", message=f"you may not {', '.join(lacking)}", hint=hint)
    return Fact(name="permissions", level="ok", message="you may see and steer")
