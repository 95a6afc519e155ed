"""Criteria: configuration goes in, `(params, batch, *, masks, key) -> scores` comes out.

Higher scores are kept. A criterion takes the unmasked params, applies the masks itself and
differentiates at the masked weights. With `stacked=True` the batch has an extra leading axis of
batches, and gradients are *summed* over it before any absolute value is taken.

Each file here is a family of criteria. A new criterion is mostly a docstring and a call of
`shared.from_weights` or `shared.from_gradients`, plus one line in the table of the contract tests
that every criterion must pass.
"""

from nopr.criteria.combinators import invert
from nopr.criteria.data_free import magnitude, random, synflow
from nopr.criteria.first_order import snip
from nopr.criteria.second_order import grasp
from nopr.criteria.shared import check

__all__ = ["check", "grasp", "invert", "magnitude", "random", "snip", "synflow"]
