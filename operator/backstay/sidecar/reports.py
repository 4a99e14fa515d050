"""Reports that the operator has not counted durably yet: numbered per boot, kept two minutes, sent again. Pure."""

from collections import deque
from collections.abc import Sequence
from typing import Final

from backstay.config.wire import Report
from backstay.sidecar.engine import Observed

KEEP: Final = 120.0
"""Seconds; twice the longest operator fail-over that leases survive (60 s)."""


class ReportRing:
    """All reports of this boot that are neither acked nor too old."""

    def __init__(self, boot: str) -> None:
        self.boot = boot
        self.lost = 0
        """Reports given up because no operator took them in time."""
        self._next = 1
        self._kept: deque[tuple[float, Report]] = deque()

    def __repr__(self) -> str:
        return f"ReportRing(boot={self.boot}, next={self._next}, kept={len(self._kept)}, lost={self.lost})"

    def __len__(self) -> int:
        return len(self._kept)

    def add(self, observed: Observed, *, at: float, now: float) -> Report:
        """Number what was observed; `at` is wall time for people, `now` the boot clock."""
        report = Report(
            boot=self.boot,
            sequence=self._next,
            at=at,
            rows=list(observed.rows),
            peers=list(observed.peers),
            serving=dict(observed.serving),
            open_requests=observed.open_requests,
            samples=list(observed.samples),
            plaintext=list(observed.plaintext),
            missing_keys=list(observed.missing_keys),
        )
        self._next += 1
        self._kept.append((now, report))
        self._give_up_old(now)
        return report

    def _give_up_old(self, now: float) -> None:
        while self._kept and now - self._kept[0][0] > KEEP:
            self._kept.popleft()
            self.lost += 1

    def acked(self, sequence: int) -> None:
        """Everything up to here is durable at the operator."""
        while self._kept and self._kept[0][1].sequence <= sequence:
            self._kept.popleft()

    def pending(self) -> Sequence[Report]:
        """To be sent again on a new connection, oldest first."""
        return [report for _, report in self._kept]
