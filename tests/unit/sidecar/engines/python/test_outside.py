"""Whether a certificate names the host that was asked."""

import pytest

from backstay.sidecar.engines.python.outside import is_named


@pytest.mark.parametrize(
    ("shown", "wanted", "named"),
    [
        (["a.example"], "a.example", True),
        (["A.Example"], "a.EXAMPLE", True),
        (["x.test", "*.example"], "a.example", True),
        (["*.example"], "a.b.example", False),
        (["*.example"], "example", False),
        (["*"], "a.example", False),
        (["a.example.evil"], "a.example", False),
        ([], "a.example", False),
    ],
)
def test_names(shown: list[str], wanted: str, named: bool) -> None:
    assert is_named(shown, wanted) is named
