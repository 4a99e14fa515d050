"""The mesh's own certificate authority, in a folder (LocalCA) or in a place that several operators share (SharedCA)."""

from backstay.adapters.certificates.authority import (
    LEAF_LIFETIME,
    MAX_LEAF_LIFETIME,
    RETIRE_AFTER,
    Authority,
    LocalCA,
    check_identity,
)
from backstay.adapters.certificates.reading import CertificatesUnusable
from backstay.adapters.certificates.shared import Material, SharedCA, SharedFiles

__all__ = [
    "LEAF_LIFETIME",
    "MAX_LEAF_LIFETIME",
    "RETIRE_AFTER",
    "Authority",
    "CertificatesUnusable",
    "LocalCA",
    "Material",
    "SharedCA",
    "SharedFiles",
    "check_identity",
]
