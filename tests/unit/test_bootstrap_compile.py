"""What `make compiled` changes in the sources before it compiles them is there to be changed."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("compile_", ROOT / "bootstrap" / "images" / "compile.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


COMPILE = load()


def source(name: str) -> str:
    return (ROOT / "operator" / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", COMPILE.MODULES)
def test_what_is_compiled_exists_and_is_python_before_and_after(name: str) -> None:
    compile(COMPILE.changed(name, source(name)), name, "exec")


@pytest.mark.parametrize("name", COMPILE.CHANGES)
def test_no_class_that_is_compiled_inherits_from_asyncio(name: str) -> None:
    assert "(asyncio.Protocol)" not in COMPILE.changed(name, source(name))


def test_a_change_that_finds_nothing_is_said() -> None:
    name = next(iter(COMPILE.CHANGES))
    with pytest.raises(ValueError, match=r"downstream\.py: nothing like .* is there any more"):
        COMPILE.changed(name, "")
