"""Secrets that people name in their objects."""

import base64
import binascii

from backstay.adapters.kubernetes.client import ApiClient, ApiError

OURS = "app.kubernetes.io/managed-by"


async def read_secret(client: ApiClient, namespace: str, name: str) -> dict[str, bytes]:
    """Its data. Raises ApiError; also for the operator's own Secrets, which nobody may send anywhere by naming them."""
    found = await client.get(f"/api/v1/namespaces/{namespace}/secrets/{name}")
    if (found["metadata"].get("labels") or {}).get(OURS) == "backstay":
        raise ApiError(403, "Forbidden", f"Secret {namespace}/{name} is the operator's own")
    try:
        return {key: base64.b64decode(value, validate=True) for key, value in (found.get("data") or {}).items()}
    except binascii.Error as error:
        raise ApiError(0, "BadAnswer", f"Secret {namespace}/{name} holds what is not base64") from error
