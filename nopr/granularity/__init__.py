"""The groups of weights that are kept or removed together: single weights, filters, blocks, units.

A `Granularity` pools the scores of weights into one score per granule, `masks.top` chooses among
granules, and `expand` spreads the choice over the weights. Masks are pooled like scores:
`pool(masks)` is the fraction of each granule that is alive. Filters and units never remove the
outputs of a network.

Kernels are [..., in, out]. On a kernel of three dimensions, which may be one of a 1-D convolution,
[width, in, out], or of attention, [in, heads, features] or [heads, features, out], the axes must be
given by path; nothing else tells them apart.
"""

from nopr.granularity.shared import Granularity, check, sizes
from nopr.granularity.single import unstructured
from nopr.granularity.slices import channels, filters, rows
from nopr.granularity.tiles import blocks, n_of_m
from nopr.granularity.units import chain, inputs_from, units

__all__ = [
    "Granularity",
    "blocks",
    "chain",
    "channels",
    "check",
    "filters",
    "inputs_from",
    "n_of_m",
    "rows",
    "sizes",
    "units",
    "unstructured",
]
