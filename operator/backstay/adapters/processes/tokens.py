"""One-time enrolment tokens of local sidecars: a private file per instance is all there is.

The file is the token's whole life: written when a sidecar starts, taken away by the first that brings its content (the
unlink decides between two), withdrawn when the sidecar is ready. So an operator that was killed in between still
accepts what it had issued, and nothing needs to be remembered. A running sidecar that needs another one puts an empty
file beside it.
"""

import contextlib
import hmac
import os
import secrets
from pathlib import Path

from backstay.config.wire import WISH_SUFFIX


class Tokens:
    """Issues and redeems tokens kept in files."""

    def issue(self, path: Path) -> None:
        """Replace the token in this file by a fresh one (0600, never readable by others for a moment)."""
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_suffix(".new")
        with contextlib.suppress(FileNotFoundError):
            fresh.unlink()
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_urlsafe(32))
        fresh.replace(path)

    def redeem(self, path: Path, token: str) -> bool:
        """True exactly once for the token in this file; the file is gone afterwards."""
        try:
            expected = path.read_text()
        except FileNotFoundError:
            return False
        if not expected or not hmac.compare_digest(expected.encode(), token.encode()):
            return False
        try:
            path.unlink()
        except FileNotFoundError:  # somebody else was first
            return False
        return True

    def is_wanted(self, path: Path) -> bool:
        """Whether the sidecar has asked for a token; its wish is heard once. Raises OSError."""
        try:
            path.with_name(path.name + WISH_SUFFIX).unlink()
        except FileNotFoundError:
            return False
        return True

    def withdraw(self, path: Path) -> None:
        """Whatever is in this file is worth nothing from now on, and so is a wish for another."""
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
        self.is_wanted(path)
