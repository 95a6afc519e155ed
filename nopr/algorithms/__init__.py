"""Whole pruning procedures, built from a Pruner and a training function.

Those in `pure` are Algorithms, `(data, *, key) -> masks`: pure functions that work under jit, and
under vmap over datasets and keys. `resume_imp` is iterative pruning for one network that is too
large for that: a loop on the host that saves its state and resumes after an interruption.
`controls` sets the shuffled, redrawn, inverted and random masks beside those an algorithm chooses.
"""

from nopr.algorithms.controls import Branch, Start, branch, controls
from nopr.algorithms.pure import (
    Checked,
    Retrain,
    after_training,
    at_init,
    checked,
    during_training,
    imp,
)
from nopr.algorithms.resumable import Iterated, resume_imp

__all__ = [
    "Branch",
    "Checked",
    "Iterated",
    "Retrain",
    "Start",
    "after_training",
    "at_init",
    "branch",
    "checked",
    "controls",
    "during_training",
    "imp",
    "resume_imp",
]
