"""Criteria: configuration goes in, `(params, batch, *, masks, key) -> scores` comes out.

Higher scores are kept. A criterion takes the unmasked params, applies the masks itself and
differentiates at the masked weights. With `stacked=True` the batch has an extra leading axis of
batches, and gradients are *summed* over it before any absolute value is taken. Scores have the
dtype of the weights, but sums have at least float32, and `lamp` and `synflow` give float64.

Each family of criteria is a file. A new criterion is mostly a docstring and a call of
`from_weights` or `from_gradients`, and a line in the table of the contract tests, which every
criterion must pass.
"""

from nopr.criteria.activations import apoz, wanda
from nopr.criteria.combinators import average, by_filter, invert, normalize, shuffle
from nopr.criteria.contract import check_contract
from nopr.criteria.data_free import lamp, magnitude, random, synflow
from nopr.criteria.first_order import force, movement, snip, taylor
from nopr.criteria.fisher import woodfisher
from nopr.criteria.meta_gradients import prospr
from nopr.criteria.second_order import grasp, obd
from nopr.criteria.shared import check, from_gradients, from_weights
from nopr.criteria.spectral import spectral
from nopr.criteria.structured import batch_norm_scale, filter_l1, filter_l2, fpgm

__all__ = [
    "apoz",
    "average",
    "batch_norm_scale",
    "by_filter",
    "check",
    "check_contract",
    "filter_l1",
    "filter_l2",
    "force",
    "fpgm",
    "from_gradients",
    "from_weights",
    "grasp",
    "invert",
    "lamp",
    "magnitude",
    "movement",
    "normalize",
    "obd",
    "prospr",
    "random",
    "shuffle",
    "snip",
    "spectral",
    "synflow",
    "taylor",
    "wanda",
    "woodfisher",
]
