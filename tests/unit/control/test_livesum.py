from backstay.config.wire import Endpoint, Live
from backstay.control.livesum import LiveSum


def at(port: int) -> list[Endpoint]:
    return [Endpoint(id=f"i{port}", address="127.0.0.1", port=port)]


def test_before_the_first_publish_nothing_is_taken_away() -> None:
    live = LiveSum({"td": "PEM"})
    assert live.everything(3, None) == Live(epoch=3, full=False, trust={"td": "PEM"}, revoked=[])


def test_the_first_publish_is_the_whole_truth() -> None:
    live = LiveSum({})
    news = live.add(Live(epoch=1, endpoints={"a:80": at(1), "b:80": at(2)}))
    assert news.only(frozenset({"a:80"}), 1) == Live(epoch=1, full=True, endpoints={"a:80": at(1)})
    assert live.everything(1, ["b:80", "unknown:80"]) == Live(
        epoch=1, full=True, endpoints={"b:80": at(2)}, trust={}, revoked=[]
    )


def test_only_what_changed_is_news() -> None:
    live = LiveSum({})
    live.add(Live(epoch=1, endpoints={"a:80": at(1), "b:80": at(2)}))
    news = live.add(Live(epoch=1, endpoints={"a:80": at(1), "b:80": at(3)}))
    assert news.only(None, 1) == Live(epoch=1, endpoints={"b:80": at(3)})
    assert news.concerns(frozenset()) is False
    assert news.concerns(frozenset({"b:80"})) is True


def test_a_full_publish_takes_away_what_it_does_not_name() -> None:
    live = LiveSum({})
    live.add(Live(epoch=1, endpoints={"a:80": at(1), "b:80": at(2)}))
    news = live.add(Live(epoch=1, full=True, endpoints={"a:80": at(1)}))
    assert news.only(None, 1) == Live(epoch=1, endpoints={"b:80": []})
    assert live.everything(1, None).endpoints == {"a:80": at(1)}


def test_trust_and_revocations_concern_everybody() -> None:
    live = LiveSum({"td": "ONE"})
    live.add(Live(epoch=1))
    news = live.add(Live(epoch=1, trust={"td": "ONE TWO"}, revoked=["spiffe://td/x"]))
    assert news.concerns(frozenset()) is True
    assert news.only(frozenset(), 1) == Live(epoch=1, trust={"td": "ONE TWO"}, revoked=["spiffe://td/x"])
    assert live.part(1, ["a:80"]) == Live(epoch=1)


def test_virtual_addresses_go_to_who_knows_the_service_and_their_changes_to_everybody() -> None:
    live = LiveSum({"td": "PEM"})
    live.add(Live(epoch=1, endpoints={"a.n:80": at(1)}, addresses={"a.n": ["10.0.0.1"], "b.n": ["10.0.0.2"]}))
    assert live.everything(1, ["a.n:80"]).addresses == {"a.n": ["10.0.0.1"]}
    assert live.part(1, ["b.n:80"]).addresses == {"b.n": ["10.0.0.2"]}
    news = live.add(Live(epoch=1, addresses={"a.n": ["10.0.0.1"], "b.n": []}))
    assert news.concerns(frozenset())
    assert news.only(frozenset(), 1) == Live(epoch=1, addresses={"b.n": []})
    assert live.everything(1, None).addresses == {"a.n": ["10.0.0.1"]}
