"""The local platform: processes of a workloads file as the services of a mesh, on one machine without a cluster."""

from backstay.adapters.processes.addresses import Place, PortTaken
from backstay.adapters.processes.launches import OperatorEndpoint
from backstay.adapters.processes.platform import LocalPlatform
from backstay.adapters.processes.supervisor import SupervisionSettings
from backstay.adapters.processes.workloads_file import WorkloadsFile, WorkloadsFileInvalid

__all__ = [
    "LocalPlatform",
    "OperatorEndpoint",
    "Place",
    "PortTaken",
    "SupervisionSettings",
    "WorkloadsFile",
    "WorkloadsFileInvalid",
]
