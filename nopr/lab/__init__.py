"""Machinery for experiments: launcher, run directories, checkpoints, plots, tables and pages.

The science does not import it. Its requirements beyond a plain install come with the extra `lab`.
"""

import importlib
from typing import Any

__all__ = [
    "checkpoints",
    "commands",
    "finding",
    "launch",
    "methods",
    "page",
    "peers",
    "plots",
    "progress",
    "records",
    "report",
    "settings",
    "steps",
    "stopping",
    "tables",
    "terminal",
    "training",
]


def __getattr__(name: str) -> Any:
    """Imports a module on first access."""
    if name in __all__:
        try:
            return importlib.import_module(f"nopr.lab.{name}")
        except ModuleNotFoundError as error:
            if not error.name or error.name.startswith("nopr"):
                raise
            raise ModuleNotFoundError(
                f"`nopr.lab.{name}` needs {error.name}, which is not installed. "
                "It comes with the extra `lab`: pip install 'nopr[lab]'.",
                name=error.name,
            ) from error
    raise AttributeError(f"module 'nopr.lab' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
