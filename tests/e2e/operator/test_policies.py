"""Strategies and policies under real traffic: what documents say about their own rollout, and what only servers can see."""

import json
import os
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from support.live import (
    APP,
    Lines,
    LiveMesh,
    backend,
    caller,
    client,
    document,
    route,
    shop_documents,
    workloads_file,
)

pytestmark = pytest.mark.xdist_group("mesh-a")

STRANGER = "spiffe://backstay.local/ns/shop/sa/stranger"
REVOKED_WITHIN = 2.0  # seconds, as documented


def workloads() -> str:
    """The shop with a stranger who asks `api` too, and a quiet corner that nobody asks."""
    return workloads_file(
        ["web", "api", "quiet"],
        [
            backend("api-v1", "api"),
            backend("api-v2", "api", version="v2"),
            backend("api-v3", "api", version="v3", behaviour={"fail": 50}),
            caller("web", "api", replicas=2),
            client("client", "web", rate=80, most_open=160),
            client("stranger", "api", rate=20, most_open=40),
            backend("quiet", "quiet"),
            {**caller("idle", "quiet", replicas=2), "services": [], "command": ["sleep", "1000"]},
        ],
    )


@pytest.fixture(scope="module")
def shared() -> Iterator[LiveMesh]:
    documents = {**shop_documents(), "shop/quiet.yaml": route("quiet")}
    with LiveMesh(workloads(), documents) as found:
        yield found


@pytest.fixture
def mesh(shared: LiveMesh) -> LiveMesh:
    shared.begin_again()
    assert shared.held() == []
    return shared


def to_v3(**rollout: Any) -> dict[str, str]:
    return {"shop/api.yaml": route("api", {"v3": 100}, rollout=rollout)}


# --- what a document says about its own rollout -----------------------------------------------------------------------


def test_immediate_moves_everybody_in_one_wave(mesh: LiveMesh) -> None:
    mark = mesh.mark()
    sha = mesh.push({"shop/api.yaml": route("api", {"v2": 100}, rollout={"strategy": "Immediate"})})
    mesh.wait(sha, "live")
    rollout = mesh.rollout(sha)
    assert (rollout["spec"]["strategy"], rollout["status"]["waves"]) == ("Immediate", 1)
    assert mesh.harm_since(mark) == {}
    assert mesh.versions_since(mesh.wait_seconds(2)).keys() == {"v2"}


def test_immediate_is_watched_all_the_same(mesh: LiveMesh) -> None:
    sha = mesh.push(to_v3(strategy="Immediate"))
    mesh.wait(sha, "rolled-back", timeout=60)
    mesh.settle()
    assert mesh.versions_since(mesh.wait_seconds(2)).keys() == {"v1"}


def test_on_fail_pause_waits_for_a_person_and_abort_goes_back(mesh: LiveMesh) -> None:
    sha = mesh.push(to_v3(onFail="pause"))
    paused = mesh.wait_phase(sha, "paused")
    assert "failed (" in paused["status"]["sentence"]
    assert mesh.held() == []
    mesh.act("abort", why="seen enough")
    assert mesh.wait_ended(sha)["status"]["phase"] == "aborted"
    mesh.wait_steady()
    assert mesh.held() == ["Route/shop/api"]


def test_traffic_steps_walk_the_weights_and_end_live(mesh: LiveMesh) -> None:
    mark = mesh.mark()
    sha = mesh.push({"shop/api.yaml": route("api", {"v1": 0, "v2": 100}, rollout={"traffic": [20, 100]})})
    mesh.wait_phase(sha, "shifting")
    began = mesh.wait_seconds(2)
    seen = mesh.versions_since(began)
    mesh.wait(sha, "live", timeout=60)
    assert 0 < seen["v2"] < seen["v1"], "a fifth goes to v2 first"
    assert mesh.harm_since(mark) == {}
    assert mesh.versions_since(mesh.wait_seconds(2)).keys() == {"v2"}


def test_a_bad_destination_fails_its_first_traffic_step(mesh: LiveMesh) -> None:
    sha = mesh.push({"shop/api.yaml": route("api", {"v1": 0, "v3": 100}, rollout={"traffic": [20, 100]})})
    mesh.wait(sha, "rolled-back", timeout=60)
    mesh.settle()
    assert mesh.versions_since(mesh.wait_seconds(2)).keys() == {"v1"}


# --- no traffic -------------------------------------------------------------------------------------------------------


