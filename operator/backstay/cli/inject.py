"""`backstay inject -f FILE`: manifests with the sidecar in them, as the webhook would have put it there."""

from collections.abc import Iterator, Mapping
from typing import IO, Any

import click
import yaml

from backstay.cli.exits import Exit, Failed
from backstay.core.inject import INJECT, InjectionSettings, Outcome, Surroundings, Verdict, decide, patched

_WITH_TEMPLATE = frozenset({"Deployment", "ReplicaSet", "StatefulSet", "DaemonSet", "Job", "ReplicationController"})


@click.command()
@click.option("-f", "--filename", "files", type=click.File("rb"), multiple=True, required=True, help="`-` is stdin.")
@click.option("-n", "--namespace", default="default", show_default=True, help="Of manifests that name none.")
@click.option("--image", default="backstay-sidecar:dev", show_default=True, help="Image of the sidecar.")
@click.option(
    "--operator",
    default="https://backstay-operator.backstay-system.svc:15012",
    show_default=True,
    help="The control port, as pods reach it.",
)
@click.option("--trust-domain", default="backstay.local", show_default=True)
@click.option(
    "--native/--no-native", default=True, show_default=True, help="Native sidecar (Kubernetes 1.29 and newer)."
)
def inject(
    files: tuple[IO[bytes], ...], namespace: str, image: str, operator: str, trust_domain: str, native: bool
) -> None:
    """Print manifests with the sidecar in every pod. Nothing is sent anywhere; what is no pod passes unchanged."""
    settings = InjectionSettings(image=image, operator=operator, trust_domain=trust_domain, native_sidecar=native)
    documents = [each for file in files for each in _documents(file)]
    changed = [_with_sidecars(each, namespace, settings) for each in documents]
    click.echo(yaml.safe_dump_all(changed, sort_keys=False, default_flow_style=False, width=4096), nl=False)


def _documents(file: IO[bytes]) -> Iterator[Any]:
    try:
        yield from (each for each in yaml.safe_load_all(file.read()) if each is not None)
    except yaml.YAMLError as error:
        raise Failed(f"{file.name}: {error}", hint="is this a file of Kubernetes manifests?") from error


def _with_sidecars(document: Any, namespace: str, settings: InjectionSettings) -> Any:
    """The manifest with a sidecar in its pod, whatever kind it is."""
    if not isinstance(document, Mapping):
        return document
    match document.get("kind"):
        case "List":
            return {**document, "items": [_with_sidecars(each, namespace, settings) for each in document["items"]]}
        case "Pod":
            return _injected(document, document, namespace, settings)
        case "CronJob":
            return _inside(document, ("spec", "jobTemplate", "spec", "template"), namespace, settings)
        case str() as kind if kind in _WITH_TEMPLATE:
            return _inside(document, ("spec", "template"), namespace, settings)
        case _:
            return document


def _inside(document: Mapping[str, Any], path: tuple[str, ...], namespace: str, settings: InjectionSettings) -> Any:
    """The document with the pod template at this path injected."""
    pod: Any = document
    for key in path:
        pod = pod.get(key) if isinstance(pod, Mapping) else None
    if pod is None:
        raise Failed(f"{_title(document, namespace)}: {'.'.join(path)} is missing, expected a pod's template")
    return patched(
        document, [{"op": "add", "path": f"/{'/'.join(path)}", "value": _injected(document, pod, namespace, settings)}]
    )


def _injected(whole: Mapping[str, Any], pod: Mapping[str, Any], namespace: str, settings: InjectionSettings) -> Any:
    """Asking for it by hand is as good as the namespace's label; the pod's own label still wins."""
    around = Surroundings(name=_namespace(whole, namespace), labels={INJECT: "enabled"})
    outcome = decide(pod, around, settings)
    if outcome.verdict is Verdict.REFUSE:
        raise Failed(f"{_title(whole, namespace)}: {outcome.message}", code=Exit.NO)
    if outcome.verdict is Verdict.SKIP:
        click.echo(f"{_title(whole, namespace)}: left alone: {_why(outcome)}", err=True)
    return patched(pod, outcome.patch)


def _why(outcome: Outcome) -> str:
    return outcome.message or {
        "AlreadyInjected": "it has a sidecar already",
        "NotAsked": f"its label {INJECT} says so",
        "SystemNamespace": "its namespace is never injected",
    }.get(outcome.reason, outcome.reason)


def _title(document: Mapping[str, Any], namespace: str) -> str:
    name = (document.get("metadata") or {}).get("name", "?")
    return f"{document.get('kind')} {_namespace(document, namespace)}/{name}"


def _namespace(document: Mapping[str, Any], namespace: str) -> str:
    return str((document.get("metadata") or {}).get("namespace") or namespace)
