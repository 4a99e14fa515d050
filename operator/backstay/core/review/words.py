"""What a proxy does with a request, in words: one short text per facet of it.

`facets` is what `route test` prints and what reviews compare: two different outcomes never have equal facets, because
whatever has no words of its own is shown as it is.
"""

from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from typing import Any, Final

import msgspec

from backstay.config.model import Backend, Fault, HeaderEdits, Rule, ValueMatch
from backstay.core.evaluate import Destination, Entrance, Received, Sent

_NO_LIMIT: Final = "no limit"
REASONS: Final = {
    "no-route": "no rule takes it: 404",
    "no-backend": "all weights are 0: 503",
    "unknown-host": "unknown host: 502",
    "pass-through": "passed through: the mesh does not know the host",
    "bad-request": "refused as ambiguous: 400",
    "closed": "nothing listens there",
    "denied": "denied: 403",
    "no-token": "no token where one is required: 401",
    "bad-token": "a token that is not believed: 401",
    "plaintext-refused": "refused: plaintext at a STRICT port",
    "handshake-refused": "refused: TLS at a port that takes plaintext only",
}


def percent(share: Fraction) -> str:
    """`90 %`, `33.3 %`: exact where it can be."""
    return f"{float(share * 100):.3g} %"


def milliseconds(value: float) -> str:
    """`250 ms`, `15 s`, `1.5 s`: exact, so that two settings never read alike."""
    if not value:
        return _NO_LIMIT
    return f"{value:g} ms" if value < 1000 else f"{value / 1000:g} s"


def facets(sent: Sent | Entrance) -> dict[str, str]:
    """Everything a caller's proxy, or a gateway, does with a request, by name."""
    if isinstance(sent, Entrance):
        return {"connection": connection_text(sent)}
    found = {"to": destination_text(sent)}
    if sent.rule is not None and sent.kind == "route":
        found |= {
            "timeout": milliseconds(sent.rule.timeout_ms),
            "try timeout": milliseconds(sent.rule.try_timeout_ms) if sent.rule.try_timeout_ms else "",
            "retries": _retries(sent.rule),
            "backend": _backends(sent.destinations),
        }
    if sent.rule is not None:
        found |= _extras(sent)
    return {name: text for name, text in found.items() if text}


def connection_text(entrance: Entrance) -> str:
    """`TLS with certificate edge/shop, 1.2 or newer`."""
    if entrance.protocol == "closed":
        return REASONS["closed"]
    if entrance.protocol == "http":
        return "plaintext"
    if entrance.protocol == "tls":
        return "TLS, passed through"
    if not entrance.secret:
        return "TLS, without a certificate for the name"
    return f"TLS with certificate {entrance.secret}, {entrance.min_tls} or newer"


def destination_text(sent: Sent) -> str:
    """`90 % sa-logic.shop:80/v1, 10 % sa-logic.shop:80/v2`, or what happens instead."""
    if sent.kind == "redirect" and sent.rule is not None:
        return f"redirect {_plain(sent.rule.redirect)}{_prefixed(sent)}"
    if sent.kind == "direct" and sent.rule is not None:
        return f"answered by the proxy {_plain(sent.rule.direct)}"
    if sent.kind != "route":
        return REASONS[sent.kind]
    ordered = sorted(sent.destinations, key=lambda item: (-item.share, item.name))
    return ", ".join(f"{percent(item.share)} {_target(item)}" for item in ordered)


def _target(item: Destination) -> str:
    labels = ",".join(f"{name}={value}" for name, value in item.labels)
    return f"{item.name} ({labels})" if labels else item.name


def _prefixed(sent: Sent) -> str:
    return f" in place of {sent.prefix or '/'}" if sent.prefix else ""


def _retries(rule: Rule) -> str:
    retry = rule.retry
    if retry is None or retry.attempts == 0:
        return "none"
    methods = ", every method" if retry.any_method else ""
    rest = _others(retry, ("attempts", "retry_on", "backoff_ms", "budget_percent", "any_method"))
    return (
        f"{retry.attempts} on {', '.join(sorted(retry.retry_on))}{methods} (back-off {milliseconds(retry.backoff_ms)}, "
        f"budget {retry.budget_percent} %{rest})"
    )


def _backends(destinations: Sequence[Destination]) -> str:
    texts = (_backend(item, destinations) for item in destinations)
    return "; ".join(dict.fromkeys(text for text in texts if text))


