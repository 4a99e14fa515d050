"""`backstay operator`: the operator in a Kubernetes cluster."""

import asyncio
import gc
import logging
import os
import signal
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, Final

import click

from backstay.cli.exits import Exit, Failed
from backstay.settings import MOST_SAMPLES

LEVELS: Final = ("debug", "info", "warning", "error")
LEAVE_WITHIN: Final = 1.0
"""Seconds for tasks to end by themselves, and once more after they were told to: all that matters has ended before."""
YOUNG_OBJECTS: Final = 10_000
"""New containers before a look for reference cycles (Python's own: 700). What a thousand proxies say is no cycle, and a cluster's
objects are there to stay: looking through them was an eighth of what streams cost."""

_log: Final = logging.getLogger("backstay.cli")


def _default_pod() -> str:
    return os.environ.get("HOSTNAME", "") or "operator"


@click.command(context_settings={"auto_envvar_prefix": "BACKSTAY_OPERATOR", "show_default": True})
@click.option("--pod", default=_default_pod, show_default="host name", help="Name of this replica's pod.")
@click.option("--namespace", default="backstay-system", help="The operator's own namespace: state, Lease, Secrets.")
@click.option("--name", default="backstay-operator", help="Name of its Service and of its Lease.")
@click.option("--operator-class", default="", help="Serve only what is labelled backstay.dev/operator-class with it.")
@click.option("--trust-domain", default="backstay.local", help="Of the identities it issues.")
@click.option("--sidecar-image", default="backstay-sidecar:dev", help="What the webhook puts into pods.")
@click.option("--cluster-domain", default="cluster.local", help="DNS suffix of the cluster.")
@click.option("--kubeconfig", type=click.Path(path_type=Path, dir_okay=False), help="Outside a cluster only.")
@click.option("--context", default="", help="Of the kubeconfig.")
@click.option("--cache-dir", type=click.Path(path_type=Path, file_okay=False), default=Path("/var/lib/backstay"))
@click.option("--run-dir", type=click.Path(path_type=Path, file_okay=False), default=Path("/run/backstay"))
@click.option("--host", default="0.0.0.0", help="Address to listen on.")  # noqa: S104 - callers come from outside the pod
@click.option("--control-port", default=15012, help="Where proxies enrol and hold their streams.")
@click.option("--injection-port", default=15017, help="Where the API server asks about new pods.")
@click.option("--metrics-port", default=15014, help="/metrics, /healthz, /readyz.")
@click.option("--hooks-port", default=15018, help="Where forges knock.")
@click.option(
    "--traffic-samples", type=click.IntRange(0, MOST_SAMPLES), default=5, help="Requests a second each proxy tells of."
)
@click.option("--operator-url", default="", help="Where proxies find the operator, if not at its Service.")
@click.option("--log-level", type=click.Choice(LEVELS), default="info")
def operator(log_level: str, **options: Any) -> None:
    """Run the operator in a Kubernetes cluster.

    Two or more replicas may run: all inject and enrol, the one that holds the Lease leads. Every option can be given as
    BACKSTAY_OPERATOR_<OPTION> in the environment.
    """
    from backstay.settings import KubernetesSettings  # late: `--help` need not pay for an operator

    logging.basicConfig(level=log_level.upper(), format="%(asctime)s %(levelname)-7s %(name)s %(message)s")
    logging.getLogger("aiohttp.access").setLevel(logging.WARNING)
    main = serve(KubernetesSettings(**options))
    gc.freeze()  # what is imported stays until the end
    gc.set_threshold(YOUNG_OBJECTS)
    _run(main)


def _run(main: Coroutine[Any, Any, None]) -> None:
    """On uvloop: asyncio's own TLS keeps 256 KiB of buffer for each of a thousand proxies, and all of it resident."""
    import uvloop

    loop = uvloop.new_event_loop()
    try:
        loop.run_until_complete(main)
    finally:
        loop.run_until_complete(_leave())
        loop.close()


async def _leave() -> None:
    """End what still runs, and do not wait for what does not: kopf's schedulers wait for ever for tasks that were cancelled
    with them, and a pod would be killed after its grace period instead of ending."""
    left = asyncio.all_tasks() - {asyncio.current_task()}
    if left:
        _, left = await asyncio.wait(left, timeout=LEAVE_WITHIN)
    for task in left:
        task.cancel()
    if left:
        _, left = await asyncio.wait(left, timeout=LEAVE_WITHIN)
    if left:
        _log.info("operator.left tasks=%s", sorted(task.get_name() for task in left))


async def serve(settings: "Any") -> None:
    """Start, run until a signal, close. Raises Failed for what cannot start or go on."""
    from backstay.adapters.certificates import CertificatesUnusable
    from backstay.adapters.kubernetes.client import ApiError
    from backstay.app.kubernetes import KubernetesOperator
    from backstay.tasks import spawn, stop

    ending = asyncio.Event()
    _take_signals(ending)
    try:
        running = KubernetesOperator(settings, took_signals=lambda: _take_signals(ending))
    except ApiError as error:
        raise Failed(error.message, hint="run in a cluster, or give --kubeconfig") from error
    waiting = spawn(ending.wait(), name="signals")
    working = spawn(_work(running), name="operator")
    try:
        await asyncio.wait({waiting, working}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            working.result()
    except (OSError, ApiError, CertificatesUnusable) as error:
        raise Failed(str(error), hint="`kubectl backstay check` looks at the installation") from error
    finally:
        await stop(waiting, working)
        await running.close()


async def _work(running: "Any") -> None:
    await running.start()
    await running.run()
    raise Failed("the operator has ended by itself", code=Exit.TROUBLE)


def _take_signals(ending: asyncio.Event) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, ending.set)
