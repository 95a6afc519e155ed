"""The code that a result depends on: files and their imports, without installed packages."""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.util
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

_NOPR = Path(__file__).resolve().parents[2]
_INSTALLED = {"site-packages", "dist-packages"}


def source_digest(*roots: str | Path) -> str:
    """Ten hexadecimal digits that identify the code of `roots` and of all that they import.

    Files of nopr, files beside a root, and other modules that are not installed count, including
    those that functions import. Installed packages are recorded by version instead. Comments,
    docstrings and layout do not count. No file is executed. Where an import cannot be followed,
    everything that it may refer to counts.

    Args:
      roots: Python files. Without any, all of nopr counts.
    """
    files = closure(roots) if roots else _NOPR.rglob("*.py")
    total = hashlib.sha256()
    for name, file in sorted((_name(file), file) for file in files):
        total.update(f"{name} {_read(file).sha256}\n".encode())
    return total.hexdigest()[:10]


def closure(roots: Iterable[str | Path]) -> set[Path]:
    """`roots`, and all files that they import."""
    waiting = [Path(root).resolve() for root in roots]
    beside = tuple(file.parent for file in waiting)
    follow = functools.cache(lambda *asked: list(_followed(*asked)))
    found: set[Path] = set()
    while waiting:
        file = waiting.pop()
        if file in found:
            continue
        found.add(file)
        for dotted, level in _read(file).imports:
            if dotted == "?":
                waiting += file.parent.glob("*.py")
            else:
                places = (file.parents[level - 1],) if level else beside
                waiting += follow(dotted, places, not level)
    return found


class _Code(NamedTuple):
    """The relevant facts of a file."""

    sha256: str
    """SHA-256 of its code, without comments and docstrings."""
    imports: frozenset[tuple[str, int]]
    """Dotted names with their level; `?` is a name known only at run time."""
    lazy: bool
    """Whether it imports on attribute access."""


class _WithoutWords(ast.NodeTransformer):
    """Removes docstrings, also those of fields."""

    def visit_Expr(self, node: ast.Expr) -> ast.Expr | None:
        return None if isinstance(node.value, ast.Constant) else node


def _read(file: Path) -> _Code:
    return _read_as_of(file, file.stat().st_mtime_ns)


@functools.lru_cache(maxsize=1024)
def _read_as_of(file: Path, changed_ns: int) -> _Code:
    del changed_ns
    data = file.read_bytes()
    try:
        tree = ast.parse(data, str(file))
    except (SyntaxError, ValueError, RecursionError):  # raised where it is imported
        return _Code(hashlib.sha256(data).hexdigest(), frozenset(), False)
    lazy = any(isinstance(n, ast.FunctionDef) and n.name == "__getattr__" for n in tree.body)
    imports = frozenset(_imports(tree, lazy=lazy))
    code = ast.dump(_WithoutWords().visit(tree))
    return _Code(hashlib.sha256(code.encode()).hexdigest(), imports, lazy)


def _imports(tree: ast.Module, *, lazy: bool) -> Iterator[tuple[str, int]]:
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                for alias in names:
                    parts = alias.name.split(".")
                    # Without `as` the first name is bound, and gives access to all below it.
                    for length in range(len(parts) if alias.asname else 1, len(parts) + 1):
                        yield ".".join(parts[:length]), 0
            case ast.ImportFrom(module=module, names=names, level=level):
                prefix = f"{module}." if module else ""
                yield from ((prefix + alias.name, level) for alias in names)
            case ast.Call(func=ast.Name(id=called) | ast.Attribute(attr=called), args=[name, *_]):
                if called in ("import_module", "__import__"):
                    known = isinstance(name, ast.Constant) and not str(name.value).startswith(".")
                    if known:
                        yield str(name.value), 0
                    elif not lazy:
                        yield "?", 0


def _followed(name: str, places: tuple[Path, ...], top: bool) -> Iterator[Path]:
    """The files of a dotted name: of its packages, and of the module or all it may refer to.

    The last part may be an attribute of a module. A package that imports its modules on first
    access counts as a whole, unless the name states which of them is meant.
    """
    parts = name.split(".")
    if top:
        places = (*places, *_homes(parts[0]))
    for place in dict.fromkeys(places):
        folder, whole = place, None
        for part in parts:
            module, package = folder / f"{part}.py", folder / part / "__init__.py"
            if part == "*" or not (module.is_file() or package.parent.is_dir()):
                whole = folder if part == "*" else whole
                break
            yield from (file for file in (module, package) if file.is_file())
            lazy = package.is_file() and _read(package).lazy
            folder = package.parent
            whole = folder if lazy else None
        if whole is not None:
            yield from whole.rglob("*.py")


def _homes(top: str) -> list[Path]:
    """The folders that hold a package or module, unless it is Python's own or installed."""
    if not top or top in sys.stdlib_module_names:
        return []
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return []
    if spec is None:
        return []
    if spec.submodule_search_locations is not None:
        homes = [Path(folder).resolve().parent for folder in spec.submodule_search_locations]
    else:
        homes = [Path(spec.origin).resolve().parent] if spec.origin else []
    return [home for home in homes if top == "nopr" or not _INSTALLED & set(home.parts)]


def _name(file: Path) -> str:
    """A name that does not change when a clone moves: the path within the outermost package."""
    home = file.parent
    while (home / "__init__.py").is_file():
        home = home.parent
    return file.relative_to(home).as_posix()
