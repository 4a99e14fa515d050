"""`make compiled`: the package with its hot path as machine code, in build/compiled/, by mypyc. Optional.

The same sources: nothing else runs when they are not compiled. What a request passes through is compiled (tables, framing,
exchanges, both ends' protocols, TLS, pools, counters, the log); what happens once per connection or config mostly stays Python.
A request costs little more than half the CPU, and compiling takes a C compiler and a minute or two (docs/benchmarks.md). Run
it with `PYTHONPATH=build/compiled`.

All that requests pass through must be compiled together: a compiled class that asks a Python one for its attributes is not
much faster than Python, and its annotations are checked when it is given an object.

mypyc's classes cannot inherit from foreign ones, and it holds annotations to be true. `CHANGES` says where the sources say
otherwise; event loops ask protocols and transports for methods, never for their class.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[2]
TARGET: Final = ROOT / "build" / "compiled"
ENGINE: Final = "backstay/sidecar/engines/python"
MODULES: Final = (
    *(f"backstay/config/{name}.py" for name in ("actions", "authorize", "match", "regex", "target")),
    *(
        f"{ENGINE}/{name}.py"
        for name in (
            "accesslog", "balance", "checks", "downstream", "exchange", "failures", "flow", "framing", "listeners", "mirror",
            "nobody", "outlier", "peers", "pool", "retry", "runtime", "sampling", "server", "split", "stats", "trace",
            "transport", "upstream",
        )
    ),
)  # fmt: skip

_IMPORT: Final = (
    r"^from typing import TYPE_CHECKING, (?:Any, )?Final\b",
    "from typing import TYPE_CHECKING, Any, Final",
)
_PROTOCOL: Final = (
    (r"\(asyncio\.Protocol\):", ":"),
    (r"asyncio\.Transport \| None", "Any"),
    (r"asyncio\.BaseTransport", "Any"),
    _IMPORT,
)
CHANGES: Final = {
    f"{ENGINE}/downstream.py": (*_PROTOCOL, (r"httptools\.HttpRequestParser(?: \| None)? =", "Any =")),
    f"{ENGINE}/upstream.py": _PROTOCOL,
    f"{ENGINE}/transport.py": (
        (r"class TlsTransport\(asyncio\.Transport\):", "class TlsTransport:"),
        (r"^        super\(\)\.__init__\(\)\n", ""),
    ),
    f"{ENGINE}/flow.py": (_IMPORT, (r"RequestHead = None  # type: ignore\[assignment\]", "Any = None")),
}
"""Patterns and what stands there instead, by file. Each must be found."""
_SETUP: Final = """
from mypyc.build import mypycify
from setuptools import setup

modules = {modules!r}
setup(name="backstay-compiled", packages=[], ext_modules=mypycify(["--config-file", "mypy.ini", *modules], opt_level="2"))
"""
_MYPY: Final = """[mypy]
python_version = {version}
explicit_package_bases = true
namespace_packages = true
disable_error_code = arg-type, type-var
"""
"""Protocols are no asyncio.Protocol any more once `CHANGES` are made, which calls of the event loop then complain about."""


def changed(name: str, source: str) -> str:
    """The text of a module as it is compiled. Raises ValueError where a change finds nothing."""
    for pattern, text in CHANGES.get(name, ()):
        source, count = re.subn(pattern, text, source, flags=re.MULTILINE)
        if not count:
            raise ValueError(
                f"{name}: nothing like {pattern} is there any more, expected what {Path(__file__).name} changes"
            )
    return source


def main() -> None:
    shutil.rmtree(TARGET, ignore_errors=True)
    shutil.copytree(
        ROOT / "operator" / "backstay", TARGET / "backstay", ignore=shutil.ignore_patterns("__pycache__", "*.so")
    )
    for name in CHANGES:
        path = TARGET / name
        path.write_text(changed(name, path.read_text(encoding="utf-8")), encoding="utf-8")
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    (TARGET / "setup.py").write_text(_SETUP.format(modules=list(MODULES)), encoding="utf-8")
    (TARGET / "mypy.ini").write_text(_MYPY.format(version=version), encoding="utf-8")
    subprocess.run(
        [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"],
        cwd=TARGET,
        env=os.environ | {"CFLAGS": "-g0"},  # what is said for debuggers takes a third of the time and most of the size
        check=True,
    )
    shutil.rmtree(TARGET / "build")
    print(f"compiled: PYTHONPATH={TARGET}", flush=True)


if __name__ == "__main__":
    main()
