from backstay.adapters.processes.supervisor import SupervisionSettings, pause_after


def test_the_first_restart_is_quick_and_later_ones_wait_longer_up_to_a_cap() -> None:
    settings = SupervisionSettings()
    assert [pause_after(failures, settings) for failures in (1, 2, 3, 4, 5, 6, 7, 1000)] == [
        0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10.0, 10.0,
    ]  # fmt: skip


def test_defaults_are_these() -> None:
    assert SupervisionSettings() == SupervisionSettings(
        first_pause=0.2,
        longest_pause=10.0,
        steady_after=30.0,
        probe_every=0.05,
        settle=0.5,
        grace=5.0,
        token_after=5.0,
    )
