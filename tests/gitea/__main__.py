"""`python tests/gitea`: build the forge that tests run against, unless it is there."""

import sys
from pathlib import Path

if __package__ in {None, ""}:  # called by its folder's name: the package is one level up
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from gitea import build


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> int:
    try:
        build.ensure(say)
    except build.CannotBuild as error:
        say(str(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
