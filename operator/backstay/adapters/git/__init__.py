"""The mesh repository, read with git from a bare mirror. `GitSource` is the SourceRepo of both platforms."""

from backstay.adapters.git.address import Credentials, RefSpec
from backstay.adapters.git.folder import FolderWatch
from backstay.adapters.git.source import GitSource
from backstay.adapters.git.tree import Limits

__all__ = ["Credentials", "FolderWatch", "GitSource", "Limits", "RefSpec"]
