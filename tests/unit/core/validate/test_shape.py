"""The fall-back words, which a person sees only of documents too large to explain."""

from typing import Any

import pytest

from backstay.core.validate.shape import Mistake, first_mistake

HEAD = {"apiVersion": "backstay.dev/v1alpha1", "kind": "Backend"}


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (
            {**HEAD, "metadata": {"name": "A"}, "spec": {}},
            Mistake(
                path="metadata.name",
                reason="WrongShape",
                message="expected str matching regex '^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$'",
            ),
        ),
        (
            {**HEAD, "metadata": {"name": "a"}, "spec": {}},
            Mistake(path="spec", reason="WrongShape", message="object missing required field service"),
        ),
        (
            {**HEAD, "metadata": {"name": "a"}, "spec": {"service": "a", "subsets": [{"name": "a", "labels": 1}]}},
            Mistake(path="spec.subsets[0].labels", reason="WrongShape", message="expected object, got int"),
        ),
        (
            {**HEAD, "metadata": {"name": "a"}},
            Mistake(path="", reason="MissingField", message="`spec` is missing, expected it here"),
        ),
        (
            {**HEAD, "metadata": {"name": "a"}, "spec": {"service": "a"}, "status": {}},
            Mistake(path="", reason="WrongShape", message="unknown field next to `metadata` and `spec`, expected none"),
        ),
    ],
)
def test_the_first_mistake_has_its_path(raw: dict[str, Any], expected: Mistake) -> None:
    assert first_mistake("Backend", raw) == [expected]


def test_nothing_is_said_of_a_right_document() -> None:
    assert first_mistake("Backend", {**HEAD, "metadata": {"name": "a"}, "spec": {"service": "a"}}) == []
