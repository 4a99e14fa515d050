"""Dockerfiles and their lists, as text; they are built for real in tests/e2e/kubernetes."""

import ast
import base64
import hashlib
import importlib.util
import json
import re
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
IMAGES = ROOT / "bootstrap" / "images"
SOURCE = ROOT / "operator" / "backstay"
DISTRIBUTIONS = {"google-re2": "re2"}
"""Where the distribution's name is not the package's."""


def prepare() -> ModuleType:
    return program("prepare")


def program(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, IMAGES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def instructions(image: str) -> list[tuple[str, str]]:
    text = (IMAGES / image / "Dockerfile").read_text(encoding="utf-8")
    lines = [line for line in text.replace("\\\n", " ").splitlines() if line and not line.startswith("#")]
    return [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1]) for line in lines]


@pytest.mark.parametrize(("image", "user"), [("operator", "65532:65532"), ("sidecar", "1337:1337")])
def test_an_image_is_built_in_stages_and_runs_as_nobody(image: str, user: str) -> None:
    found = instructions(image)
    assert [rest for word, rest in found if word == "FROM"] == ["${BASE} AS build", "${BASE}"]
    assert [rest for word, rest in found if word == "USER"] == [user]
    last_stage = found[max(place for place, (word, _) in enumerate(found) if word == "FROM") :]
    assert [rest for word, rest in last_stage if word == "COPY"] == ["--from=build /opt/backstay /opt/backstay"]


@pytest.mark.parametrize("image", ["operator", "sidecar"])
def test_python_packages_come_from_the_context_only(image: str) -> None:
    installs = [
        line for word, rest in instructions(image) if word == "RUN" for line in rest.split(";") if "$pip " in line
    ]
    assert len(installs) == 2
    assert [line for line in installs if "--no-index" not in line] == []
    assert not [word for word, _ in instructions(image) if word == "ADD"]


def test_the_operators_user_has_a_name() -> None:
    """ssh looks it up, and ends where there is none."""
    assert any("backstay:x:65532:65532:" in rest for word, rest in instructions("operator") if word == "RUN")


def test_the_sidecars_image_has_no_shell() -> None:
    (removed,) = [rest for word, rest in instructions("sidecar") if word == "RUN" and rest.startswith('["rm"')]
    assert {"/bin/sh", "/bin/bash", "/bin/dash"} <= set(re.findall(r'"(/[^"]+)"', removed))


def test_the_sidecars_image_writes_bytecode_of_modules_that_exist() -> None:
    """Its user may not, and its base has none; a name that is gone would end the build of the image."""
    (run,) = [rest for word, rest in instructions("sidecar") if word == "RUN" and '"import ' in rest]
    statement = ast.parse(json.loads(run)[2]).body
    assert [type(each) for each in statement] == [ast.Import]
    names = sorted(imports_of(statement[0]))
    assert [name for name in names if importlib.util.find_spec(name) is None] == []
    assert {"backstay.sidecar.__main__", "backstay.sidecar.program", "uvloop"} <= set(names)


def imports_of(statement: ast.stmt) -> set[str]:
    return {alias.name for alias in statement.names} if isinstance(statement, ast.Import) else set()


def pinned(name: str) -> dict[str, str]:
    text = (ROOT / "requirements" / f"{name}.txt").read_text(encoding="utf-8")
    return dict(re.findall(r"^([a-zA-Z0-9._-]+)==([^\s;\\]+)", text, re.MULTILINE))


@pytest.mark.parametrize("name", ["operator", "sidecar", "envoy"])
def test_images_hold_the_versions_that_are_tested(name: str) -> None:
    assert pinned(name)
    assert pinned(name).items() <= pinned("dev").items()


