"""Key sets: what is used of them, and why the rest is not."""

import json
from base64 import urlsafe_b64encode
from typing import Any

import pytest

from backstay.config.jwks import BadKeySet, Key, read_key_set, strict_json


def b64(data: bytes) -> str:
    return urlsafe_b64encode(data).rstrip(b"=").decode()


MODULUS = b"\x80" + b"\x01" * 255
RSA: dict[str, Any] = {"kty": "RSA", "kid": "a", "n": b64(MODULUS), "e": "AQAB"}
EC: dict[str, Any] = {"kty": "EC", "kid": "b", "crv": "P-256", "x": b64(b"x" * 32), "y": b64(b"y" * 32)}
ED: dict[str, Any] = {"kty": "OKP", "kid": "c", "crv": "Ed25519", "x": b64(b"z" * 32)}


def key_set(*keys: Any) -> str:
    return json.dumps({"keys": keys})


def test_keys_may_verify_what_their_kind_or_their_alg_says() -> None:
    assert read_key_set(key_set(RSA, {**RSA, "kid": "p", "alg": "PS256"}, EC, ED)).keys == (
        Key("a", "RSA", ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"), (MODULUS, b"\x01\x00\x01")),
        Key("p", "RSA", ("PS256",), (MODULUS, b"\x01\x00\x01")),
        Key("b", "P-256", ("ES256",), (b"x" * 32, b"y" * 32)),
        Key("c", "Ed25519", ("EdDSA",), (b"z" * 32,)),
    )


@pytest.mark.parametrize(
    ("key", "why"),
    [
        ({**RSA, "n": b64(b"\xff" * 128)}, "key 'a': it has 1024 bits, expected 2048 to 8192"),
        ({**RSA, "e": "AQ"}, "key 'a': its exponent is 1, expected an odd number such as 65537"),
        ({**RSA, "n": "a+b"}, "key 'a': n is not base64url"),
        ({"kty": "RSA", "e": "AQAB"}, "key 0: n is missing"),
        ({**RSA, "use": "enc"}, "key 'a': its use is 'enc', expected 'sig'"),
        ({**RSA, "key_ops": ["sign"]}, "key 'a': its key_ops do not have 'verify'"),
        (
            {**RSA, "alg": "HS256"},
            "key 'a': alg 'HS256' is not for a key of kind RSA, expected one of RS256, RS384, RS512, PS256, PS384, PS512",
        ),
        ({**EC, "alg": "ES384"}, "key 'b': alg 'ES384' is not for a key of kind P-256, expected one of ES256"),
        ({**EC, "crv": "secp256k1"}, "key 'b': crv 'secp256k1' is not known, expected one of P-256, P-384, P-521"),
        ({**EC, "x": b64(b"x" * 31)}, "key 'b': its coordinates have not 32 bytes"),
        ({**ED, "crv": "X25519"}, "key 'c': crv 'X25519' is not known, expected Ed25519"),
        ({**ED, "x": b64(b"z" * 31)}, "key 'c': its x has not 32 bytes"),
        ({"kty": "AKP", "kid": "q"}, "key 'q': kty 'AKP' is not known, expected RSA, EC or OKP"),
        ({**RSA, "kid": 7}, "key 0: kid is no text"),
    ],
)
def test_a_bad_key_is_left_out_and_the_others_are_used(key: dict[str, Any], why: str) -> None:
    found = read_key_set(key_set(key, ED))
    assert (found.rejected, [item.kid for item in found.keys]) == ((why,), ["c"])


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("<html>", "it is no JSON: Expecting value: line 1 column 1 (char 0)"),
        ("[]", 'it is no key set, expected {"keys": [...]}'),
        ('{"keys": [1]}', 'it is no key set, expected {"keys": [...]}'),
        ('{"keys": [], "keys": []}', "it is no JSON: a name stands twice in one object"),
        (
            key_set(RSA, {"kty": "oct", "k": "AAAA"}),
            "it has a symmetric key (oct): whoever reads it could sign; expected public keys only",
        ),
        (key_set(*[ED] * 65), "it has 65 keys, expected at most 64"),
        (" " * 65_537, "it has 65537 bytes, expected at most 65536"),
    ],
)
def test_what_is_no_key_set_is_refused_whole(text: str, why: str) -> None:
    with pytest.raises(BadKeySet) as error:
        read_key_set(text)
    assert str(error.value) == why


def test_json_nested_beyond_reason_is_refused_like_any_other_bad_one() -> None:
    with pytest.raises(ValueError, match="nested too deeply"):
        strict_json(b"[" * 100_000)
