"""Every foreseen failure to start ends as a sentence and a hint with exit code 2."""

import errno
from pathlib import Path

import pytest

from backstay.adapters.certificates import CertificatesUnusable
from backstay.adapters.processes import PortTaken, WorkloadsFileInvalid
from backstay.cli.exits import Exit
from backstay.cli.starting import failure
from backstay.core.ports import Fenced, SourceRefused, SourceUnavailable, StateUnavailable
from backstay.core.problems import Problem
from backstay.settings import LocalSettings, SourceSettings

SETTINGS = LocalSettings(
    source=SourceSettings(url="mesh"), workloads=Path("w.yaml"), state_dir=Path("/s"), control_port=15012
)
PROBLEM = Problem(file="w.yaml", line=2, column=3, path="workloads[0]", message="no command", reason="SchemaInvalid")

CASES = {
    "workloads file": (
        WorkloadsFileInvalid((PROBLEM,)),
        "w.yaml has 1 problem:\n  w.yaml:2:3: workloads[0]: no command [SchemaInvalid]",
        "docs/local.md shows a whole file",
    ),
    "no repository": (
        SourceRefused("URLInvalid", "/x: no such folder"),
        "/x: no such folder [URLInvalid]",
        "`git init` a folder and commit documents to it, or give an https or ssh URL",
    ),
    "somebody else's repository": (
        SourceUnavailable("DubiousOwnership", "/x belongs to user 0"),
        "/x belongs to user 0 [DubiousOwnership]",
        "run as its owner, or give a folder of your own (git clone it)",
    ),
    "state in use": (
        StateUnavailable("/s/state.db: in use by another operator (pid 7)"),
        "/s/state.db: in use by another operator (pid 7)",
        "end that one, or give this one a folder of its own: backstay --state-dir /s-2 up ...",
    ),
    "state damaged": (
        StateUnavailable("/s/state.db: the file is not a database"),
        "/s/state.db: the file is not a database",
        "`backstay check --pre` looks at the state folder",
    ),
    "overtaken": (Fenced("epoch 4 is over"), "epoch 4 is over", "`backstay check --pre` looks at the state folder"),
    "an instance's port": (
        PortTaken("hello-0: port 80 at 127.0.0.2 is taken by nginx (pid 7)"),
        "hello-0: port 80 at 127.0.0.2 is taken by nginx (pid 7)",
        "end what holds the port, or give the workload another in the workloads file",
    ),
    "the control port": (
        OSError(errno.EADDRINUSE, "control port 127.0.0.1:15012: error while attempting to bind on ..."),
        "control port 127.0.0.1:15012: is in use by another program",
        "choose another than --control-port 15012, or end the program that holds it (`ss -ltnp`)",
    ),
    "a low port": (
        PermissionError(errno.EACCES, "control port 127.0.0.1:80"),
        "a port may not be opened: control port 127.0.0.1:80",
        "ports below 1024 need root; choose a higher one",
    ),
    "certificates": (
        CertificatesUnusable("/s/ca: ca.crt is missing"),
        "/s/ca: ca.crt is missing",
        "bring back /s/ca from a copy, or use a new --state-dir",
    ),
    "full disk": (
        OSError(errno.ENOSPC, "No space left on device", "/s/state.db"),
        "the disk is full: [Errno 28] No space left on device: '/s/state.db'",
        "make room and start again; what was saved is whole",
    ),
    "a file": (
        FileNotFoundError(errno.ENOENT, "No such file or directory", "/secret"),
        "/secret: No such file or directory",
        "`backstay check --pre` may know more",
    ),
    "trust domain": (
        ValueError("'Bad_One' is not a trust domain"),
        "'Bad_One' is not a trust domain",
        "`backstay up --help` says what is expected",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_failure_says_what_and_what_to_do(case: str) -> None:
    error, message, hint = CASES[case]
    failed = failure(error, SETTINGS)
    assert (failed.message, failed.hint, failed.code) == (message, hint, Exit.TROUBLE)
