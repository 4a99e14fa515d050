import sys
from pathlib import Path

from backstay.adapters.processes.addresses import Place
from backstay.adapters.processes.launches import (
    InstancePlan,
    OperatorEndpoint,
    app_environment,
    app_launch,
    inherited,
    sidecar_launch,
)
from backstay.adapters.processes.workloads_file import AppPort, ListenEntry, WorkloadEntry
from backstay.core.registry import Workload
from backstay.sidecar.engine import Address, ExplicitListener
from backstay.sidecar.settings import Settings, parse

OPERATOR = OperatorEndpoint(url="https://127.0.0.1:15012", trust_file=Path("/state/root.pem"))


def plan(entry: WorkloadEntry, place: Place) -> InstancePlan:
    workload = Workload(name=entry.name, namespace="shop", service_account="web", ports=((5000, "http"),))
    return InstancePlan(
        id="web-0", workload=workload, entry=entry, place=place, folder=Path("/state/web-0"), home=Path("/shop")
    )


OWN = Place(
    address="127.9.9.1", app_ports={5000: 5000}, inbound={5000: 15006}, outbound=15001, admin=15000, listeners={81: 81}
)
SHARED = Place(address="127.0.0.1", app_ports={5000: 41}, inbound={5000: 42}, outbound=43, admin=44, listeners={81: 45})
ENTRY = WorkloadEntry(
    name="web",
    command=("{python}", "{dir}/serve.py", "--bind", "{host}:{port}", '{"json": 1}'),
    labels={"version": "v1", "app": "web"},
    env={"FLAG": True, "HTTP_PROXY": "http://mine", "HOST": "0.0.0.0", "DB": "{data}/db"},
    listen=(ListenEntry(local_port=81, host="sa-logic"),),
)


def told(place: Place) -> Settings:
    """What the sidecar understands of its flags."""
    launch = sidecar_launch(plan(ENTRY, place), OPERATOR, "td.example", 5.0, {})
    assert launch.argv[:3] == (sys.executable, "-m", "backstay.sidecar")
    return parse(launch.argv[3:], {})


def test_the_sidecar_understands_where_it_stands() -> None:
    assert told(OWN) == Settings(
        proxy="web-0",
        address=Address(
            host="127.9.9.1",
            inbound={5000: 15006},
            app_host="127.9.9.1",
            outbound=15001,
            explicit=(ExplicitListener(listen=81, host="sa-logic.shop", port=80),),
        ),
        state=Path("/state/web-0/sidecar"),
        operator_host="127.0.0.1",
        operator_port=15012,
        trust_domain="td.example",
        token_file=Path("/state/web-0/token"),
        trust_file=Path("/state/root.pem"),
        admin_host="127.9.9.1",
        admin_port=15000,
        health_host="127.9.9.1",
        health_port=15000,
        prometheus_port=15000,
        drain_s=5.0,
    )


def test_on_one_address_the_sidecar_knows_the_real_port_of_the_application() -> None:
    address = told(SHARED).address
    assert (address.inbound, address.app_ports) == ({5000: 42}, {5000: 41})


def test_placeholders_are_filled_and_other_braces_stay() -> None:
    launch = app_launch(plan(ENTRY, OWN), {})
    assert launch.argv == (sys.executable, "/shop/serve.py", "--bind", "127.9.9.1:5000", '{"json": 1}')
    assert launch.cwd == Path("/shop")


def test_the_application_is_told_its_place_whatever_its_entry_says() -> None:
    assert app_environment(plan(ENTRY, OWN)) == {
        "PYTHONUNBUFFERED": "1",
        "BACKSTAY_INSTANCE": "web-0",
        "BACKSTAY_WORKLOAD": "web",
        "BACKSTAY_NAMESPACE": "shop",
        "BACKSTAY_LABELS": "app=web,version=v1",
        "FLAG": "true",
        "DB": "/state/web-0/data/db",
        "HTTP_PROXY": "http://mine",
        "http_proxy": "http://127.9.9.1:15001",
        "NO_PROXY": "",
        "no_proxy": "",
        "HOST": "127.9.9.1",
        "PORT": "5000",
        "PORT_5000": "5000",
        "LISTEN_SA_LOGIC_80": "127.9.9.1:81",
    }


def test_port_is_the_first_that_the_entry_names() -> None:
    place = Place(address="127.9.9.1", app_ports={7: 70, 5000: 50}, inbound={}, outbound=1, admin=2)
    entry = WorkloadEntry(name="web", command=("x",), ports=(AppPort(port=7), 5000))
    env = app_environment(plan(entry, place))
    assert (env["PORT"], env["PORT_7"], env["PORT_5000"]) == ("70", "70", "50")


def test_outside_the_mesh_there_is_no_proxy() -> None:
    env = app_environment(plan(WorkloadEntry(name="web", command=("x",), sidecar=False), OWN))
    assert not [name for name in env if "proxy" in name.lower()]


def test_neither_proxies_nor_secrets_are_inherited() -> None:
    environ = {
        "PATH": "/bin",
        "HTTPS_PROXY": "http://corporate",
        "no_proxy": "*",
        "All_Proxy": "socks",
        "BACKSTAY_GIT_PASSWORD": "hunter2",
        "GIT_ASKPASS": "/x",
        "SSH_AUTH_SOCK": "/y",
    }
    assert inherited(environ) == {"PATH": "/bin"}


def test_another_terminal_is_no_reason_to_restart() -> None:
    first = app_launch(plan(ENTRY, OWN), {"TERM": "xterm"})
    second = app_launch(plan(ENTRY, OWN), {"TERM": "dumb"})
    moved = app_launch(plan(ENTRY, SHARED), {"TERM": "xterm"})
    assert (first.fingerprint == second.fingerprint, first.fingerprint == moved.fingerprint) == (True, False)
