"""What each package offers: exact facades, sound errors, and a wheel with all of it and nothing else."""

import ast
import importlib
import inspect
import pickle
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from types import ModuleType

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

REPOSITORY = Path(__file__).parents[2]
PYPROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
PACKAGES = {
    Path(one).name: REPOSITORY / one for one in PYPROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
}
FACADES = sorted(
    ".".join(path.parent.relative_to(folder.parent).parts)
    for folder in PACKAGES.values()
    for path in folder.rglob("__init__.py")
    if "__all__" in path.read_text()
)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    options = ["--no-deps", "--no-build-isolation", "--quiet", "--disable-pip-version-check", "--wheel-dir"]
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, str(folder), str(REPOSITORY)], check=True)
    (built,) = folder.iterdir()
    return built


def test_the_wheel_holds_the_four_packages_and_nothing_else(wheel: Path) -> None:
    files = [name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name]
    on_disk = {
        path.relative_to(folder.parent).as_posix()
        for folder in PACKAGES.values()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert set(files) == on_disk
    assert {f"{name}/py.typed" for name in PACKAGES} <= on_disk


def test_the_wheel_says_what_it_is(wheel: Path) -> None:
    project = PYPROJECT["project"]
    archive = zipfile.ZipFile(wheel)
    (metadata,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
    text = archive.read(metadata).decode()
    assert f"\nName: {project['name']}\nVersion: {project['version']}\n" in text
    assert metadata.replace("METADATA", "licenses/LICENSE") in archive.namelist()
    scripts = archive.read(metadata.replace("METADATA", "entry_points.txt")).decode()
    assert "swapmeet = swapmeet.cli:main" in scripts


def test_each_package_has_a_facade() -> None:
    assert set(PACKAGES) <= set(FACADES)


@pytest.mark.parametrize("name", FACADES)
def test_a_facade_names_exactly_what_it_offers(name: str) -> None:
    module = importlib.import_module(name)
    assert module.__doc__
    assert sorted(set(module.__all__)) == sorted(module.__all__)
    assert sorted(module.__all__) == sorted(offered(module))
    for public in module.__all__:
        assert getattr(module, public) is not None


def offered(module: ModuleType) -> set[str]:
    """Public names that a facade imports from our packages or defines."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(inspect.getsource(module))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("swapmeet"):
            names |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.ClassDef | ast.FunctionDef):
            names.add(node.name)
    return {name for name in names if not name.startswith("_")}


ERRORS = [
    error
    for name in PACKAGES
    for module in [importlib.import_module(f"{name}.errors")]
    for error in vars(module).values()
    if inspect.isclass(error) and error.__module__ == module.__name__
]
BASES = {error for error in ERRORS if error.__bases__ == (Exception,)}


def test_each_package_has_one_base_of_all_its_errors() -> None:
    assert sorted(error.__module__ for error in BASES) == [f"{name}.errors" for name in sorted(PACKAGES)]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: error.__name__)
def test_an_error_has_its_base_a_standard_class_a_code_and_a_place_in_the_tree(error: type[Exception]) -> None:
    (base,) = [base for base in BASES if base.__module__ == error.__module__]
    assert issubclass(error, base)
    standard = {one.__name__ for one in error.__mro__ if one.__module__ == "builtins"}
    assert error is base or standard > {"object", "BaseException", "Exception"}
    assert "code" in vars(error) or "code" in inspect.signature(error).parameters
    assert error.__name__ in (sys.modules[error.__module__].__doc__ or "")


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: error.__name__)
def test_an_error_keeps_its_message_from_one_process_to_another(error: type[Exception]) -> None:
    copy = pickle.loads(pickle.dumps(error("No such thing. Make one.")))
    assert type(copy) is error
    assert str(copy) == "No such thing. Make one."
    assert copy.code == error("x").code


TORCH_CHOOSES = ("triton",)
"""torch's build for CUDA requires one version of it, and its build for CPUs none: a pin would keep one of them out."""


def test_every_dependency_is_pinned_to_one_version_that_suits() -> None:
    lines = (REPOSITORY / "constraints.txt").read_text().splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    pinned = {canonicalize_name(pin.name): str(pin.specifier) for pin in pins}
    for name, specifier in pinned.items():
        assert re.fullmatch(r"==[\w.]+", specifier), name  # and no local version, which would tie users to one index
    project = PYPROJECT["project"]
    named = [*PYPROJECT["build-system"]["requires"], *project["dependencies"]]
    named += [one for extra in project["optional-dependencies"].values() for one in extra]
    for requirement in map(Requirement, named):
        if requirement.name not in (project["name"], *TORCH_CHOOSES):
            version = pinned[canonicalize_name(requirement.name)].removeprefix("==")
            assert version in requirement.specifier, requirement
