"""Which refusals were announced."""

import pytest

from backstay.config.wire import RefusalExpected
from backstay.sidecar.engines.python.split import Asked, is_expected

ASKED = Asked(source="spiffe://td/ns/a/sa/b", address="10.1.2.3", host="web.shop", path="/admin/x")


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        (RefusalExpected(source="spiffe://td/ns/a/sa/b"), True),
        (RefusalExpected(source="spiffe://td/ns/a/sa/c"), False),
        (RefusalExpected(source="10.1.0.0/16"), True),
        (RefusalExpected(source="10.2.0.0/16"), False),
        (RefusalExpected(source="*"), False),
        (RefusalExpected(source="10.1.0.0/16", host="web.shop"), True),
        (RefusalExpected(source="10.1.0.0/16", host="pay.bank"), False),
        (RefusalExpected(source="10.1.0.0/16", path="/admin/*"), True),
        (RefusalExpected(source="10.1.0.0/16", path="/admin"), False),
    ],
)
def test_an_entry_names_source_host_and_path(entry: RefusalExpected, expected: bool) -> None:
    assert is_expected([entry], ASKED) is expected
    assert is_expected([], ASKED) is False


@pytest.mark.parametrize(
    ("host", "expected"),
    [("web.shop", True), ("web", True), ("WEB.shop.svc", True), ("web.bank", False), ("pay", False)],
)
def test_every_spelling_of_the_host_is_meant(host: str, expected: bool) -> None:
    asked = Asked(source="spiffe://td/ns/a/sa/b", address="", host=host, path="/")
    assert is_expected([RefusalExpected(source="spiffe://td/ns/a/sa/b", host="web.shop")], asked) is expected
