"""Whole pruning procedures, built from a Pruner and a training function.

Those in `pure` are Algorithms, `(data, *, key) -> masks`: pure functions that work under jit, and
under vmap over datasets and keys. `resume_imp` is iterative pruning for one network that is too
large for that: a loop on the host that saves its state and resumes after an interruption.
"""

from nopr.algorithms.pure import (
    Checked,
    after_training,
    at_init,
    checked,
    during_training,
    imp,
)
from nopr.algorithms.resumable import Iterated, resume_imp

__all__ = [
    "Checked",
    "Iterated",
    "after_training",
    "at_init",
    "checked",
    "during_training",
    "imp",
    "resume_imp",
]
