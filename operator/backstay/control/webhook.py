"""The door that forges knock on after a push: `POST /v1/hooks/<mesh>` wakes the loop, nothing more.

A knock is believed only with a valid signature, and even then its content is a hint: what is desired is asked from git
itself. GitHub, Gitea, Forgejo, Gogs, GitLab (signing token and plain token), Bitbucket (Cloud and Data Center) and a
generic signed request are understood. Which header must hold is decided by a table, never by the sender's choice of the
weakest one.
"""

import asyncio
import base64
import binascii
import enum
import hashlib
import hmac
import logging
import time
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec
from aiohttp import web

from backstay import redact

MAX_BODY: Final = 1024 * 1024  # GitHub caps payloads at 25 MiB, but a push's is a few KiB; Flux takes 3 MiB
READ_TIMEOUT: Final = 10.0  # seconds for the body; GitHub and GitLab give up on an answer after 10
TIMESTAMP_TOLERANCE: Final = 300.0  # seconds, as Standard Webhooks advises
BURST: Final = 60  # knocks of one address at once: a push of many tags is one knock each
REFILL: Final = 5.0  # knocks per second and address after that
ADDRESSES_KEPT: Final = 4096  # buckets; the longest unused is forgotten first
_ROUTE: Final = r"/v1/hooks/{mesh:[a-z0-9][a-z0-9.-]{0,252}}"
_REF_SHOWN: Final = 200  # characters in the log

SecretsOf = Callable[[str], Sequence[bytes]]
"""Secrets of a mesh, several while one is replaced; none: its door is shut."""
_log: Final = logging.getLogger("backstay.webhook")


@dataclass(frozen=True, slots=True, kw_only=True)
class Knock:
    """A believed request: which mesh to look at, and what its sender says for the log."""

    mesh: str
    provider: str
    event: str
    ref: str = ""

    @property
    def is_about_requests(self) -> bool:
        """About a pull request, rather than about refs."""
        return self.event in _REQUESTS


class Outcome(enum.Enum):
    ACCEPTED = "accepted"
    IGNORED = "ignored"
    """Signed, but a ping or not about refs."""
    FORGED = "forged"
    MALFORMED = "malformed"
    TOO_LARGE = "too_large"
    TOO_SLOW = "too_slow"
    LIMITED = "limited"
    SHUT = "shut"
    """No such mesh, or no secret."""


_STATUS: Final = {
    Outcome.ACCEPTED: 202,
    Outcome.IGNORED: 200,
    Outcome.FORGED: 401,
    Outcome.MALFORMED: 400,
    Outcome.TOO_LARGE: 413,
    Outcome.TOO_SLOW: 408,
    Outcome.LIMITED: 429,
    Outcome.SHUT: 404,
}
COUNTS: Final = web.AppKey("counts", Counter[Outcome])
"""How many knocks ended how; for metrics."""


def webhook_app(
    secrets: SecretsOf,
    wake: Callable[[Knock], None],
    *,
    route: str = _ROUTE,
    monotonic: Callable[[], float] = time.monotonic,
    wall: Callable[[], float] = time.time,
) -> web.Application:
    """The application to run or to mount. `wake` is called once per believed knock and must not block. `route` has a
    variable `mesh`, by which secrets are asked for."""
    app = web.Application(client_max_size=MAX_BODY)
    app[COUNTS] = Counter()
    app.router.add_post(route, _handler(secrets, wake, Buckets(), monotonic, wall))
    return app


def _handler(
    secrets: SecretsOf,
    wake: Callable[[Knock], None],
    buckets: "Buckets",
    monotonic: Callable[[], float],
    wall: Callable[[], float],
) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def handle(request: web.Request) -> web.Response:
        mesh = request.match_info["mesh"]
        known = secrets(mesh)
        if not known:
            return _answer(request, Outcome.SHUT)
        if not buckets.take(request.remote or "", monotonic()):
            return _answer(request, Outcome.LIMITED)
        body = await _body(request)
        if isinstance(body, Outcome):
            return _answer(request, body)
        outcome, knock = judge(mesh, request.headers, body, known, now=wall())
        if outcome is Outcome.ACCEPTED:
            wake(knock)
        return _answer(request, outcome, knock)

    return handle


