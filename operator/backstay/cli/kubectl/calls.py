"""What was typed after `kubectl backstay`, taken apart. Pure.

Options about where (-n, --repository, --context, ...) may stand before the verb or after it, as with kubectl; after the
verb an option that the verb knows itself is the verb's.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from backstay.cli.exits import Failed

SYSTEM_NAMESPACE: Final = "backstay-system"

_OPTIONS: Final = {
    "-n": "namespace",
    "--namespace": "namespace",
    "--repository": "repository",
    "--context": "context",
    "--kubeconfig": "kubeconfig",
    "--operator-namespace": "system",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Where:
    """Which cluster, which mesh of it."""

    namespace: str = ""
    """Empty: the kubeconfig's."""
    repository: str = ""
    """Name of the MeshRepository; empty: the only one there is."""
    context: str = ""
    kubeconfig: str = ""
    system: str = SYSTEM_NAMESPACE
    """Where the operator runs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    where: Where = field(default_factory=Where)
    arguments: tuple[str, ...] = ()
    """Verb and what belongs to it; empty: nothing was asked."""
    wants_help: bool = False

    @property
    def verb(self) -> str:
        return self.arguments[0] if self.arguments else ""


def parse(arguments: Sequence[str], is_verbs_own: Callable[[Sequence[str], str], bool]) -> Call:
    """Raises Failed. `is_verbs_own(arguments so far, option)` says whether the verb knows that option itself."""
    where: dict[str, str] = {}
    rest: list[str] = []
    waiting = list(arguments)
    while waiting:
        word = waiting.pop(0)
        option, equals, value = word.partition("=")
        if word == "--":
            rest += [word, *waiting]
            break
        if not rest and word in ("-h", "--help"):
            return Call(wants_help=True)
        if option not in _OPTIONS or (rest and is_verbs_own(rest, option)):
            if not rest and word.startswith("-"):
                raise Failed(f"no option {option!r}", hint="`kubectl backstay --help` lists them")
            rest.append(word)
            continue
        if not equals:
            if not waiting:
                raise Failed(f"{option} needs a value")
            value = waiting.pop(0)
        where[_OPTIONS[option]] = value
    return Call(where=Where(**where), arguments=tuple(rest))