_PLAIN_BACKEND: Final = Backend(service="", port=0)


def _backend(item: Destination, among: Iterable[Destination]) -> str:
    """What differs from a backend nobody wrote about."""
    shown = msgspec.structs.replace(item.backend, service="", port=0, subsets=())
    if shown == _PLAIN_BACKEND:
        return ""
    told = _others(shown, ("service", "port", "subsets"))
    name = f"{item.service} " if len({one.service for one in among}) > 1 else ""
    return f"{name}{told.removeprefix(', ')}"


_SPOKEN: Final = frozenset(
    ("name", "matches", "backends", "timeout_ms", "try_timeout_ms", "retry", "fault", "mirrors", "request_headers",
     "response_headers", "rewrite", "redirect", "direct")
)  # fmt: skip


def _extras(sent: Sent) -> dict[str, str]:
    rule = sent.rule
    if rule is None:
        return {}
    found = {
        "fault": _fault(rule.fault) if sent.kind == "route" else "",
        "mirror": ", ".join(f"{percent(item.share)} to {_target(item)}" for item in sent.mirrors),
        "request headers": _edits(rule.request_headers),
        "response headers": _edits(rule.response_headers),
        "rewrite": f"{_plain(rule.rewrite)}{_prefixed(sent)}" if rule.rewrite else "",
    }
    for name in rule.__struct_fields__:
        value = getattr(rule, name)
        if name not in _SPOKEN and value != _default(Rule, name):
            found[name.replace("_", " ")] = _plain(value)
    return found


def _fault(fault: Fault | None) -> str:
    if fault is None:
        return ""
    told = []
    if fault.delay_ms and fault.delay_percent:
        told.append(f"{fault.delay_percent:g} % delayed {milliseconds(fault.delay_ms)}")
    if fault.abort_status and fault.abort_percent:
        told.append(f"{fault.abort_percent:g} % answered {fault.abort_status}")
    return ", ".join(told)


def _edits(edits: HeaderEdits | None) -> str:
    if edits is None:
        return ""
    told = [f"remove {name}" for name in edits.remove]
    told += [f"set {name}: {value}" for name, value in edits.set]
    told += [f"add {name}: {value}" for name, value in edits.add]
    return ", ".join(told)


def _plain(value: Any) -> str:
    """A struct nobody wrote words for, as `field value` pairs without defaults."""
    data = msgspec.to_builtins(value)
    if isinstance(data, Mapping):
        return ", ".join(f"{str(name).replace('_', ' ')} {_inner(inner)}" for name, inner in data.items())
    return _inner(data)


def _inner(data: Any) -> str:
    return data if isinstance(data, str) else msgspec.json.encode(data).decode()


def _others(struct: msgspec.Struct, known: Iterable[str]) -> str:
    """Fields that are not at their default, without the known ones."""
    told = []
    for name in struct.__struct_fields__:
        value = getattr(struct, name)
        if name not in known and value != _default(type(struct), name):
            told.append(f", {_field(name, value)}")
    return "".join(told)


def _field(name: str, value: Any) -> str:
    """`connect timeout 2 s`: names in `_ms` hold milliseconds."""
    words = name.replace("_", " ")
    if name.endswith("_ms") and isinstance(value, int):
        return f"{words.removesuffix(' ms')} {milliseconds(value)}"
    return f"{words} {_inner(msgspec.to_builtins(value))}"


def _default(struct: type[msgspec.Struct], name: str) -> Any:
    fields = {item.name: item for item in msgspec.structs.fields(struct)}
    found = fields[name]
    return found.default_factory() if found.default_factory is not msgspec.NODEFAULT else found.default


def decided_by(received: Received) -> str:
    """`shop/sa-logic rule 2`, or why there is no rule to name."""
    if received.reason and received.reason != "denied":
        return REASONS[received.reason]
    if received.policy:
        return f"{received.policy} rule {received.rule}"
    return "no allow policy asks" if received.allowed else "no allow rule matches"


def condition_text(match: ValueMatch) -> str:
    """`x-version: v2`, `x-version present`."""
    spelled = {"exact": f": {match.value}", "prefix": f" starts with {match.value!r}", "regex": f" ~ {match.value}"}
    return f"{match.name}{spelled.get(match.kind, f' {match.kind}')}"
