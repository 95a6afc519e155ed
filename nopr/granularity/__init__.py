"""The groups of weights that are kept or removed together: single weights, filters or units.

A `Granularity` pools the scores of weights into one score per granule, `masks.top` chooses among
granules, and `expand` spreads the choice over the weights. Masks are pooled like scores:
`pool(masks)` is the fraction of each granule that is alive. The outputs of a network are never
removed.
"""

from nopr.granularity.shared import Granularity, check, sizes
from nopr.granularity.single import unstructured
from nopr.granularity.slices import filters
from nopr.granularity.units import chain, inputs_from, units

__all__ = [
    "Granularity",
    "chain",
    "check",
    "filters",
    "inputs_from",
    "sizes",
    "units",
    "unstructured",
]
