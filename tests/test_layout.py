"""The import directions of the package, read from its source."""

import ast
import importlib
import sys
import tomllib
from pathlib import Path

import pytest

import nopr

ROOT = Path(__file__).parents[1]
SCIENCE = {"jax", "optax", "jaxtyping", "numpy", "scipy"}
GROUPS = [
    {"typing", "processes", "durable"},
    {"jaxprs"},
    {"axes", "trees", "precision", "convolutions"},
    {"budgets", "ranking", "capture"},
    {"masks", "schedules", "densities", "sweeps"},
    {"spectra", "granularity", "information", "export"},
    {"criteria", "surgery"},
    {"reconstruct"},
    {"pruning"},
    {"transforms", "isometry"},
    {"finetune"},
    {"algorithms"},
]
SIDE = {"networks", "data"}  # import the nouns alone, and the science does not import them
NOUNS = {"typing", "trees", "processes", "convolutions"}
ONLY = {
    "flax": {"networks"},
    "orbax": {"lab"},
    "matplotlib": {"lab"},
    "tqdm": {"lab"},
    "safetensors": {"export"},
}


def modules():
    for path in sorted((ROOT / "nopr").rglob("*.py")):
        parts = path.relative_to(ROOT / "nopr").with_suffix("").parts
        if parts != ("__init__",):
            yield parts[0], path


def imported(path):
    """Every imported name, in full; `from nopr import trees` gives nopr.trees."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def level(module):
    return next(i for i, group in enumerate(GROUPS) if module in group)


CASES = [pytest.param(module, path, id=str(path.relative_to(ROOT))) for module, path in modules()]


@pytest.mark.parametrize(("module", "path"), CASES)
def test_imports_run_downward_only(module, path):
    for name in imported(path):
        package, *rest = name.split(".")
        if package != "nopr" or not rest or rest[0] == module:
            continue
        target = rest[0]
        if module == "lab":
            continue
        if module in SIDE:
            assert target in {"typing", "trees", "processes", "convolutions"}, (
                f"{module} imports {target}"
            )
        else:
            assert target not in SIDE | {"lab"}, f"{module} imports {target}"
            assert level(target) < level(module), f"{module} imports {target}"


@pytest.mark.parametrize(("module", "path"), CASES)
def test_each_heavy_library_has_one_importer_and_experiments_none(module, path):
    for name in imported(path):
        package = name.split(".")[0]
        assert module in ONLY.get(package, {module}), f"{module} imports {package}"
        assert package not in {"experiments", "tests"}


@pytest.mark.parametrize(("module", "path"), CASES)
def test_the_inner_parts_of_jax_are_touched_in_one_place(module, path):
    for name in imported(path):
        inner = name.startswith(("jax.extend", "jax.interpreters", "jax.core", "jax._src"))
        assert module == "jaxprs" or not inner, f"{path} imports {name}"


def test_every_module_has_its_place():
    known = set().union(*GROUPS) | SIDE | {"lab"}
    assert {module for module, _ in modules()} <= known


def declared():
    """The distributions of a plain install, and those of the extra `lab`."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    each = (project["dependencies"], project["optional-dependencies"]["lab"])
    return [{line.split(">=")[0].replace("-", "_").lower() for line in lines} for lines in each]


@pytest.mark.parametrize(("module", "path"), CASES)
def test_the_science_imports_five_libraries_and_the_rest_what_is_declared(module, path):
    plain, lab = declared()
    names = {"sklearn": "scikit_learn", "absl": "absl_py", "orbax": "orbax_checkpoint"}
    allowed = {
        "networks": SCIENCE | {"flax"},
        "export": SCIENCE | {"safetensors"},
        "data": plain | lab,
        "lab": plain | lab,
    }.get(module, SCIENCE)
    for name in imported(path):
        package = name.split(".")[0]
        if package not in {"nopr", *sys.stdlib_module_names}:
            assert names.get(package, package).lower() in allowed, f"{path}: {package}"
    assert plain >= SCIENCE


def test_the_package_gives_every_module_by_name_and_nothing_else():
    assert set(nopr.__all__) == {module for module, _ in modules()}
    assert nopr.masks.top is importlib.import_module("nopr.masks").top
    assert set(nopr.__all__) <= set(dir(nopr))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert nopr.__version__ == project["version"]
    with pytest.raises(AttributeError, match="has no attribute 'prune'"):
        _ = nopr.prune
