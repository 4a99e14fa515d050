"""Transport sockets of mTLS, and the secrets that Envoy reads from files of their own. Pure.

A certificate and its key are one file, the trust of the whole mesh another: each is replaced as a whole, and new handshakes go
by it while nothing else changes. Peers are verified by their trust domain's own roots (Envoy's SPIFFE validator).
"""

from collections.abc import Mapping, Sequence
from typing import Final

from backstay.sidecar.engines.envoy.api import Json, exactly, message, typed, watched
from backstay.sidecar.engines.envoy.files import Folder

IDENTITY: Final = "identity"
TRUST: Final = "trust"
MESH_PROTOCOL: Final = "backstay"
"""What proxies of the mesh offer by ALPN; the other engine's constant of the same name."""
PEER: Final = "peer"
"""Key of an endpoint's metadata that says which certificate it must show."""
PLAIN: Final = "plain"
_TLS: Final = "envoy.extensions.transport_sockets.tls.v3."
_RAW: Final = "envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer"
_NOBODY: Final = "spiffe://nobody.invalid/nobody"
"""An identity that nobody has: an endpoint whose certificate is not settled is not reached at all, rather than in plaintext."""


def identity_secret(pem: str) -> Json:
    """Certificate chain and key, which are one text."""
    return _secret(IDENTITY, tls_certificate=_certificate(pem))


def shown_secret(name: str, pem: str) -> Json:
    """What a gateway shows."""
    return _secret(name, tls_certificate=_certificate(pem))


def _certificate(pem: str) -> Json:
    return {"certificate_chain": {"inline_string": pem}, "private_key": {"inline_string": pem}}


def trust_secret(bundles: Mapping[str, str]) -> Json:
    domains = [{"name": name, "trust_bundle": {"inline_string": pem}} for name, pem in sorted(bundles.items())]
    validator = typed("envoy.tls.cert_validator.spiffe", f"{_TLS}SPIFFECertValidatorConfig", trust_domains=domains)
    return _secret(TRUST, validation_context={"custom_validator_config": validator})


def _secret(name: str, **content: Json) -> Json:
    return message(f"{_TLS}Secret", name=name, **content)


def secret_source(name: str, folder: Folder) -> Json:
    return {"name": name, "sds_config": watched(folder.secret(name))}


def from_mesh(folder: Folder) -> Json:
    """For connections that come in: the caller must show an identity of the mesh."""
    common = {
        "tls_certificate_sds_secret_configs": [secret_source(IDENTITY, folder)],
        "validation_context_sds_secret_config": secret_source(TRUST, folder),
        "tls_params": {"tls_minimum_protocol_version": "TLSv1_2"},
    }
    return _downstream(common, require_client_certificate=True)


def from_outside(secret: str, least: str, folder: Folder) -> Json:
    """For callers of a gateway."""
    common = {
        "tls_certificate_sds_secret_configs": [secret_source(secret, folder)],
        "tls_params": {"tls_minimum_protocol_version": f"TLSv{least.replace('.', '_')}"},
        "alpn_protocols": ["h2", "http/1.1"],
    }
    return _downstream(common)


def _downstream(common: Json, **more: bool) -> Json:
    # A resumed session would outlive the trust it was made under.
    return typed(
        "envoy.transport_sockets.tls", f"{_TLS}DownstreamTlsContext",
        common_tls_context=common, disable_stateless_session_resumption=True,
        disable_stateful_session_resumption=True, **more,
    )  # fmt: skip


def to_peer(identity: str, folder: Folder) -> Json:
    """mTLS with exactly this peer."""
    names = [{"san_type": "URI", "matcher": exactly(identity)}]
    common = {
        "tls_certificate_sds_secret_configs": [secret_source(IDENTITY, folder)],
        "combined_validation_context": {
            "default_validation_context": {"match_typed_subject_alt_names": names},
            "validation_context_sds_secret_config": secret_source(TRUST, folder),
        },
        "tls_params": {"tls_minimum_protocol_version": "TLSv1_2", "tls_maximum_protocol_version": "TLSv1_3"},
        "alpn_protocols": [MESH_PROTOCOL],
    }
    return typed(
        "envoy.transport_sockets.tls", f"{_TLS}UpstreamTlsContext", common_tls_context=common, max_session_keys=0
    )


def to_any(identities: Sequence[str], folder: Folder) -> Json:
    """mTLS with one of these peers, where only an address was asked for; with none of them nobody is believed."""
    found = to_peer(_NOBODY, folder)
    context = found["typed_config"]["common_tls_context"]["combined_validation_context"]["default_validation_context"]
    context["match_typed_subject_alt_names"] = [
        {"san_type": "URI", "matcher": exactly(each)} for each in identities or [_NOBODY]
    ]
    return found


def to_nobody(folder: Folder) -> Json:
    return to_peer(_NOBODY, folder)


def plaintext() -> Json:
    return typed("envoy.transport_sockets.raw_buffer", _RAW)
