"""Who brings a ServiceAccount token: the API server judges the token, we judge whether it fits the pod that shows it.

Rule: a token is good only from the pod it was made for: bound to that pod's UID, shown from that pod's address. The
identity comes from the pod, never from what the caller says. Every refusal has a reason that is counted.
"""

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from backstay.adapters.kubernetes.client import ApiClient, ApiError
from backstay.adapters.kubernetes.facts import PodFacts
from backstay.core.inject import TOKEN_AUDIENCE

REVIEWS: Final = "/apis/authentication.k8s.io/v1/tokenreviews"
MAX_TOKEN: Final = 16 * 1024  # a projected token is about 1.2 KiB
_ACCOUNT: Final = "system:serviceaccount:"
_POD_NAME: Final = "authentication.kubernetes.io/pod-name"
_POD_UID: Final = "authentication.kubernetes.io/pod-uid"


class EnrolmentRefused(PermissionError):
    """`reason` is CamelCase, for the counter; the text is for the operator's log, never for the caller."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(f"{message} [{reason}]")
        self.reason = reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Claims:
    """What a good token says, in the API server's words."""

    namespace: str
    account: str
    pod: str
    pod_uid: str


async def review(client: ApiClient, token: str) -> Claims:
    """Ask the API server. Raises EnrolmentRefused."""
    if not token or len(token) > MAX_TOKEN:
        raise EnrolmentRefused("TokenMissing", f"a token of {len(token)} characters is none")
    body = {
        "apiVersion": "authentication.k8s.io/v1",
        "kind": "TokenReview",
        "spec": {"token": token, "audiences": [TOKEN_AUDIENCE]},
    }
    try:
        answer = await client.create(REVIEWS, body)
    except ApiError as error:
        raise EnrolmentRefused("ReviewUnavailable", f"the API server did not judge the token: {error}") from error
    return claims_of(answer)


class _User(msgspec.Struct):
    username: str = ""
    extra: dict[str, list[str]] | None = None


class _Status(msgspec.Struct):
    authenticated: bool = False
    audiences: list[str] | None = None
    user: _User = msgspec.field(default_factory=_User)
    error: str = ""


class _Review(msgspec.Struct):
    status: _Status


def claims_of(answer: Mapping[str, Any]) -> Claims:
    """What a TokenReview says. Raises EnrolmentRefused."""
    try:
        status = msgspec.convert(answer, _Review).status
    except msgspec.ValidationError as error:
        raise EnrolmentRefused("ReviewUnavailable", f"the API server's judgement cannot be read: {error}") from error
    if not status.authenticated:
        raise EnrolmentRefused(_why(status.error), f"the API server refused the token: {status.error or 'no reason'}")
    if TOKEN_AUDIENCE not in (status.audiences or ()):
        # A server that ignores audiences answers without them: then the token may have been made for anybody.
        raise EnrolmentRefused("TokenAudience", f"the token is for {status.audiences}, expected {TOKEN_AUDIENCE}")
    return _claims(status.user)


def _claims(user: _User) -> Claims:
    namespace, _, account = user.username.removeprefix(_ACCOUNT).partition(":")
    if not user.username.startswith(_ACCOUNT) or not account:
        raise EnrolmentRefused("NotAServiceAccount", f"the token is {user.username!r}'s, expected a service account's")
    extra = user.extra or {}
    pod, uid = _only(extra.get(_POD_NAME)), _only(extra.get(_POD_UID))
    if not pod or not uid:
        raise EnrolmentRefused("TokenUnbound", f"a token of {user.username} is bound to no pod")
    return Claims(namespace=namespace, account=account, pod=pod, pod_uid=uid)


def _only(values: list[str] | None) -> str:
    return values[0] if values and len(values) == 1 else ""


def _why(error: str) -> str:
    """The API server has one sentence for every kind of bad token; these words are in its source since 1.20."""
    if "expired" in error:
        return "TokenExpired"
    if "audience" in error:
        return "TokenAudience"
    if "invalidated" in error or "not found" in error or "has been deleted" in error:
        return "PodGone"
    return "TokenInvalid"


def check_proxy(proxy: str, claims: Claims) -> None:
    """Raises EnrolmentRefused unless the proxy calls itself by the pod its token is for."""
    if proxy != f"{claims.pod}.{claims.namespace}":
        raise EnrolmentRefused("ProxyMismatch", f"{proxy!r} brought the token of {claims.pod}.{claims.namespace}")


def check_pod(pod: PodFacts | None, claims: Claims, peer_ip: str) -> PodFacts:
    """Raises EnrolmentRefused unless this is the token's very pod, it lives, and it is the one that asks."""
    if pod is None or pod.uid != claims.pod_uid or pod.is_over:
        raise EnrolmentRefused("PodGone", f"pod {claims.namespace}/{claims.pod} with UID {claims.pod_uid} is not there")
    if pod.account != claims.account:
        raise EnrolmentRefused(
            "AccountMismatch", f"{pod.id} runs as {pod.account!r}, its token says {claims.account!r}"
        )
    if not is_address_of(pod, peer_ip):
        known = ", ".join(pod.ips) or "none yet"
        raise EnrolmentRefused("AddressMismatch", f"{pod.id} asked from {peer_ip}, its addresses are: {known}")
    return pod


def is_address_of(pod: PodFacts, peer_ip: str) -> bool:
    try:
        peer = ipaddress.ip_address(peer_ip)
    except ValueError:
        return False
    if isinstance(peer, ipaddress.IPv6Address) and peer.ipv4_mapped:  # how a dual-stack listener sees IPv4 peers
        peer = peer.ipv4_mapped
    return any(peer == ipaddress.ip_address(ip) for ip in pod.ips)
