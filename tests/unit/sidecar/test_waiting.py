"""The application starts after its proxy is ready, or the pod says why not."""

from backstay.sidecar.waiting import LOOK_SECONDS, main, wait


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def test_it_asks_until_the_proxy_is_ready() -> None:
    clock, answers = Clock(), [False, False, True]
    assert wait(lambda: answers.pop(0), 10.0, clock=clock, sleep=clock.sleep)
    assert (answers, clock.now) == ([], 2 * LOOK_SECONDS)


def test_it_gives_up_when_the_time_is_over() -> None:
    clock = Clock()
    assert not wait(lambda: False, 1.0, clock=clock, sleep=clock.sleep)
    assert 1.0 <= clock.now <= 1.0 + 2 * LOOK_SECONDS


def test_a_proxy_that_is_not_there_is_not_ready() -> None:
    environment = {"BACKSTAY_SIDECAR_HEALTH_HOST": "127.0.0.1", "BACKSTAY_SIDECAR_HEALTH_PORT": "1"}
    assert main(["--timeout", "0"], environment) == 1
