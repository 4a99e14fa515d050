"""What an authorization set says of a request: deny policies first, then allow policies, audit on the side.

The data plane asks `decide` for every request it takes in and `decide_connection` where it sees no request (TCP), and the
`audited` ones where there is any audit policy; the operator's evaluator asks the same tables. Rule: what is compared is
what will be forwarded (path, headers), never an earlier form of it.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from backstay.config.match import Headers, compile_values, hold, joined
from backstay.config.model import Authorization, Operation, Policy, PolicyRule, Source

_Test: TypeAlias = Callable[[str], bool]
_PathTest: TypeAlias = Callable[[bytes], bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """Whether a request may pass, and what decided."""

    allowed: bool
    policy: str = ""
    """`<namespace>/<name>` of the policy that decided; empty if none did (no allow policy at all, or none matched)."""
    rule: int = -1
    """Index of the deciding rule within its policy."""


ALLOWED_BY_DEFAULT: Final = Decision(allowed=True)
DENIED_BY_DEFAULT: Final = Decision(allowed=False)
"""There is an allow policy, and none of its rules matches."""


def namespace_of(identity: str) -> str:
    """The namespace in `spiffe://<trust-domain>/ns/<namespace>/sa/<account>`; empty for any other form."""
    parts = identity.split("/")
    is_workload = len(parts) >= 7 and parts[3] == "ns" and parts[5] == "sa"
    return parts[4] if is_workload else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Request:
    source: str
    namespace: str
    method: bytes
    path: bytes
    headers: Headers
    port: int

    def values(self) -> Mapping[bytes, bytes]:
        return joined(self.headers)


class AuthorizationTable:
    """One workload's policies, compiled."""

    __slots__ = ("_allow", "_audit", "_deny", "audits", "authorization", "decides_nothing")

    def __init__(self, authorization: Authorization) -> None:
        self.authorization = authorization
        self._deny = _compile(authorization.policies, "deny")
        self._allow = _compile(authorization.policies, "allow")
        self._audit = _compile(authorization.policies, "audit")
        self.audits = bool(self._audit)
        """False lets a caller skip `audited`."""
        self.decides_nothing = not (self._deny or self._allow)
        """True lets a caller skip `decide`: everything is allowed."""

    def decide(self, source: str, namespace: str, method: bytes, path: bytes, headers: Headers, port: int) -> Decision:
        """Judge one request. `source` is the caller's verified SPIFFE ID, empty for plaintext; `path` has no query."""
        request = _Request(source=source, namespace=namespace, method=method, path=path, headers=headers, port=port)
        return self._judge(lambda policy: policy.match(request))

    def audited(
        self, source: str, namespace: str, method: bytes, path: bytes, headers: Headers, port: int
    ) -> tuple[str, ...]:
        """Audit rules that one request matches, as `<namespace>/<name>#<rule>`; they decide nothing."""
        request = _Request(source=source, namespace=namespace, method=method, path=path, headers=headers, port=port)
        return self._named(lambda policy: policy.match(request))

    def decide_connection(self, source: str, namespace: str, port: int) -> Decision:
        """Judge a connection whose requests nobody reads. Fails closed: what cannot be seen matches a deny rule and
        does not match an allow rule (as Istio: a deny with HTTP fields denies all of a TCP port)."""
        return self._judge(lambda policy: policy.match_connection(source, namespace, port, policy.action == "deny"))

    def audited_connection(self, source: str, namespace: str, port: int) -> tuple[str, ...]:
        """Audit rules that a connection matches without a look at its requests."""
        return self._named(lambda policy: policy.match_connection(source, namespace, port, False))

    def _named(self, match: "Callable[[_CompiledPolicy], int | None]") -> tuple[str, ...]:
        found = ((policy.name, match(policy)) for policy in self._audit)
        return tuple(f"{name}#{rule}" for name, rule in found if rule is not None)

    def _judge(self, match: "Callable[[_CompiledPolicy], int | None]") -> Decision:
        for policy in self._deny:
            rule = match(policy)
            if rule is not None:
                return Decision(allowed=False, policy=policy.name, rule=rule)
        for policy in self._allow:
            rule = match(policy)
            if rule is not None:
                return Decision(allowed=True, policy=policy.name, rule=rule)
        return DENIED_BY_DEFAULT if self._allow else ALLOWED_BY_DEFAULT