def test_a_route_nobody_uses_goes_on_at_the_deadline_and_says_so(mesh: LiveMesh) -> None:
    sha = mesh.push({"shop/quiet.yaml": route("quiet", rule={"timeouts": {"request": "3s"}})})
    mesh.wait(sha, "live", timeout=60)
    said = [item["message"] for item in mesh.events() if item["reason"] == "NoTraffic"]
    assert said[-1:] == ["too little traffic to judge shop/idle by the deadline; proceeding"]
    assert [item["proven"] for item in mesh.rollout(sha)["status"]["workloads"]] == [False]


def test_a_policy_nobody_meets_holds_until_a_person_promotes_it(mesh: LiveMesh) -> None:
    sha = mesh.push({"shop/lock.yaml": allow_only("quiet", ["idle"])})
    holding = mesh.wait_phase(sha, "holding", timeout=40)
    assert "too little traffic to judge shop/quiet" in holding["status"]["sentence"]
    mesh.act("promote-full", why="nobody calls it yet")
    mesh.wait(sha, "live")
    mesh.settle()
    # Taking it away again is a change of policy that nobody meets, too, but of a config that has been proven: no hold.
    undone = mesh.push({"shop/lock.yaml": None})
    mesh.wait(undone, "live", timeout=40)


# --- policies ---------------------------------------------------------------------------------------------------------


def allow_only(workload: str, accounts: list[str], **rollout: Any) -> str:
    rules = [{"from": [{"serviceAccounts": accounts}]}] if accounts else []
    spec = {"selector": {"workloads": [workload]}, "action": "Allow", "rules": rules}
    return document("Authorization", "lock", {**spec, **({"rollout": rollout} if rollout else {})})


EXPECTED = {"expectRefused": [{"source": STRANGER}]}


def test_a_tightening_that_refuses_somebody_unexpected_is_rolled_back(mesh: LiveMesh) -> None:
    sha = mesh.push({"shop/lock.yaml": allow_only("api-v1", ["web"])})
    mesh.wait(sha, "rolled-back", timeout=60)
    mesh.until(lambda: mesh.harm_since(mesh.mark("stranger") - 2, "stranger") == {}, "the stranger to be served", 20)


def test_a_tightening_that_says_whom_it_refuses_goes_live(mesh: LiveMesh) -> None:
    mark = mesh.mark()
    sha = mesh.push({"shop/lock.yaml": allow_only("api-v1", ["web"], **EXPECTED)})
    mesh.wait(sha, "live", timeout=60)
    mesh.wait_seconds(2, "stranger")
    assert mesh.outcomes_since(mesh.mark("stranger") - 1, "stranger").keys() == {"403"}
    assert mesh.harm_since(mark) == {}


def test_a_deny_all_is_caught_whatever_it_says_it_expects(mesh: LiveMesh) -> None:
    sha = mesh.push({"shop/lock.yaml": allow_only("api-v1", [], **EXPECTED)})
    mesh.wait(sha, "rolled-back", timeout=60)
    mesh.settle()
    assert mesh.held() == ["Authorization/shop/lock"]


def test_strict_mtls_is_rolled_back_while_somebody_calls_in_plaintext(mesh: LiveMesh, tmp_path: Path) -> None:
    strict = {"selector": {"workloads": ["api-v1"]}, "mtls": {"mode": "STRICT"}}
    with plaintext_caller(mesh, "api-v1-0", tmp_path / "plain.log") as lines:
        mesh.until(lambda: len(lines.all()) > 2, "the plaintext caller to be served", 20)
        assert lines.all()[-1]["outcomes"].keys() == {"200"}
        mark = mesh.mark()
        sha = mesh.push({"shop/strict.yaml": document("Authentication", "strict", strict)})
        mesh.wait(sha, "rolled-back", timeout=60)
        assert mesh.harm_since(mark) == {}, "those who speak mTLS never noticed"
    sha = mesh.push(
        {"shop/strict.yaml": document("Authentication", "strict", {**strict, "rollout": {"onNoTraffic": "proceed"}})}
    )
    mesh.wait(sha, "live", timeout=60)
    assert mesh.harm_since(mark) == {}


@contextmanager
def plaintext_caller(mesh: LiveMesh, instance: str, log: Path, rate: float = 20) -> Iterator[Lines]:
    """Somebody outside the mesh who asks an instance's inbound port directly."""
    place: Mapping[str, Any] = json.loads((mesh.folder_state / "platform.json").read_bytes())["places"][instance]
    port = next(iter(place["inbound"].values()))
    environment = {"APP_ROLE": "client", "URLS": f"http://{place['address']}:{port}/", "RATE": str(rate)}
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-E", "-S", str(APP)], env={"PATH": os.environ["PATH"], **environment}, stdout=output
        )
    try:
        yield Lines(log)
    finally:
        process.kill()
        process.wait(10)


# --- what a review knows of live traffic ------------------------------------------------------------------------------


