"""What a commit's tree may hold: git's listing to the files that are read and the entries that are refused. Pure.

Rule: only regular files are ever read. A symbolic link or submodule is refused by name, wherever it points.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from backstay.core.ports import SourceRefused

Refusal: TypeAlias = tuple[str, str, str]
"""(path, reason, message), as in ports.Tree."""

SUFFIXES: Final = (".yaml", ".yml")
_REGULAR: Final = ("100644", "100755", "100664")  # the last one is how git wrote group-writable files before 2005
_REFUSED_MODES: Final = {
    "120000": ("Symlink", "is a symbolic link, expected a regular file: links are not followed"),
    "160000": ("Submodule", "is a submodule, expected files of this repository: submodules are not fetched"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a repository may cost. Over a cap it is refused by name, not read in part."""

    files: int = 10_000
    """YAML files of a revision. Ten documents each for a thousand services."""
    file_bytes: int = 1024 * 1024
    """One file; the limit of a Kubernetes object (etcd) is 1.5 MiB."""
    total_bytes: int = 64 * 1024 * 1024
    """All YAML files together (threats.md Y1: validation stays within 64 MiB)."""
    path_bytes: int = 4096
    """PATH_MAX on Linux."""
    depth: int = 32
    """Folders in folders."""
    listing_bytes: int = 64 * 1024 * 1024
    """Output of one `ls-tree` or `ls-remote`: about 600,000 entries; a tree bomb is cut off here."""
    mirror_bytes: int = 1024 * 1024 * 1024
    """Disk for the mirror, and so the largest pack that is taken. A mesh repository is a few MiB."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    mode: str
    object_id: str
    path: bytes


def parse_listing(output: bytes) -> Iterator[Entry]:
    """Entries of `git ls-tree -r -z`: `<mode> <type> <object>TAB<path>NUL`."""
    for record in output.split(b"\0"):
        if record:
            head, _, path = record.partition(b"\t")
            mode, _, object_id = head.decode("ascii").split(" ")
            yield Entry(mode=mode, object_id=object_id, path=path)


def sort_out(entries: Iterable[Entry], limits: Limits) -> tuple[Mapping[str, str], Sequence[Refusal]]:
    """Path -> object id of the files to read, and what is refused. Raises SourceRefused for too many files."""
    wanted: dict[str, str] = {}
    refused: list[Refusal] = []
    for entry in entries:
        path, problem = _checked(entry, limits)
        if problem is not None:
            refused.append((path, *problem))
        elif path.lower().endswith(SUFFIXES) and not _is_hidden(path):
            wanted[path] = entry.object_id
    if len(wanted) > limits.files:
        raise SourceRefused("LimitExceeded", f"{len(wanted)} YAML files, expected at most {limits.files}")
    return wanted, refused


def within_size(
    wanted: Mapping[str, str], sizes: Mapping[str, int], limits: Limits
) -> tuple[Mapping[str, str], Sequence[Refusal]]:
    """Files that may be read, and those over the cap. Raises SourceRefused when all together are too big."""
    small = {path: oid for path, oid in wanted.items() if sizes[oid] <= limits.file_bytes}
    total = sum(sizes[oid] for oid in small.values())
    if total > limits.total_bytes:
        raise SourceRefused("LimitExceeded", f"YAML files of {total} bytes, expected at most {limits.total_bytes}")
    big = [
        (path, "FileTooLarge", f"is {sizes[oid]} bytes, expected at most {limits.file_bytes}")
        for path, oid in wanted.items()
        if path not in small
    ]
    return small, big


def parse_sizes(output: bytes) -> Mapping[str, int]:
    """Sizes by object id, of `cat-file --batch-check='%(objectname) %(objecttype) %(objectsize)'`. KeyError-free: what
    is missing or no blob raises ValueError."""
    sizes: dict[str, int] = {}
    for line in output.decode("ascii", "replace").splitlines():
        object_id, _, rest = line.partition(" ")
        kind, _, size = rest.partition(" ")
        if kind != "blob":
            raise ValueError(f"object {object_id[:12]}: {rest}, expected a file's content")
        sizes[object_id] = int(size)
    return sizes


def parse_contents(output: bytes) -> Mapping[str, bytes]:
    """Contents by object id, of `cat-file --batch`: `<object> blob <size>LF<content>LF`, again and again."""
    contents: dict[str, bytes] = {}
    at = 0
    while at < len(output):
        end = output.index(b"\n", at)
        object_id, kind, size = output[at:end].decode("ascii").split(" ")
        if kind != "blob":
            raise ValueError(f"object {object_id[:12]} is a {kind}, expected a file's content")
        start = end + 1
        contents[object_id] = output[start : start + int(size)]
        at = start + int(size) + 1
    return contents


def _checked(entry: Entry, limits: Limits) -> tuple[str, tuple[str, str] | None]:
    """The entry's path as text and why it must not be read, if so."""
    path = entry.path.decode("utf-8", "backslashreplace")
    problem = _path_problem(entry.path, path, limits)
    if problem is not None:
        return path.encode("unicode_escape").decode("ascii")[:200], ("InvalidPath", problem)
    if entry.mode in _REFUSED_MODES:
        return path, None if _is_hidden(path) else _REFUSED_MODES[entry.mode]
    if entry.mode not in _REGULAR:
        return path, ("InvalidPath", f"has mode {entry.mode}, expected a regular file")
    return path, None


def _path_problem(raw: bytes, path: str, limits: Limits) -> str | None:
    parts = path.split("/")
    if len(raw) > limits.path_bytes:
        return f"is a path of {len(raw)} bytes, expected at most {limits.path_bytes}"
    if len(parts) > limits.depth + 1:
        return f"lies {len(parts) - 1} folders deep, expected at most {limits.depth}"
    if any(part in ("", ".", "..") or part.lower() == ".git" for part in parts):
        return "is not a path inside the repository"
    if not path.isprintable() or not _is_text(raw):
        return "holds characters that cannot be shown, expected printable UTF-8"
    return None


def _is_hidden(path: str) -> bool:
    """In a folder or file that begins with a dot: what forges and editors keep there is not about the mesh."""
    return any(part.startswith(".") for part in path.split("/"))


def _is_text(raw: bytes) -> bool:
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True
