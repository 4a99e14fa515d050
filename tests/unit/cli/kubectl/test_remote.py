"""What is run in the pod, and what its end means."""

from typing import Any

import pytest
import yaml
from kubernetes.client import Configuration

from backstay.cli.exits import Failed
from backstay.cli.kubectl.cluster import Target
from backstay.cli.kubectl.remote import command, exit_code

TARGET = Target(
    configuration=Configuration(),
    pod="backstay-operator-1",
    system="backstay-system",
    namespace="shop",
    repository="mesh",
    user="jane@example.com",
)


def reply(**status: Any) -> bytes:
    return yaml.safe_dump(status).encode()


def test_a_terminal_runs_the_program_itself() -> None:
    assert command(TARGET, ["rollout", "watch"], has_terminal=True) == [
        "backstay", "--state-dir", "/run/backstay/shop/mesh", "--actor", "jane@example.com", "rollout", "watch",
    ]  # fmt: skip


def test_without_a_terminal_it_ends_with_its_input() -> None:
    assert command(TARGET, ["status"], has_terminal=False) == [
        "python", "-m", "backstay.cli.kubectl.attached", "--state-dir", "/run/backstay/shop/mesh",
        "--actor", "jane@example.com", "--color", "never", "status",
    ]  # fmt: skip


def test_exit_codes_come_back() -> None:
    causes = [{"reason": "ExitCode", "message": "4"}]
    assert exit_code(reply(status="Success"), "pod") == 0
    assert exit_code(reply(status="Failure", details={"causes": causes}), "pod") == 4


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (b"", "s/p: the connection broke"),
        (b"text", "s/p: the connection broke"),
        (reply(status="Failure", message="no such program"), "s/p: no such program"),
        (reply(status="Failure"), "s/p: the command did not start"),
    ],
)
def test_an_end_without_a_code_is_no_success(said: bytes, message: str) -> None:
    with pytest.raises(Failed) as failed:
        exit_code(said, "s/p")
    assert failed.value.message == message
