from pathlib import Path

import pytest

from backstay.adapters.git.address import Address, Credentials, RefSpec, check_path, check_ref, parse_address
from backstay.core.ports import SourceRefused

NO_ADDRESS = " is not an address: empty, longer than 2048 bytes or with control characters"
NO_PATH = " is not the path of a repository, expected '/team/mesh.git'"


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("https://git.example.test/team/mesh.git", "https://git.example.test/team/mesh.git"),
        ("https://git.example.test:8443/team/mesh", "https://git.example.test:8443/team/mesh"),
        ("https://[::1]:8443/mesh.git", "https://[::1]:8443/mesh.git"),
        ("ssh://git@git.example.test:2222/team/mesh.git", "ssh://git@git.example.test:2222/team/mesh.git"),
    ],
)
def test_remote_addresses_are_put_together_again_from_checked_parts(text: str, url: str) -> None:
    assert parse_address(text, allow_file=False).url == url


@pytest.mark.parametrize("text", ["/srv/mesh", "file:///srv/mesh"])
def test_a_folder_is_taken_where_folders_are_allowed(text: str) -> None:
    assert parse_address(text, allow_file=True) == Address(scheme="file", url="/srv/mesh")
    assert parse_address(text, allow_file=True).folder == Path("/srv/mesh")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "''" + NO_ADDRESS),
        ("https://h/a\nb", r"'https://h/a\nb'" + NO_ADDRESS),
        ("--upload-pack=id", "'--upload-pack=id' begins with '-', expected https://, ssh:// or a folder"),
        ("ext::sh -c id", "'ext::sh -c id' names a remote helper; only https and ssh are read"),
        ("http://h/mesh.git", "scheme 'http' is not read, expected https or ssh"),
        ("git://h/mesh.git", "scheme 'git' is not read, expected https or ssh"),
        ("git@h.test:mesh.git", "'git@h.test:mesh.git' is the short form, write 'ssh://git@h.test/mesh.git'"),
        ("/srv/mesh", "'/srv/mesh' is a folder of this machine, expected https:// or ssh://"),
        ("file:///srv/mesh", "'/srv/mesh' is a folder of this machine, expected https:// or ssh://"),
        ("ssh://-oProxyCommand=id/mesh", "'ssh://-oProxyCommand=id/mesh': '-oproxycommand=id' is not a host name"),
        ("ssh://-x@h/mesh", "'-x' is not a user name"),
        ("https://h/../../mesh", "'https://h/../../mesh': '/../../mesh'" + NO_PATH),
        ("https://h/mesh?x=1", "'https://h/mesh?x=1': '/mesh'" + NO_PATH),
        ("https://h:99999/mesh", "'https://h:99999/mesh': Port out of range 0-65535"),
    ],
)  # fmt: skip
def test_what_is_no_address_is_refused_with_what_to_write(text: str, message: str) -> None:
    with pytest.raises(SourceRefused) as refused:
        parse_address(text, allow_file=False)
    assert (refused.value.reason, str(refused.value)) == ("URLInvalid", message)


@pytest.mark.parametrize("text", ["https://u:hunter2@h/mesh", "https://hunter2@h/mesh", "ssh://git:hunter2@h/mesh"])
def test_credentials_in_an_address_are_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(SourceRefused, match="the address holds credentials") as refused:
        parse_address(text, allow_file=False)
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize(
    "name", ["", "-b", "--upload-pack=x", "a..b", "a b", "a~1", "a^", "a:b", "a*", "a//b", "a/", ".a", "a/.b", "a.lock",
             "a.", "@", "HEAD", "a@{1}", "a\nb", "a\\b", "x" * 256],
)  # fmt: skip
def test_names_that_git_could_misread_are_no_refs(name: str) -> None:
    with pytest.raises(SourceRefused) as refused:
        check_ref(name)
    assert refused.value.reason == "RefNotFound"


@pytest.mark.parametrize("name", ["main", "feature/x-1", "v1.2.3", "release_2026", "ünïcode"])
def test_ordinary_names_are_refs(name: str) -> None:
    assert check_ref(name) == name


@pytest.mark.parametrize(("text", "path"), [("", ""), (".", ""), ("./mesh/prod/", "mesh/prod"), ("mesh", "mesh")])
def test_a_folder_inside_is_taken_without_slashes_around(text: str, path: str) -> None:
    assert check_path(text) == path


@pytest.mark.parametrize("text", ["/etc", "../x", "a/../b", "a//b", "a:b", "a\\b", "a\0b", "x" * 5000])
def test_what_leaves_the_repository_is_no_path(text: str) -> None:
    with pytest.raises(SourceRefused) as refused:
        check_path(text)
    assert refused.value.reason == "InvalidPath"


def test_only_one_thing_can_be_followed() -> None:
    with pytest.raises(SourceRefused, match="branch and tag are given, expected one of them"):
        RefSpec(branch="main", tag="v1")
    with pytest.raises(SourceRefused, match="'abc' is not a whole commit id"):
        RefSpec(commit="abc")


def test_secrets_lose_the_newline_of_their_file_and_never_show() -> None:
    credentials = Credentials(username="bot", password="hunter2\n", bearer="")
    assert credentials.password == "hunter2"
    assert "hunter2" not in repr(credentials)
    with pytest.raises(SourceRefused, match="the bearer holds control characters, expected one line"):
        Credentials(bearer="a\r\nX-Evil: 1")
