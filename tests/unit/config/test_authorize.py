"""What an authorization set says of a request."""

import pytest

from backstay.config.authorize import AuthorizationTable, Decision, namespace_of
from backstay.config.model import Authorization, Operation, Policy, PolicyRule, Source, ValueMatch

ANN = "spiffe://td/ns/shop/sa/ann"
BOB = "spiffe://td/ns/bank/sa/bob"


def policy(action: str, *rules: PolicyRule, name: str = "") -> Policy:
    return Policy(name=name or f"shop/{action}", action=action, rules=rules)  # type: ignore[arg-type]


def rule(*, source: Source | None = None, operation: Operation | None = None) -> PolicyRule:
    return PolicyRule(sources=(source,) if source else (), operations=(operation,) if operation else ())


def decide(
    *policies: Policy, source: str = ANN, method: bytes = b"GET", path: bytes = b"/", port: int = 80, **fields: str
) -> Decision:
    table = AuthorizationTable(Authorization(policies=policies))
    headers = [(name.replace("_", "-").encode(), value.encode()) for name, value in fields.items()]
    return table.decide(source, namespace_of(source), method, path, headers, port)


def test_no_policy_allows_and_says_so_cheaply() -> None:
    assert decide() == Decision(allowed=True)
    assert AuthorizationTable(Authorization()).decides_nothing


def test_an_allow_policy_without_rules_lets_nobody_in_and_one_with_an_empty_rule_everybody() -> None:
    assert decide(policy("allow")) == Decision(allowed=False)
    assert decide(policy("allow", rule())) == Decision(allowed=True, policy="shop/allow", rule=0)


def test_deny_comes_before_allow_and_names_what_decided() -> None:
    denied = policy("deny", rule(source=Source(principals=(BOB,))), rule(source=Source(principals=(ANN,))))
    assert decide(denied, policy("allow", rule())) == Decision(allowed=False, policy="shop/deny", rule=1)


def test_a_deny_policy_alone_lets_the_others_pass() -> None:
    assert decide(policy("deny", rule(source=Source(principals=(BOB,))))) == Decision(allowed=True)


def test_audit_policies_decide_nothing_and_name_policy_and_rule() -> None:
    audit = policy("audit", rule(source=Source(principals=(BOB,))), rule(), name="shop/watch")
    assert decide(audit) == Decision(allowed=True)
    assert decide(audit, policy("allow")) == Decision(allowed=False)
    table = AuthorizationTable(Authorization(policies=(audit, policy("audit", name="shop/silent"))))
    assert (table.audits, table.decides_nothing) == (True, True)
    assert table.audited(ANN, "shop", b"GET", b"/", [], 80) == ("shop/watch#1",)
    assert table.audited(BOB, "", b"GET", b"/", [], 80) == ("shop/watch#0",)
    assert not AuthorizationTable(Authorization(policies=(policy("allow"),))).audits


def test_a_connection_is_audited_by_what_can_be_seen_of_it() -> None:
    by_path = policy("audit", rule(operation=Operation(paths=("/a",))), name="shop/by-path")
    by_port = policy("audit", rule(operation=Operation(ports=(80,))), name="shop/by-port")
    table = AuthorizationTable(Authorization(policies=(by_path, by_port)))
    assert table.audited_connection(ANN, "shop", 80) == ("shop/by-port#0",)


@pytest.mark.parametrize(
    ("source", "caller", "taken"),
    [
        (Source(principals=(ANN,)), ANN, True),
        (Source(principals=(ANN,)), BOB, False),
        (Source(principals=(BOB, ANN)), ANN, True),
        (Source(principals=("spiffe://td/ns/shop/*",)), ANN, True),
        (Source(principals=("spiffe://td/ns/shop/*",)), BOB, False),
        (Source(principals=("*",)), ANN, True),
        (Source(principals=("*",)), "", False),
        (Source(namespaces=("shop",)), ANN, True),
        (Source(namespaces=("shop",)), BOB, False),
        (Source(namespaces=("shop",)), "", False),
        (Source(principals=(ANN,), namespaces=("bank",)), ANN, False),
        (Source(not_principals=(ANN,)), ANN, False),
        (Source(not_principals=(ANN,)), BOB, True),
        (Source(not_namespaces=("shop",)), ANN, False),
        (Source(not_namespaces=("shop",)), "", True),
    ],
)
def test_sources(source: Source, caller: str, taken: bool) -> None:
    assert decide(policy("allow", rule(source=source)), source=caller).allowed is taken


@pytest.mark.parametrize(
    ("operation", "taken"),
    [
        (Operation(methods=("GET", "HEAD")), True),
        (Operation(methods=("POST",)), False),
        (Operation(paths=("/a/b",)), True),
        (Operation(paths=("/a",)), False),
        (Operation(paths=("/a*",)), True),
        (Operation(paths=("*b",)), True),
        (Operation(paths=("*",)), True),
        (Operation(paths=("/x", "/a/b"), methods=("POST",)), False),
        (Operation(ports=(80, 81)), True),
        (Operation(ports=(81,)), False),
        (Operation(headers=(ValueMatch(name="x-key", kind="exact", value="v"),)), True),
        (Operation(headers=(ValueMatch(name="x-key", kind="absent"),)), False),
    ],
)
def test_operations(operation: Operation, taken: bool) -> None:
    assert decide(policy("allow", rule(operation=operation)), path=b"/a/b", X_Key="v").allowed is taken


def test_a_connection_nobody_reads_fails_closed() -> None:
    by_path = rule(operation=Operation(paths=("/admin",)))
    by_port = rule(operation=Operation(ports=(80,)))

    def connection(*policies: Policy) -> bool:
        return AuthorizationTable(Authorization(policies=policies)).decide_connection(ANN, "shop", 80).allowed

    assert connection()
    assert not connection(policy("deny", by_path))
    assert not connection(policy("allow", by_path))
    assert connection(policy("allow", by_port))
    assert not connection(policy("deny", by_port))


@pytest.mark.parametrize(
    ("identity", "namespace"),
    [(ANN, "shop"), ("", ""), ("spiffe://td/backstay/operator", ""), ("spiffe://td/ns/shop", ""), ("spiffe://td", "")],
)
def test_the_namespace_of_an_identity(identity: str, namespace: str) -> None:
    assert namespace_of(identity) == namespace
