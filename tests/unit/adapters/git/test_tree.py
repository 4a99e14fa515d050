import pytest

from backstay.adapters.git.tree import Entry, Limits, parse_contents, parse_listing, parse_sizes, sort_out, within_size
from backstay.core.ports import SourceRefused

A, B = "a" * 40, "b" * 40
NO_LINKS = "is a symbolic link, expected a regular file: links are not followed"
NO_SUBMODULES = "is a submodule, expected files of this repository: submodules are not fetched"
NOT_SHOWN = "holds characters that cannot be shown, expected printable UTF-8"
DEEP = "d/" * 33 + "a.yaml"


def entry(path: bytes, mode: str = "100644", object_id: str = A) -> Entry:
    return Entry(mode=mode, object_id=object_id, path=path)


def test_a_listing_is_read_with_names_of_any_bytes() -> None:
    output = f"100644 blob {A}\tx y\nz.yaml\0".encode() + f"160000 commit {B}\t".encode() + b"\xff\0"
    assert list(parse_listing(output)) == [entry(b"x y\nz.yaml"), entry(b"\xff", "160000", B)]


def test_only_regular_yaml_outside_hidden_folders_is_wanted() -> None:
    names = [b"a.yaml", b"b.YML", b"c.json", b".github/ci.yml", b".pre-commit.yaml", b"d/e.yml"]
    assert sort_out([entry(name) for name in names], Limits()) == (dict.fromkeys(("a.yaml", "b.YML", "d/e.yml"), A), [])


@pytest.mark.parametrize(
    ("bad", "refusal"),
    [
        (entry(b"link.yaml", "120000"), ("link.yaml", "Symlink", NO_LINKS)),
        (entry(b"docs", "120000"), ("docs", "Symlink", NO_LINKS)),
        (entry(b"sub", "160000"), ("sub", "Submodule", NO_SUBMODULES)),
        (entry(b"../../etc/x.yaml"), ("../../etc/x.yaml", "InvalidPath", "is not a path inside the repository")),
        (entry(b"/etc/x.yaml"), ("/etc/x.yaml", "InvalidPath", "is not a path inside the repository")),
        (entry(b"a/.GIT/config"), ("a/.GIT/config", "InvalidPath", "is not a path inside the repository")),
        (entry(b"a\nb.yaml"), (r"a\nb.yaml", "InvalidPath", NOT_SHOWN)),
        (entry(b"a\xff.yaml"), (r"a\\xff.yaml", "InvalidPath", NOT_SHOWN)),
        (entry(b"x" * 5000), ("x" * 200, "InvalidPath", "is a path of 5000 bytes, expected at most 4096")),
        (entry(DEEP.encode()), (DEEP, "InvalidPath", "lies 33 folders deep, expected at most 32")),
        (entry(b"a.yaml", "100000"), ("a.yaml", "InvalidPath", "has mode 100000, expected a regular file")),
    ],
)  # fmt: skip
def test_entries_that_must_not_be_read_are_refused_by_name(bad: Entry, refusal: tuple[str, str, str]) -> None:
    assert sort_out([bad, entry(b"good.yaml")], Limits()) == ({"good.yaml": A}, [refusal])


def test_more_files_than_allowed_are_refused_as_a_whole() -> None:
    entries = [entry(f"{number}.yaml".encode()) for number in range(4)]
    assert len(sort_out(entries, Limits(files=4))[0]) == 4
    with pytest.raises(SourceRefused, match="4 YAML files, expected at most 3") as refused:
        sort_out(entries, Limits(files=3))
    assert refused.value.reason == "LimitExceeded"


def test_a_file_over_the_cap_is_refused_alone_and_does_not_count() -> None:
    small, big = within_size({"a.yaml": A, "b.yaml": B}, {A: 10, B: 1000}, Limits(file_bytes=10, total_bytes=10))
    assert (small, big) == ({"a.yaml": A}, [("b.yaml", "FileTooLarge", "is 1000 bytes, expected at most 10")])


def test_files_that_are_too_big_together_are_refused_as_a_whole() -> None:
    with pytest.raises(SourceRefused, match="YAML files of 20 bytes, expected at most 19"):
        within_size({"a.yaml": A, "b.yaml": A}, {A: 10}, Limits(total_bytes=19))


def test_contents_may_hold_anything_even_what_looks_like_a_header() -> None:
    first, second = b"x\n" + B.encode() + b" blob 3\nabc\n", b""
    output = b"".join(f"{oid} blob {len(data)}\n".encode() + data + b"\n" for oid, data in ((A, first), (B, second)))
    assert parse_contents(output) == {A: first, B: second}


def test_objects_that_are_missing_or_no_files_are_told() -> None:
    with pytest.raises(ValueError, match="missing, expected a file's content"):
        parse_sizes(f"{A} missing\n".encode())
    with pytest.raises(ValueError, match="is a tree, expected a file's content"):
        parse_contents(f"{A} tree 0\n\n".encode())
