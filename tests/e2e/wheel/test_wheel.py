"""What people install: the wheel, built offline from what is committed or about to be, in an environment of its own."""

import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


def run(*command: str | Path, cwd: Path, expect: int = 0) -> str:
    done = subprocess.run(command, check=False, cwd=cwd, capture_output=True, text=True, timeout=100)
    assert done.returncode == expect, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, so that no build folder of a checkout can lend it files."""
    copy = tmp_path_factory.mktemp("checkout")
    names = run("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=ROOT).split("\0")
    for name in filter(None, names):
        source, target = ROOT / name, copy / name
        if source.is_symlink() or source.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            if source.is_symlink():
                target.symlink_to(source.readlink())
            else:
                target.write_bytes(source.read_bytes())
    run(sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", copy / "dist", cwd=copy)
    (built,) = (copy / "dist").glob("*.whl")
    return built


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh environment with the wheel; its dependencies are borrowed from this one, Backstay itself is not."""
    folder = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder)
    python = folder / "bin" / "python"
    run(
        sys.executable, "-m", "uv", "pip", "install", "--quiet", "--offline", "--no-index", "--no-deps",
        "--python", python, wheel, cwd=folder,
    )  # fmt: skip
    (site,) = (folder / "lib").glob("python*/site-packages")
    (site / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder


def test_the_wheel_holds_the_program_its_data_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.partition("/")[0] for name in names}
    assert tops == {"backstay", wheel.name.split("-py3")[0] + ".dist-info"}
    schemas = {f"backstay/schemas/{path.name}" for path in (ROOT / "schemas").glob("*.json")}
    templates = ROOT / "operator" / "backstay" / "templates"
    data = {f"backstay/templates/{path.relative_to(templates)}" for path in templates.rglob("*") if path.is_file()}
    data = {name for name in data if "__pycache__" not in name}
    assert (schemas | data | {"backstay/py.typed"}) - set(names) == set()


def test_the_installed_program_is_the_wheels(environment: Path) -> None:
    code = (
        "import backstay, importlib.resources as resources;"
        "print(backstay.__file__, len(list(resources.files('backstay.schemas').iterdir())))"
    )
    file, schemas = run(environment / "bin" / "python", "-c", code, cwd=environment).split()
    assert Path(file).is_relative_to(environment)
    assert int(schemas) > 0


def test_the_installed_program_says_its_version(environment: Path) -> None:
    assert "0.1.0" in run(environment / "bin" / "backstay", "version", cwd=environment)


def test_the_installed_program_validates_the_sample(environment: Path) -> None:
    run(environment / "bin" / "backstay", "validate", ROOT / "example-repo" / "mesh", cwd=environment)


def test_the_installed_program_refuses_a_bad_document(environment: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text(
        "apiVersion: backstay.dev/v1alpha1\nkind: Route\nmetadata: {name: x}\nspec: {}\n"
    )
    out = run(environment / "bin" / "backstay", "validate", tmp_path, cwd=environment, expect=1)
    assert "bad.yaml:4:" in out


def test_the_installed_sidecar_starts(environment: Path) -> None:
    assert "--proxy" in run(environment / "bin" / "python", "-m", "backstay.sidecar", "--help", cwd=environment)
