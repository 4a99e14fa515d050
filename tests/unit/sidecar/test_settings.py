from pathlib import Path

import pytest

from backstay.sidecar.engine import Address, ExplicitListener, Redirected
from backstay.sidecar.settings import Settings, parse

NEEDED = ["--proxy", "a-1", "--state", "/s", "--operator", "https://10.0.0.1:15012"]


def test_all_defaults() -> None:
    assert parse(NEEDED, {}) == Settings(
        proxy="a-1",
        state=Path("/s"),
        operator_host="10.0.0.1",
        operator_port=15012,
        address=Address(host="127.0.0.1", inbound={}, app_host="127.0.0.1", outbound=15001, explicit=()),
        trust_domain="backstay.local",
        token_file=None,
        trust_file=None,
        config=None,
        engine="python",
        admin_host="127.0.0.1",
        admin_port=15000,
        health_host="127.0.0.1",
        health_port=15021,
        prometheus_port=15090,
        drain_s=30.0,
        report_s=1.0,
        log_level="info",
        app_probes="",
    )


def test_a_config_file_needs_nothing_else() -> None:
    found = parse(["--config", "c.json"], {})
    assert (found.config, found.proxy, found.concurrency) == (Path("c.json"), "", 1)
    assert parse(["--config", "c.json", "--concurrency", "4"], {}).concurrency == 4


def test_the_environment_gives_what_flags_leave_open() -> None:
    environment = {
        "BACKSTAY_SIDECAR_PROXY": "from-environment",
        "BACKSTAY_SIDECAR_STATE": "/s",
        "BACKSTAY_SIDECAR_OPERATOR": "https://[::1]:15012",
        "BACKSTAY_SIDECAR_INBOUND": "5000=15106, 5001",
        "BACKSTAY_SIDECAR_EXPLICIT": "15101=sa-logic.shop:80",
    }
    found = parse(["--proxy", "from-flag"], environment)
    assert (found.proxy, found.operator_host, found.operator_port) == ("from-flag", "::1", 15012)
    assert found.address.inbound == {5000: 15106, 5001: 5001}
    assert found.address.explicit == (ExplicitListener(listen=15101, host="sa-logic.shop", port=80),)


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--operator", "http://h:1"], "--operator: 'http://h:1' is not of the form https://HOST:PORT"),
        (["--operator", "https://h"], "--operator: 'https://h' is not of the form https://HOST:PORT"),
        (["--outbound", "65536"], "--outbound: '65536' is not a port number"),
        (["--inbound", "x=1"], "--inbound: 'x' is not a port number"),
        (["--explicit", "15101=80"], "--explicit: '15101=80' is not of the form LISTEN_PORT=HOST:PORT"),
        (["--drain", "soon"], "--drain: 'soon' is not a number of seconds"),
        (
            ["--state", ""],
            "with --operator, --proxy and --state are needed: who this is, and where it keeps what it was told",
        ),
        (["--admin-host", "0.0.0.0"], "--admin-host: '0.0.0.0' is not an address of the loopback"),
        (["--concurrency", "65"], "--concurrency: '65' is not a number of processes from 0 to 64"),
        (["--operator", ""], "either --operator or --config is needed: nothing else says what to serve"),
    ],
)
def test_what_cannot_be_read_is_named(more: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse([*NEEDED, *more], {})
    assert caught.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1] == f"backstay sidecar: error: {sentence}"


def test_where_connections_are_redirected_there_is_no_http_proxy_at_the_same_port() -> None:
    found = parse([*NEEDED, "--intercept", "true"], {}).address
    assert (found.redirected, found.outbound) == (Redirected(outbound=15001, inbound=15006), 0)
    found = parse([*NEEDED, "--intercept", "1001, 1006"], {}).address
    assert (found.redirected, found.outbound) == (Redirected(outbound=1001, inbound=1006), 15001)
    assert parse([*NEEDED, "--intercept", "false"], {}).address.redirected is None


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("15001", "--intercept: '15001' is neither true nor of the form OUTBOUND_PORT,INBOUND_PORT"),
        ("1,x", "--intercept: 'x' is not a port number"),
    ],
)
def test_an_interception_that_cannot_be_read(text: str, sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse([*NEEDED, "--intercept", text], {})
    assert capsys.readouterr().err.splitlines()[-1] == f"backstay sidecar: error: {sentence}"
