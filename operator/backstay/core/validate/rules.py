"""Rules that take more than one document, or more than its shape."""

from collections.abc import Iterator, Sequence

from backstay.core.problems import Problem
from backstay.core.registry import Registry
from backstay.core.snapshot import Document


def check(documents: Sequence[Document], registry: Registry | None, *, is_complete: bool) -> Iterator[Problem]:
    """Problems of the commit as a whole. `is_complete` is False when something could not be read: then nothing is said
    to be missing."""
    first: dict[str, Document] = {}
    for document in documents:
        earlier = first.setdefault(document.key, document)
        if earlier is not document:
            line, column = document.positions.get("metadata.name", (document.line, 1))
            message = f"{document.key} is already in {earlier.place()}, expected it once"
            yield Problem(
                file=document.file,
                line=line,
                column=column,
                path="metadata.name",
                message=message,
                reason="DuplicateDocument",
                document=document.key,
            )
