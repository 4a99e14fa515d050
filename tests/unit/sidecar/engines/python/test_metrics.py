"""Metrics have the names and labels that boards made for Istio ask for."""

from backstay.config.wire import Endpoint
from backstay.sidecar.engines.python.metrics import Own, render
from backstay.sidecar.engines.python.peers import MAX_PEERS, UNKNOWN, Peer, Peers
from backstay.sidecar.engines.python.pool import Pool, PoolKey
from backstay.sidecar.engines.python.stats import Cell, Counters, Exemplar, Ledger, Streams

CLIENT = "spiffe://td/ns/shop/sa/client"
WEB = "spiffe://td/ns/shop/sa/web"
OWN = Own(workload="shop/client", identity=CLIENT, app="client", version="v7")
TO_WEB = Peer("web", "shop", WEB, "web", "v2", "web")


def counted(counters: Counters, peer: Peer, *, status: int = 200, flags: str = "-", seconds: float = 0.002) -> Cell:
    cell = counters.cell(peer)
    cell.finish(counters.finish(seconds, status), seconds, (status, flags), 3, 1024)
    return cell


def test_requests_out_have_istios_labels() -> None:
    ledger = Ledger()
    counted(ledger.counters("c", "out", "routes/web.shop:80#r", "web.shop:80/v2"), TO_WEB)
    text = render(ledger.sums(), own=OWN, gauges=[("backstay_tunnels", 1.0)]).decode()
    labels = (
        'reporter="source",source_workload="client",source_workload_namespace="shop",source_principal="' + CLIENT + '",'
        'source_app="client",source_version="v7",source_canonical_service="client",source_canonical_revision="v7",'
        'destination_workload="web",destination_workload_namespace="shop",destination_principal="' + WEB + '",'
        'destination_app="web",destination_version="v2",destination_canonical_service="web",'
        'destination_canonical_revision="v2",destination_service="web.shop",destination_service_name="web",'
        'destination_service_namespace="shop",connection_security_policy="unknown",route="routes/web.shop:80#r",'
        'request_protocol="http"'
    )
    assert f'istio_requests_total{{{labels},response_code="200",response_flags="-"}} 1\n' in text
    assert f'istio_request_duration_milliseconds_bucket{{{labels},le="2.5"}} 1\n' in text
    assert f'istio_request_duration_milliseconds_bucket{{{labels},le="1"}} 0\n' in text
    assert f'istio_request_bytes_bucket{{{labels},le="3"}} 1\n' in text
    assert f'istio_request_bytes_bucket{{{labels},le="0"}} 0\n' in text
    assert f'istio_response_bytes_bucket{{{labels},le="1023"}} 0\n' in text
    assert f'istio_response_bytes_bucket{{{labels},le="4095"}} 1\n' in text
    assert f"istio_response_bytes_sum{{{labels}}} 1024\n" in text
    assert text.endswith("# TYPE backstay_tunnels gauge\nbackstay_tunnels 1\n")


def test_requests_in_say_who_came_and_whether_by_mtls() -> None:
    counters = Counters("c", "in", "inbound:80", "")
    counted(counters, Peer("a", "shop", "spiffe://td/ns/shop/sa/a"))
    counted(counters, UNKNOWN, status=403, flags="RBAC")
    own = Own(workload="shop/web", identity=WEB, services={80: "web.shop"})
    lines = [line for line in render([counters], own=own, gauges=[]).decode().splitlines() if "requests_total{" in line]
    destination = (
        'destination_app="unknown",destination_version="unknown",destination_canonical_service="web",'
        'destination_canonical_revision="latest",destination_service="web.shop",destination_service_name="web",'
        'destination_service_namespace="shop",'
    )
    known, stranger = sorted(line for line in lines if line.startswith("istio_"))
    assert 'source_workload="a",source_workload_namespace="shop",source_principal="spiffe://td/ns/shop/sa/a"' in known
    assert f'destination_principal="{WEB}",{destination}connection_security_policy="mutual_tls"' in known
    assert f'destination_principal="unknown",{destination}connection_security_policy="none"' in stranger
    assert stranger.endswith('response_code="403",response_flags="RBAC"} 1')


def test_streams_are_counted_apart() -> None:
    counters = Counters("c", "out", "routes/db.shop:5432#r", "db.shop:5432/")
    streams = counters.cell(UNKNOWN).streams = Streams()
    streams.opened, streams.closed, streams.received, streams.sent = 3, 2, 10, 20
    text = render([counters], own=OWN, gauges=[]).decode()
    shown = {line.split("{")[0]: line.rsplit(" ", 1)[1] for line in text.splitlines() if line.startswith("istio_")}
    assert shown == {
        "istio_tcp_connections_opened_total": "3",
        "istio_tcp_connections_closed_total": "2",
        "istio_tcp_received_bytes_total": "10",
        "istio_tcp_sent_bytes_total": "20",
    }


