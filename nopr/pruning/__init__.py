"""From criterion, distribution, granularity and schedule to a Pruner.

The order is always score -> pool to granules -> counts -> top -> expand. A schedule repeats it,
each round among the granules still alive, or with `regrow` among those alive at the start.
"""

from nopr.pruning.composed import levels, pruner
from nopr.pruning.plans import check_at_most, level_counts, whole_counts

__all__ = ["check_at_most", "level_counts", "levels", "pruner", "whole_counts"]
