"""Composition roots: the only modules that name adapters and settings together. Nothing is decided here.

`local` is the embedded default, `kubernetes` the same operator in a cluster.
"""

from backstay.app.common import Facade, SystemClock
from backstay.app.local import LocalOperator, git_source
from backstay.core.ports import Fenced

__all__ = ["Facade", "Fenced", "LocalOperator", "SystemClock", "git_source"]
