"""The code that a result depends on: a file, and all that it imports but what is installed."""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.util
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

_NOPR = Path(__file__).resolve().parents[2]
_INSTALLED = {"site-packages", "dist-packages"}


def source_digest(*roots: str | Path) -> str:
    """Ten hexadecimal digits that stand for the code of `roots` and of all that they import.

    Files of nopr, files beside a root, and other modules that are not installed count; installed
    packages count elsewhere, by version. Imports within functions count too. The files are only
    read. Where an import cannot be followed, everything it may stand for counts.

    Args:
      roots: Python files. Without any, the whole of nopr counts.
    """
    files = closure(roots) if roots else _NOPR.rglob("*.py")
    total = hashlib.sha256()
    for name, file in sorted((_name(file), file) for file in files):
        total.update(f"{name} {hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode())
    return total.hexdigest()[:10]


def closure(roots: Iterable[str | Path]) -> set[Path]:
    """The files that stand behind `roots`, themselves included."""
    waiting = [Path(root).resolve() for root in roots]
    beside = tuple(file.parent for file in waiting)
    follow = functools.cache(lambda *asked: list(_followed(*asked)))
    found: set[Path] = set()
    while waiting:
        file = waiting.pop()
        if file in found:
            continue
        found.add(file)
        for dotted, level in _imports(file, file.stat().st_mtime_ns)[0]:
            if dotted == "?":
                waiting += file.parent.glob("*.py")
            else:
                places = (file.parents[level - 1],) if level else beside
                waiting += follow(dotted, places, not level)
    return found


@functools.lru_cache(maxsize=1024)
def _imports(file: Path, changed_ns: int) -> tuple[set[tuple[str, int]], bool]:
    """The dotted names that a file imports, with their level, and whether it imports lazily.

    The name is `?` where it is known only at run time.
    """
    del changed_ns
    found: set[tuple[str, int]] = set()
    try:
        tree = ast.parse(file.read_bytes(), str(file))
    except (SyntaxError, ValueError):  # raised where it is imported
        return found, False
    lazy = any(isinstance(n, ast.FunctionDef) and n.name == "__getattr__" for n in tree.body)
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                for alias in names:
                    parts = alias.name.split(".")
                    # Without `as` the first name is bound, and gives whatever lies below it.
                    for length in range(len(parts) if alias.asname else 1, len(parts) + 1):
                        found.add((".".join(parts[:length]), 0))
            case ast.ImportFrom(module=module, names=names, level=level):
                prefix = f"{module}." if module else ""
                found |= {(prefix + alias.name, level) for alias in names}
            case ast.Call(func=ast.Name(id=called) | ast.Attribute(attr=called), args=[name, *_]):
                if called in ("import_module", "__import__"):
                    known = isinstance(name, ast.Constant) and not str(name.value).startswith(".")
                    if known:
                        found.add((str(name.value), 0))
                    elif not lazy:
                        found.add(("?", 0))
    return found, lazy


def _followed(name: str, places: tuple[Path, ...], top: bool) -> Iterator[Path]:
    """The files of a dotted name: of its packages, and of the module or what it may stand for.

    The last part may be a thing within a module. A package that imports its modules when they are
    first asked for counts as a whole, unless the name says which of them is meant.
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
            lazy = package.is_file() and _imports(package, package.stat().st_mtime_ns)[1]
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
    """A name that stays when a clone moves: the path within the outermost package."""
    home = file.parent
    while (home / "__init__.py").is_file():
        home = home.parent
    return file.relative_to(home).as_posix()
