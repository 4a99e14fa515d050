import pytest

from backstay.adapters.git.semver import Range, parse

TAGS = (
    "v0.9.0",
    "1.0.0",
    "v1.2.0",
    "v1.2.9",
    "v1.10.0",
    "2.0.0-rc.1",
    "2.0.0-rc.10",
    "v2.0.0",
    "v3.0.0-beta",
    "latest",
    "v1",
)


@pytest.mark.parametrize(
    ("text", "newest"),
    [
        ("*", "v2.0.0"),
        ("1.x", "v1.10.0"),
        ("1", "v1.10.0"),
        ("^1.2", "v1.10.0"),
        ("~1.2", "v1.2.9"),
        ("~1.2.3", "v1.2.9"),
        ("1.2.0", "v1.2.0"),
        ("=v1.2.0", "v1.2.0"),
        (">=1.0 <2.0", "v1.10.0"),
        (">= 1.0, < 1.10", "v1.2.9"),
        (">1.2", "v2.0.0"),
        ("<=1.2", "v1.2.9"),
        ("<1.2", "1.0.0"),
        ("!=2.0.0", "v1.10.0"),
        ("1.0 - 1.2", "v1.2.9"),
        ("^0.9", "v0.9.0"),
        ("5.x || 1.2.x", "v1.2.9"),
        (">=2.0.0-rc.1 <2.0.0", "2.0.0-rc.10"),
        (">=3.0.0-0", "v3.0.0-beta"),
        ("^4", None),
    ],
)
def test_a_range_takes_the_newest_tag_in_it(text: str, newest: str | None) -> None:
    assert Range(text).newest(TAGS) == newest


@pytest.mark.parametrize("text", ["", "main", ">=", "1.2.3.4", "1..2", "|| 1", ">=1 <", "--upload-pack=x"])
def test_what_is_no_range_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a version range; expected something like"):
        Range(text)


@pytest.mark.parametrize("tag", ["v01.0.0", "1.0", "release-1.0.0", "1.0.0.0", ""])
def test_tags_that_are_no_versions_are_none(tag: str) -> None:
    assert parse(tag) is None


def test_a_pre_release_sorts_before_its_release_and_numbers_by_value() -> None:
    tags = ["1.0.0-alpha", "1.0.0-alpha.1", "1.0.0-alpha.beta", "1.0.0-beta.2", "1.0.0-beta.11", "1.0.0-rc.1", "1.0.0"]
    versions = [version for tag in tags if (version := parse(tag))]
    backwards = versions[::-1]
    backwards.sort(key=lambda version: version.order)
    assert backwards == versions
