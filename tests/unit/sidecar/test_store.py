from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from backstay.config.model import (
    Backend,
    Config,
    Manifest,
    Part,
    config_digest,
    digest_of,
    encode_manifest,
    encode_part,
)
from backstay.config.wire import Endpoint, Offer
from backstay.sidecar import files
from backstay.sidecar.lease import Lease
from backstay.sidecar.store import (
    MAX_PACKS,
    REMEMBERED_CONFIGS,
    Saved,
    SavedLive,
    Store,
    StoreInUse,
    load_config,
    offered,
    parts_of,
    read_state,
)


def made(port: int, *, others: int = 0) -> tuple[Config, dict[str, bytes]]:
    """A config with one backend of this port and some that all such configs share."""
    parts: list[Part] = [Backend(service="a.shop", port=port)]
    parts += [Backend(service=f"common-{number}.shop", port=80) for number in range(others)]
    encoded = {part.key: encode_part(part) for part in parts}
    manifest = Manifest(workload="shop/x", parts={key: digest_of(data) for key, data in encoded.items()})
    objects = {digest_of(data): data for data in encoded.values()}
    objects[config_digest(manifest)] = encode_manifest(manifest)
    return Config(manifest=manifest, parts={part.key: part for part in parts}), objects


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(tmp_path / "state")
    yield opened
    opened.close()


def reopened(store: Store) -> Store:
    store.close()
    again = Store(store.folder)
    store._lock = again._lock  # so that the fixture closes what is open
    return again


def only_pack(store: Store) -> Path:
    [pack] = (store.folder / "objects").glob("*.pack")
    return pack


def test_a_config_survives_a_restart(store: Store) -> None:
    config, objects = made(80, others=3)
    store.objects.add(objects)
    store.save(Saved(epoch=3, stable=config.digest, share=0.0, recent=(config.digest,)))
    again = reopened(store)
    assert again.saved == Saved(epoch=3, stable=config.digest, recent=(config.digest,))
    assert load_config(again.objects, config.digest) == config


def test_a_damaged_object_is_as_good_as_missing_and_its_neighbours_stay(store: Store) -> None:
    config, objects = made(8080, others=2)
    store.objects.add(objects)
    pack = only_pack(store)
    pack.write_bytes(pack.read_bytes().replace(b'"port":8080', b'"port":8081'))
    again = reopened(store)
    lost = config.manifest.parts["backend/a.shop:8080"]
    assert {digest for digest in objects if digest not in again.objects} == {lost}
    assert again.objects.dropped == 1
    assert load_config(again.objects, config.digest) is None


def test_damage_while_running_is_noticed_when_reading(store: Store) -> None:
    config, objects = made(8080)
    store.objects.add(objects)
    pack = only_pack(store)
    pack.write_bytes(pack.read_bytes().replace(b'"port":8080', b'"port":8081'))
    assert load_config(store.objects, config.digest) is None
    assert config.manifest.parts["backend/a.shop:8080"] not in store.objects
    store.objects.add(objects)
    assert load_config(store.objects, config.digest) == config


def test_a_truncated_pack_keeps_what_is_whole(store: Store) -> None:
    _, objects = made(80, others=5)
    store.objects.add(objects)
    pack = only_pack(store)
    pack.write_bytes(pack.read_bytes()[:-10])
    assert len(reopened(store).objects.read(objects)) == len(objects) - 1


def test_what_is_there_already_is_not_written_again(store: Store) -> None:
    _, objects = made(80, others=3)
    store.objects.add(objects)
    store.objects.add(objects)
    assert only_pack(store).name == "00000001.pack"


def test_compaction_keeps_the_recent_configs_and_forgets_the_rest(store: Store) -> None:
    configs = [made(port, others=2) for port in range(1, MAX_PACKS + REMEMBERED_CONFIGS)]
    for config, objects in configs:
        store.objects.add(objects)
        store.save(Saved(stable=config.digest, recent=store.remember(config.digest)))
        store.compact()
    assert len(list((store.folder / "objects").glob("*.pack"))) <= MAX_PACKS
    kept = [config for config, _ in configs if load_config(store.objects, config.digest) == config]
    assert kept[-REMEMBERED_CONFIGS:] == [config for config, _ in configs[-REMEMBERED_CONFIGS:]]
    assert load_config(store.objects, configs[0][0].digest) is None
    assert load_config(reopened(store).objects, configs[-1][0].digest) == configs[-1][0]


def test_compaction_on_a_full_disk_loses_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    configs = [made(port) for port in range(1, MAX_PACKS + 2)]
    for _, objects in configs:
        store.objects.add(objects)
    store.save(Saved(recent=tuple(config.digest for config, _ in configs)))

    def full(path: Path, data: bytes, outlives: files.Outlives) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "write", full)
    with pytest.raises(OSError, match="No space left"):
        store.compact()
    assert [load_config(store.objects, config.digest) for config, _ in configs] == [config for config, _ in configs]


def test_a_damaged_state_file_is_an_empty_state_not_a_crash(store: Store) -> None:
    store.save(Saved(epoch=7))
    (store.folder / "state.json").write_bytes(b'{"epoch": "seven"}')
    assert reopened(store).saved == Saved()


def test_lease_and_live_data_come_back(store: Store) -> None:
    lease = Lease(candidate="c", length=60.0, ends=1.0, ends_wall=2.0, boot="b")
    live = SavedLive(
        endpoints={"a.shop:80": [Endpoint(id="a-1", address="127.0.0.2", port=1)]},
        trust={"td": "PEM"},
        revoked=["spiffe://td/x"],
    )
    store.save_lease(lease)
    store.save_live(live)
    assert (store.lease(), store.live()) == (lease, live)
    store.save_lease(None)
    assert store.lease() is None


def test_a_state_folder_has_one_owner(store: Store) -> None:
    with pytest.raises(StoreInUse, match=r"state: another sidecar uses this state folder$"):
        Store(store.folder)


def test_the_disk_can_be_read_beside_the_running_process(store: Store) -> None:
    config, objects = made(80)
    store.objects.add(objects)
    store.save(Saved(epoch=2, stable=config.digest))
    found = read_state(store.folder)
    assert (found.saved.epoch, found.stable, found.candidate, found.lease, found.damaged) == (2, config, None, None, 0)


def test_a_folder_that_is_no_state_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="is not the state folder of a sidecar"):
        read_state(tmp_path)


def test_an_offer_changes_its_base_into_exactly_what_its_digest_says() -> None:
    base, target = made(80, others=2)[0].manifest, made(81, others=2)[0].manifest
    new = "backend/a.shop:81"
    offer = Offer(digest=config_digest(target), base="b", set={new: target.parts[new]}, unset=["backend/a.shop:80"])
    assert offered(base, offer) == target
    assert offered(base, msgspec.structs.replace(offer, unset=[])) is None


def test_configs_share_the_parts_they_have_in_common(store: Store) -> None:
    (first, one), (second, two) = made(80, others=2), made(81, others=2)
    store.objects.add(one | two)
    loaded = load_config(store.objects, second.digest, parts_of(first))
    assert loaded == second
    key = "backend/common-0.shop:80"
    assert loaded is not None
    assert loaded.parts[key] is first.parts[key]
