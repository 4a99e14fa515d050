import pytest

from backstay.adapters.git.failures import failure, shown, without
from backstay.core.ports import SourceRefused, SourceUnavailable


@pytest.mark.parametrize(
    ("stderr", "kind", "reason"),
    [
        ("fatal: Authentication failed for 'https://h/mesh/'", SourceUnavailable, "AuthenticationFailed"),
        ("fatal: could not read Username for 'https://h'", SourceUnavailable, "AuthenticationFailed"),
        ("git@h: Permission denied (publickey).", SourceUnavailable, "AuthenticationFailed"),
        ("Host key verification failed.", SourceUnavailable, "AuthenticationFailed"),
        ("fatal: detected dubious ownership in repository at '/x'", SourceUnavailable, "DubiousOwnership"),
        ("fatal: couldn't find remote ref refs/heads/x", SourceRefused, "RefNotFound"),
        ("error: Server does not allow request for unadvertised object", SourceRefused, "RefNotFound"),
        ("error: object abc: hasDotdot: contains '..'\nfatal: fsck error", SourceRefused, "InvalidPath"),
        ("fatal: fsck error in packed object", SourceRefused, "GitOperationFailed"),
        ("fatal: write error: No space left on device", SourceUnavailable, "GitOperationFailed"),
        ("ssh: connect to host h port 22: Connection timed out", SourceUnavailable, "Timeout"),
        ("fatal: SSL certificate problem: self-signed certificate", SourceUnavailable, "GitOperationFailed"),
        ("fatal: something new", SourceUnavailable, "GitOperationFailed"),
        ("", SourceUnavailable, "GitOperationFailed"),
    ],
)  # fmt: skip
def test_what_git_says_becomes_a_reason(stderr: str, kind: type[Exception], reason: str) -> None:
    error = failure(stderr, doing="asking")
    assert (type(error), error.reason) == (kind, reason)


def test_the_message_says_what_was_done_what_it_means_and_what_git_said() -> None:
    error = failure("hint: noise\nfatal: Authentication failed for 'https://bot:pw@h/'\n", doing="asking https://h/")
    assert str(error) == (
        "asking https://h/: the server refused the credentials (git: fatal: Authentication failed for 'https://***@h/')"
    )


def test_text_of_the_server_cannot_write_to_a_terminal() -> None:
    assert shown("remote: \x1b[31mred\x1b[0m\nfatal: no") == "remote:  [31mred [0m; fatal: no"


def test_known_secrets_are_taken_out_wherever_they_stand() -> None:
    assert without(("hunter2",), "remote: you sent hunter2!") == "remote: you sent ***!"
