"""What the pages of a sidecar show and change."""

import logging
from collections.abc import Iterator
from typing import Any

import pytest

from backstay.sidecar.admin import OPENMETRICS, PROMETHEUS, TEXT, Act, Asked
from backstay.sidecar.pages import file_pages, plain_stats

TEXT_METRICS = b'# TYPE a_total counter\na_total{x="y"} 3\n# TYPE h histogram\nh_bucket{le="1"} 1\nh_sum 2\nh_count 1\n'


class Engine:
    """As far as pages know one."""

    def __init__(self) -> None:
        self.levels: list[str] = []

    def metrics(self, *, exemplars: bool = False) -> bytes:
        return TEXT_METRICS.replace(b"TYPE a_total", b"TYPE a") + b"# EOF\n" if exemplars else TEXT_METRICS

    def clusters(self) -> str:
        return "web.shop:80::rq_active::1\n"

    def level(self, level: str) -> None:
        self.levels.append(level)


@pytest.fixture
def level() -> Iterator[None]:
    before = logging.getLogger().level
    yield
    logging.getLogger().setLevel(before)


def page(name: str, asked: Asked | None = None, engine: Any = None, stop: Any = None) -> Any:
    given: Any = engine or Engine()
    found = file_pages(given, dict, stop or (lambda: None))[name]
    return found.call(asked or Asked()) if isinstance(found, Act) else found()


@pytest.mark.parametrize("path", ["/metrics", "/stats/prometheus"])
def test_metrics_are_openmetrics_for_who_asks_for_it(path: str) -> None:
    assert page(path) == (200, PROMETHEUS, TEXT_METRICS)
    status, kind, text = page(path, Asked(headers={"accept": "application/openmetrics-text; version=1.0.0,*/*;q=0.1"}))
    assert (status, kind) == (200, OPENMETRICS)
    assert text.startswith(b"# TYPE a counter\na_total")
    assert text.endswith(b"h_count 1\n# EOF\n")


def test_stats_are_names_and_values() -> None:
    assert plain_stats(TEXT_METRICS) == b'a_total{x="y"}: 3\nh_sum: 2\nh_count: 1\n'


def test_clusters_are_the_engines() -> None:
    assert page("/clusters") == (200, TEXT, b"web.shop:80::rq_active::1\n")
    assert page("/clusters", engine=object()) == (200, TEXT, b"")


@pytest.mark.usefixtures("level")
def test_the_level_of_the_log_is_changed_everywhere() -> None:
    engine = Engine()
    asked = Asked(method="POST", query={"level": "debug"})
    assert page("/logging", asked, engine) == (200, TEXT, b"level: debug\n")
    assert logging.getLogger().level == logging.DEBUG
    assert engine.levels == ["DEBUG"]
    assert page("/logging", Asked(), engine) == (200, TEXT, b"level: debug\n")


def test_a_level_that_does_not_exist_changes_nothing() -> None:
    before = logging.getLogger().level
    assert page("/logging", Asked(method="POST", query={"level": "loud"}))[0] == 400
    assert logging.getLogger().level == before


def test_drain_asks_the_process_to_end() -> None:
    asked: list[str] = []
    assert page("/drain", Asked(method="POST"), stop=lambda: asked.append("stop")) == (200, TEXT, b"draining\n")
    assert asked == ["stop"]
