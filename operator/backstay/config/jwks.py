"""Key sets (JWKS) read strictly: which keys may verify which signatures, and why the others may not.

Validation asks for key sets that stand in documents, the control plane for those it fetches, proxies for both. A key that
is not for signatures of this kind is left out with a reason; symmetric keys are never taken: a set lies in git or on the
network, and who can read one could sign with it. What takes arithmetic (a point on its curve) is the verifier's to find out.
"""

import binascii
import json
import re
from base64 import urlsafe_b64decode
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple, TypeAlias

MAX_BYTES: Final = 64 * 1024  # of a set; Google's has 2 KiB, Microsoft's 12 KiB
MAX_KEYS: Final = 64
LEAST_RSA_BITS: Final = 2048  # RFC 7518, 3.3
MOST_RSA_BITS: Final = 8192  # verifying grows with the square; OpenSSL's own limit is 16384

_RSA: Final = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")
_CURVES: Final = {"P-256": ("ES256", 32), "P-384": ("ES384", 48), "P-521": ("ES512", 66)}
_BASE64: Final = re.compile(rb"[A-Za-z0-9_-]*")


class Key(NamedTuple):
    kid: str
    kind: str
    """RSA, the name of a curve, or Ed25519."""
    algorithms: tuple[str, ...]
    """What signatures it may verify: its own `alg`, or all that its kind can."""
    numbers: tuple[bytes, ...]
    """(n, e), (x, y) or (x,), big-endian."""


class KeySet(NamedTuple):
    keys: tuple[Key, ...]
    rejected: tuple[str, ...] = ()
    """Why keys were left out, one sentence each."""


class BadKeySet(ValueError):
    """Nothing in it may be used."""


def strict_json(data: bytes) -> Any:
    """JSON in which no key stands twice and every number is one. Raises ValueError."""
    try:
        return json.loads(data, object_pairs_hook=_unique, parse_constant=_no_constant)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands twice in one object")
    return found


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is no number")


def decode64(data: bytes) -> bytes:
    """base64url without padding (RFC 7515, 2). Raises ValueError."""
    if _BASE64.fullmatch(data) is None or len(data) % 4 == 1:
        raise ValueError("not base64url")
    try:
        return urlsafe_b64decode(data + b"=" * (-len(data) % 4))
    except binascii.Error as error:
        raise ValueError("not base64url") from error


def read_key_set(text: str) -> KeySet:
    """Raises BadKeySet for what is none, is too big, or mixes symmetric with other keys."""
    data = text.encode()
    if len(data) > MAX_BYTES:
        raise BadKeySet(f"it has {len(data)} bytes, expected at most {MAX_BYTES}")
    try:
        found = strict_json(data)
    except ValueError as error:
        raise BadKeySet(f"it is no JSON: {error}") from error
    items = found.get("keys") if isinstance(found, dict) else None
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise BadKeySet('it is no key set, expected {"keys": [...]}')
    if len(items) > MAX_KEYS:
        raise BadKeySet(f"it has {len(items)} keys, expected at most {MAX_KEYS}")
    kinds = {item.get("kty") for item in items}
    if "oct" in kinds:
        raise BadKeySet("it has a symmetric key (oct): whoever reads it could sign; expected public keys only")
    return _sorted_out(items)


def _sorted_out(items: Sequence[Mapping[str, Any]]) -> KeySet:
    keys, rejected = [], []
    for number, item in enumerate(items):
        try:
            keys.append(_key(item))
        except ValueError as error:
            kid = item.get("kid")
            rejected.append(f"key {kid!r}: {error}" if isinstance(kid, str) else f"key {number}: {error}")
    return KeySet(tuple(keys), tuple(rejected))


def _key(item: Mapping[str, Any]) -> Key:
    _check_purpose(item)
    name, possible, numbers = _of_kind(item)
    kid, algorithm = item.get("kid", ""), item.get("alg")
    if not isinstance(kid, str):
        raise ValueError("kid is no text")
    if algorithm is not None and algorithm not in possible:
        raise ValueError(f"alg {algorithm!r} is not for a key of kind {name}, expected one of {', '.join(possible)}")
    return Key(kid, name, possible if algorithm is None else (algorithm,), numbers)


_Kind: TypeAlias = tuple[str, tuple[str, ...], tuple[bytes, ...]]
"""Its name, the algorithms it can, and its numbers."""


def _of_kind(item: Mapping[str, Any]) -> _Kind:
    match item.get("kty"):
        case "RSA":
            return "RSA", _RSA, _rsa(item)
        case "EC":
            return _curve(item)
        case "OKP":
            return "Ed25519", ("EdDSA",), _edwards(item)
        case other:
            raise ValueError(f"kty {other!r} is not known, expected RSA, EC or OKP")


def _check_purpose(item: Mapping[str, Any]) -> None:
    if item.get("use", "sig") != "sig":
        raise ValueError(f"its use is {item['use']!r}, expected 'sig'")
    operations = item.get("key_ops", ["verify"])
    if not isinstance(operations, list) or "verify" not in operations:
        raise ValueError("its key_ops do not have 'verify'")


def _number(item: Mapping[str, Any], name: str) -> bytes:
    value = item.get(name)
    if not isinstance(value, str) or not value:
        raise ValueError(f"{name} is missing")
    try:
        return decode64(value.encode())
    except ValueError as error:
        raise ValueError(f"{name} is {error}") from error


def _rsa(item: Mapping[str, Any]) -> tuple[bytes, ...]:
    modulus, exponent = _number(item, "n"), _number(item, "e")
    bits = int.from_bytes(modulus, "big").bit_length()
    if not LEAST_RSA_BITS <= bits <= MOST_RSA_BITS:
        raise ValueError(f"it has {bits} bits, expected {LEAST_RSA_BITS} to {MOST_RSA_BITS}")
    power = int.from_bytes(exponent, "big")
    if power < 3 or power % 2 == 0 or power.bit_length() > 32:
        raise ValueError(f"its exponent is {power}, expected an odd number such as 65537")
    return modulus, exponent


def _curve(item: Mapping[str, Any]) -> _Kind:
    name = item.get("crv")
    if name not in _CURVES:
        raise ValueError(f"crv {name!r} is not known, expected one of {', '.join(_CURVES)}")
    algorithm, size = _CURVES[name]
    numbers = _number(item, "x"), _number(item, "y")
    if any(len(number) != size for number in numbers):
        raise ValueError(f"its coordinates have not {size} bytes")
    return str(name), (algorithm,), numbers


def _edwards(item: Mapping[str, Any]) -> tuple[bytes, ...]:
    if item.get("crv") != "Ed25519":
        raise ValueError(f"crv {item.get('crv')!r} is not known, expected Ed25519")
    number = _number(item, "x")
    if len(number) != 32:
        raise ValueError("its x has not 32 bytes")
    return (number,)


def fitting(keys: KeySet, algorithm: str, kid: str | None) -> Iterator[Key]:
    """The keys that may have signed a token: of its kid if it names one, and for its algorithm."""
    for key in keys.keys:
        if algorithm in key.algorithms and kid in (None, key.kid):
            yield key
