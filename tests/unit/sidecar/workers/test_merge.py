"""What several workers observed is one sum."""

from backstay.config.wire import PeerRow, Row
from backstay.sidecar.engine import Observed
from backstay.sidecar.workers.merge import Exposition, observed


def row(route: str = "r", total: int = 1, **bad: int) -> Row:
    return Row("c", "out", route, "b", total, dict(bad), 1, total, [total, 0], [0])


def seen(*rows: Row, **more: object) -> Observed:
    values = {"peers": (), "serving": {"c": 1.0}, "open_requests": 2} | more
    return Observed(rows=rows, **values)  # type: ignore[arg-type]


def test_rows_of_one_kind_are_added_and_others_stay_apart() -> None:
    found = observed([seen(row(total=2, reset=1), row("other")), seen(row(total=3, reset=2, timeout=1))])
    assert found.rows == [
        Row("c", "out", "r", "b", 5, {"reset": 3, "timeout": 1}, 2, 5, [5, 0], [0]),
        row("other"),
    ]
    assert (found.serving, found.open_requests) == ({"c": 1.0}, 4)


def test_tries_to_connect_are_added_by_endpoint_and_config() -> None:
    one, other = PeerRow("web-0", "c", 2, 1), PeerRow("web-0", "d", 1, 0)
    found = observed([seen(peers=(one,)), seen(peers=(one, other))])
    assert found.peers == [PeerRow("web-0", "c", 4, 2), other]


def test_what_has_ended_says_nothing_of_what_is_served() -> None:
    assert observed([seen(serving={}), seen(serving={"c": 0.5, "d": 0.5})]).serving == {"c": 0.5, "d": 0.5}


FIRST = """# TYPE a_total counter
a_total{x="1"} 2
# TYPE h histogram
h_sum 1.250
# TYPE open gauge
open 3
# TYPE of_info gauge
of_info{config="c"} 1
"""
SECOND = FIRST.replace('a_total{x="1"} 2', 'a_total{x="1"} 5\na_total{x="2"} 1')


def shown(*texts: str, **kwargs: bool) -> str:
    found = Exposition()
    for text in texts:
        found.add(text, **kwargs)
    return found.text()


def test_series_are_added_and_information_is_not() -> None:
    assert shown(FIRST, SECOND) == (
        '# TYPE a_total counter\na_total{x="1"} 7\na_total{x="2"} 1\n# TYPE h histogram\nh_sum 2.5\n'
        '# TYPE open gauge\nopen 6\n# TYPE of_info gauge\nof_info{config="c"} 1\n'
    )


def test_of_a_worker_that_is_gone_only_counters_stay() -> None:
    assert shown(FIRST, with_gauges=False) == (
        '# TYPE a_total counter\na_total{x="1"} 2\n# TYPE h histogram\nh_sum 1.25\n# TYPE open gauge\n# TYPE of_info gauge\n'
    )


def test_what_is_gone_is_added_to_openmetrics_too_and_exemplars_are_the_last_ones() -> None:
    gone = "# TYPE a_total counter\na_total 2\n"
    first = '# TYPE a counter\na_total 3 # {trace_id="x"} 1.0\n# EOF\n'
    second = '# TYPE a counter\na_total 4 # {trace_id="y"} 2.0\n# EOF\n'
    assert shown(gone, first, second) == '# TYPE a counter\na_total 9 # {trace_id="y"} 2.0\n# EOF\n'


def test_keys_that_several_miss_are_missed_once() -> None:
    found = observed([seen(missing_keys=["b", "a"]), seen(missing_keys=["b"]), seen()])
    assert found.missing_keys == ["a", "b"]
