"""The file of a sidecar without an operator."""

import msgspec
import pytest

from backstay.config.model import Backend, Config, Listeners, Manifest, digest_of, encode_part
from backstay.config.standalone import ConfigFile, IdentityPaths

LISTENERS = Listeners(namespace="shop", identity="", trust_domain="td")


def test_parts_need_no_digests() -> None:
    backend = Backend(service="web.shop", port=80)
    served = ConfigFile(workload="shop/web", parts=[LISTENERS, backend]).served()
    digests = {"listeners": digest_of(encode_part(LISTENERS)), "backend/web.shop:80": digest_of(encode_part(backend))}
    assert served.manifest == Manifest(workload="shop/web", parts=digests)
    assert served.parts == {"listeners": LISTENERS, "backend/web.shop:80": backend}


def test_a_config_of_the_stream_is_taken_as_it_is() -> None:
    config = Config(manifest=Manifest(workload="shop/web", parts={}), parts={})
    assert ConfigFile(config=config).served() is config


def test_a_part_that_is_there_twice_is_named() -> None:
    with pytest.raises(ValueError, match=r"^parts: listeners is there more than once$"):
        ConfigFile(workload="shop/web", parts=[LISTENERS, LISTENERS]).served()


@pytest.mark.parametrize(
    "text", [b"{}", b'{"workload": "a/b", "config": {"manifest": {"workload": "", "parts": {}}, "parts": {}}}']
)
def test_either_a_config_or_parts(text: bytes) -> None:
    with pytest.raises(msgspec.ValidationError, match="expected either `config`, or `workload` with `parts`"):
        msgspec.json.decode(text, type=ConfigFile)


def test_an_identity_needs_roots() -> None:
    with pytest.raises(ValueError, match="`identity` needs `trust`"):
        ConfigFile(workload="a/b", identity=IdentityPaths(certificate="c", key="k"))


def test_all_files_are_known_by_what_names_them() -> None:
    found = ConfigFile(
        workload="a/b", identity=IdentityPaths(certificate="c", key="k"), trust={"td": "r"}, secrets={"n/s": "p"}
    )
    assert found.files == {"identity.certificate": "c", "identity.key": "k", "trust.td": "r", "secrets.n/s": "p"}
