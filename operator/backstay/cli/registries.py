"""Registries for verbs that compile without a platform: from a workloads file, or from the operator."""

from pathlib import Path

import msgspec

from backstay.adapters.processes import workloads_file
from backstay.cli.client import Client
from backstay.cli.exits import Failed
from backstay.core.registry import Registry


def registry_of(path: Path) -> Registry:
    """Services and workloads of a workloads file; nothing runs, so there are no instances. Raises Failed."""
    try:
        found = workloads_file.read(path)
    except workloads_file.WorkloadsFileInvalid as error:
        raise Failed("\n".join(map(str, error.problems))) from error
    except OSError as error:
        raise Failed(f"{path}: {error.strerror or error}") from error
    return Registry(services=found.services(), workloads=found.workloads())


def live_registry(client: Client) -> Registry:
    """What the running operator sees. Raises OperatorAway."""
    return msgspec.convert(client.get("/v1/registry"), Registry)
