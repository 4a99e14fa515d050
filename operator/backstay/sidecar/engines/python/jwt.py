"""Verifies the tokens of requests against the key sets that the control plane ships. Loaded only where a config asks for it.

What has been verified is remembered by the token's SHA-256 until it expires, at most five minutes, and forgotten when any
key set changes (31 to 160 us for a signature, 1.3 for a look). Refusals are not remembered: they are cheap to find again,
and a key may arrive any moment.
"""

import hashlib
import logging
from collections import OrderedDict
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final, NamedTuple, TypeAlias

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from backstay.config.jwks import BadKeySet, Key, KeySet, fitting, read_key_set
from backstay.config.match import Headers
from backstay.config.model import Jwt, JwtProvider
from backstay.config.tokens import SKEW_SECONDS, Found, Token, TokenTable, complaint, read_token
from backstay.redact import clean

MAX_REMEMBERED: Final = 4096  # tokens; about 2 KiB each with their claims
REMEMBER_SECONDS: Final = 300.0  # ecosystem's habit: Envoy's jwt_cache_config goes by exp alone
_NO_KEYS: Final = KeySet(())
_UNKNOWN_KEY: Final = "unknown key"
_HASHES: Final[Mapping[str, hashes.HashAlgorithm]] = {
    "256": hashes.SHA256(), "384": hashes.SHA384(), "512": hashes.SHA512(),
}  # fmt: skip
_CURVES: Final[Mapping[str, ec.EllipticCurve]] = {
    "P-256": ec.SECP256R1(), "P-384": ec.SECP384R1(), "P-521": ec.SECP521R1(),
}  # fmt: skip

_log: Final = logging.getLogger("backstay.sidecar.python")


class Verdict(NamedTuple):
    """What the tokens of one request are."""

    found: list[Found]
    claims: Mapping[str, Any] | None = None
    reason: str = ""
    """`no-token`, `bad-token` or empty."""
    detail: str = ""
    """Why, for the log: which provider, and what is wrong."""


class _Refused(Exception):
    """This token is not believed."""


class Verifier:
    """Judges requests by the token rules of one config."""

    def __init__(self, jwt: Jwt) -> None:
        self.table = TokenTable(jwt)
        self._inline = {
            provider.jwks: load_keys(provider.jwks, "inline") for provider in jwt.providers if provider.jwks
        }
        self._fetched: Mapping[str, str] = {}
        self._loaded: dict[str, KeySet] = {}
        self._remembered: OrderedDict[bytes, tuple[float, Mapping[str, Any]]] = OrderedDict()
        self._missing: set[str] = set()

    def judge(self, fields: Headers, path: bytes, query: bytes, fetched: Mapping[str, str], now: float) -> Verdict:
        """`fetched` are key sets by their address, `now` is Unix time."""
        try:
            found = self.table.find(fields, query)
        except ValueError as error:
            return Verdict([], None, "bad-token", str(error))
        if not found:
            required = self.table.is_required(path)
            return Verdict([], None, "no-token", "a token is required") if required else Verdict([])
        if fetched is not self._fetched:
            self._take_keys(fetched)
        try:
            claims = [self._claims_of(each, now) for each in found]
        except _Refused as refused:
            return Verdict(found, None, "bad-token", str(refused))
        return Verdict(found, claims[0])

    def take_missing(self) -> set[str]:
        """Addresses of key sets that since the last call had no key of the name that a token gave."""
        missing, self._missing = self._missing, set()
        return missing

    def _take_keys(self, fetched: Mapping[str, str]) -> None:
        """Key sets have changed: nothing verified with the old ones counts any more."""
        self._fetched = fetched
        self._remembered.clear()
        wanted = {provider.jwks_uri for provider in self.table.providers if provider.jwks_uri}
        self._loaded = {uri: load_keys(fetched[uri], uri) for uri in wanted if fetched.get(uri)}

    def _claims_of(self, found: Found, now: float) -> Mapping[str, Any]:
        name = hashlib.sha256(found.place.name.encode() + b"\0" + found.token).digest()
        known = self._remembered.get(name)
        if known is not None and now < known[0]:
            return known[1]
        claims, until = self._verified(found, now)
        self._remembered[name] = (until, claims)
        if len(self._remembered) > MAX_REMEMBERED:
            self._remembered.popitem(last=False)
        return claims

    def _verified(self, found: Found, now: float) -> tuple[Mapping[str, Any], float]:
        """Claims, and until when they hold. Raises _Refused."""
        try:
            token = read_token(found.token)
        except ValueError as error:
            raise _Refused(str(error)) from None
        provider = self.table.of_issuer(token.claims.get("iss"), found.place)
        if provider is None:
            raise _Refused("unknown issuer")
        keys = self._keys_of(provider)
        if not any(is_signed(token, key) for key in fitting(keys, token.algorithm, token.kid)):
            why = _why_unsigned(token, keys)
            if why == _UNKNOWN_KEY and provider.jwks_uri:
                self._missing.add(provider.jwks_uri)
            raise _Refused(f"{provider.issuer}: {why}")
        wrong = complaint(token.claims, provider, now)
        if wrong:
            raise _Refused(f"{provider.issuer}: {wrong}")
        expires = token.claims.get("exp", now + REMEMBER_SECONDS) + SKEW_SECONDS
        return token.claims, min(expires, now + REMEMBER_SECONDS)

    def _keys_of(self, provider: JwtProvider) -> KeySet:
        if provider.jwks:
            return self._inline[provider.jwks]
        return self._loaded.get(provider.jwks_uri, _NO_KEYS)


