"""Key sets: fetched when due, told when changed, kept while they are good, and taken away after a day."""

from backstay.config.wire import Live
from backstay.core.ports import KeysUnavailable
from backstay.core.registry import Registry
from backstay.core.snapshot import Document
from backstay.reconciler.keys import KeysWatch
from support.policy import document, snapshot

ADDRESS = "https://issuer.example/keys"


class Source:
    def __init__(self) -> None:
        self.answer = "first"
        self.asked: list[str] = []

    async def fetch(self, address: str) -> str:
        self.asked.append(address)
        if not self.answer:
            raise KeysUnavailable(f"{address} answered 500, expected 200")
        return self.answer


class World:
    """The watch with everything around it; time stands still unless it is told to go on."""

    def __init__(self, address: str = ADDRESS) -> None:
        self.source = Source()
        self.told: list[Live] = []
        self.events: list[tuple[str, bool]] = []
        self.now = 1000.0
        providers = [{"issuer": "https://issuer.example", "jwksUri": address}]
        self.documents = list(
            snapshot([document("Authentication", "a", {"jwt": {"providers": providers}})]).documents.values()
        )
        self.watch = KeysWatch(self.source, self, self, self, self.known, epoch=7)  # type: ignore[arg-type]  # it needs no more of them

    def known(self) -> tuple[list[Document], Registry]:
        return self.documents, Registry()

    def publish(self, live: Live) -> None:
        self.told.append(live)

    def event(self, kind: str, reason: str, text: str, *, subject: str, warning: bool) -> None:
        assert (kind, subject) == ("keys", ADDRESS)
        assert text
        self.events.append((reason, warning))

    def monotonic(self) -> float:
        return self.now

    async def at(self, seconds: float) -> None:
        self.now += seconds
        await self.watch.look()


def keys(text: str) -> Live:
    return Live(epoch=7, key_sets={ADDRESS: text})


async def test_keys_are_fetched_once_and_again_when_they_are_old() -> None:
    world = World()
    await world.watch.prepare()
    await world.at(299)
    assert (world.source.asked, world.told) == ([ADDRESS], [keys("first")])
    world.source.answer = "second"
    await world.at(2)
    assert (world.source.asked, world.told) == ([ADDRESS] * 2, [keys("first"), keys("second")])


async def test_the_same_keys_are_told_once() -> None:
    world = World()
    for _ in range(3):
        await world.at(301)
    assert (len(world.source.asked), world.told) == (3, [keys("first")])


async def test_the_last_good_keys_stay_for_a_day_and_are_then_taken_away() -> None:
    world = World()
    await world.at(0)
    world.source.answer = ""
    await world.at(301)
    await world.at(23 * 3600)
    assert (world.told, world.events) == ([keys("first")], [("KeysUnavailable", True)])
    await world.at(3600)
    assert (world.told[1:], world.events[1:]) == ([keys("")], [("KeysStale", True)])
    world.source.answer = "first"
    await world.at(100)
    assert (world.told[2:], world.events[2:]) == ([keys("first")], [("KeysFetched", False)])


async def test_an_address_that_fails_is_asked_less_and_less_often() -> None:
    world = World()
    world.source.answer = ""
    times = []
    for second in range(200):
        before = len(world.source.asked)
        await world.at(1)
        if len(world.source.asked) > before:
            times.append(second)
    assert times == [0, 1, 3, 7, 15, 31, 63, 123, 183]


async def test_nothing_is_fetched_that_no_document_names_any_more() -> None:
    world = World()
    await world.at(0)
    world.documents = []
    await world.at(1000)
    assert world.source.asked == [ADDRESS]


async def test_a_key_that_proxies_miss_is_fetched_at_once_but_not_with_every_token() -> None:
    world = World()
    await world.at(0)
    world.source.answer = "second"
    world.watch.missed([ADDRESS])
    await world.at(29)
    assert world.source.asked == [ADDRESS]
    await world.at(1)
    assert (world.source.asked, world.told) == ([ADDRESS] * 2, [keys("first"), keys("second")])
    for _ in range(60):
        world.watch.missed([ADDRESS])
        await world.at(1)
    assert len(world.source.asked) == 4


async def test_missed_keys_of_strangers_and_of_addresses_that_fail_change_nothing() -> None:
    world = World()
    world.source.answer = ""
    times = []
    for second in range(70):
        before = len(world.source.asked)
        world.watch.missed(["https://elsewhere.example/keys", ADDRESS])
        await world.at(1)
        if len(world.source.asked) > before:
            times.append(second)
    assert (times, set(world.source.asked)) == ([0, 1, 3, 7, 15, 31, 63], {ADDRESS})
