import pytest

from backstay.core.rollout.memo import Suspect
from backstay.core.rollout.suspicion import fell


@pytest.mark.parametrize(
    ("bad", "kept", "expected"),
    [(0, 0.0, True), (30, 0.0, False), (10, 0.0, True), (18, 0.6, True), (26, 0.6, False), (0, 0.6, True)],
)
def test_fallen_means_at_least_half_of_what_the_taken_part_explains(bad: int, kept: float, expected: bool) -> None:
    suspect = Suspect(kind="shared", subject="x", rate=0.3, usual=0.0, kept=kept, total=1000, bad=bad * 10)
    assert fell(suspect) is expected
