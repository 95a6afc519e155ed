"""For experiments: launching, run directories, stored stages, checkpoints, plots, tables, pages.

Nothing in the science imports it. It comes with the extra `lab`.
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
    """Imports a module when it is first asked for."""
    if name in __all__:
        return importlib.import_module(f"nopr.lab.{name}")
    raise AttributeError(f"module 'nopr.lab' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
