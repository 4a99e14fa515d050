"""What follows from the cluster's answers."""

import base64
import datetime as dt
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from backstay.adapters.kubernetes.client import ApiError
from backstay.cli.check import Fact
from backstay.cli.kubectl import check
from backstay.cli.kubectl.calls import Where

NOW = dt.datetime(2026, 11, 1, tzinfo=dt.UTC).timestamp()
DAY = 86400.0


def pem(ends: float) -> str:
    """A certificate that ends then."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "root")])
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(dt.datetime(2026, 1, 1, tzinfo=dt.UTC))
    made = builder.not_valid_after(dt.datetime.fromtimestamp(ends, dt.UTC)).sign(key, hashes.SHA256())
    return made.public_bytes(Encoding.PEM).decode()


def pod(name: str, *, injected: bool = False, phase: str = "Running", **spec: Any) -> dict[str, Any]:
    labels = {"backstay.dev/injected": "true"} if injected else {}
    return {"metadata": {"name": name, "namespace": "shop", "labels": labels}, "spec": spec, "status": {"phase": phase}}


def namespace(name: str, **labels: str) -> dict[str, Any]:
    return {"metadata": {"name": name, "labels": {"backstay.dev/inject": "enabled"} | labels}}


@pytest.mark.parametrize(
    ("major", "minor", "level"), [("1", "30", "ok"), ("1", "29", "fail"), ("1", "31+", "ok"), ("2", "0", "ok")]
)
def test_old_clusters_are_refused(major: str, minor: str, level: str) -> None:
    assert check.version_fact({"major": major, "minor": minor, "gitVersion": "v"}).level == level


@pytest.mark.parametrize(("ready", "level"), [(None, "fail"), (0, "fail"), (1, "warn"), (2, "ok")])
def test_the_operators_replicas(ready: int | None, level: str) -> None:
    deployment = {
        "metadata": {"namespace": "backstay-system"},
        "spec": {"replicas": 2, "template": {"spec": {"containers": [{"image": "backstay-operator:dev"}]}}},
        "status": {"readyReplicas": ready},
    }
    fact = check.operator_fact(deployment)
    assert (fact.level, fact.message) == (level, f"{ready or 0}/2 replicas ready, image backstay-operator:dev")


def test_a_leader_is_believed_for_twice_its_lease() -> None:
    spec = {"holderIdentity": "op-1_x", "renewTime": "2026-11-01T00:00:00.000000Z", "leaseDurationSeconds": 10}
    lease = {"metadata": {"namespace": "backstay-system"}, "spec": spec | {"leaseTransitions": 3}}
    assert check.leader_fact(lease, NOW + 19) == Fact(name="leader", level="ok", message="op-1, epoch 3")
    late = check.leader_fact(lease, NOW + 21)
    assert (late.level, late.message) == ("fail", "op-1_x has been silent for 21 s")
    assert check.leader_fact({"metadata": {"namespace": "s"}}, NOW).message == "nobody leads"


@pytest.mark.parametrize(
    ("ends", "level", "said"),
    [
        (NOW + 300 * DAY, "ok", "2 rules, failurePolicy Fail; certificates end in 300 days"),
        (NOW + 2 * DAY, "warn", "2 rules, failurePolicy Fail; certificates end in 2 days"),
        (NOW - 1, "fail", "2 rules, failurePolicy Fail; a certificate has ended"),
    ],
)
def test_the_webhooks_certificate(ends: float, level: str, said: str) -> None:
    bundle = base64.b64encode(pem(ends).encode()).decode()
    hooks = [{"clientConfig": {"caBundle": bundle}, "failurePolicy": "Fail"}] * 2
    fact = check.webhook_fact({"webhooks": hooks}, NOW)
    assert (fact.level, fact.message) == (level, said)


@pytest.mark.parametrize("bundle", ["", base64.b64encode(b"no certificate").decode()])
def test_a_webhook_nobody_can_verify_fails(bundle: str) -> None:
    hooks = [{"clientConfig": {"caBundle": bundle}, "failurePolicy": "Fail"}]
    assert check.webhook_fact({"webhooks": hooks}, NOW).level == "fail"


def test_roots_that_differ_are_told() -> None:
    def published(name: str, text: str) -> dict[str, Any]:
        return {"metadata": {"namespace": name}, "data": {"root-cert.pem": text}}

    one, other = pem(NOW + 300 * DAY), pem(NOW + 300 * DAY)
    assert check.roots_fact([published("a", one), published("b", one)], NOW).level == "ok"
    assert check.roots_fact([published("a", one), published("b", other)], NOW).level == "warn"
    assert check.roots_fact([], NOW).level == "ok"


def test_pods_that_started_before_their_namespace_was_labelled() -> None:
    pods = [pod("old"), pod("new", injected=True), pod("done", phase="Succeeded"), pod("host", hostNetwork=True)]
    fact = check.injection_fact([namespace("shop")], pods)
    assert (fact.level, fact.message) == (
        "warn",
        "1 pods in the mesh, 1 namespaces with injection; 1 without: shop/old",
    )


def test_two_meshes_in_one_namespace_fail() -> None:
    fact = check.injection_fact([namespace("shop", **{"istio-injection": "enabled"})], [])
    assert (fact.level, fact.message) == ("fail", "two meshes inject: shop (Istio)")


@pytest.mark.parametrize(
    ("conditions", "level", "said"),
    [
        ([{"type": "Ready", "status": "True"}], "ok", "1, all ready"),
        ([], "warn", "shop/mesh nobody has looked at it yet"),
        (
            [{"type": "Ready", "status": "False", "reason": "Progressing", "message": "wave 1/4"}],
            "warn",
            "shop/mesh Progressing: wave 1/4",
        ),
        (
            [
                {"type": "Ready", "status": "False", "reason": "URLInvalid", "message": "no"},
                {"type": "Stalled", "status": "True", "reason": "URLInvalid"},
            ],
            "fail",
            "shop/mesh URLInvalid: no",
        ),
    ],
)
def test_meshes(conditions: list[dict[str, str]], level: str, said: str) -> None:
    repository = {"metadata": {"namespace": "shop", "name": "mesh"}, "status": {"conditions": conditions}}
    fact = check.meshes_fact([repository])
    assert (fact.level, fact.message) == (level, said)


def test_what_one_may_not_see_is_no_fault_and_what_is_missing_is() -> None:
    answers: dict[str, check.Answer] = dict.fromkeys(
        ("deployment", "lease", "webhook", "roots", "namespaces", "pods", *check.KINDS),
        ApiError(403, "Forbidden", "forbidden"),
    )
    answers |= {"version": {"major": "1", "minor": "34", "gitVersion": "v1.34.4"}}
    answers |= {"repositories": ApiError(404, "NotFound", "not found")}
    answers |= {"permissions": [{"what": "see meshes", "allowed": True}, {"what": "give orders", "allowed": False}]}
    facts = {fact.name: fact for fact in check.facts_of(answers, Where(), NOW)}
    assert {name: fact.level for name, fact in facts.items()} == {
        "cluster": "ok",
        "kinds": "warn",
        "operator": "warn",
        "leader": "warn",
        "webhook": "warn",
        "roots": "warn",
        "injection": "warn",
        "meshes": "fail",
        "permissions": "warn",
    }
    assert facts["permissions"].message == "you may not give orders"
    assert facts["meshes"].hint == "install it: `kubectl apply -k bootstrap/`"
