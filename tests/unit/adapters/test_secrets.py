"""Certificates in a folder: whole pairs only, and nothing outside of it."""

from pathlib import Path

import pytest

from backstay.adapters.certificates import LocalCA
from backstay.adapters.secrets import FolderSecrets
from backstay.core.ports import TlsMaterial, TlsSecretsUnavailable


def pair(folder: Path) -> TlsMaterial:
    """A certificate with its key: a CA's own will do."""
    LocalCA.open(folder, "test.mesh")
    return TlsMaterial(
        certificate=(folder / "ca-cert.pem").read_text(encoding="ascii"),
        key=(folder / "ca-key.pem").read_text(encoding="ascii"),
    )


def put(folder: Path, name: str, certificate: str, key: str) -> None:
    (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / name / "tls.crt").write_text(certificate)
    (folder / name / "tls.key").write_text(key)


async def test_pairs_are_read_and_halves_are_not_there(tmp_path: Path) -> None:
    one, other = pair(tmp_path / "one"), pair(tmp_path / "other")
    folder = tmp_path / "secrets"
    put(folder, "shop/web", one.certificate, one.key)
    put(folder, "shop/mixed", one.certificate, other.key)
    put(folder, "shop/empty", "", "")
    (folder / "shop" / "half").mkdir()
    (folder / "shop" / "half" / "tls.crt").write_text(one.certificate)
    secrets = FolderSecrets(folder)
    asked = ["shop/web", "shop/mixed", "shop/empty", "shop/half", "shop/none", "../shop/web", "shop/..", "web"]
    assert await secrets.read(asked) == {"shop/web": one}
    assert one.key not in repr(one)


async def test_what_cannot_be_read_is_said(tmp_path: Path) -> None:
    (tmp_path / "shop" / "web" / "tls.crt").mkdir(parents=True)
    with pytest.raises(TlsSecretsUnavailable):
        await FolderSecrets(tmp_path).read(["shop/web"])
