"""Starts git, and nothing else does. GitPython is used for its process handling only, with argument lists made here.

Rule: arguments are constants, paths of ours, object ids, or values that passed address.py; secrets travel in the
environment of the one process that needs them. The environment is set whole: `env -u` takes away everything inherited
that is not named here, since GitPython can only add to it.
"""

import importlib
import logging
import os
import re
import selectors
import shlex
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Final

from backstay.adapters.git.address import Address, Credentials
from backstay.adapters.git.failures import failure, without
from backstay.core.ports import SourceRefused, SourceUnavailable

MINIMUM: Final = (2, 32)  # the first to read GIT_CONFIG_GLOBAL; an older one would read the user's configuration
ADVISED: Final = (2, 50, 1)  # fixes the CVE-2025-48384 family; distributions patch older ones, so only a warning
STDERR_KEPT: Final = 64 * 1024  # bytes; the rest of a babbling server's progress is read and dropped
WATCH_INTERVAL: Final = 0.2  # seconds between two looks at the mirror's size while git runs

_INHERITED: Final = (
    "PATH", "TMPDIR", "SSL_CERT_FILE", "SSL_CERT_DIR",
    "http_proxy", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY", "no_proxy", "NO_PROXY",
)  # fmt: skip
_FIXED: Final = {
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_SYSTEM": os.devnull,
    "GIT_ATTR_NOSYSTEM": "1",
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_PROTOCOL_FROM_USER": "0",
    "GIT_OPTIONAL_LOCKS": "0",
    "GIT_NO_REPLACE_OBJECTS": "1",
    "GIT_NO_LAZY_FETCH": "1",
    "GIT_LFS_SKIP_SMUDGE": "1",
    "GIT_SSH_VARIANT": "ssh",
    "LC_ALL": "C",
    "LANGUAGE": "C",
}
_CONFIG: Final = """\
[core]
\thooksPath = /dev/null
\tfsmonitor = false
\tsymlinks = false
\tprotectNTFS = true
\tprotectHFS = true
\tattributesFile = /dev/null
[protocol]
\tallow = never
\tversion = 2
[protocol "{scheme}"]
\tallow = always
[http]
\tfollowRedirects = false
\tlowSpeedLimit = 1000
\tlowSpeedTime = 30
[credential]
\thelper =
[fetch]
\tfsckObjects = true
\tunpackLimit = 1
\trecurseSubmodules = false
[fetch "fsck"]
\tzeroPaddedFilemode = ignore
\tmissingSpaceBeforeDate = ignore
\tmissingSpaceBeforeEmail = ignore
\tmissingNameBeforeEmail = ignore
\tmissingEmail = ignore
\tbadTimezone = ignore
\tbadDate = ignore
\tmultipleAuthors = ignore
[transfer]
\tfsckObjects = true
[submodule]
\trecurse = false
[gc]
\tauto = 0
[maintenance]
\tauto = false
[log]
\tshowSignature = false
\tmailmap = false
[advice]
\tdetachedHead = false
"""
_ASKPASS: Final = """\
#!/bin/sh
case "$1" in
Username*) printf '%s\\n' "$BACKSTAY_GIT_USERNAME" ;;
*) printf '%s\\n' "$BACKSTAY_GIT_PASSWORD" ;;
esac
"""
_log: Final = logging.getLogger("backstay.git")


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    status: int
    out: bytes
    err: str = field(repr=False)
    """What git said, without our secrets; for failures.py."""

    def must_be_fine(self, *, doing: str) -> "Finished":
        """Itself, if git succeeded. Raises what failures.py makes of it otherwise."""
        if self.status != 0:
            raise failure(self.err, doing=doing)
        return self


