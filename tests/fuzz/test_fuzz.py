"""A short part of `make fuzz` in every test run, the same examples every time. FUZZ=20000 asks for that many new ones."""

import os

from hypothesis import HealthCheck, given, settings

from .strategies import ANSWERS, CUTS, REQUESTS, configs, messages
from .targets import answers, config, requests

EXAMPLES = int(os.environ.get("FUZZ") or 0)
thorough = settings(
    max_examples=EXAMPLES or 200,
    derandomize=not EXAMPLES,  # a test run finds what a change broke; new examples are for who has time to look at them
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


@thorough
@given(messages(REQUESTS), CUTS)
def test_bytes_of_a_client_are_the_same_requests_however_they_come(data: bytes, cuts: list[int]) -> None:
    requests(data, cuts)


@thorough
@given(messages(ANSWERS), CUTS)
def test_bytes_of_an_application_are_one_answer_or_a_refusal(data: bytes, cuts: list[int]) -> None:
    answers(data, cuts)


@thorough
@given(configs())
def test_a_config_is_served_or_refused_with_a_reason(data: bytes) -> None:
    config(data)
