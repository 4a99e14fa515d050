"""The mesh repository, read with git from a bare mirror. `GitSource` is the SourceRepo of both platforms."""

from backstay.adapters.git.address import Credentials, RefSpec
from backstay.adapters.git.folder import FolderWatch
from backstay.adapters.git.proposals import MIRROR_BYTES, GitProposals
from backstay.adapters.git.source import GitSource
from backstay.adapters.git.tree import Limits

__all__ = ["MIRROR_BYTES", "Credentials", "FolderWatch", "GitProposals", "GitSource", "Limits", "RefSpec"]
