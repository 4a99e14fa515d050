"""Why `backstay up` could not start: a sentence, and what to do about it. Pure: errors in, `Failed` out."""

import errno
from pathlib import Path

from backstay.adapters.certificates import CertificatesUnusable
from backstay.adapters.processes import PortTaken, WorkloadsFileInvalid
from backstay.cli.exits import Failed
from backstay.core.ports import Fenced, SourceRefused, SourceUnavailable, StateUnavailable
from backstay.settings import LocalSettings

EXPECTED = (
    CertificatesUnusable,
    Fenced,
    OSError,
    SourceRefused,
    SourceUnavailable,
    StateUnavailable,
    WorkloadsFileInvalid,
    ValueError,
)
"""What may go wrong because of the machine or the way it is used; anything else is a bug and shows its traceback."""

_SOURCE_HINTS = {
    "URLInvalid": "`git init` a folder and commit documents to it, or give an https or ssh URL",
    "DubiousOwnership": "run as its owner, or give a folder of your own (git clone it)",
    "AuthenticationFailed": "give --password-file or --bearer-file for https, --ssh-identity for ssh",
    "InvalidPath": "--path names a folder inside the repository, with `/` and without a leading one",
    "RefNotFound": "`git ls-remote REPOSITORY` lists what there is; --branch, --tag, --semver or --commit choose one",
}


def failure(error: Exception, settings: LocalSettings) -> Failed:
    """The error as the command line ends with it."""
    match error:
        case WorkloadsFileInvalid():
            return _invalid_file(error, settings.workloads)
        case SourceRefused() | SourceUnavailable():
            return Failed(f"{error} [{error.reason}]", hint=_SOURCE_HINTS.get(error.reason, "`backstay check --pre`"))
        case StateUnavailable() | Fenced():
            return Failed(str(error), hint=_state_hint(str(error), settings.state_dir))
        case PortTaken():
            return Failed(
                str(error), hint="end what holds the port, or give the workload another in the workloads file"
            )
        case CertificatesUnusable():
            return Failed(
                str(error), hint=f"bring back {settings.state_dir / 'ca'} from a copy, or use a new --state-dir"
            )
        case OSError():
            return _refused_by_the_system(error, settings)
        case _:
            return Failed(str(error), hint="`backstay up --help` says what is expected")


def _invalid_file(error: WorkloadsFileInvalid, file: Path) -> Failed:
    count = len(error.problems)
    lines = "\n  ".join(str(problem) for problem in error.problems)
    return Failed(
        f"{file} has {count} problem{'s' * (count != 1)}:\n  {lines}", hint="docs/local.md shows a whole file"
    )


def _state_hint(text: str, state_dir: Path) -> str:
    if "in use by another operator" in text:
        return f"end that one, or give this one a folder of its own: backstay --state-dir {state_dir}-2 up ..."
    return "`backstay check --pre` looks at the state folder"


def _refused_by_the_system(error: OSError, settings: LocalSettings) -> Failed:
    said = f"{error.strerror or error}"
    if error.errno == errno.EADDRINUSE:
        where, _, _ = said.partition(": error while attempting to bind")  # asyncio's own words say no more
        return Failed(f"{where}: is in use by another program", hint=_port_hint(settings))
    if error.errno in (errno.EACCES, errno.EPERM) and error.filename is None:
        return Failed(f"a port may not be opened: {said}", hint="ports below 1024 need root; choose a higher one")
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return Failed(f"the disk is full: {error}", hint="make room and start again; what was saved is whole")
    return Failed(f"{error.filename}: {said}" if error.filename else said, hint="`backstay check --pre` may know more")


def _port_hint(settings: LocalSettings) -> str:
    given = {"--control-port": settings.control_port, "--webhook-port": settings.webhook_port}
    named = [f"{flag} {port}" for flag, port in given.items() if port]
    if named:
        return f"choose another than {' and '.join(named)}, or end the program that holds it (`ss -ltnp`)"
    return (
        f"the port of the last start is kept in {settings.state_dir / 'control.port'}; remove that file for a new one"
    )
