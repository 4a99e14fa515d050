"""What happened and what became of each commit, written down with the next flush."""

import logging
from typing import Final, Literal, TypeAlias

import msgspec

from backstay.core.ports import Clock, Event, Revision
from backstay.core.rollout.model import RevisionRecord
from backstay.reconciler.keeper import Keeper
from backstay.redact import clean

_log: Final = logging.getLogger("backstay.reconciler")
REVISIONS: Final = 50
"""Commits remembered; each is a line in status and the name of a snapshot to go back to."""
Outcome: TypeAlias = Literal[
    "pending", "live", "partly-live", "rolled-back", "held", "invalid", "superseded", "aborted"
]


def sha_of(revision: str) -> str:
    """The commit of `main@sha1:<sha>`, or the text itself."""
    return revision.rpartition(":")[2]


class Journal:
    """Writes events and commits' outcomes into a keeper."""

    def __init__(self, keeper: Keeper, clock: Clock) -> None:
        self._keeper = keeper
        self._clock = clock

    def event(
        self, kind: str, reason: str, message: str, revision: str = "", *, subject: str = "", warning: bool = False
    ) -> None:
        text = clean(message)
        _log.log(logging.WARNING if warning else logging.INFO, "%s.%s %s", kind, reason, text)
        self._keeper.note(
            Event(
                at=self._clock.wall(),
                kind=kind,
                reason=reason,
                message=text,
                revision=revision,
                subject=subject,
                warning=warning,
            )
        )

    def record(self, revision: Revision, outcome: Outcome) -> None:
        record = RevisionRecord(
            sha=revision.sha,
            revision=str(revision),
            author=revision.author,
            subject=revision.subject,
            committed_at=revision.committed_at,
            seen_at=self._clock.wall(),
            outcome=outcome,
        )
        others = tuple(item for item in self._keeper.state.revisions if item.sha != revision.sha)
        self._keeper.change(revisions=(record, *others)[:REVISIONS])

    def outcome(self, revision: str, outcome: Outcome, sentence: str = "", documents: str = "") -> None:
        """What became of a commit; commits before it that still waited went the same way or were passed over."""
        records = []
        for record in self._keeper.state.revisions:
            if record.revision == revision:
                record = msgspec.structs.replace(  # noqa: PLW2901
                    record, outcome=outcome, sentence=clean(sentence), documents=documents or record.documents
                )
            records.append(record)
        self._keeper.change(revisions=tuple(records))
