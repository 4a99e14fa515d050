"""What a forge is told of a commit while it rolls out."""

import asyncio

import pytest

from backstay.adapters.forge import Forge, ForgeUnavailable, Place
from backstay.adapters.forge.statuses import MOST_WAITING, StatusNotifier, status_of
from backstay.core.ports import Event

SHA = "a" * 40


def event(reason: str, message: str = "said", sha: str = SHA) -> Event:
    return Event(at=1.0, kind="rollout", reason=reason, message=message, revision=f"main@sha1:{sha}" if sha else "")


@pytest.mark.parametrize(
    ("reason", "state", "sentence"),
    [
        ("CommitSeen", "pending", "seen: said"),
        ("WaveStarted", "pending", "wave of said"),
        ("WavePassed", "pending", "said"),
        ("Live", "success", "said"),
        ("RolloutFailed", "failure", "said"),
        ("CommitInvalid", "failure", "said"),
        ("Superseded", "error", "said"),
    ],
)
def test_the_status_follows_the_rollout(reason: str, state: str, sentence: str) -> None:
    assert status_of(event(reason)) == (SHA, state, sentence)


def test_other_events_say_nothing_of_a_commit() -> None:
    assert status_of(event("ProxyJoined")) is None
    assert status_of(event("WaveStarted", sha="")) is None


class Heard(Forge):
    """A forge that keeps what it is told, and may be away or held up."""

    def __init__(self) -> None:
        super().__init__(Place(kind="gitea", api="http://forge.invalid", repository="o/r"), "token")
        self.statuses: list[tuple[str, str, str, str]] = []
        self.away = False
        self.gate = asyncio.Event()
        self.gate.set()

    async def opened(self) -> Forge:
        return self

    async def status(self, sha: str, state: str, context: str, description: str) -> None:
        await self.gate.wait()
        if self.away:
            raise ForgeUnavailable("away")
        self.statuses.append((sha, state, context, description))


async def test_a_forge_that_is_slow_hears_only_the_newest() -> None:
    heard = Heard()
    heard.gate.clear()
    notifier = StatusNotifier(heard.opened, "backstay/shop")
    await notifier.notify([event("CommitSeen", "seen")])
    await notifier.notify([event("WaveStarted", "5 %"), event("WavePassed", "5 % passed"), event("Live", "live")])
    heard.gate.set()
    await notifier.close()
    assert heard.statuses[-1] == (SHA, "success", "backstay/shop", "live")
    assert len(heard.statuses) <= 2


async def test_nothing_is_told_twice() -> None:
    heard = Heard()
    notifier = StatusNotifier(heard.opened, "backstay/shop")
    for _ in range(2):
        await notifier.notify([event("Live", "live")])
        await asyncio.wait_for(notifier._idle.wait(), 5)
    await notifier.close()
    assert len(heard.statuses) == 1


async def test_a_forge_that_is_away_loses_statuses_and_nothing_else() -> None:
    heard = Heard()
    heard.away = True
    notifier = StatusNotifier(heard.opened, "backstay/shop")
    await notifier.notify([event("WaveStarted")])
    await asyncio.wait_for(notifier._idle.wait(), 5)
    heard.away = False
    await notifier.notify([event("Live", "live")])
    await notifier.close()
    assert (notifier.lost, heard.statuses) == (1, [(SHA, "success", "backstay/shop", "live")])


async def test_what_waits_is_bounded() -> None:
    heard = Heard()
    heard.gate.clear()
    notifier = StatusNotifier(heard.opened, "backstay/shop")
    await notifier.notify([event("CommitSeen", sha=f"{number:040}") for number in range(MOST_WAITING + 5)])
    heard.gate.set()
    await notifier.close()
    assert notifier.lost == 5
    assert heard.statuses[-1][0] == f"{MOST_WAITING + 4:040}"


async def test_a_token_that_cannot_be_read_does_not_end_the_telling() -> None:
    heard = Heard()
    refusals = [ForgeUnavailable("no token")]

    async def forge() -> Forge:
        if refusals:
            raise refusals.pop()
        return heard

    notifier = StatusNotifier(forge, "backstay/shop")
    await notifier.notify([event("WaveStarted")])
    await asyncio.wait_for(notifier._idle.wait(), 5)
    await notifier.notify([event("Live", "live")])
    await notifier.close()
    assert heard.statuses == [(SHA, "success", "backstay/shop", "live")]
