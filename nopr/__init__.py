"""The science of neural-network pruning in JAX.

What does a mask know about the data it was chosen on, and are the remaining weights a good
starting point for training? Modules serve as namespaces: `from nopr import masks, criteria`.
"""

import importlib
from typing import Any

__version__ = "0.3.0.dev0"

__all__ = [
    "algorithms",
    "axes",
    "budgets",
    "capture",
    "convolutions",
    "criteria",
    "data",
    "densities",
    "durable",
    "export",
    "finetune",
    "granularity",
    "information",
    "isometry",
    "jaxprs",
    "lab",
    "masks",
    "networks",
    "precision",
    "processes",
    "pruning",
    "ranking",
    "reconstruct",
    "schedules",
    "spectra",
    "surgery",
    "sweeps",
    "transforms",
    "trees",
    "typing",
]


def __getattr__(name: str) -> Any:
    """Imports a module on first access, so that `import nopr` stays light."""
    if name in __all__:
        return importlib.import_module(f"nopr.{name}")
    raise AttributeError(f"module 'nopr' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
