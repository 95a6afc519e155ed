"""Runs all benchmarks in name order, or those that are named.

python -m experiments.benchmarks [NAME ...]
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
import sys
from collections.abc import Sequence

from experiments import benchmarks


def main(names: Sequence[str]) -> None:
    """Runs the benchmarks of these names; all if there are none."""
    known = sorted(
        module.name
        for module in pkgutil.iter_modules(benchmarks.__path__)
        if not module.name.startswith("_")
    )
    for name in names:
        if name not in known:
            nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
            sys.exit(f"There is no benchmark {name!r}; the nearest is {nearest[0]!r}.")
    for name in names or known:
        print(f"== {name.replace('_', ' ')}", flush=True)
        importlib.import_module(f"{benchmarks.__name__}.{name}").main()
        print(flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
