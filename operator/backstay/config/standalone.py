"""The file of a sidecar that runs by itself: what an operator would send, written by hand. `backstay sidecar --config FILE`.

Either `config` as it travels on the stream (with digests), or `workload` and `parts` without any.
"""

from collections.abc import Mapping

import msgspec

from backstay.config.model import Config, Manifest, Part, digest_of, encode_part
from backstay.config.wire import Endpoint


class IdentityPaths(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Certificate and key (PEM) that this proxy shows to others of its mesh. They are read again when they change."""

    certificate: str
    """Chain, leaf first; its URI SAN is the SPIFFE ID."""
    key: str


class ConfigFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the file says. Paths of files are relative to it."""

    config: Config | None = None
    """As on the stream; instead of `workload` and `parts`."""
    workload: str = ""
    """`<namespace>/<name>` of what this proxy stands beside: who it is in metrics and logs."""
    parts: list[Part] = []
    """Listeners, routes, backends, authorization; each tells by its field `part` what it is."""
    endpoints: dict[str, list[Endpoint]] = {}
    """`service.namespace:port` of a backend -> where it is served."""
    addresses: dict[str, list[str]] = {}
    """`service.namespace` -> virtual addresses that stand for it, where connections are redirected."""
    identity: IdentityPaths | None = None
    """For mTLS with other proxies; needs `trust`."""
    trust: dict[str, str] = {}
    """Trust domain -> file with its roots (PEM)."""
    revoked: list[str] = []
    """SPIFFE IDs that are refused, and whose connections are closed."""
    secrets: dict[str, str] = {}
    """`<namespace>/<name>` as gateway listeners name it -> file with certificate chain and key (PEM)."""

    def __post_init__(self) -> None:
        if (self.config is None) == (not self.workload):
            raise ValueError("expected either `config`, or `workload` with `parts`")
        if self.identity is not None and not self.trust:
            raise ValueError("`identity` needs `trust`: roots by trust domain")

    @property
    def files(self) -> Mapping[str, str]:
        """Where other files are named -> their paths."""
        own = (
            {"identity.certificate": self.identity.certificate, "identity.key": self.identity.key}
            if self.identity
            else {}
        )
        trust = {f"trust.{domain}": path for domain, path in self.trust.items()}
        return own | trust | {f"secrets.{name}": path for name, path in self.secrets.items()}

    def served(self) -> Config:
        """The config, with the digests it has or would have."""
        if self.config is not None:
            return self.config
        parts = {part.key: part for part in self.parts}
        if len(parts) != len(self.parts):
            twice = sorted({part.key for part in self.parts if sum(each.key == part.key for each in self.parts) > 1})
            raise ValueError(f"parts: {', '.join(twice)} is there more than once")
        digests = {key: digest_of(encode_part(part)) for key, part in parts.items()}
        return Config(manifest=Manifest(workload=self.workload, parts=digests), parts=parts)
