"""`make compiled`: the package with its hot path as machine code, in build/compiled/, by mypyc. Optional.

The same sources: nothing else runs when they are not compiled. What a request passes through is compiled (tables, framing,
exchanges, both ends' protocols, TLS, pools, counters, the log); what happens once per connection or config mostly stays Python.
A request costs little more than half the CPU, and compiling takes a C compiler and a minute or two (docs/benchmarks.md). Run
it with `PYTHONPATH=build/compiled`; `--wheel` makes a wheel of it, which is what the sidecar's image holds (`make images`).

All that requests pass through must be compiled together: a compiled class that asks a Python one for its attributes is not
much faster than Python, its annotations are checked when it is given an object, and a Python class cannot inherit from it.

mypyc's classes cannot inherit from foreign ones, and it holds annotations to be true. `CHANGES` says where the sources say
otherwise; event loops ask protocols and transports for methods, never for their class.
"""

import argparse
import base64
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Sequence
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
            "accept", "accesslog", "balance", "checks", "downstream", "exchange", "failures", "flow", "framing", "ingress",
            "listeners", "mirror", "nobody", "outlier", "peers", "pool", "redirected", "retry", "runtime", "sampling", "server",
            "split", "stats", "trace", "transport", "upstream",
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


def build() -> None:
    """Compile into TARGET, replacing what is there. Raises subprocess.CalledProcessError, and OSError without a compiler."""
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


# --- as a wheel ------------------------------------------------------------------------------------------------------


def tag() -> str:
    """What this interpreter on this machine runs, as wheels name it."""
    python = f"cp{sys.version_info.major}{sys.version_info.minor}"
    return f"{python}-{python}-{sys.platform}_{platform.machine()}"


def repack(wheel: Path, tree: Path, platform_tag: str) -> Path:
    """A wheel beside this one that holds the modules of `tree` instead of its own, and their machine code."""
    name, version, *_ = wheel.name.split("-")
    made = wheel.with_name(f"{name}-{version}-{platform_tag}.whl")
    contents = dict(_of_wheel(wheel)) | dict(_of_tree(tree))
    about = next(path for path in contents if path.endswith(".dist-info/WHEEL"))
    text = re.sub(r"^Tag: .*$", f"Tag: {platform_tag}", contents[about].decode(), flags=re.MULTILINE)
    contents[about] = text.replace("Root-Is-Purelib: true", "Root-Is-Purelib: false").encode()
    record = about.removesuffix("WHEEL") + "RECORD"
    lines = [f"{path},sha256={_digest(data)},{len(data)}" for path, data in contents.items()]
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, data in contents.items():
            archive.writestr(path, data)
        archive.writestr(record, "\n".join([*lines, f"{record},,", ""]))
    return made


def _of_wheel(wheel: Path) -> Iterator[tuple[str, bytes]]:
    with zipfile.ZipFile(wheel) as archive:
        for path in archive.namelist():
            if not path.endswith((".dist-info/RECORD", "/")):
                yield path, archive.read(path)


def _of_tree(tree: Path) -> Iterator[tuple[str, bytes]]:
    """Everything compiled, and the sources as they were changed for it."""
    for path in sorted(tree.rglob("*")):
        inside = path.relative_to(tree).as_posix()
        if path.suffix == ".so" or inside in CHANGES:
            yield inside, path.read_bytes()


def _digest(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--wheel", type=Path, help="Backstay's wheel: one with the compiled modules is made beside it")
    wheel = parser.parse_args(arguments).wheel
    build()
    print(f"compiled: {repack(wheel, TARGET, tag())}" if wheel else f"compiled: PYTHONPATH={TARGET}", flush=True)


if __name__ == "__main__":
    main()