def imports(path: Path) -> set[str]:
    """Packages that a file imports, late imports as well."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.partition(".")[0])
    return found


def test_the_sidecars_list_holds_what_the_sidecar_imports() -> None:
    files = [
        *(SOURCE / "sidecar").rglob("*.py"),
        *(SOURCE / "config").rglob("*.py"),
        SOURCE / "tasks.py",
        SOURCE / "redact.py",
    ]
    imported = set().union(*map(imports, files))
    foreign = imported - sys.stdlib_module_names - {"backstay"}
    listed = (ROOT / "requirements" / "sidecar.in").read_text(encoding="utf-8").splitlines()
    packages = {DISTRIBUTIONS.get(line, line) for line in listed if line and not line.startswith("#")}
    assert foreign <= packages
    assert packages - foreign == {"click"}  # for `backstay sidecar`


def test_wheels_are_asked_for_by_the_images_platform() -> None:
    assert prepare().platforms("aarch64")[-2:] == ["manylinux_2_36_aarch64", "manylinux2014_aarch64"]


def test_every_dependency_of_the_program_is_in_the_operators_list() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    block = text.partition("\ndependencies = [")[2].partition("]")[0]
    wanted = {name.lower() for name in re.findall(r'"([A-Za-z0-9_.-]+)', block)}
    assert wanted <= {name.lower() for name in pinned("operator")}


def test_the_sidecars_wheels_are_pinned() -> None:
    text = (ROOT / "requirements" / "sidecar.in").read_text(encoding="utf-8")
    assert {line for line in text.splitlines() if line and not line.startswith("#")} <= set(pinned("sidecar"))


# --- machine code ----------------------------------------------------------------------------------------------------


def test_what_inherits_from_a_compiled_class_is_compiled() -> None:
    """Instances of a Python class that does could not be made."""
    compiling = program("compile")
    trees = {
        path.relative_to(ROOT / "operator").as_posix(): ast.parse(path.read_text(encoding="utf-8"))
        for path in (SOURCE / "sidecar" / "engines" / "python").glob("*.py")
    }
    classes = [
        (name, node.name, {base.id for base in node.bases if isinstance(base, ast.Name)})
        for name, tree in trees.items() for node in ast.walk(tree) if isinstance(node, ast.ClassDef)
    ]  # fmt: skip
    native = {kind for name, kind, _ in classes if name in compiling.MODULES}
    strangers = {f"{name}: {kind}" for name, kind, bases in classes if name not in compiling.MODULES and bases & native}
    assert strangers == set()


def test_a_compiled_wheel_is_whole_and_says_what_it_is_for(tmp_path: Path) -> None:
    compiling = program("compile")
    changed = next(iter(compiling.CHANGES))
    pure = tmp_path / "backstay-0.1.0-py3-none-any.whl"
    with zipfile.ZipFile(pure, "w") as archive:
        archive.writestr(changed, "as written")
        archive.writestr("backstay/other.py", "other")
        archive.writestr(
            "backstay-0.1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr("backstay-0.1.0.dist-info/RECORD", "")
    tree = tmp_path / "tree"
    (tree / changed).parent.mkdir(parents=True)
    (tree / changed).write_text("as compiled")
    (tree / "backstay" / "other.py").write_text("not taken")
    (tree / "abc__mypyc.so").write_bytes(b"...GLIBC_2.4..GLIBC_2.34..GLIBC_2.9")
    made = compiling.repack(pure, tree, "cp311-cp311-linux_x86_64")
    assert made == tmp_path / "backstay-0.1.0-cp311-cp311-linux_x86_64.whl"
    with zipfile.ZipFile(made) as archive:
        held = {name: archive.read(name).decode() for name in archive.namelist()}
    record = held.pop("backstay-0.1.0.dist-info/RECORD").splitlines()
    assert held == {
        changed: "as compiled",
        "backstay/other.py": "other",
        "abc__mypyc.so": "...GLIBC_2.4..GLIBC_2.34..GLIBC_2.9",
        "backstay-0.1.0.dist-info/WHEEL": (
            "Wheel-Version: 1.0\nRoot-Is-Purelib: false\nTag: cp311-cp311-linux_x86_64\n"
        ),
    }
    assert [line.split(",")[0] for line in record] == [*held, "backstay-0.1.0.dist-info/RECORD"]
    (line,) = [line for line in record if line.startswith("backstay/other.py,")]
    digest = base64.urlsafe_b64encode(hashlib.sha256(b"other").digest()).decode().rstrip("=")
    assert line == f"backstay/other.py,sha256={digest},5"
    assert prepare().glibc_of(made) == 34