async def _body(request: web.Request) -> bytes | Outcome:
    if (request.content_length or 0) > MAX_BODY:
        return Outcome.TOO_LARGE
    try:
        async with asyncio.timeout(READ_TIMEOUT):
            return await request.read()
    except web.HTTPRequestEntityTooLarge:
        return Outcome.TOO_LARGE
    except TimeoutError:
        return Outcome.TOO_SLOW


def _answer(request: web.Request, outcome: Outcome, knock: Knock | None = None) -> web.Response:
    request.app[COUNTS][outcome] += 1
    if knock is not None and outcome is not Outcome.FORGED:
        fields = (outcome.value, knock.mesh, knock.provider, knock.event, knock.ref)
        _log.info("webhook.%s mesh=%s provider=%s event=%s ref=%s", *fields)
    # A forged one is only counted: a line each would let anybody fill the log.
    response = web.json_response({"result": outcome.value}, status=_STATUS[outcome])
    if outcome in (Outcome.TOO_LARGE, Outcome.TOO_SLOW):
        response.force_close()  # the rest of the body is not read
    return response


# Everything below is pure.


def judge(
    mesh: str, headers: Mapping[str, str], body: bytes, secrets: Sequence[bytes], *, now: float
) -> tuple[Outcome, Knock]:
    """What becomes of one request. The body is parsed only after its signature holds."""
    lowered = {name.lower(): value for name, value in headers.items()}
    provider, event = _sender(lowered)
    knock = Knock(mesh=mesh, provider=provider, event=event)
    if not is_signed(lowered, body, secrets, now=now):
        return Outcome.FORGED, knock
    try:
        ref = pushed_ref(body)
    except ValueError:
        return Outcome.MALFORMED, knock
    outcome = Outcome.ACCEPTED if provider == "generic" or event in _PUSHES | _REQUESTS else Outcome.IGNORED
    return outcome, Knock(mesh=mesh, provider=provider, event=event, ref=ref)


def is_signed(headers: Mapping[str, str], body: bytes, secrets: Sequence[bytes], *, now: float) -> bool:
    """Whether the strongest proof that the request carries holds under one of the secrets. Constant-time."""
    for name, holds in _PROOFS:
        if name in headers:
            # Every secret is tried, so that time does not tell which one was right.
            verdicts = [holds(headers, headers[name], body, secret, now) for secret in secrets if secret]
            return any(verdicts)
    return False


def pushed_ref(body: bytes) -> str:
    """The ref a push names, empty where there is none. Raises ValueError for what is not JSON."""
    try:
        anything = msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise ValueError("the body is not JSON") from error
    try:
        payload = msgspec.convert(anything, _Payload)
    except msgspec.ValidationError:
        return ""  # JSON of another shape: still a valid hint
    return redact.clean(payload.named_ref, limit=_REF_SHOWN)


class _Name(msgspec.Struct):
    name: str = ""
    id: str = ""


class _Change(msgspec.Struct):
    new: _Name | None = None
    """Bitbucket Cloud."""
    ref: _Name | None = None
    """Bitbucket Data Center."""


class _Pushed(msgspec.Struct):
    changes: list[_Change] = []


class _Payload(msgspec.Struct):
    """The few fields of all forges' push payloads that are looked at."""

    ref: str = ""
    push: _Pushed | None = None
    changes: list[_Change] = []

    @property
    def named_ref(self) -> str:
        changes = (self.push.changes if self.push else []) or self.changes
        names = (change.new or change.ref for change in changes)
        return self.ref or next((name.id or name.name for name in names if name is not None), "")


def _hex_digest(secret: bytes, body: bytes) -> str:
    return hmac.new(secret, body, hashlib.sha256).hexdigest()


def _same(given: str, expected: str) -> bool:
    return hmac.compare_digest(given.encode("utf-8", "surrogateescape"), expected.encode("ascii"))


def _prefixed(_: Mapping[str, str], value: str, body: bytes, secret: bytes, now: float) -> bool:
    return _same(value.strip(), f"sha256={_hex_digest(secret, body)}")


