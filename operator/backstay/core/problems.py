"""What is wrong with a commit, said so that its author can mend it.

A problem is a value, never an exception: all of a commit's problems are collected and shown at once. Reasons are stable
CamelCase names, each has a code (`BS1203`) that `backstay explain` knows; both are in core/codes.py.
"""

import enum
from dataclasses import dataclass


class Severity(enum.Enum):
    ERROR = "error"
    """The commit is invalid and changes nothing."""
    WARNING = "warning"
    """Legal, probably not meant; shown, never in the way."""
    WAITING = "waiting"
    """Not there yet: something the registry may still bring. The document waits with ResolvedRefs=False."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    file: str
    line: int = 0
    """1-based; 0 when the problem is the whole file's."""
    column: int = 0
    path: str = ""
    """Where in the document, `spec.rules[2].backendRefs[0].weight`."""
    message: str
    """What is wrong and what was expected: lower case, no full stop, values shown with repr."""
    reason: str
    severity: Severity = Severity.ERROR
    document: str = ""
    """`Kind/namespace/name` when the document could be told."""

    def __lt__(self, other: "Problem") -> bool:
        mine = (self.file, self.line, self.column, self.path, self.message)
        return mine < (other.file, other.line, other.column, other.path, other.message)

    def __str__(self) -> str:
        """`file:line:column: path: message [Reason]`, as every output of Backstay shows it."""
        place = ":".join(str(part) for part in (self.file, self.line, self.column) if part)
        path = f" {self.path}:" if self.path else ""
        return f"{place}:{path} {self.message} [{self.reason}]"
