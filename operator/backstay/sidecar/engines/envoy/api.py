"""Small pieces of Envoy's v3 API as JSON objects: addresses, durations, matchers, typed extensions. Pure.

Envoy reads protobuf's JSON form; everything rendered goes through a serialiser, never through a template. Text that Envoy
would take for a format (`%REQ(...)%`) is escaped here.
"""

from pathlib import Path
from typing import Any, Final, TypeAlias

Json: TypeAlias = dict[str, Any]

TYPE: Final = "type.googleapis.com/"
MILLION: Final = 1_000_000


def typed(name: str, kind: str, **fields: Any) -> Json:
    """An extension by its name, with a configuration of this protobuf type."""
    return {"name": name, "typed_config": message(kind, **fields)}


def message(kind: str, **fields: Any) -> Json:
    """A protobuf `Any`."""
    return {"@type": TYPE + kind, **fields}


def socket_address(host: str, port: int) -> Json:
    return {"socket_address": {"address": host, "port_value": port}}


def millis(milliseconds: float) -> str:
    """A protobuf Duration."""
    return f"{milliseconds / 1000:.3f}s"


def percent(value: float) -> Json:
    """A FractionalPercent, as fine as Envoy has them."""
    return {"numerator": round(value * MILLION / 100), "denominator": "MILLION"}


def plain(text: str) -> str:
    """Text in which Envoy finds no format."""
    return text.replace("%", "%%")


def exactly(value: str) -> Json:
    return {"exact": value}


def whole(pattern: str) -> Json:
    """A string matcher for a pattern (RE2) that must take the whole value."""
    return {"safe_regex": {"regex": pattern}}


def discovered(name: str, kind: str, path: Path) -> Json:
    """A filter whose configuration is a file of its own: what changes in it touches no connection."""
    return {"name": name, "config_discovery": {"config_source": watched(path), "type_urls": [kind]}}


def watched(path: Path) -> Json:
    """A source of configuration that Envoy reads again when the file is replaced (moved into its folder)."""
    return {
        "path_config_source": {"path": str(path), "watched_directory": {"path": str(path.parent)}},
        "resource_api_version": "V3",
    }