def test_hosts_outside_of_the_mesh_are_one_destination() -> None:
    counters = Counters("c", "out", "#", "")
    counted(counters, UNKNOWN)
    text = render([counters], own=OWN, gauges=[]).decode()
    assert 'destination_service="unknown",destination_service_name="PassthroughCluster"' in text


def test_openmetrics_shows_the_last_traced_request_of_a_bucket() -> None:
    counters = Counters("c", "out", "routes/web.shop:80#r", "web.shop:80/")
    counted(counters, TO_WEB).note(1, Exemplar("a" * 32, 0.002, 17.5))
    text = render([counters], own=OWN, gauges=[], exemplars=True).decode()
    assert f'le="2.5"}} 1 # {{trace_id="{"a" * 32}"}} 2.000 17.500\n' in text
    assert "# TYPE istio_requests counter\n" in text
    assert text.endswith("\n# EOF\n")
    assert "trace_id" not in render([counters], own=OWN, gauges=[]).decode()


def test_the_config_is_one_series_and_no_label_of_others() -> None:
    text = render([], own=OWN, gauges=[], configs=[("stable", "d" * 64)]).decode()
    digest = "d" * 64
    assert (
        'backstay_config_info{workload="client",workload_namespace="shop",role="stable",'
        f'config="{digest}"}} 1\n' in text
    )
    assert text.count(digest) == 1


def test_label_values_are_escaped() -> None:
    counters = Counters("c", "out", 'a"b\\c\nd', "")
    counted(counters, UNKNOWN)
    assert 'route="a\\"b\\\\c\\nd"' in render([counters], own=Own(workload="n/w"), gauges=[]).decode()


def test_sums_of_all_configs_keep_peers_apart() -> None:
    ledger = Ledger()
    for digest in ("one", "two"):
        counted(ledger.counters(digest, "in", "inbound:80", ""), TO_WEB)
    counted(ledger.counters("two", "in", "inbound:80", ""), UNKNOWN, status=500)
    (total,) = ledger.sums()
    assert {peer: cell.codes for peer, cell in total.cells.items()} == {
        TO_WEB: {(200, "-"): 2},
        UNKNOWN: {(500, "-"): 1},
    }


# --- who is at the other end --------------------------------------------------------------------------------------


def at(address: str, identity: str = "", **labels: str) -> Endpoint:
    return Endpoint(id="web-0", address=address, port=80, identity=identity, labels=labels, workload="shop/web-deploy")


def test_a_caller_is_who_its_certificate_and_its_address_say() -> None:
    known = {"web.shop:80": [at("10.0.0.1", WEB, app="w", version="v2")]}
    peers = Peers(lambda: known)
    found = peers.caller(WEB, "10.0.0.1")
    assert (found.workload, found.namespace, found.principal, found.app, found.version, found.service) == (
        "web-deploy", "shop", WEB, "w", "v2", "web",
    )  # fmt: skip
    assert peers.caller(WEB, "10.0.0.1") is found
    other = peers.caller(CLIENT, "10.0.0.1")
    assert (other.workload, other.namespace, other.principal, other.version) == ("client", "shop", CLIENT, "")
    assert peers.caller("", "10.0.0.9") is UNKNOWN
    assert peers.caller("", "10.0.0.1").principal == ""


def test_endpoints_that_change_are_looked_at_again() -> None:
    known = {"web.shop:80": [at("10.0.0.1")]}
    peers = Peers(lambda: known)
    assert peers.service_at("10.0.0.2", 80) == ""
    known["web.shop:80"] = [at("10.0.0.2")]
    assert peers.service_at("10.0.0.2", 80) == ""
    peers.forget_places()
    assert peers.service_at("10.0.0.2", 80) == "web.shop"
    assert peers.service_at("10.0.0.2", 81) == ""


def test_a_pool_remembers_who_is_behind_it() -> None:
    peers = Peers(lambda: {"web.shop:80": [at("10.0.0.1", WEB)]})
    pool = Pool(PoolKey("web-0", "10.0.0.1", 80, WEB))
    assert peers.of_pool(pool).workload == "web-deploy"
    assert pool.peer is peers.of_pool(pool)
    assert peers.of_pool(Pool(PoolKey("", "192.0.2.1", 443, ""))) is UNKNOWN


def test_series_do_not_grow_without_end() -> None:
    peers = Peers(dict)
    found = {peers.caller(f"spiffe://td/ns/shop/sa/a{number}", "10.0.0.1") for number in range(MAX_PEERS + 5)}
    assert len(found) == MAX_PEERS + 1
    assert UNKNOWN in found