def test_a_review_puts_live_requests_through_a_change_and_names_plaintext_callers(
    mesh: LiveMesh, tmp_path: Path
) -> None:
    mesh.repo.git("clone", "--quiet", str(mesh.repo.remote), str(tmp_path / "mesh"), cwd=tmp_path)
    folder = tmp_path / "mesh"
    (folder / "shop" / "lock.yaml").write_text(allow_only("api-v1", ["web"]))
    strict = {"selector": {"workloads": ["api-v1"]}, "mtls": {"mode": "STRICT"}}
    (folder / "shop" / "strict.yaml").write_text(document("Authentication", "strict", strict))
    with plaintext_caller(mesh, "api-v1-0", tmp_path / "plain.log") as lines:
        mesh.until(lambda: len(lines.all()) > 2, "the plaintext caller to be served", 20)

        def is_seen() -> bool:
            found = mesh.api.get("/v1/traffic")
            askers = {source for _, _, _, source, *_ in found["requests"]}
            return {"shop/stranger", "shop/web"} <= askers and bool(found["plaintext"])

        mesh.until(is_seen, "the operator to be told of requests", 20)
    replayed = mesh.run("replay", "--live", "--against", "HEAD", "--dir", str(folder), "-o", "json")
    groups = json.loads(replayed.stdout)["groups"]
    denied = [group for group in groups if group["fate"] == "denied" and "stranger" in "".join(group["examples"])]
    assert denied, replayed
    assert denied[0]["after"] == "refused at shop/api-v1: no allow rule matches"
    reviewed = mesh.run("review", "HEAD", "--dir", str(folder), "-o", "json")
    report = json.loads(reviewed.stdout)
    assert report["traffic"]["denied"] > 0
    (caller_text,) = report["plaintext"]
    assert caller_text.endswith(" to shop/api-v1 port 8080")
    saved = tmp_path / "registry.json"
    saved.write_text(mesh.run("route", "registry", "--traffic").stdout)
    again = mesh.run("review", "HEAD", "--dir", str(folder), "--registry", str(saved), "-o", "json")
    assert json.loads(again.stdout)["plaintext"] == report["plaintext"]


# --- an identity that has leaked --------------------------------------------------------------------------------------


def test_a_revoked_identity_is_refused_and_cut_off_within_two_seconds(mesh: LiveMesh) -> None:
    """The stranger's key in somebody's hands, and the stranger itself. A machine that stands still for a second is no proof
    of anything: the best of three orders counts."""
    sidecar = mesh.folder_state / "instances" / "stranger-0" / "sidecar"
    place: Mapping[str, Any] = json.loads((mesh.folder_state / "platform.json").read_bytes())["places"]["api-v1-0"]
    where = place["address"], next(iter(place["inbound"].values()))
    took: list[float] = []
    while not took or (min(took) > REVOKED_WITHIN and len(took) < 3):
        took.append(cut_off_after(mesh, where, sidecar))
    assert min(took) <= REVOKED_WITHIN, took


def cut_off_after(mesh: LiveMesh, where: tuple[str, int], sidecar: Path) -> float:
    """Seconds from the order to the end of an open connection; the identity is trusted again afterwards."""
    others = mesh.mark()
    with leaked(where, sidecar) as thief:
        assert asks(thief) == b"HTTP/1.1 200 "
        began = time.monotonic()
        mesh.act("revoke", why="its key has leaked", who=STRANGER)
        assert is_ended(thief)
        took = time.monotonic() - began
    with leaked(where, sidecar) as again:
        assert asks(again) == b""
    mark = mesh.wait_seconds(1, "stranger")
    assert not any(code.startswith("2") for code in mesh.outcomes_since(mark, "stranger"))
    assert mesh.harm_since(others) == {}, "everybody else goes on"
    mesh.act("unrevoke", why="it has another key", who=STRANGER)
    mesh.wait_steady()
    return took


@contextmanager
def leaked(where: tuple[str, int], sidecar: Path) -> Iterator[ssl.SSLSocket]:
    """A connection of whoever has a proxy's key and certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.load_cert_chain(sidecar / "identity.pem")
    with socket.create_connection(where, 20) as plain, context.wrap_socket(plain) as secured:
        yield secured


def asks(connection: ssl.SSLSocket) -> bytes:
    """The beginning of the answer; nothing if the connection ends without one."""
    try:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: api\r\n\r\n")
        answer = connection.recv(65536)
    except (ConnectionError, ssl.SSLError):
        return b""
    return answer[:13]


def is_ended(connection: ssl.SSLSocket) -> bool:
    """Waits for the end. Raises TimeoutError."""
    try:
        return connection.recv(1) == b""
    except (ConnectionError, ssl.SSLError):
        return True  # a reset is an end, too