def _bare(_: Mapping[str, str], value: str, body: bytes, secret: bytes, now: float) -> bool:
    return _same(value.strip(), _hex_digest(secret, body))


def _plain_token(_: Mapping[str, str], value: str, body: bytes, secret: bytes, now: float) -> bool:
    """GitLab's older way sends the secret itself. Compared by digests, so not even its length shows in the time."""
    given = hashlib.sha256(value.encode("utf-8", "surrogateescape")).digest()
    return hmac.compare_digest(given, hashlib.sha256(secret).digest())


def _standard(headers: Mapping[str, str], value: str, body: bytes, secret: bytes, now: float) -> bool:
    """Standard Webhooks (GitLab's signing token): `v1,<base64>` over `<id>.<timestamp>.<body>`, or several of them."""
    key = _standard_key(secret)
    sent_at = headers.get("webhook-timestamp", "")
    if key is None or not sent_at.isascii() or not sent_at.isdecimal() or abs(now - int(sent_at)) > TIMESTAMP_TOLERANCE:
        return False
    identifier = headers.get("webhook-id", "").encode("utf-8", "surrogateescape")
    signed = b".".join((identifier, sent_at.encode("ascii"), body))
    expected = "v1," + base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode("ascii")
    verdicts = [_same(given, expected) for given in value.split()]
    return any(verdicts)


def _standard_key(secret: bytes) -> bytes | None:
    """The key in `whsec_<base64>`; any other secret is the key itself."""
    if not secret.startswith(b"whsec_"):
        return secret
    try:
        return base64.b64decode(secret.removeprefix(b"whsec_"), validate=True)
    except binascii.Error:
        return None


Proof = Callable[[Mapping[str, str], str, bytes, bytes, float], bool]
_PROOFS: Final[tuple[tuple[str, Proof], ...]] = (
    # The first header that is present decides. SHA-1 (GitHub's X-Hub-Signature beside the 256 one) never counts.
    ("x-hub-signature-256", _prefixed),  # GitHub; Gitea and Forgejo send it too
    ("x-gitea-signature", _bare),
    ("x-forgejo-signature", _bare),
    ("x-gogs-signature", _bare),
    ("webhook-signature", _standard),  # GitLab with a signing token; other senders of Standard Webhooks
    ("x-hub-signature", _prefixed),  # Bitbucket
    ("x-signature", _prefixed),  # generic, as Flux's generic-hmac
    ("x-gitlab-token", _plain_token),
)
_EVENT_HEADERS: Final = (
    # Gitea and Forgejo also send GitHub's header, so theirs come first.
    ("x-forgejo-event", "forgejo"),
    ("x-gitea-event", "gitea"),
    ("x-gogs-event", "gogs"),
    ("x-github-event", "github"),
    ("x-gitlab-event", "gitlab"),
    ("x-event-key", "bitbucket"),
)
_PUSHES: Final = frozenset(
    ("push", "create", "delete", "Push Hook", "Tag Push Hook", "System Hook", "repo:push", "repo:refs_changed")
)
_REQUESTS: Final = frozenset(
    ("pull_request", "pull_request_sync", "Merge Request Hook", "pullrequest:created", "pullrequest:updated",
     "pullrequest:fulfilled", "pullrequest:rejected", "pr:opened", "pr:from_ref_updated", "pr:merged", "pr:declined")
)  # fmt: skip


def _sender(headers: Mapping[str, str]) -> tuple[str, str]:
    for name, provider in _EVENT_HEADERS:
        if name in headers:
            return provider, redact.clean(headers[name], limit=64)
    return "generic", ""


class Buckets:
    """A token bucket per address. Behind one ingress all knocks share one; polling goes on whatever happens here."""

    def __init__(self, *, burst: float = BURST, refill: float = REFILL, kept: int = ADDRESSES_KEPT) -> None:
        self._burst = burst
        self._refill = refill
        self._kept = kept
        self._levels: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, address: str, now: float) -> bool:
        level, at = self._levels.pop(address, (self._burst, now))
        level = min(self._burst, level + max(0.0, now - at) * self._refill)
        allowed = level >= 1
        self._levels[address] = (level - 1 if allowed else level, now)
        if len(self._levels) > self._kept:
            self._levels.popitem(last=False)
        return allowed