def _why_unsigned(token: Token, keys: KeySet) -> str:
    if not keys.keys:
        return "no keys"
    if token.kid is not None and all(key.kid != token.kid for key in keys.keys):
        return _UNKNOWN_KEY
    return "algorithm" if not list(fitting(keys, token.algorithm, token.kid)) else "signature"


def load_keys(text: str, name: str) -> KeySet:
    """A key set as far as it can be used; what cannot is said in the log."""
    try:
        found = read_key_set(text)
    except BadKeySet as error:
        _log.warning("jwt.bad-keys from=%s error=%s", clean(name), clean(str(error)))
        return _NO_KEYS
    for why in found.rejected:
        _log.warning("jwt.key-rejected from=%s error=%s", clean(name), clean(why))
    return found


# --- signatures -------------------------------------------------------------------------------------------------------


def is_signed(token: Token, key: Key) -> bool:
    """Whether this key made the signature. A key that is none (a point off its curve) has made no signature."""
    try:
        public = _public(key)
        match public:
            case rsa.RSAPublicKey():
                _verify_rsa(token, public)
            case ec.EllipticCurvePublicKey():
                _verify_curve(token, public, len(key.numbers[0]))
            case _:
                public.verify(token.signature, token.signed)
    except (InvalidSignature, ValueError):
        return False
    return True


_Public: TypeAlias = rsa.RSAPublicKey | ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey


@lru_cache(maxsize=256)
def _public(key: Key) -> _Public:
    """Raises ValueError for numbers that are no key."""
    if key.kind == "Ed25519":
        return ed25519.Ed25519PublicKey.from_public_bytes(key.numbers[0])
    first, second = (int.from_bytes(number, "big") for number in key.numbers)
    if key.kind == "RSA":
        return rsa.RSAPublicNumbers(second, first).public_key()
    return ec.EllipticCurvePublicNumbers(first, second, _CURVES[key.kind]).public_key()


def _verify_rsa(token: Token, public: rsa.RSAPublicKey) -> None:
    digest = _HASHES[token.algorithm[2:]]
    padded: padding.AsymmetricPadding = padding.PKCS1v15()
    if token.algorithm.startswith("PS"):
        padded = padding.PSS(padding.MGF1(digest), digest.digest_size)  # RFC 7518, 3.5: the salt is as long as the hash
    public.verify(token.signature, token.signed, padded, digest)


def _verify_curve(token: Token, public: ec.EllipticCurvePublicKey, size: int) -> None:
    if len(token.signature) != 2 * size:
        raise ValueError("signature of another length")
    r, s = (int.from_bytes(part, "big") for part in (token.signature[:size], token.signature[size:]))
    public.verify(encode_dss_signature(r, s), token.signed, ec.ECDSA(_HASHES[token.algorithm[2:]]))
