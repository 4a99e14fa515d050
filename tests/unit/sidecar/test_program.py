import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from backstay.sidecar.program import make_engine
from backstay.sidecar.standalone import read_config_file

OPERATOR = Path(__file__).parents[3] / "operator"
HEAVY = {
    "aiohttp", "cryptography", "click", "rich", "yaml", "jsonschema", "git", "kopf",  # what the operator needs
    "multiprocessing", "pydoc", "re2", "sqlite3", "unittest", "xml", "zoneinfo",  # what some configs need, or nobody
}  # fmt: skip
"""What a process beside every workload must not pay for."""


def test_the_whole_sidecar_loads_nothing_heavy() -> None:
    names = "backstay.sidecar.__main__, backstay.sidecar.program, backstay.sidecar.engines.python"
    program = f"import json, sys; import {names}; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", program], env={"PYTHONPATH": str(OPERATOR)}, capture_output=True, check=True, timeout=60
    )
    loaded = msgspec.json.decode(done.stdout, type=set[str])
    assert "backstay.sidecar.agent" in loaded
    assert loaded & HEAVY == set()


def test_an_unknown_engine_is_named_with_those_that_exist() -> None:
    with pytest.raises(ValueError, match=r"^--engine: 'nginx' cannot be loaded \(.*\), known are python"):
        make_engine("nginx")


def test_a_config_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text('{"config": {"manifest": {"workload": "a/b", "parts": {}, "sort": 1}, "parts": {}}}')
    with pytest.raises(ValueError, match=r"config\.json:1:66: config\.manifest: object contains unknown field `sort`$"):
        read_config_file(path)
