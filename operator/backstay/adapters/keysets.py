"""Fetches key sets (JWKS) over HTTP. Implements ports.KeySource.

Addresses stand in git, so an answer is believed only as far as it is a key set: bounded in size and time, without
redirects (to where nobody reviewed), without proxies' cookies, and checked before it goes anywhere.
"""

from typing import Final

import aiohttp

from backstay.config.jwks import BadKeySet, read_key_set
from backstay.core.ports import KeysUnavailable

SECONDS: Final = 5.0  # Istio's and Envoy's time for the same
MAX_BYTES: Final = 1024 * 1024  # threats J8; what is usable is bounded in config/jwks.py
_OK: Final = 200


class HttpKeySets:
    def __init__(self, *, seconds: float = SECONDS) -> None:
        self._timeout = aiohttp.ClientTimeout(total=seconds)

    async def fetch(self, address: str) -> str:
        """The key set at this address, as text. Raises KeysUnavailable."""
        try:
            async with (
                aiohttp.ClientSession(timeout=self._timeout, cookie_jar=aiohttp.DummyCookieJar()) as session,
                session.get(address, allow_redirects=False, headers={"Accept": "application/json"}) as answer,
            ):
                if answer.status != _OK:
                    raise KeysUnavailable(f"{address} answered {answer.status}, expected 200")
                text = await _bounded(answer)
        except TimeoutError as error:
            raise KeysUnavailable(f"{address} did not answer within {self._timeout.total:g} s") from error
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise KeysUnavailable(f"{address}: {error}") from error
        try:
            found = read_key_set(text)
        except BadKeySet as error:
            raise KeysUnavailable(f"{address} has no usable key set: {error}") from error
        if not found.keys:
            raise KeysUnavailable(f"{address} has no key that could verify anything")
        return text


async def _bounded(answer: aiohttp.ClientResponse) -> str:
    """Raises ValueError for more than anybody needs, or for what is no text."""
    data = b""
    async for piece in answer.content.iter_chunked(64 * 1024):
        data += piece
        if len(data) > MAX_BYTES:
            raise ValueError(f"more than {MAX_BYTES} bytes")
    return data.decode("utf-8")
