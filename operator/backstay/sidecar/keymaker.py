"""Makes a private key and a certificate request, writes both to standard output and ends.

A process of its own so that the long-lived sidecar never loads `cryptography` (it would cost 20 MB for one call a day).
The key goes through a pipe to the parent and touches the disk only together with its certificate.
"""

import sys

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec


def main() -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
    encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    sys.stdout.buffer.write(key.private_bytes(encoding, form, serialization.NoEncryption()))
    sys.stdout.buffer.write(request.public_bytes(encoding))


if __name__ == "__main__":
    main()
