"""What may be handed to git: addresses, refs and paths by grammar. Pure.

Rule: git sees an address only as it is put together here from checked parts, and a ref or path only if it passed here.
Everything that git would read as an option, a remote helper (`ext::`) or a second line is refused before git starts.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal, NoReturn
from urllib.parse import urlsplit

from backstay.core.ports import SourceRefused

MAX_URL: Final = 2048  # what browsers and forges take as well
MAX_REF: Final = 255  # a ref is a file name for git; file systems stop here
MAX_PATH: Final = 4096  # PATH_MAX on Linux

_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")
_HOST: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9.-]{0,252})|\[[0-9A-Fa-f:.]+\]")
_USER: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}")
_URL_PATH: Final = re.compile(r"/[A-Za-z0-9._~/%+@=,-]+")
_SCP_FORM: Final = re.compile(r"(?:(?P<user>[^@/:]+)@)?(?P<host>[^@/:]+):(?P<path>[^/:].*|/.*)")
_OBJECT: Final = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_REF_FORBIDDEN: Final = re.compile(r"[\x00-\x20\x7f~^:?*\[\\]|\.\.|@\{|//")
_SCHEMES: Final = ("https", "ssh", "file")


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Where the mesh repository is, safe to hand to git and to show."""

    scheme: Literal["https", "ssh", "file"]
    url: str
    """Without credentials. For a folder its absolute path."""

    @property
    def folder(self) -> Path | None:
        return Path(self.url) if self.scheme == "file" else None


@dataclass(frozen=True, slots=True, kw_only=True)
class RefSpec:
    """What to follow; at most one field. None of them: the branch the repository's own HEAD names."""

    branch: str = ""
    tag: str = ""
    semver: str = ""
    """A range; the newest tag in it."""
    commit: str = ""
    """A whole commit id."""

    def __post_init__(self) -> None:
        given = [name for name in ("branch", "tag", "semver", "commit") if getattr(self, name)]
        if len(given) > 1:
            raise SourceRefused("RefNotFound", f"{' and '.join(given)} are given, expected one of them")
        for name in (self.branch, self.tag):
            if name:
                check_ref(name)
        if self.commit and not is_object_id(self.commit):
            raise SourceRefused("RefNotFound", f"{self.commit!r} is not a whole commit id (40 or 64 hex digits)")

    def __str__(self) -> str:
        return self.branch or self.tag or self.semver or self.commit or "HEAD"

    @property
    def patterns(self) -> tuple[str, ...]:
        """Refs to ask the remote about."""
        if self.branch:
            return (f"refs/heads/{self.branch}",)
        if self.tag:
            return (f"refs/tags/{self.tag}", f"refs/tags/{self.tag}^{{}}")
        return ("refs/tags/*",) if self.semver else ("HEAD",)


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """How to prove who we are. Secrets never show in repr; git gets them by environment, never by argument or URL."""

    username: str = ""
    password: str = field(default="", repr=False)
    """Password or access token of basic authentication."""
    bearer: str = field(default="", repr=False)
    """Token of an `Authorization: Bearer` header, instead of username and password."""
    ca_file: Path | None = None
    """PEM bundle to trust for https instead of the system's."""
    ssh_identity: Path | None = None
    """Private key file; without one the agent of the environment is asked."""
    ssh_known_hosts: Path | None = None
    """Host keys; without it the user's own known_hosts. An unknown host key is always refused."""

    def __post_init__(self) -> None:
        for name in ("username", "password", "bearer"):
            value = getattr(self, name).rstrip("\r\n")  # secrets are kept in files, files end in a newline
            object.__setattr__(self, name, value)
            if _CONTROL.search(value):
                raise SourceRefused("AuthenticationFailed", f"the {name} holds control characters, expected one line")

    @property
    def secrets(self) -> tuple[str, ...]:
        return tuple(secret for secret in (self.password, self.bearer) if secret)


def is_object_id(text: str) -> bool:
    return _OBJECT.fullmatch(text) is not None