class GitCommand:
    """Runs git for one repository address. Thread-safe; blocks, so call it off the loop."""

    def __init__(
        self, home: Path, address: Address, credentials: Credentials, *, timeout: float, output_limit: int
    ) -> None:
        self._home = home
        self._address = address
        self._credentials = credentials
        self._timeout = timeout
        self._output_limit = output_limit
        self._running: set[subprocess.Popen[bytes]] = set()
        self._guard = threading.Lock()
        self._closed = False

    def prepare(self, trusted: Sequence[Path] = ()) -> None:
        """Write the configuration and the askpass helper that git is pointed at."""
        self._home.mkdir(parents=True, exist_ok=True, mode=0o700)
        text = _CONFIG.format(scheme=self._address.scheme)
        if trusted:
            text += "[safe]\n" + "".join(f"\tdirectory = {_quoted(path)}\n" for path in trusted)
        _replace(self._home / "gitconfig", text, 0o600)
        _replace(self._home / "askpass", _ASKPASS, 0o700)

    def version(self) -> tuple[int, ...]:
        """git's version. Raises SourceUnavailable for a git that is missing or too old to be shut in safely."""
        found = re.search(r"\d+(?:\.\d+)+", self.run("version").out.decode("ascii", "replace"))
        numbers = tuple(int(part) for part in found[0].split(".")) if found else ()
        if numbers < MINIMUM:
            raise SourceUnavailable(
                "GitOperationFailed", f"git {_dotted(numbers)} is too old, expected {_dotted(MINIMUM)} or newer"
            )
        return numbers

    def run(
        self,
        *arguments: str,
        git_dir: Path | None = None,
        stdin: bytes = b"",
        remote: bool = False,
        watch: Callable[[], None] | None = None,
        keep_open: Sequence[int] = (),
    ) -> Finished:
        """Run git to its end. Raises SourceUnavailable(Timeout), SourceRefused(LimitExceeded); a status is returned.

        `remote` hands it the credentials; `watch` is called a few times a second and may raise to stop it;
        `keep_open` are descriptors its processes inherit.
        """
        with tempfile.TemporaryFile() as source:
            source.write(stdin)
            source.seek(0)
            process = self._start(arguments, self._environment(git_dir, remote), source, keep_open)
            try:
                out, err = self._collect(process, arguments[0], watch)
                status = process.wait()
            finally:
                self._end(process)
        text = without(self._credentials.secrets, err.decode("utf-8", "replace"))
        return Finished(status=status, out=out, err=text)

    def kill(self) -> None:
        """End every git that is running and start no more."""
        with self._guard:
            self._closed = True
            for process in self._running:
                _kill_group(process)

    def _start(
        self, arguments: Sequence[str], environment: Mapping[str, str], source: IO[bytes], keep_open: Sequence[int]
    ) -> "subprocess.Popen[bytes]":
        inherited = [name for name in os.environ if name not in environment]
        command = ["env", *(part for name in inherited for part in ("-u", name)), "git", *arguments]
        with self._guard:
            if self._closed:
                raise SourceUnavailable("GitOperationFailed", "the source is closed")
            handle = _gitpython().Git(str(self._home)).execute(
                command, istream=source, as_process=True, env=environment,
                start_new_session=True, pass_fds=tuple(keep_open),
            )  # fmt: skip
            process: subprocess.Popen[bytes] = handle.proc
            handle.proc = None  # its finalizer would terminate one process; ours ends the whole group
            self._running.add(process)
        return process

    def _collect(
        self, process: "subprocess.Popen[bytes]", verb: str, watch: Callable[[], None] | None
    ) -> tuple[bytes, bytes]:
        """Read both outputs to their ends, within the time and size allowed."""
        assert process.stdout is not None  # noqa: S101 - narrows the type: started with pipes
        assert process.stderr is not None  # noqa: S101 - as above
        out, err = bytearray(), bytearray()
        deadline = time.monotonic() + self._timeout
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ, (out, self._output_limit))
            selector.register(process.stderr, selectors.EVENT_READ, (err, STDERR_KEPT))
            while selector.get_map():
                if time.monotonic() > deadline:
                    raise SourceUnavailable(
                        "Timeout", f"git {verb} did not finish within {self._timeout:g} s and was stopped"
                    )
                for key, _ in selector.select(WATCH_INTERVAL):
                    _take(key, selector)
                if len(out) > self._output_limit:
                    raise SourceRefused("LimitExceeded", f"git {verb} answers more than {self._output_limit} bytes")
                if watch is not None:
                    watch()
        return bytes(out), bytes(err)

    def _end(self, process: "subprocess.Popen[bytes]") -> None:
        with self._guard:
            _kill_group(process)
            self._running.discard(process)
        for pipe in (process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()
        process.wait()

    def _environment(self, git_dir: Path | None, remote: bool) -> dict[str, str]:
        environment = {name: os.environ[name] for name in _INHERITED if name in os.environ}
        environment |= _FIXED
        environment |= {
            "HOME": str(self._home),
            "XDG_CONFIG_HOME": str(self._home),
            "GIT_CONFIG_GLOBAL": str(self._home / "gitconfig"),
            "GIT_ASKPASS": str(self._home / "askpass"),
            "GIT_CEILING_DIRECTORIES": str(self._home.parent),
            "GIT_ALLOW_PROTOCOL": self._address.scheme,
        }
        if git_dir is not None:
            environment["GIT_DIR"] = str(git_dir)
        return environment | (self._secrets() if remote else {})

    def _secrets(self) -> dict[str, str]:
        credentials = self._credentials
        found = {"BACKSTAY_GIT_USERNAME": credentials.username, "BACKSTAY_GIT_PASSWORD": credentials.password}
        if credentials.ca_file is not None:
            found["GIT_SSL_CAINFO"] = str(credentials.ca_file)
        if credentials.bearer:
            found |= {
                "GIT_CONFIG_COUNT": "1",
                "GIT_CONFIG_KEY_0": "http.extraHeader",
                "GIT_CONFIG_VALUE_0": f"Authorization: Bearer {credentials.bearer}",
            }
        if self._address.scheme == "ssh":
            found["GIT_SSH_COMMAND"] = ssh_command(credentials)
            if credentials.ssh_identity is None and "SSH_AUTH_SOCK" in os.environ:
                found["SSH_AUTH_SOCK"] = os.environ["SSH_AUTH_SOCK"]
        return found


def ssh_command(credentials: Credentials) -> str:
    """The ssh that git starts: no user configuration, no questions, no unknown host. Quoted: git runs it by a shell."""
    words = [
        "ssh", "-F", os.devnull, "-oBatchMode=yes", "-oStrictHostKeyChecking=yes", "-oConnectTimeout=10",
        "-oServerAliveInterval=5", "-oServerAliveCountMax=3", "-oForwardAgent=no", "-oPermitLocalCommand=no",
    ]  # fmt: skip
    if credentials.ssh_known_hosts is not None:
        words.append(f"-oUserKnownHostsFile={credentials.ssh_known_hosts}")
    if credentials.ssh_identity is not None:
        words += ["-oIdentitiesOnly=yes", "-i", str(credentials.ssh_identity)]
    return shlex.join(words)


def version_warning(numbers: tuple[int, ...]) -> str | None:
    """What to say about a git that works but is older than advised."""
    if numbers >= ADVISED:
        return None
    return (
        f"git {_dotted(numbers)} is older than {_dotted(ADVISED)}, which fixes ways out of a hostile repository; "
        "upgrade it, or make sure your distribution has patched it"
    )


def _gitpython() -> Any:
    """GitPython, imported when first needed: it takes 0.2 s and refuses to be imported where git is missing."""
    try:
        return importlib.import_module("git")
    except ImportError as error:
        raise SourceUnavailable("GitOperationFailed", "git is not installed, or not on PATH") from error


def _take(key: selectors.SelectorKey, selector: selectors.BaseSelector) -> None:
    """Read what one pipe has; keep a little over its limit, so that the caller sees it was passed."""
    kept, limit = key.data
    chunk = os.read(key.fd, 65536)
    if not chunk:
        selector.unregister(key.fileobj)
    elif len(kept) <= limit:
        kept += chunk


def _kill_group(process: "subprocess.Popen[bytes]") -> None:
    """End git and everything it started. Its group lives as long as any of them, even when git itself is gone."""
    if process.returncode is not None:
        return
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    except PermissionError:  # macOS says so for a group of zombies
        _log.debug("git.kill pid=%d: already gone", process.pid)


def _replace(path: Path, text: str, mode: int) -> None:
    draft = path.with_name(path.name + ".new")
    draft.write_text(text, encoding="utf-8")
    draft.chmod(mode)
    draft.replace(path)


def _quoted(path: Path) -> str:
    return '"' + str(path).replace("\\", "\\\\").replace('"', '\\"') + '"'


def _dotted(numbers: tuple[int, ...]) -> str:
    return ".".join(str(number) for number in numbers) or "unknown"
