"""What HTTP wants refused that Envoy would pass on or answer in words of its own: one filter before all others. Pure.

The filter denies, and local replies say what the other engine says. A refusal is nobody's policy: it counts as no denial
(`stats.py` knows it by `PREFIX`).
"""

from typing import Final

from backstay.sidecar.engines.envoy import scripts
from backstay.sidecar.engines.envoy.api import Json, exactly, message, typed, whole

FILTER: Final = "backstay.framing"
PREFIX: Final = "framing."
"""Of the names of the rules, as Envoy's details show them."""
DETAILS: Final = "rbac_access_denied_matched_policy["
"""How Envoy's details about a denial begin."""
_CEL_FILTER: Final = "envoy.extensions.access_loggers.filters.cel.v3.ExpressionFilter"
_OURS: Final = "(?i)x[-_]backstay[-_].*"
_RBAC: Final = "envoy.extensions.filters.http.rbac.v3.RBAC"
_PORT: Final = "0{0,4}([1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])"
_HOST: Final = rf"(\[[0-9A-Fa-f:.]{{2,45}}\]|[A-Za-z0-9._~-]{{1,253}})(:{_PORT})?"
"""RFC 9112, 3.2: a Host that is none is answered 400. As in the other engine."""
_PATH: Final = r"([^%\\]|%(0[1-9A-Fa-f]|[1-9A-Fa-f][0-9A-Fa-f]))*"
"""RFC 3986, 2.1: a percent sign and two digits; and no NUL, at which some servers end a path."""
ENCODING: Final = "x-backstay-encoding"
_EXPECTED: Final = r"(?i)100-continue"
_A_BODY: Final = r".*[1-9].*"
OTHER_PROTOCOLS: Final = "|".join(
    (
        *(rf"(?i){'websocket'[:at]}([^{letter}].*)?" for at, letter in enumerate("websocket")),
        r"(?i)websocket.+",
    )
)
"""Upgrades that nobody here speaks: the field is ignored (RFC 9110, 7.8). RE2 cannot say `not`."""
PROXYS_OWN: Final = "proxy-authorization|proxy-authenticate|proxy-connection|keep-alive|trailer|http2-settings"
"""Fields that are between a client and its proxy (RFC 9110, 7.6.1 and 11.7)."""


def http_filter(*, is_plain: bool) -> Json:
    """Refuses what is no request of HTTP. `is_plain`: nobody speaks TLS here, so nothing can be meant for https."""
    wrongs = _WRONG if is_plain else {name: wrong for name, wrong in _WRONG.items() if name != "scheme"}
    policies = {f"{PREFIX}{name}": _policy(*wrong) for name, wrong in wrongs.items()}
    return {"name": FILTER, "typed_config": message(_RBAC, rules={"action": "DENY", "policies": policies})}


def own_answers_removed() -> Json:
    """Applications do not speak for the mesh: what they say under its names reaches nobody. Nor does our own note."""
    mutations = {
        "request_mutations": [{"remove": ENCODING}],
        "response_mutations": [{"remove_on_match": {"key_matcher": {"safe_regex": {"regex": _OURS}}}}],
    }
    kind = "envoy.extensions.filters.http.header_mutation.v3.HeaderMutation"
    return typed("envoy.filters.http.header_mutation", kind, mutations=mutations)


def encoding_noted() -> Json:
    """A change of the head before Envoy takes the encoding out of it: by which version of HTTP a message says to have one."""
    value = {"key": ENCODING, "value": "%PROTOCOL% %REQ(TRANSFER-ENCODING)%"}
    return {"append": {"header": value, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}}


def replies() -> list[Json]:
    """The status of each refusal. Only what this proxy says by itself is looked at."""
    return [
        reply(f"{DETAILS}{PREFIX}expectation", 417, "expectation-failed"),
        reply(f"{DETAILS}{PREFIX}", 400, "bad-request"),
        reply(scripts.REFUSED_ANSWER, 502, "bad-response"),
    ]


def reply(details: str, status: int, reason: str) -> Json:
    """What is said where Envoy's details begin like this."""
    expression = f"response.code_details.startsWith('{details}')"
    found = typed("envoy.access_loggers.extension_filters.cel", _CEL_FILTER, expression=expression)
    return {"filter": {"extension_filter": found}, "status_code": status, "body": {"inline_string": f"{reason}\n"}}


def _policy(*wrong: Json) -> Json:
    rules = [{"header": each} for each in wrong]
    return {"permissions": [{"and_rules": {"rules": rules}}], "principals": [{"any": True}]}


def _other_than(name: str, pattern: str) -> tuple[Json, Json]:
    """Matchers of a field that is there and is not this."""
    return {"name": name, "present_match": True}, {"name": name, "string_match": whole(pattern), "invert_match": True}


_WRONG: Final[dict[str, tuple[Json, ...]]] = {
    "host": _other_than(":authority", f"({_HOST})?"),  # HTTP/1.0 may name none
    "path": _other_than(":path", _PATH),
    "expectation": _other_than("expect", _EXPECTED),
    # RFC 9112, 6.1: whoever is between may have framed it otherwise.
    "encoding": ({"name": ENCODING, "string_match": whole("HTTP/1.0 [^-].*")},),
    "scheme": ({"name": ":scheme", "string_match": exactly("https")},),  # RFC 9110, 7.4
    # What follows the head belongs to the request or to the new protocol: nobody could tell.
    "upgrade-with-body": (
        {"name": "upgrade", "present_match": True},
        {"name": "content-length", "string_match": whole(_A_BODY)},
    ),
}
"""Matchers that hold together for what is refused, by the name of the rule."""
