"""Finds experiments and loads their code.

An experiment is a folder with `config.py` (`get_config`), `run.py` (`run`, and `check` if present)
and optionally `page.py` (`show`), or one file with all of these.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import importlib.util
import sys
import types
from pathlib import Path
from typing import NamedTuple


class Experiment(NamedTuple):
    """An experiment as described by its files; none of its code is run."""

    name: str
    config: Path
    about: str
    """The first line of the config's docstring."""
    variants: tuple[str, ...]
    """The config's `VARIANTS`; the plain experiment is not among them."""
    published: bool
    """Whether there are published numbers beside the config."""


class Code(NamedTuple):
    """The files of an experiment."""

    config: Path
    run: Path
    """Defines `run`; results depend on it and on its imports."""
    page: Path | None
    """Defines `show`; None if absent. Results do not depend on it."""


def find(folder: Path = Path()) -> list[Experiment]:
    """The experiments in a folder and in its subfolder `experiments`, sorted by name.

    Args:
      folder: Folder to search, such as the root of a clone.
    """
    configs = [*folder.glob("experiments/*/config.py"), *folder.glob("*/config.py")]
    found = [_described(path) for path in (*configs, *folder.glob("*.py"))]
    return sorted((one for one in found if one is not None), key=lambda one: one.name)


def name_of(config: Path) -> str:
    """The name of an experiment: that of its folder, or of its only file."""
    config = config.resolve()
    return config.parent.name if config.name == "config.py" else config.stem


def code_of(config: Path, module: types.ModuleType) -> Code:
    """The files of an experiment whose config file was loaded as `module`.

    Raises:
      ValueError: If there is nothing to run.
    """
    run = config if hasattr(module, "run") else config.with_name("run.py")
    if not run.is_file():
        raise ValueError(
            f"{str(config)!r} has no function `run`, and there is no {str(run)!r}. Write one."
        )
    page = run.with_name("page.py")
    return Code(config, run, page if run != config and page.is_file() else None)


def load(path: Path) -> types.ModuleType:
    """Loads the module in a file, which may import files beside it.

    It gets the name under which others import it, if any, so that it is loaded only once.
    """
    path = path.resolve()
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))  # as Python does for a script
    for entry in sys.path:
        home = Path(entry).resolve()
        if path.is_relative_to(home) and home != path.parent:
            name = ".".join(path.relative_to(home).with_suffix("").parts)
            if _file_of(name) == path:
                return importlib.import_module(name)
    name = f"{path.parent.name}_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{str(path)!r} must be a Python file.")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _file_of(name: str) -> Path | None:
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, AttributeError, ValueError):
        return None
    return Path(spec.origin).resolve() if spec is not None and spec.origin else None


def _described(config: Path) -> Experiment | None:
    try:
        tree = ast.parse(config.read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError):
        return None
    if not any(
        isinstance(node, ast.FunctionDef) and node.name == "get_config" for node in tree.body
    ):
        return None
    about = (ast.get_docstring(tree) or "").partition("\n")[0]
    published = any(config.with_name(f"published.{kind}").is_file() for kind in ("py", "csv"))
    return Experiment(name_of(config), config, about, _variants(tree), published)


def _variants(tree: ast.Module) -> tuple[str, ...]:
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "VARIANTS":
            with contextlib.suppress(TypeError, ValueError):  # computed, or no series
                return tuple(map(str, ast.literal_eval(node.value)))
    return ()
