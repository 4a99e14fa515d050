from pathlib import Path
from typing import Any, Final

import pytest

from backstay.config.model import Backend, Config, Listeners, Manifest, digest_of, encode_part
from backstay.config.wire import Endpoint
from backstay.sidecar.engine import Address, Redirected
from backstay.sidecar.engines.envoy.files import Folder
from backstay.sidecar.engines.envoy.render import World, render

ONE, OTHER = "spiffe://a.mesh/ns/shop/sa/one", "spiffe://a.mesh/ns/shop/sa/other"
ADDRESS: Final = Address(host="127.0.0.1", inbound={}, outbound=0, redirected=Redirected())
PARTS: Final = (
    Listeners(namespace="shop", identity="spiffe://a.mesh/ns/shop/sa/web", trust_domain="a.mesh"),
    Backend(service="web.shop", port=80),
)


def world(revoked: tuple[str, ...]) -> World:
    digests = {part.key: digest_of(encode_part(part)) for part in PARTS}
    config = Config(manifest=Manifest(workload="shop/web", parts=digests), parts={part.key: part for part in PARTS})
    places = [("10.0.0.1", ONE), ("10.0.0.2", OTHER)]
    endpoints = tuple(Endpoint(id=at, address=at, port=8080, identity=identity) for at, identity in places)
    return World(
        address=ADDRESS,
        folder=Folder(Path("/run/envoy")),
        config=config,
        identity="a certificate and its key",
        trust={"a.mesh": "roots"},
        endpoints={"web.shop:80": endpoints},
        revoked=revoked,
    )


def believed(cluster: dict[str, Any]) -> list[str]:
    context = cluster["transport_socket"]["typed_config"]["common_tls_context"]["combined_validation_context"]
    names = context["default_validation_context"]["match_typed_subject_alt_names"]
    return [name["matcher"]["exact"] for name in names]


@pytest.mark.parametrize(
    ("revoked", "expected"),
    [((), [ONE, OTHER]), ((ONE,), [OTHER]), ((ONE, OTHER), ["spiffe://nobody.invalid/nobody"])],
)
def test_an_endpoint_asked_by_its_address_is_believed_unless_its_identity_is_revoked(
    revoked: tuple[str, ...], expected: list[str]
) -> None:
    (direct,) = [each for each in render(world(revoked)).clusters if each["name"] == "direct:web.shop:80"]
    assert believed(direct) == expected
