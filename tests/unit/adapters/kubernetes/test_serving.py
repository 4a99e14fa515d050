import base64
import datetime as dt
import ssl
from pathlib import Path
from typing import Any

import pytest

from backstay.adapters.certificates import LocalCA
from backstay.adapters.kubernetes.serving import ServingCertificate, bundle_patch

HOST = "backstay-operator.backstay-system.svc"
START = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
NO_CHECK_TIME = 0x200000
"""OpenSSL's X509_V_FLAG_NO_CHECK_TIME: the certificates are of this test's own clock."""
BUNDLE = base64.b64encode(b"roots").decode()


def configuration(*bundles: str | None) -> dict[str, Any]:
    webhooks = []
    for number, bundle in enumerate(bundles):
        client = {"service": {"name": "backstay-operator"}} | ({"caBundle": bundle} if bundle is not None else {})
        webhooks.append({"name": f"w{number}.backstay.dev", "clientConfig": client})
    return {"metadata": {"name": "backstay-injector"}, "webhooks": webhooks}


def test_a_configuration_that_trusts_us_is_left_alone() -> None:
    assert bundle_patch(configuration(BUNDLE, BUNDLE), "roots") == []
    assert bundle_patch({"metadata": {}}, "roots") == []


def test_only_what_differs_is_written_and_by_name() -> None:
    assert bundle_patch(configuration(BUNDLE, None, "old"), "roots") == [
        {"op": "test", "path": "/webhooks/1/name", "value": "w1.backstay.dev"},
        {"op": "add", "path": "/webhooks/1/clientConfig/caBundle", "value": BUNDLE},
        {"op": "test", "path": "/webhooks/2/name", "value": "w2.backstay.dev"},
        {"op": "add", "path": "/webhooks/2/clientConfig/caBundle", "value": BUNDLE},
    ]


class Clock:
    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> dt.datetime:
        return self.now

    def wall(self) -> float:
        return self.now.timestamp()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def ca(tmp_path: Path, clock: Clock) -> LocalCA:
    return LocalCA.open(tmp_path / "ca", "backstay.local", now=clock)


def serial_shown(serving: ServingCertificate, roots: str) -> str:
    """The serial of what a client that trusts these roots gets to see, by a handshake in memory."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=roots)
    context.verify_flags |= NO_CHECK_TIME
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = context.wrap_bio(to_client, to_server, server_hostname=HOST)
    server = serving.context.wrap_bio(to_server, to_client, server_side=True)
    for side in (client, server, client, server, client):
        try:
            side.do_handshake()
        except ssl.SSLWantReadError:
            continue
    certificate = client.getpeercert()
    assert certificate is not None
    return str(certificate["serialNumber"])


def test_a_client_that_trusts_the_bundle_knows_us_by_name(ca: LocalCA, clock: Clock) -> None:
    serving = ServingCertificate(ca, [HOST], wall=clock.wall)
    assert serial_shown(serving, ca.trust_bundle()["backstay.local"])


def test_half_way_through_its_life_the_next_handshake_gets_a_new_one(ca: LocalCA, clock: Clock) -> None:
    serving = ServingCertificate(ca, [HOST], wall=clock.wall)
    roots = ca.trust_bundle()["backstay.local"]
    first = serial_shown(serving, roots)
    clock.now += dt.timedelta(hours=11)
    assert serving.refresh() is False
    assert serial_shown(serving, roots) == first
    clock.now += dt.timedelta(hours=2)
    assert serving.refresh() is True
    assert serial_shown(serving, roots) != first


def test_a_new_root_renews_at_once(ca: LocalCA, clock: Clock) -> None:
    serving = ServingCertificate(ca, [HOST], wall=clock.wall)
    ca.add_root()
    ca.switch_root()
    assert serving.refresh() is True
    assert serving.refresh() is False
    assert serial_shown(serving, ca.trust_bundle()["backstay.local"])
