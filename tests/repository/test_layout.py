"""Where files may stand, and which way imports may point."""

import ast
import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
PYPROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
PACKAGES = {
    Path(one).name: REPOSITORY / one for one in PYPROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
}
FOLDERS = [folder.parent for folder in PACKAGES.values()]

MAY_IMPORT = {
    "swapmeet": {"swapmeet_registry", "swapmeet_serving", "swapmeet_training"},
    "swapmeet_registry": set(),
    "swapmeet_serving": {"swapmeet_registry"},
    "swapmeet_training": {"swapmeet_registry"},
}

HEAVY = {"torch", "ray", "transformers", "peft", "bitsandbytes"}
EDGE = {
    "swapmeet.gateway.deployment",
    "swapmeet.gateway.replicas",
    "swapmeet_serving.adapter_parts",
    "swapmeet_serving.attention",
    "swapmeet_serving.base_model",
    "swapmeet_serving.dora",
    "swapmeet_serving.engine",
    "swapmeet_serving.kernels",
    "swapmeet_serving.kernels.cpu",
    "swapmeet_serving.kernels.cpu_attention",
    "swapmeet_serving.kernels.cpu_lora",
    "swapmeet_serving.kernels.cpu_pack",
    "swapmeet_serving.kernels.decode_graphs",
    "swapmeet_serving.kernels.exact",
    "swapmeet_serving.kernels.gpu",
    "swapmeet_serving.kernels.gpu_attention",
    "swapmeet_serving.kernels.gpu_lora",
    "swapmeet_serving.kernels.gpu_nf4",
    "swapmeet_serving.kernels.gpu_tiles",
    "swapmeet_serving.kernels.lora_block",
    "swapmeet_serving.kernels.threads",
    "swapmeet_serving.kernels.tile",
    "swapmeet_serving.logprobs",
    "swapmeet_serving.lora_linear",
    "swapmeet_serving.lora_weights",
    "swapmeet_serving.packed_product",
    "swapmeet_serving.request_router",
    "swapmeet_serving.runner",
    "swapmeet_serving.sampling",
    "swapmeet_serving.step_plan",
    "swapmeet_serving.tensor_file",
    "swapmeet_training.attempts.attempt",
    "swapmeet_training.attempts.ray_driver",
    "swapmeet_training.loop.batches",
    "swapmeet_training.loop.fitting",
    "swapmeet_training.loop.losses",
    "swapmeet_training.loop.optimization",
    "swapmeet_training.loop.preference",
    "swapmeet_training.loop.tally",
    "swapmeet_training.loop.trainer",
}
"""The modules that import one of HEAVY when they are imported. All others decide, book-keep and format without."""


def modules(package: str) -> Iterator[tuple[str, ast.Module]]:
    """Name and syntax tree of every module of a package."""
    folder = PACKAGES[package]
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(folder.parent).with_suffix("").parts
        yield ".".join(parts).removesuffix(".__init__"), ast.parse(path.read_text(), str(path))


def imported(tree: ast.AST) -> set[str]:
    """Top-level names of all that a module imports, in functions too."""
    names = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    return {name.split(".")[0] for name in names}


def imported_at_once(tree: ast.AST) -> set[str]:
    """As `imported`, but only what importing the module imports: nothing in functions or for type checkers."""
    found: set[str] = set()
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            found |= imported(ast.Module([node], []))
        elif isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            found |= imported_at_once(ast.Module(node.orelse, []))
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            found |= imported_at_once(node)
    return found


def test_nothing_but_packages_stands_in_the_four_folders() -> None:
    assert {folder.name for folder in FOLDERS} == {"platform", "registry", "serving", "training"}
    assert set(PACKAGES) == set(MAY_IMPORT)
    for package, folder in PACKAGES.items():
        assert (folder / "py.typed").is_file()
        assert (folder / "__init__.py").is_file(), package
        # A module here would be missing from the wheel; an __init__.py in platform/ would hide Python's platform.
        assert [path.name for path in folder.parent.glob("*.py")] == []


def test_tests_are_no_packages() -> None:
    assert list((REPOSITORY / "tests").rglob("test_*.py"))
    assert list((REPOSITORY / "tests").rglob("__init__.py")) == []


def test_every_folder_with_modules_is_a_package() -> None:
    with_modules = {path.parent for folder in PACKAGES.values() for path in folder.rglob("*.py")}
    assert [folder for folder in sorted(with_modules) if not (folder / "__init__.py").is_file()] == []


def test_platform_is_still_the_standard_library_s() -> None:
    code = "import platform; print(platform.__file__); assert platform.python_version()"
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-c", "import sys; assert sys.path[1] == sys.argv[1]; " + code, str(REPOSITORY)]
    shown = subprocess.run(command, cwd=REPOSITORY, env=environment, check=True, capture_output=True, text=True)
    assert Path(shown.stdout.strip()).parent == Path(os.__file__).parent


@pytest.mark.parametrize("package", sorted(PACKAGES))
def test_imports_point_one_way(package: str) -> None:
    forbidden = set(PACKAGES) - MAY_IMPORT[package] - {package}
    forbidden |= {folder.name for folder in FOLDERS} - {"platform"}  # second copies, imported from the root
    wrong = {name: found for name, tree in modules(package) if (found := imported(tree) & forbidden)}
    assert wrong == {}


def test_only_edge_modules_import_torch_or_ray() -> None:
    heavy = {name for package in PACKAGES for name, tree in modules(package) if imported_at_once(tree) & HEAVY}
    assert heavy == EDGE


@pytest.mark.parametrize("package", sorted(PACKAGES))
def test_importing_a_package_loads_nothing_heavy(package: str) -> None:
    code = f"import sys, {package}; print(*sorted(set(sys.modules) & set(sys.argv[1:])))"
    shown = subprocess.run([sys.executable, "-c", code, *HEAVY], check=True, capture_output=True, text=True)
    assert shown.stdout.split() == []


def test_the_import_rules_see_what_they_forbid() -> None:
    source = """
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    import peft
else:
    import transformers.utils
try:
    from torch.nn import Linear
except ImportError:
    pass
class Holder:
    import ray
def later():
    import bitsandbytes
"""
    tree = ast.parse(source)
    assert imported(tree) == {"typing", *HEAVY}
    assert imported_at_once(tree) == {"typing", "transformers", "torch", "ray"}
