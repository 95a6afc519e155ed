"""Whole pruning procedures, from a Pruner and a way to train.

Those of `pure` are Algorithms, `(data, *, key) -> masks`: pure functions that jit, and vmap over
datasets and keys. `resume_imp` is the same iterative pruning of one network that is too large for
that: a loop on the host that keeps its state and resumes where it was cut off.
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
