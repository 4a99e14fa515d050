"""The mesh repository, read with git from a bare mirror. `GitSource` is the SourceRepo of both platforms.

Names are looked up when they are first used: the command line reads folders with `tree` alone, and need not pay for the
mirror, for processes and for asyncio (0.1 s).
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from backstay.adapters.git.address import Credentials, RefSpec
    from backstay.adapters.git.folder import FolderWatch
    from backstay.adapters.git.proposals import MIRROR_BYTES, GitProposals
    from backstay.adapters.git.source import GitSource
    from backstay.adapters.git.tree import Limits

__all__ = ["MIRROR_BYTES", "Credentials", "FolderWatch", "GitProposals", "GitSource", "Limits", "RefSpec"]

_HOMES: Final = {
    "Credentials": "address",
    "RefSpec": "address",
    "FolderWatch": "folder",
    "MIRROR_BYTES": "proposals",
    "GitProposals": "proposals",
    "GitSource": "source",
    "Limits": "tree",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
