"""Backstay: a service mesh that is operated with `git push`."""

from typing import Final

__version__: Final = "0.1.0"