def parse_address(text: str, *, allow_file: bool) -> Address:
    """The address of a repository. Raises SourceRefused(URLInvalid) saying what to write instead."""
    if not text or len(text) > MAX_URL or _CONTROL.search(text):
        _refuse(f"{text[:80]!r} is not an address: empty, longer than {MAX_URL} bytes or with control characters")
    if text.startswith("-"):
        _refuse(f"{text!r} begins with '-', expected https://, ssh:// or a folder")
    if "::" in text and "[" not in text:
        _refuse(f"{text!r} names a remote helper; only https and ssh are read")
    scheme, separator, _ = text.partition("://")
    if not separator:
        return _local_or_short(text, allow_file)
    if scheme == "file":
        return _folder(text.removeprefix("file://"), allow_file)
    if scheme not in _SCHEMES:
        _refuse(f"scheme {scheme!r} is not read, expected https or ssh")
    return _remote(text)


def check_ref(name: str) -> str:
    """The rules of git-check-ref-format, and no leading '-'. Raises SourceRefused(RefNotFound)."""
    components = name.split("/")
    bad = (
        not name
        or len(name) > MAX_REF
        or name.startswith("-")
        or name in ("@", "HEAD")
        or name.endswith((".", "/"))
        or _REF_FORBIDDEN.search(name) is not None
        or any(not part or part.startswith(".") or part.endswith(".lock") for part in components)
    )
    if bad:
        raise SourceRefused("RefNotFound", f"{name[:80]!r} cannot be the name of a branch or tag")
    return name


def check_path(text: str) -> str:
    """A folder inside the repository, without leading or trailing '/'; `` is all of it. Raises SourceRefused."""
    path = text.removeprefix("./").strip("/")
    if path in ("", "."):
        return ""
    if text.startswith("/") or len(path) > MAX_PATH or _CONTROL.search(path) or "\\" in path or ":" in path:
        raise SourceRefused("InvalidPath", f"{text[:80]!r} is not a folder inside the repository, expected 'mesh/prod'")
    if any(part in ("", ".", "..") for part in path.split("/")):
        raise SourceRefused("InvalidPath", f"{text[:80]!r} leaves the repository or has empty parts")
    return path


def _remote(text: str) -> Address:
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError as error:
        _refuse(f"{text!r}: {error}", error)
    if parts.password is not None or (parts.scheme == "https" and parts.username is not None):
        # Not shown: the cleaner upstream would hide it, but what is not said cannot leak.
        _refuse(
            "the address holds credentials, which end up in logs and process lists; "
            "leave them out and give username and password (or a token) as credentials"
        )
    host = f"[{parts.hostname}]" if parts.hostname and ":" in parts.hostname else parts.hostname or ""
    if _HOST.fullmatch(host) is None:
        _refuse(f"{text!r}: {host!r} is not a host name")
    if _URL_PATH.fullmatch(parts.path) is None or parts.query or parts.fragment or ".." in parts.path.split("/"):
        _refuse(f"{text!r}: {parts.path!r} is not the path of a repository, expected '/team/mesh.git'")
    user = _ssh_user(parts.username)
    where = f"{user}{host}{f':{port}' if port is not None else ''}{parts.path}"
    if parts.scheme == "https":
        return Address(scheme="https", url=f"https://{where}")
    return Address(scheme="ssh", url=f"ssh://{where}")


def _ssh_user(user: str | None) -> str:
    if user is None:
        return ""
    if _USER.fullmatch(user) is None:
        _refuse(f"{user!r} is not a user name")
    return f"{user}@"


def _local_or_short(text: str, allow_file: bool) -> Address:
    short = _SCP_FORM.fullmatch(text)
    if short is not None:
        user = f"{short['user']}@" if short["user"] else ""
        _refuse(f"{text!r} is the short form, write 'ssh://{user}{short['host']}/{short['path'].lstrip('/')}'")
    return _folder(text, allow_file)


def _folder(text: str, allow_file: bool) -> Address:
    if not allow_file:
        _refuse(f"{text!r} is a folder of this machine, expected https:// or ssh://")
    return Address(scheme="file", url=str(Path(text).expanduser().absolute()))


def _refuse(message: str, cause: Exception | None = None) -> NoReturn:
    raise SourceRefused("URLInvalid", message) from cause
