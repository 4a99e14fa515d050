"""What is not rendered is refused."""

import msgspec
import pytest

from backstay.config import model
from backstay.config.model import Config, Manifest
from backstay.sidecar.engine import ContentRefused
from backstay.sidecar.engines.envoy.supported import SERVED, check


def config(*parts: model.Part) -> Config:
    named = {part.key: part for part in parts}
    return Config(manifest=Manifest(workload="shop/web", parts=dict.fromkeys(named, "x")), parts=named)


def test_every_field_that_is_listed_exists() -> None:
    unknown = {
        (kind.__name__, name)
        for kind, names in SERVED.items()
        for name in names - {field.name for field in msgspec.structs.fields(kind)}
    }
    assert unknown == set()


def test_a_field_that_is_not_rendered_is_refused_by_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SERVED, model.Rule, SERVED[model.Rule] - {"fault"})
    rule = model.Rule(name="a", fault=model.Fault(abort_status=500))
    with pytest.raises(ContentRefused) as refused:
        check(config(model.HostRoutes(host="web.shop", port=80, rules=(model.Rule(name="b"), rule))))
    assert (refused.value.reason, str(refused.value)) == (
        "Unsupported", "routes/web.shop:80.rules[1]: fault is not served by engine envoy",
    )  # fmt: skip


def test_what_this_engine_cannot_say_of_traces_is_refused() -> None:
    tracing = model.Tracing(endpoint="http://c", b3=True)
    part = model.Listeners(namespace="shop", identity="", trust_domain="", tracing=tracing)
    with pytest.raises(ContentRefused, match=r"listeners\.tracing: b3 is not served"):
        check(config(part))