class _CompiledPolicy:
    __slots__ = ("_rules", "action", "name")

    def __init__(self, policy: Policy) -> None:
        self.name = policy.name
        self.action = policy.action
        self._rules = tuple(_CompiledRule(rule) for rule in policy.rules)

    def match(self, request: _Request) -> int | None:
        for index, rule in enumerate(self._rules):
            if rule.takes_source(request.source, request.namespace) and rule.takes_request(request):
                return index
        return None

    def match_connection(self, source: str, namespace: str, port: int, unseen_matches: bool) -> int | None:
        for index, rule in enumerate(self._rules):
            if rule.takes_source(source, namespace) and rule.takes_port(port, unseen_matches):
                return index
        return None


class _CompiledRule:
    __slots__ = ("_operations", "_sources")

    def __init__(self, rule: PolicyRule) -> None:
        self._sources = tuple(_CompiledSource(source) for source in rule.sources)
        self._operations = tuple(_CompiledOperation(operation) for operation in rule.operations)

    def takes_source(self, identity: str, namespace: str) -> bool:
        return not self._sources or any(source.takes(identity, namespace) for source in self._sources)

    def takes_request(self, request: _Request) -> bool:
        return not self._operations or any(operation.takes(request) for operation in self._operations)

    def takes_port(self, port: int, unseen_matches: bool) -> bool:
        return not self._operations or any(
            operation.takes_port(port) and (unseen_matches or not operation.reads_requests)
            for operation in self._operations
        )


class _CompiledSource:
    __slots__ = ("_namespaces", "_not_namespaces", "_not_principals", "_principals")

    def __init__(self, source: Source) -> None:
        self._principals = tuple(_principal_test(pattern) for pattern in source.principals)
        self._not_principals = tuple(_principal_test(pattern) for pattern in source.not_principals)
        self._namespaces = tuple(_principal_test(pattern) for pattern in source.namespaces)
        self._not_namespaces = tuple(_principal_test(pattern) for pattern in source.not_namespaces)

    def takes(self, identity: str, namespace: str) -> bool:
        return (
            _any_or_unset(self._principals, identity)
            and _any_or_unset(self._namespaces, namespace)
            and not any(test(identity) for test in self._not_principals)
            and not any(test(namespace) for test in self._not_namespaces)
        )


class _CompiledOperation:
    __slots__ = ("_headers", "_methods", "_paths", "_ports", "reads_requests")

    def __init__(self, operation: Operation) -> None:
        self._methods = frozenset(method.encode() for method in operation.methods)
        self._paths = tuple(_path_test(pattern) for pattern in operation.paths)
        self._headers = compile_values(operation.headers, lower=True)
        self._ports = frozenset(operation.ports)
        self.reads_requests = bool(self._methods or self._paths or self._headers)

    def takes(self, request: _Request) -> bool:
        return (
            (not self._methods or request.method in self._methods)
            and (not self._paths or any(test(request.path) for test in self._paths))
            and self.takes_port(request.port)
            and (not self._headers or hold(self._headers, request.values()))
        )

    def takes_port(self, port: int) -> bool:
        return not self._ports or port in self._ports


def _compile(policies: Sequence[Policy], action: str) -> tuple[_CompiledPolicy, ...]:
    return tuple(_CompiledPolicy(policy) for policy in policies if policy.action == action)


def _any_or_unset(tests: Iterable[_Test], value: str) -> bool:
    tests = tuple(tests)
    return not tests or any(test(value) for test in tests)


def _principal_test(pattern: str) -> _Test:
    """An exact name, or a prefix ending in `*`; a plaintext caller ("") matches neither, not even `*`."""
    if pattern.endswith("*"):
        prefix = pattern[:-1]
        return lambda value: bool(value) and value.startswith(prefix)
    return lambda value: bool(value) and value == pattern


def _path_test(pattern: str) -> _PathTest:
    value = pattern.encode()
    if value == b"*":
        return lambda path: True
    if value.endswith(b"*"):
        return lambda path: path.startswith(value[:-1])
    if value.startswith(b"*"):
        return lambda path: path.endswith(value[1:])
    return lambda path: path == value
