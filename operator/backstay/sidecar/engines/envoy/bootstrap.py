"""What Envoy is started with: where its files are, its admin socket, and how it counts. Pure."""

from typing import Final

from backstay.sidecar.engines.envoy import accesslog
from backstay.sidecar.engines.envoy.api import Json, typed, watched
from backstay.sidecar.engines.envoy.files import Folder

SOCKET_MODE: Final = 0o600
"""The admin interface can stop a proxy: it is a socket of this user's, never a port."""
RUNTIME: Final = {
    "envoy.reloadable_features.match_headers_individually": False,
    "envoy.reloadable_features.rbac_match_headers_individually": False,
    "re2.max_program_size.error_level": 1_000_000,
    "envoy.reloadable_features.strict_chunk_parsing": True,
}
"""A matcher sees all values of a repeated field, joined by commas, as in the other engine: one that saw each alone would take a
request for what it only partly is. Patterns may be as long as validation lets them (config/regex.py limits their memory):
Envoy's own limit of 100 steps is less than a list of ten origins takes."""
FLUSH: Final = "0.250s"
"""How often Envoy adds up its histograms: reports go out every second and must not lag another one behind."""
_INTERNAL: Final = "envoy.extensions.bootstrap.internal_listener.v3.InternalListener"
_MONITOR: Final = "envoy.resource_monitors.global_downstream_max_connections"
_LIMIT: Final = "envoy.extensions.resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig"
MAX_CONNECTIONS: Final = 50_000  # downstream; Envoy asks for a limit, and a pod's descriptors end sooner


def bootstrap(folder: Folder, node: str) -> Json:
    return {
        "node": {"id": node, "cluster": "backstay"},
        "admin": {"address": {"pipe": {"path": str(folder.admin), "mode": SOCKET_MODE}}},
        "dynamic_resources": {
            "lds_config": watched(folder.listeners),
            "cds_config": watched(folder.clusters),
        },
        "stats_config": {"histogram_bucket_settings": [accesslog.bucket_settings()]},
        "stats_flush_interval": FLUSH,
        "layered_runtime": {"layers": [{"name": "backstay", "static_layer": RUNTIME}]},
        "bootstrap_extensions": [typed("envoy.bootstrap.internal_listener", _INTERNAL)],
        "overload_manager": {
            "resource_monitors": [typed(_MONITOR, _LIMIT, max_active_downstream_connections=MAX_CONNECTIONS)]
        },
    }
