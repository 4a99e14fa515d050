"""What shares of one control port say together."""

from backstay.config.wire import Live
from backstay.control.sharing import SharedFleet


class Server:
    """As much of a control server as shares speak to here."""

    def __init__(self) -> None:
        self.told: list[Live] = []

    def recall(self, mine: object) -> None:
        """Nobody is connected."""

    def publish(self, live: Live) -> None:
        self.told.append(live)


def test_proxies_hear_of_one_list_of_revoked_identities() -> None:
    server = Server()
    fleet = SharedFleet(server, unclaimed=lambda: None)  # type: ignore[arg-type]  # it needs no more of a server
    shop, bank = (fleet.share(frozenset({name}), lambda: None) for name in ("shop", "bank"))
    shop.publish(Live(epoch=1, revoked=["b"]))
    bank.publish(Live(epoch=1, revoked=["a"]))
    bank.publish(Live(epoch=1, trust={"td": "PEM"}))
    shop.publish(Live(epoch=1, revoked=[]))
    fleet.end(shop)
    assert [live.revoked for live in server.told] == [["b"], ["a", "b"], None, ["a"]]


def test_endpoints_are_another_publishers_matter() -> None:
    server = Server()
    fleet = SharedFleet(server, unclaimed=lambda: None)  # type: ignore[arg-type]
    share = fleet.share(frozenset({"shop"}), lambda: None)
    share.publish(Live(epoch=1, endpoints={"a.shop:80": []}))
    share.publish(Live(epoch=1, endpoints={"a.shop:80": []}, key_sets={"https://a.example": "{}"}))
    assert server.told == [Live(epoch=1, key_sets={"https://a.example": "{}"})]
