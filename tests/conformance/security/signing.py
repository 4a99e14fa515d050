"""Makes the keys and tokens of tokens.yaml. Keys are made once a run; nothing here is product code."""

import functools
import json
import re
import time
from base64 import urlsafe_b64encode
from collections.abc import Mapping
from typing import Any, Final

from cryptography.hazmat.primitives import hashes, hmac, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

ISSUER: Final = "https://issuer.example"
_NOW: Final = re.compile(r"now([+-][0-9]+)")
_CURVES: Final = {"ec": ec.SECP256R1(), "ec2": ec.SECP256R1(), "ec384": ec.SECP384R1(), "ec521": ec.SECP521R1()}
_USUAL: Final = {"ec": "ES256", "ec2": "ES256", "ec384": "ES384", "ec521": "ES512", "ed": "EdDSA"}


@functools.cache
def private(name: str) -> Any:
    """`rsa...`, `ec...` or `ed`; `rsa1024` is too short for anybody to believe."""
    if name in _CURVES:
        return ec.generate_private_key(_CURVES[name])
    if name == "ed":
        return ed25519.Ed25519PrivateKey.generate()
    return rsa.generate_private_key(65537, 1024 if name == "rsa1024" else 2048)


def b64(data: bytes) -> str:
    return urlsafe_b64encode(data).rstrip(b"=").decode()


def _number(value: int, size: int = 0) -> str:
    return b64(value.to_bytes(size or (value.bit_length() + 7) // 8, "big"))


def public(name: str) -> dict[str, Any]:
    """The public key as a JWK, its kid being its name."""
    key = private(name).public_key()
    if isinstance(key, rsa.RSAPublicKey):
        numbers = key.public_numbers()
        return {"kty": "RSA", "kid": name, "n": _number(numbers.n), "e": _number(numbers.e)}
    if isinstance(key, ed25519.Ed25519PublicKey):
        raw = key.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
        return {"kty": "OKP", "kid": name, "crv": "Ed25519", "x": b64(raw)}
    size = (key.key_size + 7) // 8
    curve = {256: "P-256", 384: "P-384", 521: "P-521"}[key.key_size]
    point = key.public_numbers()
    return {"kty": "EC", "kid": name, "crv": curve, "x": _number(point.x, size), "y": _number(point.y, size)}


def key_set(wanted: list[Any]) -> str:
    """Of names, or of `{of: name, ...}` whose other fields replace those of the key (null takes one away)."""
    keys = []
    for item in wanted:
        changes = dict(item) if isinstance(item, dict) else {"of": item}
        found = public(changes.pop("of")) | changes
        keys.append({name: value for name, value in found.items() if value is not None})
    return json.dumps({"keys": keys})


def token(said: Mapping[str, Any]) -> str:
    """A token as a case describes it."""
    if "raw" in said:
        return str(said["raw"])
    by = said.get("by", "rsa")
    algorithm = said.get("alg", _USUAL.get(by, "RS256"))
    header = {"alg": algorithm, "kid": by, "typ": "JWT"} | said.get("header", {})
    claims = {"iss": ISSUER, "sub": "ann", "exp": "now+300"} | said.get("claims", {})
    payload = said.get("payload") or json.dumps(_timed(claims))
    head = said.get("head") or json.dumps({name: value for name, value in header.items() if value is not None})
    signed = f"{b64(head.encode())}.{b64(payload.encode())}"
    made = f"{signed}.{b64(signature(by, said.get('really', algorithm), signed.encode()))}"
    return _damaged(made, said.get("damage", ""))


def _timed(claims: Mapping[str, Any]) -> dict[str, Any]:
    """`now-90` becomes a number; null leaves a claim out."""
    found = {}
    for name, value in claims.items():
        match = _NOW.fullmatch(value) if isinstance(value, str) else None
        if name == "x":  # so many bytes
            found[name] = "a" * value
        elif value is not None:
            found[name] = int(time.time()) + int(match[1]) if match else value
    return found


def _damaged(made: str, how: str) -> str:
    if not how:
        return made
    head, payload, signed = made.split(".")
    other = "A" if signed[10] != "A" else "B"
    return {
        "signature": f"{head}.{payload}.{signed[:10]}{other}{signed[11:]}",
        "no signature": f"{head}.{payload}.",
        "payload": f"{head}.{b64(json.dumps({'iss': ISSUER, 'sub': 'root'}).encode())}.{signed}",
        "padding": f"{made}=",
        "blank": f"{head}.{payload} .{signed}",
        "four parts": f"{made}.x",
        "two parts": f"{head}.{payload}",
        "short": f"{head}.{payload}.{signed[:-20]}",
    }[how]


def signature(by: str, algorithm: str, signed: bytes) -> bytes:
    """By the algorithm that a token names, whether or not anybody should believe it."""
    if algorithm == "none":
        return b""
    key = private(by)
    if algorithm.startswith("HS"):  # the classic: the public key as the secret
        pem = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
        mac = hmac.HMAC(pem, hashes.SHA256())
        mac.update(signed)
        return mac.finalize()
    if algorithm == "EdDSA":
        return bytes(key.sign(signed))
    digest = {"256": hashes.SHA256(), "384": hashes.SHA384(), "512": hashes.SHA512()}[algorithm[2:]]
    if algorithm.startswith("RS"):
        return bytes(key.sign(signed, padding.PKCS1v15(), digest))
    if algorithm.startswith("PS"):
        return bytes(key.sign(signed, padding.PSS(padding.MGF1(digest), digest.digest_size), digest))
    size = (key.curve.key_size + 7) // 8
    r, s = decode_dss_signature(key.sign(signed, ec.ECDSA(digest)))
    return r.to_bytes(size, "big") + s.to_bytes(size, "big")
